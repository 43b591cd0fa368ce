//! A lane's tree: every question may have several answers, and be asked in several ways.

use lathe_protocol::{ChatLane, ChatNode, Message, Role};

/// The nodes from the conversation's beginning to `leaf`.
pub fn path_to(lane: &ChatLane, leaf: Option<usize>) -> Vec<usize> {
    let mut path: Vec<usize> =
        std::iter::successors(leaf, |&node| lane.nodes.get(node).and_then(|node| node.parent))
            // A record that was damaged must not hang the window.
            .take(lane.nodes.len())
            .filter(|&node| node < lane.nodes.len())
            .collect();
    path.reverse();
    path
}

/// The branch that is shown.
pub fn path(lane: &ChatLane) -> Vec<usize> {
    path_to(lane, lane.leaf)
}

/// The node's alternatives in the order they were made, itself among them.
pub fn siblings(lane: &ChatLane, node: usize) -> Vec<usize> {
    let parent = lane.nodes[node].parent;
    (0..lane.nodes.len()).filter(|&other| lane.nodes[other].parent == parent).collect()
}

/// Adds a message after `parent` and shows it.
pub fn append(lane: &mut ChatLane, parent: Option<usize>, message: Message) -> usize {
    lane.nodes.push(ChatNode { parent, message, stats: None, answered_by: None });
    let node = lane.nodes.len() - 1;
    lane.leaf = Some(node);
    node
}

/// Shows the newest branch that goes through `node`.
pub fn show(lane: &mut ChatLane, node: usize) {
    let mut leaf = node;
    while let Some(child) = (leaf + 1..lane.nodes.len()).rev().find(|&n| lane.nodes[n].parent == Some(leaf)) {
        leaf = child;
    }
    lane.leaf = Some(leaf);
}

/// Whether this is an answer nothing came of.
pub fn is_empty_answer(node: &ChatNode) -> bool {
    let Message { role, content, thinking, tool_calls, .. } = &node.message;
    *role == Role::Assistant && content.is_empty() && thinking.is_none() && tool_calls.is_empty()
}

/// What the model is sent so that it writes `answer`. Turns that never got an answer are left out: the model has
/// not seen them, and templates want roles to alternate.
pub fn prompt(system: &str, lane: &ChatLane, answer: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    if !system.trim().is_empty() {
        messages.push(Message::new(Role::System, system));
    }
    let path = path_to(lane, Some(answer));
    for (place, &node) in path.iter().enumerate().filter(|&(_, &node)| node != answer) {
        let unanswered = |node: usize| node != answer && is_empty_answer(&lane.nodes[node]);
        if !unanswered(node) && !path.get(place + 1).is_some_and(|&next| unanswered(next)) {
            messages.push(lane.nodes[node].message.clone());
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(messages: &[(Option<usize>, Role, &str)]) -> ChatLane {
        let mut lane = ChatLane::default();
        for &(parent, role, text) in messages {
            append(&mut lane, parent, Message::new(role, text));
        }
        lane
    }

    #[test]
    fn branches_are_found_again() {
        let mut lane = lane(&[
            (None, Role::User, "a"),
            (Some(0), Role::Assistant, "b"),
            (Some(1), Role::User, "c"),
            (Some(0), Role::Assistant, "b2"),
        ]);
        assert_eq!(path(&lane), [0, 3]);
        assert_eq!(siblings(&lane, 3), [1, 3]);
        show(&mut lane, 1);
        assert_eq!(path(&lane), [0, 1, 2]);
    }

    #[test]
    fn a_turn_without_an_answer_is_not_sent() {
        let lane = lane(&[
            (None, Role::User, "lost"),
            (Some(0), Role::Assistant, ""),
            (Some(1), Role::User, "again"),
            (Some(2), Role::Assistant, ""),
        ]);
        let sent: Vec<String> =
            prompt("Be kind", &lane, 3).into_iter().map(|message| message.content).collect();
        assert_eq!(sent, ["Be kind", "again"]);
    }
}
