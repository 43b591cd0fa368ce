//! A server's refusals in clear words.

use std::time::Duration;

use hf_hub::HFError;
use lathe_protocol::{ErrorCode, ErrorInfo};
use reqwest::{StatusCode, header::HeaderMap};

use crate::{
    net::{Trouble, of_request},
    token::Found,
};

/// What was asked for.
pub(super) struct Asked<'a> {
    pub endpoint: &'a str,
    pub token: Option<&'a Found>,
    /// `owner/name`; empty of a search.
    pub model: &'a str,
    pub revision: Option<&'a str>,
}

/// An answer that is none.
pub(super) struct Refusal {
    pub status: StatusCode,
    /// `X-Error-Code`.
    pub code: Option<String>,
    pub message: Option<String>,
    pub retry_after: Option<Duration>,
}

impl Refusal {
    pub(super) fn of_headers(status: StatusCode, headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
        Self {
            status,
            code: text("x-error-code"),
            message: text("x-error-message"),
            retry_after: text("retry-after")
                .and_then(|secs| Some(Duration::from_secs(secs.trim().parse().ok()?))),
        }
    }
}

impl Asked<'_> {
    pub(super) fn host(&self) -> &str {
        let rest = self.endpoint.split_once("://").map_or(self.endpoint, |(_, rest)| rest);
        rest.split('/').next().unwrap_or(rest)
    }

    fn page(&self) -> String {
        format!("{}/{}", self.endpoint, self.model)
    }

    pub(super) fn failed(&self, error: &HFError) -> Trouble {
        match error {
            HFError::RateLimited { context, .. }
            | HFError::Http { context }
            | HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Conflict { context }
            | HFError::RepoNotFound { context: Some(context), .. }
            | HFError::RevisionNotFound { context: Some(context), .. }
            | HFError::EntryNotFound { context: Some(context), .. } => self.refused(&Refusal {
                status: context.status,
                code: context.error_code.clone(),
                message: context.server_message.clone(),
                retry_after: if let HFError::RateLimited { retry_after, .. } = error {
                    *retry_after
                } else {
                    None
                },
            }),
            HFError::Request { source, .. } if !source.is_decode() => of_request(source, self.host()),
            other => self.not_the_hub(other),
        }
    }

    /// Of an answer that cannot be read.
    pub(super) fn not_the_hub(&self, why: &dyn std::fmt::Display) -> Trouble {
        let message = format!("{} answers otherwise than the Hub does: {why}", self.host());
        Trouble::Lasting(
            ErrorInfo::new(ErrorCode::Network, message)
                .hint("check the Hub's address (Settings, or HF_ENDPOINT), and whether a page to log in stands before the network"),
        )
    }

    pub(super) fn refused(&self, refusal: &Refusal) -> Trouble {
        let Self { model, token, .. } = self;
        let Refusal { status, code, message, retry_after } = refusal;
        let (host, page) = (self.host(), self.page());
        let said = message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
        let access = |message: String, hint: String| {
            Trouble::Lasting(ErrorInfo::new(ErrorCode::Access, message).hint(hint))
        };
        let absent = |message: String, hint: String| {
            Trouble::Lasting(ErrorInfo::new(ErrorCode::NotFound, message).hint(hint))
        };
        let is_bad_token = token.is_some()
            && *status == StatusCode::UNAUTHORIZED
            && (code.is_none() || message.as_ref().is_some_and(|message| message.contains("Invalid")));
        match (code.as_deref(), *status) {
            _ if is_bad_token => {
                let place = token.map(|found| found.place.as_str()).unwrap_or_default();
                access(
                    format!("{host} does not accept the token of {place}{said}"),
                    format!(
                        "make a new one at {}/settings/tokens, and keep it in Settings or HF_TOKEN",
                        self.endpoint
                    ),
                )
            }
            (Some("GatedRepo"), _) => match token {
                None => access(
                    format!("{model} is given only to who agrees to its terms: a token is needed"),
                    format!(
                        "open {page}, agree to its terms, then `lathe models pull {model}` again with a token: Settings or HF_TOKEN"
                    ),
                ),
                Some(found) => access(
                    format!("{model} is not given to the account of the token of {}{said}", found.place),
                    format!(
                        "open {page} with that account and agree to its terms; its owner may have to let you in"
                    ),
                ),
            },
            (Some("RevisionNotFound"), _) => absent(
                format!("{model} has no revision {}", self.revision.unwrap_or("main")),
                format!("its branches and tags are at {page}/tree/main"),
            ),
            (Some("EntryNotFound"), _) => absent(
                format!("{model} lacks a file that it lists{said}"),
                format!("look at {page}/tree/main"),
            ),
            _ if message.as_ref().is_some_and(|message| message.contains("is disabled")) => {
                access(format!("{model} was taken out of the Hub{said}"), format!("see {page}"))
            }
            (Some("RepoNotFound"), _) | (_, StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED) => {
                let private = match token {
                    None => "a private one needs a token: Settings or HF_TOKEN".to_owned(),
                    Some(found) => format!(
                        "a private one needs a token that may read it, which that of {} may not",
                        found.place
                    ),
                };
                absent(
                    format!("No model {model} at {host}"),
                    format!("check the name with `lathe models search`; {private}"),
                )
            }
            (_, StatusCode::FORBIDDEN) => access(
                format!("{host} does not permit it{said}"),
                format!(
                    "the token needs the right to read {}: see {}/settings/tokens",
                    if model.is_empty() { "models" } else { model },
                    self.endpoint
                ),
            ),
            (_, StatusCode::PROXY_AUTHENTICATION_REQUIRED) => access(
                "The proxy wants a name and a password".into(),
                "write them into HTTPS_PROXY: http://name:password@host:port".into(),
            ),
            (_, StatusCode::TOO_MANY_REQUESTS) => Trouble::Passing {
                error: ErrorInfo::new(
                    ErrorCode::Network,
                    format!("{host} asks to wait: too many requests{said}"),
                )
                .hint("try again in a few minutes; with a token more is allowed"),
                after: *retry_after,
            },
            (_, status) if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                Trouble::Passing {
                    error: ErrorInfo::new(
                        ErrorCode::Network,
                        format!("{host} has trouble: it answers {status}{said}"),
                    )
                    .hint("try again later"),
                    after: *retry_after,
                }
            }
            (_, status) => Trouble::Lasting(
                ErrorInfo::new(ErrorCode::Network, format!("{host} answers {status}{said}"))
                    .hint("check the Hub's address: Settings, or HF_ENDPOINT"),
            ),
        }
    }
}
