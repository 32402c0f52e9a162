//! A way to a server that delays, holds, cuts and refuses.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::free_port;

/// What a link does with bytes and with new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Everything is passed on.
    Flows,
    /// Each chunk is passed on after so many milliseconds.
    Slow(u64),
    /// Nothing is passed on until this ends; new connections are accepted.
    Held,
    /// New connections are closed; open ones work.
    Refused,
}

/// Listens on a port of its own on the local host. Dropping it closes the port.
pub struct Link {
    port: u16,
    traffic: watch::Sender<Traffic>,
    /// Counts how often all connections were cut.
    cuts: watch::Sender<u64>,
    /// Counts how often the way from the client was closed.
    half_closes: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Link {
    /// To this port of the local host.
    pub async fn to(port: u16) -> Self {
        let own = free_port();
        let listener = TcpListener::bind(("127.0.0.1", own)).await.unwrap();
        let traffic = watch::Sender::new(Traffic::Flows);
        let (cuts, half_closes) = (watch::Sender::new(0), watch::Sender::new(0));
        let (seen, cut, half) = (
            traffic.subscribe(),
            cuts.subscribe(),
            half_closes.subscribe(),
        );
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *seen.borrow() == Traffic::Refused {
                    continue;
                }
                let (seen, mut cut, half) = (seen.clone(), cut.clone(), half.clone());
                cut.mark_unchanged();
                tokio::spawn(async move {
                    tokio::select! {
                        () = serve(client, port, seen, half) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self {
            port: own,
            traffic,
            cuts,
            half_closes,
            task,
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn set(&self, traffic: Traffic) {
        self.traffic.send_replace(traffic);
    }

    /// Closes all connections.
    pub fn cut(&self) {
        self.cuts.send_modify(|times| *times += 1);
    }

    /// Closes the way from the client to the server of all connections; the other way stays open.
    pub fn half_close(&self) {
        self.half_closes.send_modify(|times| *times += 1);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
        self.task.abort();
    }
}

async fn serve(
    client: TcpStream,
    port: u16,
    traffic: watch::Receiver<Traffic>,
    mut half: watch::Receiver<u64>,
) {
    let Ok(server) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    half.mark_unchanged();
    let forth = async {
        let mut to_server = to_server;
        tokio::select! {
            () = pump(from_client, &mut to_server, traffic.clone()) => {}
            _ = half.changed() => {}
        }
        let _ = to_server.shutdown().await;
        // Held, so that only one way is closed.
        to_server
    };
    let back = async {
        let mut to_client = to_client;
        pump(from_server, &mut to_client, traffic.clone()).await;
        let _ = to_client.shutdown().await;
        to_client
    };
    tokio::join!(forth, back);
}

async fn pump(
    mut from: OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut traffic: watch::Receiver<Traffic>,
) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        let flows = traffic.wait_for(|traffic| *traffic != Traffic::Held);
        let traffic = flows.await.map(|traffic| *traffic);
        if let Ok(Traffic::Slow(pause)) = traffic {
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
