//! A TCP load balancer: agents have one address, and reconnect to a gateway that is there.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use muster_testkit::free_ports;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long a gateway may take to accept.
const CONNECT: Duration = Duration::from_secs(2);

/// Passes connections on to servers in turn, and skips those that refuse. Stops when dropped.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    task: JoinHandle<()>,
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
        Ok(Self { address, task: tokio::spawn(serve(listener, Arc::new(servers))) })
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

async fn serve(listener: TcpListener, servers: Arc<Vec<SocketAddr>>) {
    let next = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of descriptors, say: whoever waits is served when there are some again.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let (servers, next) = (Arc::clone(&servers), Arc::clone(&next));
        tokio::spawn(async move {
            // What ends one side ends the other; why is for the sides to tell.
            if let Some(server) = connect(&servers, &next).await {
                let _ = relay(client, server).await;
            }
        });
    }
}

/// A connection to the server whose turn it is, or else to the first after it that accepts.
async fn connect(servers: &[SocketAddr], next: &AtomicUsize) -> Option<TcpStream> {
    let first = next.fetch_add(1, Ordering::Relaxed);
    for step in 0..servers.len() {
        let server = servers[(first + step) % servers.len()];
        if let Ok(Ok(stream)) = timeout(CONNECT, TcpStream::connect(server)).await {
            return Some(stream);
        }
    }
    None
}

async fn relay(mut client: TcpStream, mut server: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
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
    async fn without_a_server_the_connection_ends() {
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, free_ports(1)[0]));
        let balancer = Balancer::start(vec![nobody]).await.unwrap();
        assert_eq!(ask(&balancer).await, None);
    }
}
