//! A bucket, asked through `object_store`. Whatever goes wrong is one sentence.

use std::{error::Error as _, fs};

use futures::{StreamExt as _, TryStreamExt as _};
use lathe_protocol::{ErrorCode, ErrorInfo};
use object_store::{
    Certificate, ClientOptions, Error as StoreError, GetOptions, GetRange, ObjectMeta, ObjectStore as _,
    ObjectStoreExt as _, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path as ObjectPath,
};
use reqwest::Url;

use super::{name::Named, settings::Found};
use crate::{
    Shared,
    download::Opened,
    error::{Result, io_error, not_found, usage},
    net::{NetOptions, Retries, Trouble, of_request, patiently},
};

/// Repetitions of a question.
const RETRIES: u32 = 3;
const PARALLEL: usize = 8;

pub(super) struct Bucket {
    store: AmazonS3,
    named: Named,
    /// Without its port, for sentences.
    host: String,
    region: String,
    pub options: NetOptions,
}

impl Bucket {
    pub(super) fn open(host: &Shared, named: &Named) -> Result<Self> {
        let options = host.options.net.clone();
        let Found { region, endpoint, keys, is_anonymous, allows_http, variables } =
            host.options.s3.find()?;
        let mut builder = AmazonS3Builder::new();
        for (name, value) in &variables {
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
        if let Some((key, secret, token)) = keys {
            builder = builder.with_access_key_id(key).with_secret_access_key(secret);
            if let Some(token) = token {
                builder = builder.with_token(token);
            }
        }
        let region = region.unwrap_or_else(|| "us-east-1".into());
        let mut client = ClientOptions::new()
            .with_timeout_disabled()
            .with_connect_timeout(options.stall)
            .with_read_timeout(options.stall);
        let mut server = format!("s3.{region}.amazonaws.com");
        if let Some(endpoint) = &endpoint {
            let url = Url::parse(endpoint).ok().filter(Url::has_host);
            let url = url.ok_or_else(|| {
                usage(format!("Not the address of an S3 server: {endpoint}"))
                    .hint("AWS_ENDPOINT_URL names it")
            })?;
            url.host_str().unwrap_or_default().clone_into(&mut server);
            let is_here = ["localhost", "127.0.0.1", "[::1]"].contains(&server.as_str());
            if url.scheme() == "http" && !is_here && !allows_http {
                return Err(usage(format!("The S3 server is asked without TLS: {endpoint}"))
                    .hint("AWS_ALLOW_HTTP=true permits it, where the network can be trusted"));
            }
            client = client.with_allow_http(url.scheme() == "http");
            builder = builder.with_endpoint(endpoint);
        }
        let ca_bundle = variables.get("AWS_CA_BUNDLE").map(std::path::PathBuf::from);
        for path in options.ca_bundles.iter().chain(&ca_bundle) {
            let pem = fs::read(path).map_err(io_error("read the certificates", path))?;
            let certificates = Certificate::from_pem_bundle(&pem)
                .map_err(|error| usage(format!("Not certificates in PEM: {error}: {}", path.display())))?;
            client = certificates.into_iter().fold(client, ClientOptions::with_root_certificate);
        }
        let store = builder
            .with_region(&region)
            .with_bucket_name(&named.bucket)
            .with_skip_signature(is_anonymous)
            .with_client_options(client)
            // Repetitions are ours: a person is told of them.
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .build()
            .map_err(|error| usage(format!("The S3 settings cannot be used: {error}")))?;
        Ok(Self { store, named: named.clone(), host: server, region, options })
    }

    /// Everything below the prefix, by name.
    pub(super) async fn list(&self, note: &dyn Fn(Option<String>)) -> Result<Vec<(String, ObjectMeta)>> {
        let prefix =
            ObjectPath::parse(&self.named.prefix).map_err(|error| usage(format!("Not a prefix: {error}")))?;
        let retries = Retries::new(RETRIES, self.options.first_pause);
        let mut found = patiently(retries, note, async || {
            // Some servers tell versions only of one object at a time.
            let listed = self.store.list(Some(&prefix)).map_ok(async |meta| match meta.e_tag {
                Some(_) => Ok(meta),
                None => self.store.head(&meta.location).await,
            });
            let listed = listed.try_buffered(PARALLEL).try_collect::<Vec<ObjectMeta>>().await;
            listed.map_err(|error| self.trouble(&error))
        })
        .await?;
        found.sort_by(|a, b| a.location.cmp(&b.location));
        let parts = prefix.parts().count();
        let name = |meta: &ObjectMeta| {
            let rest: Vec<String> =
                meta.location.parts().skip(parts).map(|part| part.as_ref().to_owned()).collect();
            rest.join("/")
        };
        let named: Vec<(String, ObjectMeta)> = found.into_iter().map(|meta| (name(&meta), meta)).collect();
        if named.is_empty() {
            return Err(not_found(format!("Nothing lies at {}", self.named.text()))
                .hint("check the prefix: it is the folder that holds config.json"));
        }
        Ok(named)
    }

    /// The first bytes of an object as it was listed.
    pub(super) async fn head(&self, meta: &ObjectMeta, count: u64) -> Result<Vec<u8>> {
        let retries = Retries::new(RETRIES, self.options.first_pause);
        patiently(retries, &|_| {}, async || {
            let options = GetOptions { range: Some(GetRange::Bounded(0..count)), ..unchanged(meta) };
            let answer = self.store.get_opts(&meta.location, options).await;
            let bytes = match answer {
                Ok(answer) => answer.bytes().await,
                Err(error) => Err(error),
            };
            bytes.map(|bytes| bytes.to_vec()).map_err(|error| self.trouble(&error))
        })
        .await
    }

    /// An object's bytes from an offset on, if it is still what was listed.
    pub(super) async fn open_object(
        &self,
        meta: &ObjectMeta,
        from: u64,
    ) -> std::result::Result<Opened, Trouble> {
        let options = GetOptions { range: Some(GetRange::Bounded(from..meta.size)), ..unchanged(meta) };
        let answer =
            self.store.get_opts(&meta.location, options).await.map_err(|error| self.trouble(&error))?;
        let (named, host, region) = (self.named.clone(), self.host.clone(), self.region.clone());
        let from = answer.range.start;
        let pieces = answer
            .into_stream()
            .map(move |piece| piece.map_err(|error| trouble(&error, &named, &host, &region)));
        Ok(Opened { from, pieces: Box::pin(pieces) })
    }

    fn trouble(&self, error: &StoreError) -> Trouble {
        trouble(error, &self.named, &self.host, &self.region)
    }
}

fn unchanged(meta: &ObjectMeta) -> GetOptions {
    GetOptions { if_match: meta.e_tag.clone(), ..GetOptions::default() }
}

/// What the caller may begin anew after.
pub(super) const CHANGED: &str = "changed while it was fetched";

fn trouble(error: &StoreError, named: &Named, host: &str, region: &str) -> Trouble {
    let mut says = error.to_string();
    let mut source = error.source();
    let mut request = None;
    while let Some(cause) = source {
        says = format!("{says}: {cause}");
        request = request.or_else(|| cause.downcast_ref::<reqwest::Error>());
        source = cause.source();
    }
    let Named { bucket, .. } = named;
    let has = |word: &str| says.contains(word);
    let lasting =
        |code, message: String, hint: &str| Trouble::Lasting(ErrorInfo::new(code, message).hint(hint));
    if has("NoSuchBucket") {
        return lasting(
            ErrorCode::NotFound,
            format!("No bucket named {bucket:?} at {host}"),
            "check its name, and AWS_ENDPOINT_URL if it is not Amazon's",
        );
    }
    if has("InvalidAccessKeyId") || has("NotSignedUp") {
        return lasting(
            ErrorCode::Access,
            format!("{host} does not know the access key"),
            "check AWS_ACCESS_KEY_ID, or the keys of the profile",
        );
    }
    if has("SignatureDoesNotMatch") {
        return lasting(
            ErrorCode::Access,
            format!("{host} does not accept the secret key"),
            "check AWS_SECRET_ACCESS_KEY, or the keys of the profile",
        );
    }
    if has("ExpiredToken") || has("InvalidToken") || has("TokenRefreshRequired") {
        return lasting(
            ErrorCode::Access,
            format!("{host} says that the session token has expired"),
            "get new credentials, e.g. `aws sso login`",
        );
    }
    if has("RequestTimeTooSkewed") {
        return lasting(
            ErrorCode::Access,
            format!("This machine's clock is too far from that of {host}"),
            "set the clock",
        );
    }
    if has("PermanentRedirect")
        || has("AuthorizationHeaderMalformed")
        || has("IllegalLocationConstraint")
        || matches!(redirect(&says), Some(()))
    {
        let right = says.split_once("<Region>").and_then(|(_, rest)| rest.split_once("</Region>"));
        let set = right
            .map_or("set AWS_REGION to the bucket's".into(), |(right, _)| format!("set AWS_REGION={right}"));
        return lasting(
            ErrorCode::Network,
            format!("The bucket {bucket:?} is of another region than {region}"),
            &set,
        );
    }
    let is_denied = matches!(error, StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. });
    if is_denied || has("AccessDenied") || has("403 Forbidden") || has("401 Unauthorized") {
        return lasting(
            ErrorCode::Access,
            format!("{host} does not permit to read {}", named.text()),
            "it takes the rights s3:ListBucket on the bucket and s3:GetObject on what is in it",
        );
    }
    match error {
        StoreError::Precondition { .. } => {
            return lasting(ErrorCode::Network, format!("{} {CHANGED}", named.text()), "pull it again");
        }
        StoreError::NotFound { .. } => {
            return lasting(
                ErrorCode::NotFound,
                format!("An object of {} is gone", named.text()),
                "pull it again",
            );
        }
        _ => {}
    }
    if let Some(request) = request {
        return of_request(request, host);
    }
    let between = |tag: &str| {
        let rest = says.split_once(&format!("<{tag}>"))?.1;
        Some(rest.split_once(&format!("</{tag}>"))?.0)
    };
    let last = between("Message")
        .or_else(|| between("Code"))
        .unwrap_or_else(|| says.rsplit(" - ").next().unwrap_or(&says).lines().next().unwrap_or_default());
    Trouble::passing(ErrorInfo::new(
        ErrorCode::Network,
        format!("{host} did not answer as it should: {last}"),
    ))
}

/// As servers answer that know the bucket elsewhere.
fn redirect(says: &str) -> Option<()> {
    ["301 Moved", "307 Temporary", "incorrectly configured region"]
        .iter()
        .any(|sign| says.contains(sign))
        .then_some(())
}
