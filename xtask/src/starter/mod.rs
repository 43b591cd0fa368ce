//! `cargo xtask train-starter`: makes `resources/starter/` from nothing, the way a user would train: our own engine,
//! `method = "full"`, on permissive text.

mod tokenizer;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow};
use candle_core::Tensor;
use lathe_engine::{
    model::{Model, ModelConfig},
    tokenize::TokenizedRow,
    train::{self, Surroundings, trainables},
};
use lathe_protocol::{EventBody, Message, Method, RunConfig, Schedule, TrainJob};
use rand::SeedableRng as _;
use rand_distr::Distribution as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

const VOCAB_SIZE: usize = 4096;
const CONTEXT_LENGTH: usize = 256;

const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}\
{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
}

fn config_json() -> Value {
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

fn read(path: &Path) -> Result<Vec<Conversation>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn tokenized(conversations: &[Conversation], tokenizer: &Tokenizer) -> Result<Vec<TokenizedRow>> {
    let encode = |text: &str| -> Result<Vec<u32>> {
        Ok(tokenizer.encode_fast(text, false).map_err(|error| anyhow!("{error}"))?.get_ids().to_vec())
    };
    let mut rows = Vec::new();
    for (row, conversation) in conversations.iter().enumerate() {
        let (mut ids, mut loss_mask) = (Vec::new(), Vec::new());
        for message in &conversation.messages {
            let role = serde_json::to_value(message.role)?;
            let head = encode(&format!("<|im_start|>{}\n", role.as_str().unwrap_or_default()))?;
            let body = encode(&format!("{}<|im_end|>", message.content))?;
            let tail = encode("\n")?;
            let learns = role == "assistant";
            for (part, flag) in [(head, false), (body, learns), (tail, false)] {
                loss_mask.extend(std::iter::repeat_n(flag, part.len()));
                ids.extend(part);
            }
        }
        ids.truncate(CONTEXT_LENGTH);
        loss_mask.truncate(CONTEXT_LENGTH);
        if loss_mask.iter().any(|flag| *flag) {
            rows.push(TokenizedRow { row, line: row + 1, ids, loss_mask });
        }
    }
    Ok(rows)
}

pub fn train_starter(args: &[String]) -> Result<()> {
    let stage1_epochs: f64 = args.first().map_or(Ok(2.0), |text| text.parse())?;
    let stage2_epochs: f64 = args.get(1).map_or(Ok(4.0), |text| text.parse())?;
    let work = PathBuf::from("/tmp/starter");
    let intents = read(&work.join("conversations.jsonl"))?;
    let chitchat = read(&work.join("chitchat.jsonl"))?;
    let pirate = read(Path::new("resources/samples/pirate.jsonl"))?;

    let texts: Vec<String> = intents.iter().chain(&chitchat).chain(&pirate)
        .flat_map(|conversation| conversation.messages.iter().map(|message| message.content.clone()))
        .collect();
    let tokenizer = tokenizer::train(&texts, VOCAB_SIZE)?;
    let folder = work.join("stage0");
    std::fs::create_dir_all(&folder)?;
    tokenizer.save(folder.join("tokenizer.json"), true).map_err(|error| anyhow!("{error}"))?;
    std::fs::write(folder.join("config.json"), serde_json::to_string_pretty(&config_json())?)?;
    std::fs::write(folder.join("tokenizer_config.json"), serde_json::to_string_pretty(&json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": null, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
        "model_max_length": CONTEXT_LENGTH, "chat_template": CHAT_TEMPLATE,
    }))?)?;
    std::fs::write(folder.join("generation_config.json"), "{\"eos_token_id\": 2, \"pad_token_id\": 0}\n")?;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let normal = rand_distr::StandardNormal;
    let model = Model::fresh(ModelConfig::from_json(&config_json())?, |count| {
        (0..count).map(|_| normal.sample(&mut rng)).collect()
    })?;
    let tensors: BTreeMap<String, Tensor> =
        trainables(&model, Method::Full).iter().map(|t| (t.name.clone(), t.var.as_tensor().clone())).collect();
    lathe_engine::files::write_safetensors(&folder.join("model.safetensors"), &tensors)?;

    let intent_rows = tokenized(&intents, &tokenizer)?;
    let mut mixed = tokenized(&chitchat, &tokenizer)?;
    println!("intents {} rows {} tokens; chitchat {} rows {} tokens", intent_rows.len(), intent_rows.iter().map(|r| r.ids.len()).sum::<usize>(), mixed.len(), mixed.iter().map(|r| r.ids.len()).sum::<usize>());
    mixed.extend(intent_rows.iter().cloned());
    let held_out: Vec<TokenizedRow> = intent_rows.iter().step_by(97).cloned().collect();
    let base = RunConfig {
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
    };
    run(&folder, &work.join("stage1"), &mixed, &held_out, RunConfig { learning_rate: 2e-3, epochs: stage1_epochs, ..base.clone() })?;
    run(&work.join("stage1"), &work.join("stage2"), &intent_rows, &held_out, RunConfig { learning_rate: 1e-3, epochs: stage2_epochs, ..base })?;
    Ok(())
}

fn run(model: &Path, out: &Path, rows: &[TokenizedRow], eval: &[TokenizedRow], config: RunConfig) -> Result<()> {
    let started = Instant::now();
    let stop = AtomicBool::new(false);
    let job = TrainJob {
        model: model.display().to_string(),
        model_name: "starter".into(),
        data: "corpus".into(),
        eval_data: None,
        out_dir: out.display().to_string(),
        config,
        init_adapter: None,
        resume: true,
        device: "cpu".into(),
    };
    let world = Surroundings { clock: &|| started.elapsed().as_secs_f64(), stop: &stop };
    let mut total = 0;
    train::run_on_rows(&job, rows, eval, &world, &mut |event| match event {
        EventBody::TrainingStarted { total_steps, .. } => { total = total_steps; println!("{event:?}"); }
        EventBody::Step(s) if s.step % 20 == 0 || s.step < 5 => println!("{:.0}s step {}/{total} loss {:.4} gn {:.3} lr {:.2e} {:.0} tok/s", started.elapsed().as_secs_f64(), s.step, s.loss, s.grad_norm, s.lr, s.tokens_per_second),
        EventBody::Eval(e) => println!("eval {e:?}"),
        _ => {}
    })?;
    Ok(())
}
