//! `lathe serve-ui`: the window's page over HTTP, and a host's switchboard over WebSockets; and the native way to one.
//!
//! Plain HTTP only on this machine's own address, TLS on any other. Nobody comes in without a link that works once.

mod client;
mod connections;
mod gate;
mod http;
mod line;
mod page;
mod tls;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::{Arc, mpsc::sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use lathe_host::Viewers;
use lathe_protocol::{ErrorCode, ErrorInfo};
use tokio::{net::TcpListener, runtime, sync::oneshot};
use tokio_rustls::TlsAcceptor;

pub use client::Remote;
pub use page::find_folder;
pub use tls::TlsFiles;

use gate::Gate;
use http::Rooms;
use page::Page;
use tls::Identity;

/// Where and how a server listens.
pub struct Options {
    pub listen: SocketAddr,
    /// The folder of the window's page.
    pub page: PathBuf,
    /// None means a certificate of our own, where TLS is needed at all.
    pub tls: Option<TlsFiles>,
    /// Called, on any thread, with the new link once one was used.
    pub on_link: Box<dyn Fn(Link) + Send + Sync>,
}

/// What lets one viewer in, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// With the token, and the fingerprint.
    pub url: String,
    pub token: String,
    /// SHA-256 of the certificate, in hex. None without TLS.
    pub fingerprint: Option<String>,
}

/// A server on a thread of its own. Dropping it cuts its lines; the switchboard goes on.
pub struct Server {
    rooms: Arc<Rooms>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(viewers: Arc<Viewers>, options: Options) -> Result<Self, ErrorInfo> {
        // 1. What it shows, and by what it is known.
        let page = Page::read(&options.page)?;
        let needs_tls = !options.listen.ip().is_loopback();
        let identity = match &options.tls {
            Some(files) => Some(Identity::read(files)?),
            None if needs_tls => {
                let folder = viewers.paths().data_dir.join("serve-ui");
                Some(Identity::own(&folder, &own_addresses(options.listen.ip()))?)
            }
            None => None,
        };

        // 2. The port.
        let cannot = |error: io::Error| cannot_listen(&error, options.listen);
        let socket = std::net::TcpListener::bind(options.listen).map_err(cannot)?;
        socket.set_nonblocking(true).map_err(cannot)?;
        let address = socket.local_addr().map_err(cannot)?;

        // 3. The thread.
        let rooms = Arc::new(Rooms {
            viewers,
            page,
            gate: Gate::new()?,
            instance: gate::secret()?,
            address,
            host: own_addresses(address.ip())[0],
            fingerprint: identity.as_ref().map(|identity| identity.fingerprint.clone()),
            on_link: options.on_link,
        });
        let (stop, stopped) = oneshot::channel();
        let (started, is_started) = sync_channel(1);
        let shared = rooms.clone();
        let serve = move || serve(shared, socket, identity, stopped, &started);
        let thread = thread::Builder::new().name("serve-ui".into()).spawn(serve).map_err(cannot)?;
        let server = Self { rooms, stop: Some(stop), thread: Some(thread) };
        match is_started.recv() {
            Ok(Ok(())) => Ok(server),
            Ok(Err(error)) => Err(cannot(error)),
            Err(_) => Err(ErrorInfo::new(ErrorCode::Internal, "The server's thread ended at once")),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.rooms.address
    }

    /// The one that works now.
    pub fn link(&self) -> Link {
        self.rooms.link()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // Fails if the thread has ended by itself.
            stop.send(()).ok();
        }
        if let Some(thread) = self.thread.take() {
            // A panic has said what it was.
            drop(thread.join());
        }
    }
}

fn serve(
    rooms: Arc<Rooms>,
    socket: std::net::TcpListener,
    identity: Option<Identity>,
    stopped: oneshot::Receiver<()>,
    started: &std::sync::mpsc::SyncSender<io::Result<()>>,
) {
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(error))),
    };
    runtime.block_on(async move {
        let listener = match TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(error) => return drop(started.send(Err(error))),
        };
        drop(started.send(Ok(())));
        let tls = identity.map(|identity| TlsAcceptor::from(identity.config));
        tokio::select! {
            () = connections::serve(listener, tls, http::router(rooms), connections::PATIENCE) => {}
            _ = stopped => {}
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
}

fn cannot_listen(error: &io::Error, address: SocketAddr) -> ErrorInfo {
    let message = format!("Cannot listen: {error}: {address}");
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program has the port: choose another with --listen, e.g. 127.0.0.1:8475"
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address; 0.0.0.0 means all it has",
        io::ErrorKind::PermissionDenied => "ports below 1024 are the system's: choose another with --listen",
        _ => "choose another address with --listen",
    };
    ErrorInfo::new(ErrorCode::Network, message).hint(hint)
}

/// By which others reach an address that is listened on, the best first.
fn own_addresses(listen: IpAddr) -> Vec<IpAddr> {
    if !listen.is_unspecified() {
        return vec![listen];
    }
    // The route to elsewhere begins at the address that elsewhere sees. Nothing is sent.
    let (any, elsewhere): (IpAddr, IpAddr) = match listen {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        IpAddr::V6(_) => {
            (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into())
        }
    };
    let seen = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((elsewhere, 9))?;
        socket.local_addr()
    });
    let seen = seen.ok().map(|address| address.ip()).filter(|address| !address.is_unspecified());
    seen.into_iter().chain([Ipv4Addr::LOCALHOST.into()]).collect()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        // Writing to a string cannot fail.
        write!(hex, "{byte:02x}").ok();
        hex
    })
}
