#![cfg(unix)]

use std::{fs, net::TcpStream, sync::Arc};

use lathe_protocol::{CommandBody, ErrorCode, EventBody};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

use crate::{
    Host,
    hub::tests::repo,
    testing::{
        Bench, ask, failure,
        fake_hub::{FakeHub, Wrap},
        net_options,
    },
};

/// A certificate of 127.0.0.1 signed by an authority of our own, whose certificate is returned in PEM.
fn tls() -> (Wrap, String) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    let config = Arc::new(config);
    let wrap = move |stream: TcpStream| {
        let connection = ServerConnection::new(config.clone()).map_err(std::io::Error::other)?;
        Ok(Box::new(StreamOwned::new(connection, stream)) as Box<_>)
    };
    (Arc::new(wrap), authority.pem())
}

#[test]
fn a_certificate_is_trusted_once_its_authority_is_named() {
    let (wrap, pem) = tls();
    let hub = FakeHub::start_with("https", wrap, &[("maker/tiny", repo())]);
    let bench = Bench::new();
    let pull = |host: &mut Host| {
        ask(host, 1, CommandBody::ModelsPull { model: "maker/tiny".into(), revision: None })
    };
    let mut options = bench.shell_options("exit 1");
    options.net = net_options(&hub.endpoint());
    let error = failure(&pull(&mut Host::start(options.clone()).unwrap()));
    assert!(
        error.code == ErrorCode::Network && error.message.contains("The certificate of 127.0.0.1"),
        "{error:?}"
    );
    assert!(error.message.contains("is not trusted") && error.hint.unwrap().contains("REQUESTS_CA_BUNDLE"));

    fs::write(bench.path("ca.pem"), pem).unwrap();
    options.net.ca_bundles = vec![bench.path("ca.pem")];
    let events = pull(&mut Host::start(options.clone()).unwrap());
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");

    fs::write(bench.path("ca.pem"), "-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----").unwrap();
    let error = failure(&pull(&mut Host::start(options).unwrap()));
    assert!(
        error.message.contains("The network cannot be used") && error.message.contains("ca.pem"),
        "{error:?}"
    );

    let plain = FakeHub::start(&[]);
    let mut options = bench.shell_options("exit 1");
    options.net = net_options(&plain.endpoint().replace("http:", "https:"));
    let error = failure(&pull(&mut Host::start(options).unwrap()));
    assert!(error.message.contains("does not speak TLS"), "{error:?}");
}
