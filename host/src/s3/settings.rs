//! Whose keys open a bucket, and where its server is: from the environment, then from the profile in `~/.aws`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use configparser::ini::Ini;
use lathe_protocol::{ErrorCode, ErrorInfo};

use crate::error::{Result, io_error, usage};

/// What the environment says of S3.
#[derive(Debug, Clone, Default)]
pub struct S3Options {
    /// Variables that begin with `AWS_`.
    pub variables: BTreeMap<String, String>,
    /// Where `.aws` lies.
    pub home: Option<PathBuf>,
}

/// Who asks which server, and how.
pub(super) struct Found {
    pub region: Option<String>,
    /// Of S3 in place of Amazon's own.
    pub endpoint: Option<String>,
    /// Key, secret and token, if a profile tells them; else the environment does.
    pub keys: Option<(String, String, Option<String>)>,
    /// Nobody in particular.
    pub is_anonymous: bool,
    pub allows_http: bool,
    /// What `is_anonymous` and a role's token leave to `object_store`.
    pub variables: BTreeMap<String, String>,
}

/// A profile of one of the two files.
type Section = std::collections::HashMap<String, Option<String>>;

impl S3Options {
    pub fn from_env() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, value)| name.starts_with("AWS_") && !value.trim().is_empty())
            .collect();
        Self { variables, home: directories::BaseDirs::new().map(|dirs| dirs.home_dir().to_path_buf()) }
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }

    pub(super) fn find(&self) -> Result<Found> {
        let asked = self.variable("AWS_PROFILE").or_else(|| self.variable("AWS_DEFAULT_PROFILE"));
        let profile = asked.as_deref().unwrap_or("default");
        let keys_of = self.section("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile)?;
        let in_config = if profile == "default" { profile.to_owned() } else { format!("profile {profile}") };
        let config = self.section("AWS_CONFIG_FILE", "config", &in_config)?;
        if asked.is_some() && keys_of.is_none() && config.is_none() {
            return Err(access(format!("No AWS profile named {profile:?}"))
                .hint("AWS_PROFILE names it; `aws configure list-profiles` lists those there are"));
        }
        let value = |key: &str| {
            let of = |section: &Option<Section>| {
                section.as_ref()?.get(key)?.clone().filter(|value| !value.is_empty())
            };
            of(&keys_of).or_else(|| of(&config))
        };
        let region = ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().find_map(|name| self.variable(name));
        let endpoint = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
        let endpoint = endpoint.iter().find_map(|name| self.variable(name)).or_else(|| value("endpoint_url"));
        let is_true = |name: &str| {
            self.variable(name).is_some_and(|value| ["1", "true", "yes"].contains(&&*value.to_lowercase()))
        };
        let is_anonymous = is_true("AWS_SKIP_SIGNATURE");
        let in_environment = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|name| self.variable(name));
        let keys = match in_environment {
            [Some(_), None] => {
                return Err(access("AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not".into()));
            }
            [None, Some(_)] => {
                return Err(access("AWS_SECRET_ACCESS_KEY is set, AWS_ACCESS_KEY_ID is not".into()));
            }
            [Some(key), Some(secret)] => Some((key, secret, self.variable("AWS_SESSION_TOKEN"))),
            [None, None] => match (value("aws_access_key_id"), value("aws_secret_access_key")) {
                (Some(key), Some(secret)) => Some((key, secret, value("aws_session_token"))),
                _ => None,
            },
        };
        let has_role = [
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ]
        .iter()
        .any(|name| self.variables.contains_key(*name));
        if keys.is_none() && !has_role && !is_anonymous {
            let elsewhere =
                ["sso_session", "sso_start_url", "role_arn", "credential_process", "login_session"];
            return Err(match elsewhere.iter().find(|key| value(key).is_some()) {
                Some(key) => access(format!("The AWS profile {profile:?} has no keys of its own, but {key}, which Lathe does not read"))
                    .hint(format!("run `eval \"$(aws configure export-credentials --profile {profile} --format env)\"` first")),
                None => access("No credentials for S3".into()).hint(
                    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_SKIP_SIGNATURE=true asks a public bucket as nobody",
                ),
            });
        }
        Ok(Found {
            region: region.or_else(|| value("region")),
            endpoint: endpoint.map(|endpoint| endpoint.trim_end_matches('/').to_owned()),
            keys,
            is_anonymous,
            allows_http: is_true("AWS_ALLOW_HTTP"),
            variables: self.variables.clone(),
        })
    }

    /// A section of one of the two files; none if the file or the section is not there.
    fn section(&self, variable: &str, name: &str, section: &str) -> Result<Option<Section>> {
        let usual = || Some(self.home.as_ref()?.join(".aws").join(name));
        let Some(path) = self.variable(variable).map(PathBuf::from).or_else(usual) else { return Ok(None) };
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(io_error("read the AWS profiles", &path))?;
        read(&text, &path).map(|mut sections| sections.remove(section))
    }
}

fn read(text: &str, path: &Path) -> Result<std::collections::HashMap<String, Section>> {
    let mut file = Ini::new_cs();
    // What is indented belongs to a service, and `s3 =` alone has no value.
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with([' ', '\t'])).collect();
    file.read(lines.join("\n"))
        .map_err(|error| usage(format!("Not profiles of AWS: {error}: {}", path.display())))
}

fn access(message: String) -> ErrorInfo {
    ErrorInfo::new(ErrorCode::Access, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &Path, variables: &[(&str, &str)]) -> S3Options {
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        S3Options { variables, home: Some(dir.to_path_buf()) }
    }

    #[test]
    fn the_environment_comes_before_the_profile_that_it_names() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".aws")).unwrap();
        let credentials = "[default]\naws_access_key_id = A\naws_secret_access_key = a=/+b\n\n# another\n[work]\naws_access_key_id=W\n\
            aws_secret_access_key=w\naws_session_token=t\n";
        fs::write(dir.path().join(".aws/credentials"), credentials).unwrap();
        let config = "[default]\nregion = eu-north-1\n[profile work]\nregion = us-west-2\nendpoint_url = http://minio:9000/\ns3 =\n    \
            addressing_style = path\n[profile sso]\nsso_session = corp\n";
        fs::write(dir.path().join(".aws/config"), config).unwrap();
        let found = |variables: &[(&str, &str)]| options(dir.path(), variables).find();
        let keys = |key: &str, secret: &str, token: Option<&str>| {
            Some((key.to_owned(), secret.to_owned(), token.map(str::to_owned)))
        };

        let usual = found(&[]).unwrap();
        assert_eq!(
            (usual.keys, usual.region.as_deref(), usual.endpoint),
            (keys("A", "a=/+b", None), Some("eu-north-1"), None)
        );
        let work = found(&[("AWS_PROFILE", "work")]).unwrap();
        assert_eq!((work.keys, work.region.as_deref()), (keys("W", "w", Some("t")), Some("us-west-2")));
        assert_eq!(work.endpoint.as_deref(), Some("http://minio:9000"));
        let both = [
            ("AWS_PROFILE", "work"),
            ("AWS_ACCESS_KEY_ID", "E"),
            ("AWS_SECRET_ACCESS_KEY", "e"),
            ("AWS_ENDPOINT_URL", "http://other"),
        ];
        let both = found(&both).unwrap();
        assert_eq!((both.keys, both.endpoint.as_deref()), (keys("E", "e", None), Some("http://other")));

        let error = |variables: &[(&str, &str)]| found(variables).err().unwrap();
        assert!(error(&[("AWS_PROFILE", "nobody")]).message.contains("No AWS profile named \"nobody\""));
        assert!(error(&[("AWS_PROFILE", "sso")]).message.contains("sso_session"));
        assert!(error(&[("AWS_ACCESS_KEY_ID", "x")]).message.contains("AWS_SECRET_ACCESS_KEY is not"));
        let none = options(Path::new("/nowhere"), &[]).find().err().unwrap();
        assert_eq!((none.code, none.message.as_str()), (ErrorCode::Access, "No credentials for S3"));
        assert!(
            options(Path::new("/nowhere"), &[("AWS_SKIP_SIGNATURE", "true")]).find().unwrap().is_anonymous
        );
    }
}
