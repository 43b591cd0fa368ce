use lathe_protocol::Consequence;

use super::ModelFamily;
use crate::{model::ModelConfig, reply::ReplyForm, text_files::TextFiles, weights::Weights};

/// What the choice of this model decides, in plain words.
pub fn explain(config: &ModelConfig, weights: &Weights, text_files: &TextFiles) -> Vec<Consequence> {
    let told = |topic: &str, text: String| Consequence { topic: topic.into(), text };
    let mut consequences = vec![told("Weights", told_weights(config, weights))];
    if let Some(experts) = &config.experts {
        let text = format!(
            "Each block has {} experts, of which a token runs {}. They stay frozen unless target parameters name them.",
            experts.num_experts, experts.experts_per_token
        );
        consequences.push(told("Experts", text));
    }
    let windowed = config.windows.iter().filter(|window| window.is_some()).count();
    if let Some(window) = config.windows.iter().flatten().next() {
        let layers = config.num_layers;
        let text =
            format!("{windowed} of {layers} layers see only the last {window} tokens, the others all.");
        consequences.push(told("Attention", text));
    }
    consequences.push(told("LoRA", targets(config.family)));
    consequences.push(told("Template", template(text_files)));
    consequences.push(told("Replies", replies(text_files.reply_form()).into()));
    if let Some(text) = reasoning(text_files) {
        consequences.push(told("Reasoning", text.into()));
    }
    consequences
}

fn told_weights(config: &ModelConfig, weights: &Weights) -> String {
    let dtypes = weights.dtypes();
    let blocks: Vec<&str> = dtypes.keys().map(String::as_str).filter(|name| is_block_type(name)).collect();
    if !blocks.is_empty() {
        let blocks = blocks.join(", ");
        return format!(
            "Quantised as {blocks}. Chat uses them as they are; training unpacks all but experts."
        );
    }
    // In safetensors, bytes are packed weights: MXFP4 in blocks, else NF4.
    if weights.has("model.layers.0.mlp.experts.gate_up_proj_blocks") {
        "The experts are MXFP4, 4 bits a weight, and stay packed. QLoRA would quantise them a second time and is \
         refused: LoRA needs no more memory here."
            .into()
    } else if dtypes.contains_key("U8") {
        "Already NF4, 4 bits a weight: LoRA on it is QLoRA.".into()
    } else {
        let which = if config.experts.is_some() { "linears and experts" } else { "linears" };
        format!("Not quantised. QLoRA holds the blocks’ {which} in NF4, an eighth of what f32 takes.")
    }
}

/// Whether a type of GGUF shares scales among the values of a block.
fn is_block_type(name: &str) -> bool {
    name.starts_with('Q') || name == "MXFP4"
}

fn targets(family: ModelFamily) -> String {
    format!("Unless told otherwise it adapts {} of every block.", family.default_targets().join(", "))
}

fn template(text_files: &TextFiles) -> String {
    let template = text_files.chat_template();
    let how = if template.has_generation_tags() {
        "which marks what the assistant wrote"
    } else if template.has_twin() {
        "with Lathe’s twin of it, which marks what the assistant wrote"
    } else {
        "what the assistant wrote is found by comparing renders"
    };
    format!("{}; {how}.", template.origin)
}

fn replies(form: ReplyForm) -> &'static str {
    match form {
        ReplyForm::Plain => "All of a reply is the answer.",
        ReplyForm::Tagged => "Thoughts stand between <think> and </think>, and are shown apart.",
        ReplyForm::Harmony => {
            "Harmony channels: analysis is thought, commentary calls tools, final is the answer. \
             A reply ends at <|return|> or <|call|> only."
        }
    }
}

fn reasoning(text_files: &TextFiles) -> Option<&'static str> {
    if text_files.supports_effort() {
        Some("Low, medium or high effort: in chat, and row by row in training data as reasoning_effort.")
    } else if text_files.supports_thinking() {
        Some("Thinking can be turned off or given a budget of tokens.")
    } else {
        None
    }
}
