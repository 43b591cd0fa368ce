//! The certificate a server shows.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::digest;
use lathe_protocol::{ErrorCode, ErrorInfo};
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs::default_provider},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

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
