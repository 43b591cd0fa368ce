use crate::error::{Result, usage};

/// A model of the Hub as a person names it: `owner/name`, or one GGUF file of it, `owner/name:Q4_K_M` or
/// `owner/name/file.gguf`; also as the address of its page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// `owner/name`.
    pub id: String,
    /// A GGUF's quantisation, or its file.
    pub gguf: Option<String>,
}

impl Named {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            usage(format!("Not the name of a model on the Hub: {text:?}"))
                .hint("write owner/name, e.g. Qwen/Qwen3-0.6B; `lathe models search WORDS` finds names")
        };
        let rest = match text.split_once("://") {
            // The address of a page, which may go on behind the name.
            Some((_, address)) => address.split_once('/').ok_or_else(wrong)?.1,
            None => text,
        };
        let rest = rest.trim_end_matches('/');
        let (path, quant) = match rest.split_once(':') {
            Some((path, quant)) => (path, Some(quant)),
            None => (rest, None),
        };
        let mut parts = path.splitn(3, '/');
        let (owner, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let file = parts.next();
        if !is_name(owner) || !is_name(name) || quant.is_some_and(str::is_empty) {
            return Err(wrong());
        }
        let file = match file {
            Some(file) if file.to_lowercase().ends_with(".gguf") => {
                // Of a page of a file.
                let file = ["blob/main/", "resolve/main/"]
                    .iter()
                    .find_map(|before| file.strip_prefix(before))
                    .unwrap_or(file);
                Some(file)
            }
            Some(file) if file.starts_with("tree/") => None,
            Some(_) => return Err(wrong()),
            None => None,
        };
        Ok(Self { id: format!("{owner}/{name}"), gguf: quant.or(file).map(str::to_owned) })
    }

    /// What to write after `--model` to mean this.
    pub(crate) fn text(&self) -> String {
        match &self.gguf {
            Some(file) if file.to_lowercase().ends_with(".gguf") => format!("{}/{file}", self.id),
            Some(quant) => format!("{}:{quant}", self.id),
            None => self.id.clone(),
        }
    }
}

fn is_name(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= 96
        && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !part.contains("..")
        && !part.starts_with(['-', '.'])
        && !part.ends_with(['-', '.'])
}

/// The quantisation in a GGUF's file name, in capitals: `Q4_K_M` of `model-q4_k_m.gguf`.
pub(crate) fn quant_of(file: &str) -> Option<String> {
    let name = file.rsplit('/').next().unwrap_or(file);
    let stem = name.get(..name.len().checked_sub(".gguf".len())?)?;
    let last = stem.rsplit(['-', '.']).next()?.to_uppercase();
    let is_quant = ["BF16", "F16", "F32", "MXFP4"].contains(&last.as_str())
        || last
            .trim_start_matches("UD_")
            .trim_start_matches('I')
            .strip_prefix('Q')
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    is_quant.then_some(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_in_several_ways() {
        let check = |text: &str, id: &str, gguf: Option<&str>| {
            let named = Named::parse(text).unwrap();
            assert_eq!((named.id.as_str(), named.gguf.as_deref()), (id, gguf), "{text}");
        };
        check("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", None);
        check("https://huggingface.co/Qwen/Qwen3-0.6B/", "Qwen/Qwen3-0.6B", None);
        check("https://huggingface.co/Qwen/Qwen3-0.6B/tree/main", "Qwen/Qwen3-0.6B", None);
        check("a/b-GGUF:Q4_K_M", "a/b-GGUF", Some("Q4_K_M"));
        check("a/b/sub/c-Q8_0.gguf", "a/b", Some("sub/c-Q8_0.gguf"));
        check("https://huggingface.co/a/b/blob/main/c.gguf", "a/b", Some("c.gguf"));
        for bad in ["", "gpt2", "a/", "/b", "a/b/c", "a b/c", "../x", "a/..", "a/b:", "a/b/c.bin"] {
            assert!(Named::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn quantisations_are_read_off_file_names() {
        for (file, quant) in [
            ("SmolLM2-135M-Instruct-Q4_K_M.gguf", Some("Q4_K_M")),
            ("sub/model.q8_0.gguf", Some("Q8_0")),
            ("m-IQ4_XS.gguf", Some("IQ4_XS")),
            ("gpt-oss-20b-F16.gguf", Some("F16")),
            ("gpt-oss-20b-mxfp4.gguf", Some("MXFP4")),
            ("model.gguf", None),
            ("qwen.gguf", None),
            (".gguf", None),
        ] {
            assert_eq!(quant_of(file).as_deref(), quant, "{file}");
        }
    }
}
