use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State, WebSocketUpgrade},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            ACCEPT_ENCODING, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY,
            CONTENT_TYPE, COOKIE, ETAG, HOST, IF_NONE_MATCH, ORIGIN, REFERRER_POLICY, SET_COOKIE, VARY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{any, get, post},
};
use lathe_host::Viewers;
use lathe_protocol::{ErrorCode, ErrorInfo};

use crate::{
    Link,
    connections::PATIENCE,
    gate::{self, Gate},
    line,
    page::Page,
};

/// A chat that is saved is the longest thing a viewer says.
pub const MAX_MESSAGE_BYTES: usize = 32 << 20;
const POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' \
                      data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const SAME_SITE_ONLY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// What all requests share.
pub struct Rooms {
    pub viewers: Arc<Viewers>,
    pub page: Page,
    pub gate: Gate,
    /// Sessions of another server are not of this one.
    pub instance: String,
    pub address: SocketAddr,
    /// By which others reach it.
    pub host: IpAddr,
    /// None without TLS.
    pub fingerprint: Option<String>,
    pub on_link: Box<dyn Fn(Link) + Send + Sync>,
}

impl Rooms {
    pub fn link(&self) -> Link {
        let token = self.gate.token();
        let place = SocketAddr::new(self.host, self.address.port());
        let url = match &self.fingerprint {
            None => format!("http://{place}/#token={token}"),
            Some(fingerprint) => format!("https://{place}/#token={token}&fingerprint={fingerprint}"),
        };
        Link { url, token, fingerprint: self.fingerprint.clone() }
    }

    fn scheme(&self) -> &'static str {
        if self.fingerprint.is_some() { "https" } else { "http" }
    }

    /// Cookies know no port, so their name has it.
    fn cookie_name(&self) -> String {
        format!("lathe-{}", self.address.port())
    }

    /// Lets somebody in, and tells of the next link.
    fn enter(&self, from: SocketAddr, token: &str) -> Result<HeaderValue, ErrorInfo> {
        let cookie = self.gate.enter(from.ip(), token.trim(), Instant::now())?;
        (self.on_link)(self.link());
        let secure = if self.fingerprint.is_some() { "; Secure" } else { "" };
        let name = self.cookie_name();
        HeaderValue::try_from(format!("{name}={cookie}; HttpOnly; SameSite=Strict; Path=/{secure}"))
            .map_err(|error| ErrorInfo::new(ErrorCode::Internal, error.to_string()))
    }

    fn has_cookie(&self, headers: &HeaderMap) -> bool {
        let name = self.cookie_name();
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        cookies
            .flat_map(|cookies| cookies.split(';'))
            .filter_map(|cookie| cookie.trim().split_once('='))
            .any(|(known, value)| known == name && self.gate.knows(value))
    }
}

pub fn router(rooms: Arc<Rooms>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/{file}", get(file))
        .route("/enter", post(enter).layer(DefaultBodyLimit::max(1024)))
        .route("/line", any(line))
        .layer(middleware::from_fn_with_state(rooms.clone(), guard))
        .with_state(rooms)
}

/// Refuses what other sites' pages ask through somebody's browser, and says with every answer what a page may do.
async fn guard(State(rooms): State<Arc<Rooms>>, request: Request, next: Next) -> Response {
    let mut response = match check_sender(&rooms, request.headers()) {
        Ok(()) => match tokio::time::timeout(PATIENCE, next.run(request)).await {
            Ok(response) => response,
            Err(_) => failure(
                StatusCode::REQUEST_TIMEOUT,
                &ErrorInfo::new(ErrorCode::Network, "The request did not come whole in time"),
            ),
        },
        Err(error) => failure(StatusCode::FORBIDDEN, &error),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (SAME_SITE_ONLY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn check_sender(rooms: &Rooms, headers: &HeaderMap) -> Result<(), ErrorInfo> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(HOST).unwrap_or_default();
    // A name of somebody's own that leads here, so that his page counts as ours. With TLS the certificate settles it.
    if rooms.fingerprint.is_none() && !is_this_machine(host) {
        let message = format!("This Lathe serves this machine only, not {host:?}");
        return Err(ErrorInfo::new(ErrorCode::Access, message).hint("open it as 127.0.0.1 or localhost"));
    }
    match text(ORIGIN) {
        Some(origin) if origin != format!("{}://{host}", rooms.scheme()) => {
            Err(ErrorInfo::new(ErrorCode::Access, format!("Not for pages of {origin:?}")))
        }
        _ => Ok(()),
    }
}

/// Whether a `Host` is a name of this machine's own, with whatever port: it may be tunnelled.
fn is_this_machine(host: &str) -> bool {
    let name =
        host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn index(rooms: State<Arc<Rooms>>, headers: HeaderMap) -> Response {
    file(rooms, Path(String::new()), headers).await
}

async fn file(State(rooms): State<Arc<Rooms>>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    let Some(file) = rooms.page.find(&name) else {
        return failure(StatusCode::NOT_FOUND, &ErrorInfo::new(ErrorCode::NotFound, "There is nothing here"));
    };
    let has = |name, wanted: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains(wanted))
    };
    let known = [(ETAG, file.tag.as_str()), (CACHE_CONTROL, "no-cache"), (VARY, "Accept-Encoding")];
    if has(IF_NONE_MATCH, &file.tag) {
        return (StatusCode::NOT_MODIFIED, known).into_response();
    }
    match &file.compressed {
        Some(bytes) if has(ACCEPT_ENCODING, "gzip") => {
            let how = [(CONTENT_TYPE, file.kind), (CONTENT_ENCODING, "gzip")];
            (known, how, Body::from(bytes.clone())).into_response()
        }
        _ => (known, [(CONTENT_TYPE, file.kind)], Body::from(file.bytes.clone())).into_response(),
    }
}

/// Exchanges a token for a cookie.
async fn enter(
    State(rooms): State<Arc<Rooms>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    token: String,
) -> Response {
    match rooms.enter(from, &token) {
        Ok(cookie) => (StatusCode::NO_CONTENT, [(SET_COOKIE, cookie)]).into_response(),
        Err(error) => failure(refusal_status(&error), &error),
    }
}

/// A viewer's line. A program brings its first token along and gets the cookie with the answer.
async fn line(
    State(rooms): State<Arc<Rooms>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let upgrade = upgrade.max_message_size(MAX_MESSAGE_BYTES).max_frame_size(MAX_MESSAGE_BYTES);
    let cookie = match token.map(|token| rooms.enter(from, token)).transpose() {
        Ok(cookie) => cookie,
        Err(error) => return failure(refusal_status(&error), &error),
    };
    if cookie.is_none() && !rooms.has_cookie(&headers) {
        // A page sees no status of a WebSocket's, so it is told in words.
        let error = gate::refused("Lathe does not know this browser, or has been started anew");
        return upgrade.on_upgrade(|socket| line::refuse(socket, error));
    }
    let mut response = upgrade.on_upgrade(|socket| line::talk(socket, rooms));
    if let Some(cookie) = cookie {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    response
}

fn refusal_status(error: &ErrorInfo) -> StatusCode {
    match error.code {
        ErrorCode::Access => StatusCode::UNAUTHORIZED,
        ErrorCode::Busy => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn failure(status: StatusCode, error: &ErrorInfo) -> Response {
    let json = serde_json::to_string(error).unwrap_or_default();
    (status, [(CONTENT_TYPE, "application/json")], json).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_its_own() {
        for (host, expected) in [
            ("127.0.0.1:8474", true),
            ("localhost", true),
            ("LOCALHOST:1", true),
            ("[::1]:8474", true),
            ("lathe.example:8474", false),
            ("127.0.0.1.example", false),
            ("192.168.0.2:8474", false),
            ("", false),
        ] {
            assert_eq!(is_this_machine(host), expected, "{host}");
        }
    }
}
