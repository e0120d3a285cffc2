//! What stands between processes: a TCP load balancer (agents have one address, and reconnect to a gateway
//! that is there), and a line that can be cut.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_testkit::free_ports;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// How long a gateway may take to accept.
const CONNECT: Duration = Duration::from_secs(2);

/// Passes connections on to servers in turn, and skips those that refuse. Stops when dropped.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    ways: Arc<Ways>,
    task: JoinHandle<()>,
}

/// Where connections may go.
#[derive(Debug)]
struct Ways {
    servers: Vec<SocketAddr>,
    next: AtomicUsize,
    /// Servers that are taken for down.
    down: watch::Sender<BTreeSet<SocketAddr>>,
    /// Connections to servers that were taken for down while they were open.
    left: Mutex<Option<mpsc::UnboundedSender<TcpStream>>>,
}

impl Balancer {
    /// Balances over these servers.
    ///
    /// # Errors
    /// If no address can be listened on.
    pub async fn start(servers: Vec<SocketAddr>) -> io::Result<Self> {
        let port = free_ports(1)[0];
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let next = AtomicUsize::new(0);
        let ways = Arc::new(Ways { servers, next, down: watch::Sender::default(), left: Mutex::default() });
        Ok(Self { address, task: tokio::spawn(serve(listener, Arc::clone(&ways))), ways })
    }

    /// Takes a server for down, as after failed health checks: clients' connections to it end, and no new
    /// ones go there. The server is told nothing: its ends of the connections come out here, still open.
    pub fn abandon(&self, server: SocketAddr) -> mpsc::UnboundedReceiver<TcpStream> {
        let (sender, left) = mpsc::unbounded_channel();
        *self.ways.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        self.ways.down.send_modify(|down| {
            down.insert(server);
        });
        left
    }

    /// Takes every server for up again.
    pub fn restore(&self) {
        self.ways.down.send_modify(BTreeSet::clear);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, ways: Arc<Ways>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of descriptors, say: whoever waits is served when there are some again.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let ways = Arc::clone(&ways);
        tokio::spawn(async move {
            let mut down = ways.down.subscribe();
            // What ends one side ends the other; why is for the sides to tell.
            let Some((address, mut server)) = connect(&ways).await else { return };
            let mut client = client;
            let abandoned = tokio::select! {
                _ = relay(&mut client, &mut server) => false,
                down = down.wait_for(|down| down.contains(&address)) => down.is_ok(),
            };
            if abandoned {
                drop(client);
                let left = ways.left.lock().unwrap_or_else(PoisonError::into_inner);
                // Whoever abandoned the server may not want them any more.
                let _ = left.as_ref().map(|left| left.send(server));
            }
        });
    }
}

/// A connection to the server whose turn it is, or else to the first after it that accepts.
async fn connect(ways: &Ways) -> Option<(SocketAddr, TcpStream)> {
    let first = ways.next.fetch_add(1, Ordering::Relaxed);
    for step in 0..ways.servers.len() {
        let server = ways.servers[(first + step) % ways.servers.len()];
        if ways.down.borrow().contains(&server) {
            continue;
        }
        if let Ok(Ok(stream)) = timeout(CONNECT, TcpStream::connect(server)).await {
            return Some((server, stream));
        }
    }
    None
}

async fn relay(client: &mut TcpStream, server: &mut TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional(client, server).await?;
    Ok(())
}

/// A line to one server. While it is cut nothing comes through, and neither side is told: bytes wait, as they do
/// where a network is down. Stops when dropped.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    is_cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Line {
    /// A line to this server.
    ///
    /// # Errors
    /// If no address can be listened on.
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, free_ports(1)[0])).await?;
        let address = listener.local_addr()?;
        let is_cut = watch::Sender::new(false);
        let cut = is_cut.subscribe();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(client, server, cut.clone()));
            }
        });
        Ok(Self { address, is_cut, task })
    }

    /// The end that clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets nothing through from now on.
    pub fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    /// Lets everything through again, also what has waited.
    pub fn mend(&self) {
        self.is_cut.send_replace(false);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(client: TcpStream, server: SocketAddr, mut cut: watch::Receiver<bool>) {
    if cut.wait_for(|cut| !cut).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (client, server) = (client.into_split(), server.into_split());
    tokio::select! {
        () = pass_on(client.0, server.1, cut.clone()) => {}
        () = pass_on(server.0, client.1, cut) => {}
    }
}

/// Passes bytes on in one direction, unless the line is cut.
async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cut: watch::Receiver<bool>) {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut bytes).await else { return };
        if cut.wait_for(|cut| !cut).await.is_err() || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A server that says one byte to everybody.
    async fn server(byte: u8) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(&[byte]).await;
            }
        });
        address
    }

    async fn ask(balancer: &Balancer) -> Option<u8> {
        let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
        stream.read_u8().await.ok()
    }

    #[tokio::test]
    async fn servers_take_turns_and_one_that_refuses_is_skipped() {
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, free_ports(1)[0]));
        let balancer = Balancer::start(vec![server(1).await, nobody, server(3).await]).await.unwrap();
        let mut heard = Vec::new();
        for _ in 0..6 {
            heard.push(ask(&balancer).await);
        }
        assert_eq!(heard, [1, 3, 3, 1, 3, 3].map(Some));
    }

    #[tokio::test]
    async fn a_server_that_is_abandoned_keeps_its_connections_and_gets_no_more() {
        let servers = vec![server(1).await, server(2).await];
        let balancer = Balancer::start(servers.clone()).await.unwrap();
        let mut client = TcpStream::connect(balancer.address()).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), 1);
        let mut left = balancer.abandon(servers[0]);
        assert!(client.read_u8().await.is_err());
        assert!(left.recv().await.is_some());
        assert_eq!([ask(&balancer).await, ask(&balancer).await], [Some(2); 2]);
        balancer.restore();
        assert_eq!(ask(&balancer).await, Some(2));
        assert_eq!(ask(&balancer).await, Some(1));
    }

    #[tokio::test]
    async fn a_line_that_is_cut_holds_what_is_said_until_it_is_mended() {
        let line = Line::start(server(7).await).await.unwrap();
        line.cut();
        let mut client = TcpStream::connect(line.address()).await.unwrap();
        assert!(timeout(Duration::from_millis(200), client.read_u8()).await.is_err());
        line.mend();
        assert_eq!(client.read_u8().await.unwrap(), 7);
    }

    #[tokio::test]
    async fn without_a_server_the_connection_ends() {
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, free_ports(1)[0]));
        let balancer = Balancer::start(vec![nobody]).await.unwrap();
        assert_eq!(ask(&balancer).await, None);
    }
}
