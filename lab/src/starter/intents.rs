//! `resources/starter/corpus/intents.json` into conversations: paraphrases, slots and follow-ups, multiplied.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::corpus::Conversation;
use crate::repo;

/// The seed and number of mixed conversations the starter was trained with.
pub const SEED: u64 = 20_240_601;
pub const NUM_MIXED: usize = 5000;

/// What we wrote: every intent with the ways to say it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intents {
    /// Said before a question now and then.
    openers: Vec<String>,
    intents: Vec<Intent>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Intent {
    #[serde(rename = "name")]
    _name: String,
    role: Role,
    /// Conversations that are about this intent alone.
    count: usize,
    user: Vec<String>,
    assistant: Vec<String>,
    /// Exchanges that may come after.
    #[serde(default)]
    follow: Vec<Exchange>,
    #[serde(default)]
    slots: Slots,
}

/// Where in a conversation an intent belongs.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Role {
    Open,
    Topic,
    React,
    Close,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exchange {
    user: Vec<String>,
    assistant: Vec<String>,
}

/// Values for the `{key}`s of an intent's texts, row by row.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Slots {
    keys: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// Knuth's linear congruential generator, upper bits: the same in every language.
struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % limit as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

impl Intents {
    pub fn read(path: &Path) -> Result<Self> {
        let intents: Self = serde_json::from_str(&repo::read_to_string(path)?)
            .with_context(|| format!("Not a list of intents: {}", path.display()))?;
        for role in [Role::Open, Role::Topic, Role::React, Role::Close] {
            let found = intents.intents.iter().any(|intent| intent.role == role);
            ensure!(found, "An intent of each role is needed: {}", path.display());
        }
        Ok(intents)
    }

    /// Every intent on its own, then `num_mixed` conversations of several, shuffled.
    pub fn expand(&self, seed: u64, num_mixed: usize) -> Vec<Conversation> {
        let mut rng = Rng(seed);
        let mut conversations = Vec::new();

        // 1. Every intent on its own.
        for intent in &self.intents {
            for index in 0..intent.count {
                let mut turns = Vec::new();
                let opener = intent.role == Role::Topic && rng.below(10) == 0;
                let rows = &intent.slots.rows;
                let row = if rows.is_empty() { &[] } else { rows[index % rows.len()].as_slice() };
                self.exchange(&mut rng, &mut turns, intent, row, opener, false);
                conversations.push(turns);
            }
        }

        // 2. Conversations of two to four exchanges.
        let of_role =
            |role| self.intents.iter().filter(move |intent| intent.role == role).collect::<Vec<_>>();
        let [open, topics, react, close] = [Role::Open, Role::Topic, Role::React, Role::Close].map(of_role);
        for _ in 0..num_mixed {
            let mut turns = Vec::new();
            if rng.below(3) == 0 {
                let (intent, follow) = (rng.pick(&open), rng.below(2) == 0);
                self.add(&mut rng, &mut turns, intent, follow);
            }
            for _ in 0..=rng.below(3) {
                let (intent, follow) = (topic(&mut rng, &topics), rng.below(2) == 0);
                self.add(&mut rng, &mut turns, intent, follow);
                if rng.below(5) == 0 {
                    let intent = rng.pick(&react);
                    self.add(&mut rng, &mut turns, intent, false);
                }
            }
            if turns.len() == 2 || rng.below(5) == 0 {
                let intent = rng.pick(&close);
                self.add(&mut rng, &mut turns, intent, false);
            }
            turns.truncate(8);
            conversations.push(turns);
        }

        // 3. Shuffle (Fisher-Yates).
        for last in (1..conversations.len()).rev() {
            let other = rng.below(last + 1);
            conversations.swap(last, other);
        }
        conversations.into_iter().map(Conversation::new).collect()
    }

    /// One exchange with any of the intent's slot rows.
    fn add(&self, rng: &mut Rng, turns: &mut Vec<String>, intent: &Intent, follow: bool) {
        // Drawn even from the single empty row of an intent without slots.
        let row = rng.below(intent.slots.rows.len().max(1));
        let row = intent.slots.rows.get(row).map_or(&[][..], Vec::as_slice);
        self.exchange(rng, turns, intent, row, false, follow);
    }

    fn exchange(
        &self,
        rng: &mut Rng,
        turns: &mut Vec<String>,
        intent: &Intent,
        row: &[String],
        opener: bool,
        follow: bool,
    ) {
        let Intent { user, assistant, follow: follow_ups, slots: Slots { keys, .. }, .. } = intent;
        let say = |rng: &mut Rng, ways: &[String]| {
            let way: &String = rng.pick(ways);
            fill(way, keys, row)
        };
        let question = say(rng, user);
        let question = if opener { rng.pick(&self.openers).clone() + &question } else { question };
        turns.push(styled(rng, question));
        turns.push(say(rng, assistant));
        if follow && !follow_ups.is_empty() {
            let Exchange { user, assistant } = rng.pick(follow_ups);
            let question = say(rng, user);
            turns.push(styled(rng, question));
            turns.push(say(rng, assistant));
        }
    }
}

/// An intent in proportion to its count.
fn topic<'a>(rng: &mut Rng, topics: &[&'a Intent]) -> &'a Intent {
    let mut rest = rng.below(topics.iter().map(|intent| intent.count).sum());
    for intent in topics {
        if rest < intent.count {
            return intent;
        }
        rest -= intent.count;
    }
    unreachable!("the rest is below the sum of the counts")
}

/// Puts the row's values in: `{key}` as they are, `{KEY}` with a capital first letter.
fn fill(template: &str, keys: &[String], row: &[String]) -> String {
    keys.iter().zip(row).fold(template.to_owned(), |text, (key, value)| {
        let mut letters = value.chars();
        let capitalized: String =
            letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
        text.replace(&format!("{{{key}}}"), value)
            .replace(&format!("{{{}}}", key.to_uppercase()), &capitalized)
    })
}

/// A user's text as carefully typed as people do: half the time as it is, else in lower case without its end.
fn styled(rng: &mut Rng, text: String) -> String {
    let care = rng.below(4);
    if care < 2 {
        return text;
    }
    let mut careless = text.to_lowercase().trim_end_matches(['.', '!', '?', ' ']).to_owned();
    if care == 3 {
        careless.retain(|letter| !"',\"".contains(letter));
    }
    if careless.is_empty() { text } else { careless }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::starter::corpus;

    #[test]
    fn the_intents_expand_to_the_corpus_of_the_reference() {
        let path = repo::root().join("resources/starter/corpus/intents.json");
        let conversations = Intents::read(&path).unwrap().expand(SEED, NUM_MIXED);
        assert_eq!(conversations.len(), 17_886);
        assert_eq!(corpus::hash(&conversations), corpus::INTENTS_SHA256);
    }

    #[test]
    fn slots_are_filled_in_both_cases() {
        let keys = ["what".to_owned(), "how".to_owned()];
        let row = ["the sun".to_owned(), "hot".to_owned()];
        assert_eq!(fill("{WHAT} is {how}; {what}?", &keys, &row), "The sun is hot; the sun?");
    }
}
