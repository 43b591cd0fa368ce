//! What the starter is: its shape, its template, and how it is trained.

use lathe_protocol::{Method, RunConfig, Schedule};
use serde_json::{Value, json};

pub const VOCAB_SIZE: usize = 4096;
pub const CONTEXT_LENGTH: usize = 256;
/// Of the fresh weights.
pub const INIT_SEED: u64 = 1;
/// Every so many rows of the intents measure the loss. They are trained too: it tells how well the model knows its text.
pub const MEASURED_ONE_IN: usize = 97;

const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}\
{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

pub fn model_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": CONTEXT_LENGTH,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    })
}

pub fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": null,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": CONTEXT_LENGTH,
        "chat_template": CHAT_TEMPLATE,
    })
}

pub fn generation_config() -> Value {
    json!({ "eos_token_id": 2, "pad_token_id": 0 })
}

fn base() -> RunConfig {
    RunConfig {
        method: Method::Full,
        max_seq_len: CONTEXT_LENGTH,
        packing: true,
        batch_size: 8,
        grad_accum: 1,
        weight_decay: 0.05,
        schedule: Schedule::Cosine,
        warmup_ratio: 0.03,
        save_steps: 500,
        save_total_limit: 1,
        eval_steps: 200,
        ..RunConfig::default()
    }
}

/// Stage 1 reads people's chatter and the intents together, and learns English.
pub fn stage1() -> RunConfig {
    RunConfig { learning_rate: 2e-3, epochs: 1.5, ..base() }
}

/// Stage 2 reads the intents alone, and learns who it is.
pub fn stage2() -> RunConfig {
    RunConfig { learning_rate: 1e-3, epochs: 6.0, ..base() }
}
