//! The certificate a server shows, and the connections behind it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::digest;
use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use lathe_protocol::{ErrorCode, ErrorInfo};
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs::default_provider},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
const MAX_HANDSHAKES: usize = 64;

/// PEM files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What a server proves itself with.
pub struct Identity {
    pub config: Arc<ServerConfig>,
    /// SHA-256 of the certificate, in hex.
    pub fingerprint: String,
}

impl Identity {
    pub fn read(files: &TlsFiles) -> Result<Self, ErrorInfo> {
        let TlsFiles { certificate, key } = files;
        let cannot = |what: &str, error: &dyn std::fmt::Display, path: &Path| {
            let message = format!("Cannot use the {what}: {error}: {}", path.display());
            ErrorInfo::new(ErrorCode::Io, message)
                .hint("certificate and key are PEM files that belong together")
        };
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| cannot("certificate", &error, certificate))?;
        let Some(first) = chain.first() else {
            return Err(cannot("certificate", &"there is none in the file", certificate));
        };
        let fingerprint = fingerprint(first);
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| cannot("key", &error, key))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| ErrorInfo::new(ErrorCode::Internal, format!("Cannot use TLS: {error}")))?
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .map_err(|error| cannot("certificate with this key", &error, certificate))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), fingerprint })
    }

    /// One that nobody vouches for, kept in the folder; made there the first time.
    pub fn own(folder: &Path, addresses: &[IpAddr]) -> Result<Self, ErrorInfo> {
        let files = TlsFiles { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") };
        if !files.certificate.exists() || !files.key.exists() {
            make(&files, folder, addresses)?;
        }
        Self::read(&files)
    }
}

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

/// SHA-256 in hex.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    crate::hex(digest::digest(&digest::SHA256, certificate).as_ref())
}

fn make(files: &TlsFiles, folder: &Path, addresses: &[IpAddr]) -> Result<(), ErrorInfo> {
    let names = addresses.iter().map(IpAddr::to_string).chain(["localhost".to_owned()]);
    let made = rcgen::generate_simple_self_signed(names.collect::<Vec<_>>()).map_err(|error| {
        ErrorInfo::new(ErrorCode::Internal, format!("Cannot make a certificate: {error}"))
    })?;
    let cannot = |error: io::Error| {
        ErrorInfo::new(ErrorCode::Io, format!("Cannot keep the certificate: {error}: {}", folder.display()))
    };
    std::fs::create_dir_all(folder).map_err(cannot)?;
    // The certificate last: where it is, its key is.
    for (path, pem) in [(&files.key, made.signing_key.serialize_pem()), (&files.certificate, made.cert.pem())]
    {
        let aside = path.with_extension("partial");
        write_secret(&aside, &pem).and_then(|()| std::fs::rename(&aside, path)).map_err(cannot)?;
    }
    Ok(())
}

/// Readable for nobody else.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    io::Write::write_all(&mut options.open(path)?, text.as_bytes())
}

/// Connections whose handshake is done; one that takes long holds up no other.
pub struct TlsListener {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl TlsListener {
    /// Listens as a task of this runtime.
    pub fn start(listener: TcpListener, config: Arc<ServerConfig>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(MAX_HANDSHAKES);
        tokio::spawn(shake_hands(listener, TlsAcceptor::from(config), sender));
        Ok(Self { address, ready })
    }
}

async fn shake_hands(
    mut listener: TcpListener,
    acceptor: TlsAcceptor,
    sender: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let room = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    // It is never closed.
    while let Ok(permit) = room.clone().acquire_owned().await {
        let (stream, address) = Listener::accept(&mut listener).await;
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        tokio::spawn(async move {
            let shaken = tokio::time::timeout(HANDSHAKE_TIME, acceptor.accept(stream)).await;
            drop(permit);
            // Whoever does not speak TLS is not answered.
            if let Ok(Ok(stream)) = shaken {
                drop(sender.send((stream, address)).await);
            }
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // Only when the runtime ends, and this with it.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self(*stream.remote_addr())
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        Self(*stream.remote_addr())
    }
}
