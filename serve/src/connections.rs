//! Connections: accepted, encrypted where that is needed, and given up where they are too slow.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router, extract::ConnectInfo, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

/// For a handshake, and for a request's head; so long a connection may stay without one, too.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Lines do not count, they have left HTTP behind.
const MAX_CONNECTIONS: usize = 256;

/// Answers with `router`, which learns by [`ConnectInfo`] who asks, until it is dropped.
pub async fn serve(mut listener: TcpListener, tls: Option<TlsAcceptor>, router: Router, patience: Duration) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // It is never closed.
    while let Ok(permit) = room.clone().acquire_owned().await {
        let (stream, from) = Listener::accept(&mut listener).await;
        let router = router.clone().layer(Extension(ConnectInfo::<SocketAddr>(from)));
        let tls = tls.clone();
        tokio::spawn(async move {
            match tls {
                None => talk(stream, router, patience).await,
                // Whoever does not speak TLS is not answered.
                Some(tls) => {
                    if let Ok(Ok(stream)) = timeout(patience, tls.accept(stream)).await {
                        talk(stream, router, patience).await;
                    }
                }
            }
            drop(permit);
        });
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    patience: Duration,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // What goes wrong with a connection, its other end sees.
    connection.with_upgrades().await.ok();
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;

    /// What comes back until the server hangs up.
    async fn say(address: SocketAddr, text: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn who_says_nothing_or_half_a_request_is_hung_up_on_and_others_are_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "here" }));
        tokio::spawn(serve(listener, None, router, Duration::from_secs(2)));
        let (nothing, half, whole) = tokio::join!(
            say(address, ""),
            say(address, "GET / HTTP/1.1\r\nHost: x\r\n"),
            say(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        );
        assert_eq!(nothing, "");
        assert!(!half.contains("here"), "{half}");
        assert!(whole.starts_with("HTTP/1.1 200") && whole.ends_with("here"), "{whole}");
    }
}
