//! A line that can be cut.

use std::{
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// Stands between a viewer and a server.
pub struct Proxy {
    pub address: SocketAddr,
    lines: Arc<Mutex<Vec<TcpStream>>>,
    is_dead: Arc<AtomicBool>,
}

impl Proxy {
    pub fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (lines, is_dead) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let proxy = Self { address, lines: lines.clone(), is_dead: is_dead.clone() };
        let accept = move || {
            for near in listener.incoming().flatten() {
                if is_dead.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(far) = TcpStream::connect(server) else { continue };
                let pairs = [(near.try_clone(), far.try_clone()), (far.try_clone(), near.try_clone())];
                lines.lock().unwrap().extend([near, far]);
                for (from, to) in pairs {
                    let (mut from, mut to) = (from.unwrap(), to.unwrap());
                    let copy = move || drop(std::io::copy(&mut from, &mut to));
                    thread::Builder::new().name("copy".into()).spawn(copy).unwrap();
                }
            }
        };
        thread::Builder::new().name("proxy".into()).spawn(accept).unwrap();
        proxy
    }

    /// Cuts what there is, and lets nobody through until it is mended.
    pub fn cut(&self) {
        self.is_dead.store(true, Ordering::SeqCst);
        for line in self.lines.lock().unwrap().drain(..) {
            drop(line.shutdown(Shutdown::Both));
        }
    }

    pub fn mend(&self) {
        self.is_dead.store(false, Ordering::SeqCst);
    }
}
