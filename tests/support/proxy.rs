//! A way to a server that can be made to go nowhere.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::free_port;

/// Listens on a port of its own and passes everything on, unless it is told to swallow: then who
/// connects is let in and never hears anything. Dropping it closes the port.
pub struct Proxy {
    port: u16,
    swallows: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    /// How often it was frozen.
    frozen: watch::Sender<usize>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// To this port of the local host.
    pub async fn to(port: u16) -> Self {
        let own = free_port();
        let listener = TcpListener::bind(("127.0.0.1", own)).await.unwrap();
        let swallows = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(AtomicUsize::new(0));
        let (swallow, count) = (swallows.clone(), connections.clone());
        let frozen = watch::Sender::new(0);
        let freezing = frozen.subscribe();
        let task = tokio::spawn(async move {
            loop {
                let Ok((mut client, _)) = listener.accept().await else {
                    return;
                };
                count.fetch_add(1, Ordering::SeqCst);
                let swallow = swallow.clone();
                let mut freezing = freezing.clone();
                freezing.mark_unchanged();
                tokio::spawn(async move {
                    if swallow.load(Ordering::SeqCst) {
                        // Until the other side gives up.
                        let mut nowhere = tokio::io::sink();
                        tokio::select! {
                            _ = tokio::io::copy(&mut client, &mut nowhere) => {}
                            _ = freezing.changed() => {}
                        }
                        return;
                    }
                    let address = SocketAddr::from(([127, 0, 0, 1], port));
                    if let Ok(mut server) = TcpStream::connect(address).await {
                        tokio::select! {
                            _ = copy_bidirectional(&mut client, &mut server) => return,
                            _ = freezing.changed() => {}
                        }
                        // Both stay open until the client gives up.
                        let mut nowhere = tokio::io::sink();
                        let _ = tokio::io::copy(&mut client, &mut nowhere).await;
                    }
                });
            }
        });
        Self {
            port: own,
            swallows,
            connections,
            frozen,
            task,
        }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether new connections are swallowed from now on.
    pub fn swallow(&self, swallow: bool) {
        self.swallows.store(swallow, Ordering::SeqCst);
    }

    /// Ends what is swallowed.
    pub fn hang_up(&self) {
        self.freeze();
    }

    /// From now on nothing is passed on over what is open. New connections are as good as ever.
    pub fn freeze(&self) {
        self.frozen.send_modify(|times| *times += 1);
    }

    /// How many connections came.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
