//! The Hub's API: `hf-hub` asks it. Of files, their list and their bytes are asked for here: `hf-hub` drops the SHA-256
//! of what it lists, and does not tell whether a range was kept to.

use futures::{StreamExt as _, TryStreamExt as _};
use hf_hub::{HFClient, repository::ModelInfo, split_id};
use lathe_protocol::{ErrorCode, ErrorInfo};
use reqwest::{
    Response, StatusCode, Url,
    header::{ACCEPT_ENCODING, CONTENT_RANGE, HeaderMap, LINK, RANGE},
};
use serde::Deserialize;

use super::refusal::{Asked, Refusal};
use crate::{
    Shared,
    download::{Checksum, Opened, RemoteFile, checked_commit},
    error::Result,
    net::{self, NetOptions, Retries, Trouble, of_request, patiently},
    settings,
    token::{self, Found},
};

/// Repetitions of a question.
const RETRIES: u32 = 3;

pub(crate) struct Hub {
    pub(super) hf: HFClient,
    http: reqwest::Client,
    pub(super) options: NetOptions,
    pub(super) endpoint: String,
    pub(super) token: Option<Found>,
}

/// An entry of a repository's tree, as the API tells it.
#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    /// SHA-256.
    oid: String,
    size: u64,
}

impl Hub {
    pub(crate) fn open(host: &Shared) -> Result<Self> {
        let options = host.options.net.clone();
        if options.is_offline {
            return Err(ErrorInfo::new(ErrorCode::Network, "The network is not used: HF_HUB_OFFLINE is set")
                .hint("unset HF_HUB_OFFLINE; models on disk can be used meanwhile"));
        }
        let endpoint = match &options.endpoint {
            Some(endpoint) => endpoint.clone(),
            // A damaged file is told of by whoever shows the settings.
            None => settings::load(&host.paths().settings).unwrap_or_default().endpoint,
        };
        let token = token::find(&options);
        let http = net::client(&options)?;
        let mut builder = HFClient::builder()
            .endpoint(&endpoint)
            .client(http.clone())
            .cache_enabled(false)
            .retry_max_attempts(0);
        if let Some(found) = &token {
            builder = builder.token(&found.token.0);
        }
        let hf = builder.build().map_err(|error| {
            ErrorInfo::new(
                ErrorCode::Usage,
                format!("The Hub's address cannot be used: {error}: {endpoint:?}"),
            )
            .hint("it is set in Settings, or by HF_ENDPOINT")
        })?;
        Ok(Self { hf, http, options, endpoint, token })
    }

    pub(super) fn asked<'a>(&'a self, model: &'a str, revision: Option<&'a str>) -> Asked<'a> {
        Asked { endpoint: &self.endpoint, token: self.token.as_ref(), model, revision }
    }

    pub(super) fn retries(&self) -> Retries {
        Retries::new(RETRIES, self.options.first_pause)
    }

    /// The model's commit, licence and gate.
    pub(super) async fn about(
        &self,
        id: &str,
        revision: Option<&str>,
        note: &dyn Fn(Option<String>),
    ) -> Result<(ModelInfo, String)> {
        let (owner, name) = split_id(id);
        let repo = self.hf.model(owner, name);
        let asked = self.asked(id, revision);
        let info = patiently(self.retries(), note, || async {
            let info = repo.info().revision(revision.unwrap_or("main")).send().await;
            info.map_err(|error| asked.failed(&error))
        })
        .await?;
        let commit =
            info.sha.as_deref().ok_or_else(|| asked.not_the_hub(&"it tells no commit").into_error())?;
        let commit = checked_commit(commit)?.to_owned();
        Ok((info, commit))
    }

    /// Every file of a commit.
    pub(super) async fn tree(
        &self,
        id: &str,
        commit: &str,
        note: &dyn Fn(Option<String>),
    ) -> Result<Vec<RemoteFile>> {
        let mut url = self.url(&["api", "models"], id, &["tree", commit], "")?;
        url.set_query(Some("recursive=true"));
        let asked = self.asked(id, None);
        let mut files = Vec::new();
        let mut next = Some(url);
        while let Some(url) = next {
            let (entries, following) = patiently(self.retries(), note, || async {
                let response = self.send(&asked, &url, None).await?;
                let following = next_page(response.headers());
                let body = response.bytes().await.map_err(|error| of_request(&error, asked.host()))?;
                let entries: Vec<TreeEntry> =
                    serde_json::from_slice(&body).map_err(|error| asked.not_the_hub(&error))?;
                Ok((entries, following))
            })
            .await?;
            files.extend(entries.into_iter().filter(|entry| entry.kind == "file").map(
                |entry| match entry.lfs {
                    Some(lfs) => {
                        let hex = lfs.oid.trim_start_matches("sha256:").to_owned();
                        RemoteFile { name: entry.path, size_bytes: lfs.size, checksum: Checksum::Sha256(hex) }
                    }
                    None => RemoteFile {
                        name: entry.path,
                        size_bytes: entry.size,
                        checksum: Checksum::Git(entry.oid),
                    },
                },
            ));
            // The token is for this server alone.
            next = following
                .filter(|url| Url::parse(&self.endpoint).is_ok_and(|own| own.origin() == url.origin()));
        }
        Ok(files)
    }

    /// A file's bytes from `from` on, to its end.
    pub(super) async fn open_file(
        &self,
        id: &str,
        commit: &str,
        file: &RemoteFile,
        from: u64,
    ) -> std::result::Result<Opened, Trouble> {
        let asked = self.asked(id, Some(commit));
        let url = self.url(&[], id, &["resolve", commit], &file.name).map_err(Trouble::Lasting)?;
        let response = self.send(&asked, &url, (from > 0).then(|| format!("bytes={from}-"))).await?;
        let from = if response.status() == StatusCode::PARTIAL_CONTENT {
            range_start(response.headers())
        } else {
            0
        };
        let host = asked.host().to_owned();
        let pieces = response.bytes_stream().map_err(move |error| of_request(&error, &host)).boxed_local();
        Ok(Opened { from, pieces })
    }

    /// The first bytes of a file, at most `count`.
    pub(super) async fn head(&self, id: &str, commit: &str, name: &str, count: u64) -> Result<Vec<u8>> {
        let asked = self.asked(id, Some(commit));
        let url = self.url(&[], id, &["resolve", commit], name)?;
        patiently(self.retries(), &|_| {}, || async {
            let response = self.send(&asked, &url, Some(format!("bytes=0-{}", count - 1))).await?;
            let mut pieces = response.bytes_stream();
            let mut bytes = Vec::new();
            // A server without ranges would send it all.
            while let Some(piece) = pieces.next().await {
                bytes.extend_from_slice(&piece.map_err(|error| of_request(&error, asked.host()))?);
                if bytes.len() as u64 >= count {
                    bytes.truncate(count as usize);
                    break;
                }
            }
            Ok(bytes)
        })
        .await
    }

    async fn send(
        &self,
        asked: &Asked<'_>,
        url: &Url,
        range: Option<String>,
    ) -> std::result::Result<Response, Trouble> {
        // Ranges and lengths are of the file itself.
        let mut request = self.http.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(found) = &self.token {
            request = request.bearer_auth(&found.token.0);
        }
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let response = request.send().await.map_err(|error| of_request(&error, asked.host()))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(asked.refused(&Refusal::of_headers(response.status(), response.headers())))
    }

    /// `ENDPOINT/before/owner/name/after/file`.
    fn url(&self, before: &[&str], id: &str, after: &[&str], file: &str) -> Result<Url> {
        let wrong =
            || ErrorInfo::new(ErrorCode::Usage, format!("Not the address of a Hub: {:?}", self.endpoint));
        let mut url = Url::parse(&self.endpoint).map_err(|_| wrong())?;
        url.path_segments_mut()
            .map_err(|()| wrong())?
            .pop_if_empty()
            .extend(before)
            .extend(id.split('/'))
            .extend(after)
            .extend(file.split('/').filter(|part| !part.is_empty()));
        Ok(url)
    }
}

/// Where a partial answer begins.
fn range_start(headers: &HeaderMap) -> u64 {
    let start = || {
        let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
        range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
    };
    start().unwrap_or(0)
}

/// `<URL>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<Url> {
    let links = headers.get(LINK)?.to_str().ok()?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    Url::parse(next.split_once('<')?.1.split_once('>')?.0).ok()
}
