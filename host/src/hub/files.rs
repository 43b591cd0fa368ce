//! Which files of a repository a model is made of.

use lathe_protocol::{ErrorCode, ErrorInfo};

use super::name::{Named, quant_of};
use crate::{download::RemoteFile, error::Result, models::check::is_gguf};

/// Taken first where there are several and nobody chose.
const USUAL_QUANTS: [&str; 6] = ["Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "Q8_0", "MXFP4"];

/// Of the files, those a download fetches; and the GGUF among them, if one had to be chosen.
pub(crate) struct Wanted {
    pub files: Vec<RemoteFile>,
    pub gguf: Option<String>,
    /// Other GGUFs that could have been.
    pub others: Vec<String>,
}

impl Wanted {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.name == name)
    }

    pub(crate) fn has_weights(&self) -> bool {
        self.gguf.is_some() || self.files.iter().any(|file| file.name.ends_with(".safetensors"))
    }
}

pub(crate) fn wanted(named: &Named, files: &[RemoteFile]) -> Result<Wanted> {
    let has = |name: &str| files.iter().any(|file| file.name == name);
    let is_indexed = has("model.safetensors.index.json");
    let has_shards = files.iter().any(|file| is_shard(&file.name));
    let is_weight = |name: &str| {
        let is_own = if is_indexed && has_shards {
            is_shard(name)
        } else {
            !has("model.safetensors") || name == "model.safetensors"
        };
        is_own && name.ends_with(".safetensors") && !name.starts_with("consolidated") && !name.contains('/')
    };
    let has_safetensors = files.iter().any(|file| is_weight(&file.name));
    let ggufs: Vec<&str> =
        files.iter().map(|file| file.name.as_str()).filter(|name| is_whole_gguf(name)).collect();
    let gguf = match &named.gguf {
        Some(choice) => Some(pick_gguf(&ggufs, choice).ok_or_else(|| none_such(named, choice, &ggufs))?),
        None if has_safetensors => None,
        None => usual(&ggufs),
    };
    let is_wanted = |name: &str| match gguf {
        Some(chosen) => name == chosen || is_paper(name),
        None => is_paper(name) || is_description(name) || is_weight(name),
    };
    Ok(Wanted {
        files: files.iter().filter(|file| is_wanted(&file.name)).cloned().collect(),
        gguf: gguf.map(str::to_owned),
        others: ggufs
            .iter()
            .filter(|name| gguf.is_some_and(|chosen| chosen != **name))
            .map(|name| (*name).to_owned())
            .collect(),
    })
}

fn none_such(named: &Named, choice: &str, ggufs: &[&str]) -> ErrorInfo {
    let error = ErrorInfo::new(ErrorCode::NotFound, format!("{} has no GGUF file {choice}", named.id));
    if ggufs.is_empty() {
        return error.hint("it has none at all: write its name alone");
    }
    let choices: Vec<String> =
        ggufs.iter().map(|file| quant_of(file).unwrap_or_else(|| (*file).to_owned())).collect();
    error.hint(format!("it has {}", choices.join(", ")))
}

/// The file of that name, or of that quantisation.
pub(crate) fn pick_gguf<'a>(ggufs: &[&'a str], choice: &str) -> Option<&'a str> {
    let is_file = |file: &&&str| file.eq_ignore_ascii_case(choice);
    let is_quant = |file: &&&str| quant_of(file).is_some_and(|quant| quant.eq_ignore_ascii_case(choice));
    ggufs.iter().find(is_file).or_else(|| ggufs.iter().find(is_quant)).copied()
}

fn usual<'a>(ggufs: &[&'a str]) -> Option<&'a str> {
    USUAL_QUANTS.iter().find_map(|quant| pick_gguf(ggufs, quant)).or_else(|| ggufs.first().copied())
}

/// A GGUF that is a model by itself: neither a piece of one nor what makes one see.
fn is_whole_gguf(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    is_gguf(file.as_ref())
        && !file.contains("-of-0")
        && !file.starts_with("mmproj")
        && !file.contains("imatrix")
}

/// `…-00001-of-00003.safetensors`, not below a folder.
fn is_shard(name: &str) -> bool {
    !name.contains('/')
        && !name.starts_with("consolidated")
        && name.ends_with(".safetensors")
        && name.contains("-of-0")
}

/// What a person reads.
fn is_paper(name: &str) -> bool {
    let upper = name.to_uppercase();
    ["README", "LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "USAGE_POLICY"]
        .iter()
        .any(|start| upper.starts_with(start))
        && !name.contains('/')
}

/// Config, tokenizer, templates.
fn is_description(name: &str) -> bool {
    let extension = name.rsplit('.').next().unwrap_or_default();
    !name.starts_with('.')
        && ["json", "jinja", "txt", "model"].contains(&extension)
        && (!name.contains('/') || name.starts_with("additional_chat_templates/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::download::Checksum;

    fn check(text: &str, names: &[&str], expected: &[&str]) {
        let files: Vec<RemoteFile> = names
            .iter()
            .map(|name| RemoteFile {
                name: (*name).into(),
                size_bytes: 1,
                checksum: Checksum::Git(String::new()),
            })
            .collect();
        let wanted = wanted(&Named::parse(text).unwrap(), &files).unwrap();
        let found: Vec<&str> = wanted.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn a_model_is_its_safetensors_and_what_describes_them() {
        let openai = [
            ".gitattributes",
            "LICENSE",
            "README.md",
            "USAGE_POLICY",
            "chat_template.jinja",
            "config.json",
            "metal/model.bin",
            "model-00000-of-00001.safetensors",
            "model.safetensors.index.json",
            "original/config.json",
            "original/model.safetensors",
            "tokenizer.json",
        ];
        check(
            "openai/gpt",
            &openai,
            &[
                "LICENSE",
                "README.md",
                "USAGE_POLICY",
                "chat_template.jinja",
                "config.json",
                "model-00000-of-00001.safetensors",
                "model.safetensors.index.json",
                "tokenizer.json",
            ],
        );
        let doubled = [
            "config.json",
            "model.safetensors",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "runs/x.json",
            "training_args.bin",
        ];
        check("a/b", &doubled, &["config.json", "model.safetensors"]);
        let mistral = [
            "config.json",
            "consolidated.safetensors",
            "model-1-of-00002.safetensors",
            "model.safetensors.index.json",
            "params.json",
        ];
        check(
            "a/b",
            &mistral,
            &["config.json", "model-1-of-00002.safetensors", "model.safetensors.index.json", "params.json"],
        );
    }

    #[test]
    fn of_several_ggufs_one_is_fetched() {
        let names = [
            "README.md",
            "config.json",
            "m-Q4_K_M.gguf",
            "m-Q8_0.gguf",
            "big/m-F16-00001-of-00002.gguf",
            "mmproj-F16.gguf",
        ];
        check("a/b", &names, &["README.md", "m-Q4_K_M.gguf"]);
        check("a/b:q8_0", &names, &["README.md", "m-Q8_0.gguf"]);
        check("a/b/m-Q8_0.gguf", &names, &["README.md", "m-Q8_0.gguf"]);
        check("a/b", &["x.gguf"], &["x.gguf"]);
        let files = [RemoteFile {
            name: "m-Q4_0.gguf".into(),
            size_bytes: 1,
            checksum: Checksum::Git(String::new()),
        }];
        let error = super::wanted(&Named::parse("a/b:Q2_K").unwrap(), &files).err().unwrap();
        assert_eq!(error.hint.as_deref(), Some("it has Q4_0"));
    }
}
