use std::{path::PathBuf, time::Duration};

use lathe_protocol::Secret;

/// How the Hub and other servers are reached.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// The Hub's address, before the settings'. From `HF_ENDPOINT`.
    pub endpoint: Option<String>,
    /// From `HF_TOKEN`.
    pub token: Option<Secret>,
    /// Where Python's tools keep the token: `HF_TOKEN_PATH`, or `token` of `HF_HOME`.
    pub token_file: Option<PathBuf>,
    /// Whether to look into the system's keyring.
    pub has_keyring: bool,
    /// From `HF_HUB_OFFLINE`.
    pub is_offline: bool,
    /// Certificates to trust besides the system's. From `REQUESTS_CA_BUNDLE` and `CURL_CA_BUNDLE`.
    pub ca_bundles: Vec<PathBuf>,
    /// A connection that brings nothing for so long is given up.
    pub stall: Duration,
    /// Before the first repetition; doubled with each.
    pub first_pause: Duration,
}

impl NetOptions {
    pub fn from_env() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let path = |name: &str| text(name).map(PathBuf::from);
        let is_set = |name: &str| {
            text(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&&*value.to_lowercase()))
        };
        let implicit = !is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN");
        let home = || {
            let home = directories::BaseDirs::new()?.home_dir().join(".cache");
            Some(path("XDG_CACHE_HOME").unwrap_or(home).join("huggingface"))
        };
        Self {
            endpoint: text("HF_ENDPOINT").map(|endpoint| endpoint.trim().trim_end_matches('/').to_owned()),
            token: text("HF_TOKEN").filter(|_| implicit).map(|token| Secret(token.trim().to_owned())),
            token_file: path("HF_TOKEN_PATH")
                .or_else(|| Some(path("HF_HOME").or_else(home)?.join("token")))
                .filter(|_| implicit),
            has_keyring: true,
            is_offline: is_set("HF_HUB_OFFLINE"),
            ca_bundles: ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"].into_iter().filter_map(path).collect(),
            stall: Duration::from_secs(30),
            first_pause: Duration::from_secs(1),
        }
    }
}
