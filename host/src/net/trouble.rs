use std::{error::Error as _, time::Duration};

use lathe_protocol::{ErrorCode, ErrorInfo};

/// Why an answer did not come, or not whole.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// May be over at the next try, or when the server says so.
    Passing {
        error: ErrorInfo,
        after: Option<Duration>,
    },
    Lasting(ErrorInfo),
}

impl Trouble {
    pub(crate) fn passing(error: ErrorInfo) -> Self {
        Self::Passing { error, after: None }
    }

    pub(crate) fn into_error(self) -> ErrorInfo {
        match self {
            Self::Passing { error, .. } | Self::Lasting(error) => error,
        }
    }
}

/// What a request to `host` died of.
pub(crate) fn of_request(error: &reqwest::Error, host: &str) -> Trouble {
    let mut causes = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    let says = |word: &str| causes.iter().any(|cause| cause.contains(word));
    let network = |message: String| ErrorInfo::new(ErrorCode::Network, message);
    let last = causes.last().map(String::as_str).unwrap_or_default();
    if says("invalid peer certificate") || says("certificate verify") {
        let message = format!("The certificate of {host} is not trusted: {last}");
        return Trouble::Lasting(network(message).hint(
            "if a proxy or mirror of your own signs it, name its certificates in SSL_CERT_FILE or REQUESTS_CA_BUNDLE",
        ));
    }
    if says("InvalidContentType") || says("corrupt message") {
        let message = format!("{host} does not speak TLS: {last}");
        return Trouble::Lasting(network(message).hint("is it http:// in place of https://?"));
    }
    if says("tunnel") || says("proxy") {
        let message = format!("The proxy does not let through to {host}: {last}");
        return Trouble::passing(network(message).hint("check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"));
    }
    if error.is_builder() {
        return Trouble::Lasting(network(format!("Not an address to ask: {host}: {last}")));
    }
    if says("lookup") {
        let message = format!("{host} is not found: {last}");
        return Trouble::passing(network(message).hint(OFFLINE));
    }
    if error.is_timeout() {
        return Trouble::passing(network(format!("{host} does not answer")).hint(OFFLINE));
    }
    if error.is_connect() {
        let message = format!("{host} cannot be reached: {last}");
        return Trouble::passing(network(message).hint(OFFLINE));
    }
    if error.is_redirect() {
        return Trouble::Lasting(network(format!("{host} sends in circles: {last}")));
    }
    Trouble::passing(network(format!("The connection to {host} was lost: {last}")).hint(OFFLINE))
}

const OFFLINE: &str =
    "check the network, and HTTPS_PROXY if there is a proxy; models on disk can be used meanwhile";
