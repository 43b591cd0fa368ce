//! What is wrong with a model's files, one sentence each.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use lathe_protocol::{ExpertFormat, ExpertsShape, ModelProblem, ModelShape, Quant};
use serde::Deserialize;
use serde_json::Value;

use super::{contents::Contents, gguf, safetensors};

/// How closely to look.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Presence, headers and lengths.
    Headers,
    /// The JSON files are parsed too.
    Full,
}

/// A model's files as they are.
#[derive(Default)]
pub(crate) struct Findings {
    pub architecture: Option<String>,
    pub parameters: Option<u64>,
    pub license: Option<String>,
    pub shape: Option<ModelShape>,
    /// Whether there are output weights apart from the embeddings.
    has_head: bool,
    pub problems: Vec<ModelProblem>,
}

impl Findings {
    fn add(&mut self, file: impl Into<String>, problem: impl Into<String>) {
        self.problems.push(ModelProblem { file: file.into(), problem: problem.into() });
    }

    fn missing(&mut self, file: &str) {
        self.add(file, "is missing");
    }

    /// The first problem as one sentence.
    pub(crate) fn first_problem(&self) -> Option<String> {
        self.problems.first().map(|problem| format!("{} {}", problem.file, problem.problem))
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Looks at a model folder or `.gguf` file.
pub(crate) fn inspect(path: &Path, depth: Depth) -> Findings {
    if is_gguf(path)
        && let (Some(folder), name) = (path.parent(), file_name(path))
    {
        let mut findings = Findings::default();
        inspect_gguf(&Contents::Folder(folder), &name, &mut findings);
        return findings;
    }
    let contents = Contents::Folder(path);
    match contents.names() {
        Ok(names) => inspect_contents(&contents, &names, depth),
        Err(error) => {
            let mut findings = Findings::default();
            findings.add(file_name(path), format!("cannot be read: {error}"));
            findings
        }
    }
}

/// Looks at a model's files of these names.
pub(crate) fn inspect_contents(contents: &Contents<'_>, names: &[String], depth: Depth) -> Findings {
    let mut findings = Findings::default();
    let ggufs: Vec<&String> = names.iter().filter(|name| is_gguf(name.as_ref())).collect();
    if !ggufs.is_empty() && !names.iter().any(|name| name == "config.json") {
        for name in ggufs {
            inspect_gguf(contents, name, &mut findings);
        }
        findings.license = findings.license.or_else(|| license(contents));
        return findings;
    }
    inspect_config(contents, &mut findings);
    inspect_tokenizer(contents, depth, &mut findings);
    inspect_weights(contents, names, &mut findings);
    findings.license = license(contents);
    if let Some(shape) = &mut findings.shape {
        shape.tie_word_embeddings |= !findings.has_head;
    }
    findings
}

/// `license` of a model card's front matter; of `other` its `license_name`.
fn license(contents: &Contents<'_>) -> Option<String> {
    let text = String::from_utf8(contents.read("README.md").ok()?).ok()?;
    let mut lines = text.lines().map(str::trim_end);
    let front: Vec<&str> =
        (lines.next() == Some("---")).then(|| lines.take_while(|line| *line != "---").collect())?;
    let value = |key: &str| {
        let at = front.iter().position(|line| line.starts_with(key))?;
        let value = match front[at][key.len()..].trim() {
            // A list; the first stands for it.
            "" => front.get(at + 1)?.trim_start().strip_prefix('-')?,
            value => value,
        };
        let value = value.trim_matches(|c: char| c.is_whitespace() || "\"'[]".contains(c));
        (!value.is_empty()).then(|| value.to_owned())
    };
    match value("license:") {
        Some(other) if other == "other" => value("license_name:").or(Some(other)),
        license => license,
    }
}

/// None if a size is missing.
fn shape(config: &Value) -> Option<ModelShape> {
    // Where a model sees or hears too, its language model has a config of its own.
    let config = config.get("text_config").unwrap_or(config);
    let size = |key: &str| config[key].as_u64().map(|value| value as usize);
    let (hidden_size, num_attention_heads) = (size("hidden_size")?, size("num_attention_heads")?);
    Some(ModelShape {
        num_layers: size("num_hidden_layers")?,
        hidden_size,
        intermediate_size: size("moe_intermediate_size").or(size("intermediate_size"))?,
        num_attention_heads,
        num_key_value_heads: size("num_key_value_heads").unwrap_or(num_attention_heads),
        head_dim: size("head_dim").or(hidden_size.checked_div(num_attention_heads))?,
        vocab_size: size("vocab_size")?,
        context_length: size("max_position_embeddings")?,
        tie_word_embeddings: config["tie_word_embeddings"].as_bool().unwrap_or(false),
        is_gguf: false,
        linears: Quant::None,
        experts: size("num_local_experts").or(size("num_experts")).zip(size("num_experts_per_tok")).map(
            |(num_experts, experts_per_token)| ExpertsShape {
                num_experts,
                experts_per_token,
                format: if config["quantization_config"]["quant_method"] == "mxfp4" {
                    ExpertFormat::Mxfp4
                } else if config["dtype"] == "bfloat16" || config["torch_dtype"] == "bfloat16" {
                    ExpertFormat::Bf16
                } else {
                    ExpertFormat::F32
                },
            },
        ),
    })
}

pub(crate) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

pub(crate) fn is_pickle(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["bin", "pt", "pth"].iter().any(|known| extension == *known))
}

pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn inspect_gguf(contents: &Contents<'_>, name: &str, findings: &mut Findings) {
    let header = contents.open(name).and_then(|(reader, file_bytes)| gguf::read_header(reader, file_bytes));
    match header {
        Ok(header) => {
            findings.architecture = header.architecture;
            findings.parameters = Some(header.num_parameters);
            findings.license = header.license;
            findings.shape = header.shape;
        }
        Err(problem) => findings.add(name, problem),
    }
}

fn inspect_config(contents: &Contents<'_>, findings: &mut Findings) {
    const CONFIG: &str = "config.json";
    if !contents.has(CONFIG) {
        return findings.missing(CONFIG);
    }
    let config: Value = match contents.json(CONFIG) {
        Ok(config) => config,
        Err(error) => return findings.add(CONFIG, format!("cannot be used: {error}")),
    };
    findings.shape = shape(&config);
    let architecture = config["architectures"][0].as_str().or_else(|| config["model_type"].as_str());
    match architecture {
        Some(architecture) => findings.architecture = Some(architecture.to_owned()),
        None => findings.add(CONFIG, "names no architecture (`architectures` or `model_type`)"),
    }
}

fn inspect_tokenizer(contents: &Contents<'_>, depth: Depth, findings: &mut Findings) {
    const TOKENIZER: &str = "tokenizer.json";
    if !contents.has(TOKENIZER) {
        return findings.missing(TOKENIZER);
    }
    if depth == Depth::Full
        && let Err(error) = contents.json::<serde::de::IgnoredAny>(TOKENIZER)
    {
        findings.add(TOKENIZER, format!("cannot be used: {error}"));
    }
}

fn inspect_weights(contents: &Contents<'_>, names: &[String], findings: &mut Findings) {
    const INDEX: &str = "model.safetensors.index.json";
    const SINGLE: &str = "model.safetensors";
    if contents.has(INDEX) {
        let Index { weight_map } = match contents.json(INDEX) {
            Ok(index) => index,
            Err(error) => return findings.add(INDEX, format!("cannot be used: {error}")),
        };
        let mut tensors_of: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (tensor, shard) in &weight_map {
            tensors_of.entry(shard).or_default().insert(tensor);
        }
        for (shard, tensors) in tensors_of {
            inspect_shard(contents, shard, &tensors, findings);
        }
        return;
    }
    if contents.has(SINGLE) || names.iter().any(|name| name == SINGLE) {
        return inspect_shard(contents, SINGLE, &BTreeSet::new(), findings);
    }
    let shards = names.iter().filter(|name| name.ends_with(".safetensors")).count();
    if shards > 0 {
        findings.add(INDEX, format!("is missing, though there are {shards} other safetensors files"));
    } else if let Some(pickle) = names.iter().find(|name| is_pickle(name.as_ref())) {
        findings.add(pickle.clone(), "is a pickle: only safetensors and GGUF weights are read");
    } else {
        findings.missing(SINGLE);
    }
}

/// `tensors` are those that the index places here; none without an index.
fn inspect_shard(contents: &Contents<'_>, shard: &str, tensors: &BTreeSet<&str>, findings: &mut Findings) {
    if !contents.has(shard) {
        return findings.missing(shard);
    }
    let opened = contents.open(shard);
    let header = match opened.and_then(|(reader, file_bytes)| safetensors::read(reader, file_bytes)) {
        Ok(header) => header,
        Err(problem) => return findings.add(shard, problem),
    };
    findings.parameters = Some(findings.parameters.unwrap_or(0) + header.num_parameters());
    if let Some(shape) = &mut findings.shape {
        // A shard without linears says nothing of them.
        if shape.linears == Quant::None {
            shape.linears = header.nf4(|name| name.contains(".self_attn."));
        }
        if let Some(experts) = &mut shape.experts {
            match header.nf4(|name| name.contains(".experts.")) {
                Quant::None => {}
                Quant::Nf4 => experts.format = ExpertFormat::Nf4,
                Quant::Nf4Double => experts.format = ExpertFormat::Nf4Double,
            }
        }
    }
    let held: BTreeSet<&str> = header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    findings.has_head |= held.iter().any(|name| name.ends_with("lm_head.weight"));
    let absent: Vec<&&str> = tensors.difference(&held).collect();
    if let Some(first) = absent.first() {
        let more = match absent.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        findings.add(shard, format!("lacks {first}{more}, which the index places there"));
    }
}
