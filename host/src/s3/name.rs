use std::path::{Path, PathBuf};

use crate::{
    Paths,
    error::{Result, usage},
};

const SCHEME: &str = "s3://";

/// Whether it is written as a model of an S3 bucket.
pub(crate) fn is_name(model: &str) -> bool {
    model.get(..SCHEME.len()).is_some_and(|start| start.eq_ignore_ascii_case(SCHEME))
}

/// A model in a bucket: `s3://bucket/prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub bucket: String,
    /// Without slashes around it; empty if the bucket itself is the model.
    pub prefix: String,
}

impl Named {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            usage(format!("Not a model in an S3 bucket: {text:?}"))
                .hint("write s3://bucket/prefix, e.g. s3://models/qwen3")
        };
        let rest = text.get(SCHEME.len()..).filter(|_| is_name(text)).ok_or_else(wrong)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let is_bucket = (3..=63).contains(&bucket.len())
            && bucket
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte))
            && bucket.starts_with(|c: char| c.is_ascii_alphanumeric());
        let is_sound = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !is_bucket || !(prefix.is_empty() || prefix.split('/').all(is_sound)) {
            return Err(wrong());
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }

    pub(crate) fn text(&self) -> String {
        format!("{SCHEME}{}/{}", self.bucket, self.prefix).trim_end_matches('/').to_owned()
    }

    /// The folder of its bucket's models.
    pub(crate) fn home(&self, paths: &Paths) -> PathBuf {
        paths.s3_models().join(&self.bucket)
    }

    /// The name of its folder there, which [`Self::of_folder`] reads: other characters than usual ones as `%XX`.
    pub(crate) fn folder(&self) -> String {
        if self.prefix.is_empty() {
            return ROOT.into();
        }
        let mut folder = String::new();
        for (place, byte) in self.prefix.bytes().enumerate() {
            // No name of ours begins with a dot.
            if byte.is_ascii_alphanumeric() || b"-_".contains(&byte) || byte == b'.' && place > 0 {
                folder.push(char::from(byte));
            } else {
                folder.push('%');
                folder.push_str(&crate::files::hex(&[byte]).to_uppercase());
            }
        }
        folder
    }

    pub(crate) fn repo(&self, paths: &Paths) -> PathBuf {
        self.home(paths).join(self.folder())
    }

    pub(crate) fn of_folder(bucket: &str, folder: &str) -> Option<Self> {
        let mut bytes = Vec::new();
        let mut rest = folder.as_bytes();
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            if byte == b'%' && folder != ROOT {
                let (digits, tail) = rest.split_at_checked(2)?;
                bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = tail;
            } else {
                bytes.push(byte);
            }
        }
        let prefix = if folder == ROOT { String::new() } else { String::from_utf8(bytes).ok()? };
        Some(Self { bucket: bucket.to_owned(), prefix })
    }

    /// The model that lies there, if it is one of a bucket.
    pub(crate) fn of_path(paths: &Paths, path: &Path) -> Option<Self> {
        let inside = path.strip_prefix(paths.s3_models()).ok()?;
        let mut parts = inside.components().map(|part| part.as_os_str().to_str());
        Self::of_folder(parts.next()??, parts.next()??)
    }
}

/// The folder of a bucket that is itself a model.
const ROOT: &str = "%";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_becomes_a_folder_and_is_read_off_it() {
        for (text, bucket, prefix, folder) in [
            ("s3://models/qwen3", "models", "qwen3", "qwen3"),
            ("S3://models/team a/qwen3/", "models", "team a/qwen3", "team%20a%2Fqwen3"),
            ("s3://models", "models", "", "%"),
            ("s3://a.b-c/.x/100%", "a.b-c", ".x/100%", "%2Ex%2F100%25"),
        ] {
            let named = Named::parse(text).unwrap();
            assert_eq!((named.bucket.as_str(), named.prefix.as_str()), (bucket, prefix));
            assert_eq!(named.folder(), folder);
            assert_eq!(Named::of_folder(bucket, folder).unwrap(), named);
        }
        assert_eq!(Named::parse("s3://models/a/").unwrap().text(), "s3://models/a");
        for bad in
            ["s3://", "s3:///x", "s3://A/b", "s3://ab/c", "s3://models/a//b", "s3://models/../x", "models/a"]
        {
            assert!(Named::parse(bad).is_err(), "{bad}");
        }
    }
}
