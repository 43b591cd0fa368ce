use std::{io, sync::Arc, time::Duration};

use lathe_protocol::{ErrorCode, ErrorInfo};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self,
        client::IntoClientRequest as _,
        http::{HeaderValue, Request, StatusCode, Uri, header},
        protocol::WebSocketConfig,
    },
};

use crate::tls::{fingerprint, provider};

const TIME: Duration = Duration::from_secs(10);
/// As much as a frame between host and worker may have.
const MAX_MESSAGE_BYTES: usize = 256 << 20;

pub type Socket = WebSocketStream<Box<dyn Wire>>;

/// Plain or TLS.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// Where a server is, and what opens it.
pub struct Door {
    host: String,
    port: u16,
    /// None for plain HTTP.
    tls: Option<Arc<ClientConfig>>,
    key: Key,
}

enum Key {
    /// Works once.
    Token(String),
    Cookie(HeaderValue),
}

impl Door {
    /// Reads a link as `lathe serve-ui` prints it.
    pub fn from_link(link: &str) -> Result<Self, ErrorInfo> {
        let wrong = |what: &str| {
            ErrorInfo::new(ErrorCode::Usage, format!("{what}: {link}"))
                .hint("copy the whole link that `lathe serve-ui` printed, with all that follows `#`")
        };
        let (place, rest) = link.trim().split_once('#').ok_or_else(|| wrong("The link has no token"))?;
        let value = |name: &str| {
            let mut pairs = rest.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(known, _)| *known == name).map(|(_, value)| value.to_owned())
        };
        let token = value("token").ok_or_else(|| wrong("The link has no token"))?;
        let uri: Uri = place.parse().map_err(|error| wrong(&format!("Not a link ({error})")))?;
        let host = uri.host().ok_or_else(|| wrong("The link names no machine"))?.to_owned();
        let (default_port, tls) = match uri.scheme_str() {
            Some("http") => (80, None),
            Some("https") => (443, Some(Arc::new(client_config(value("fingerprint"))?))),
            _ => return Err(wrong("The link begins with neither http nor https")),
        };
        Ok(Self { host, port: uri.port_u16().unwrap_or(default_port), tls, key: Key::Token(token) })
    }

    /// Opens a line. The first time the token becomes a cookie, which opens all later ones.
    pub async fn open(&mut self) -> Result<Socket, ErrorInfo> {
        let place = format!("{}:{}", self.host, self.port);
        let cannot = |what: &dyn std::fmt::Display| {
            ErrorInfo::new(ErrorCode::Network, format!("Cannot reach Lathe: {what}: {place}"))
        };
        let slow = |_| cannot(&"no answer within 10 s");

        // 1. The connection.
        let address = (self.host.trim_matches(['[', ']']), self.port);
        let stream = timeout(TIME, TcpStream::connect(address)).await.map_err(slow)?;
        let stream = stream.map_err(|error| {
            cannot(&error).hint("is `lathe serve-ui` running there, and does a firewall let it through?")
        })?;
        let wire: Box<dyn Wire> = match &self.tls {
            None => Box::new(stream),
            Some(config) => {
                let name = ServerName::try_from(address.0.to_owned()).map_err(|error| cannot(&error))?;
                let shaken = TlsConnector::from(config.clone()).connect(name, stream);
                let stream = timeout(TIME, shaken).await.map_err(slow)?;
                Box::new(stream.map_err(|error| match error.kind() {
                    // TLS itself says so.
                    io::ErrorKind::InvalidData => untrusted(&error, &place),
                    _ => cannot(&error),
                })?)
            }
        };

        // 2. The WebSocket on it.
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        let request = self.request(&format!("{scheme}://{place}/line")).map_err(|error| cannot(&error))?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let opened = timeout(TIME, client_async_with_config(request, wire, Some(config)));
        match opened.await.map_err(slow)? {
            Ok((socket, response)) => {
                let cookie = response.headers().get(header::SET_COOKIE).and_then(|value| value.to_str().ok());
                let cookie = cookie.and_then(|cookie| cookie.split(';').next()?.parse().ok());
                if let Some(cookie) = cookie {
                    self.key = Key::Cookie(cookie);
                }
                Ok(socket)
            }
            Err(tungstenite::Error::Http(response)) => {
                let told = response.body().as_deref().and_then(|json| serde_json::from_slice(json).ok());
                Err(told.unwrap_or_else(|| match response.status() {
                    StatusCode::NOT_FOUND => cannot(&"something else answers there"),
                    status => cannot(&status),
                }))
            }
            Err(error) => Err(cannot(&error)),
        }
    }

    fn request(&self, url: &str) -> tungstenite::Result<Request<()>> {
        let mut request = url.into_client_request()?;
        let (name, value) = match &self.key {
            Key::Token(token) => (header::AUTHORIZATION, format!("Bearer {token}").parse()?),
            Key::Cookie(cookie) => (header::COOKIE, cookie.clone()),
        };
        request.headers_mut().insert(name, value);
        Ok(request)
    }
}

fn untrusted(error: &io::Error, place: &str) -> ErrorInfo {
    let message = format!("Cannot trust the Lathe there: {error}: {place}");
    // As a refusal, it is not tried again.
    ErrorInfo::new(ErrorCode::Access, message).hint(
        "compare the link's fingerprint with what `lathe serve-ui` prints; another machine may pose as it",
    )
}

/// Trusts the certificate of this fingerprint alone; without one, what the system trusts.
fn client_config(pinned: Option<String>) -> Result<ClientConfig, ErrorInfo> {
    let internal =
        |error: rustls::Error| ErrorInfo::new(ErrorCode::Internal, format!("Cannot use TLS: {error}"));
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(internal)?;
    let builder = match pinned {
        None => builder.with_platform_verifier().map_err(internal)?,
        Some(fingerprint) => {
            let pinned = Pinned { fingerprint: fingerprint.to_lowercase(), provider };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(pinned))
        }
    };
    Ok(builder.with_no_client_auth())
}

/// Knows one certificate, by its SHA-256.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if fingerprint(certificate) == self.fingerprint {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
