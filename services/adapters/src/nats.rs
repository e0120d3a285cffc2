//! The log, blobs, leases, values and the bus on NATS, version 2.10 or later.
//!
//! The log is one JetStream stream a cell, `muster-<cell>`, with a subject a partition; positions are the
//! stream's sequences. Blobs are pieces in another stream. Leases and values are key-value buckets. Deliveries, requests and wake-ups are
//! messages on core subjects. All of it goes over one connection of the process, which is made again for
//! ever once it has been made.
//!
//! What must be exact is asked of a stream's leader and never of whichever replica answers first: the
//! buckets have direct reads disabled, and the log reads single entries through the leader too. A replica
//! that lags would make an entry look lost, and so begin a new epoch of the log for nothing.

mod blobs;
mod bus;
mod connection;
mod errors;
mod kv;
mod log;
mod names;
mod reader;
mod start;
mod streams;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::ContextBuilder;
use async_nats::{ConnectOptions, ServerAddr};
use muster_domain::ids::Cell;
use muster_ports::{EngineError, LEASE_TTL};
use uuid::Uuid;

pub use self::blobs::NatsBlobs;
pub use self::bus::NatsBus;
use self::connection::{Connection, Notices};
pub use self::errors::NatsError;
use self::errors::masked;
pub use self::kv::NatsKeyValue;
pub use self::log::NatsLog;
use self::start::Start;

/// Publishes that wait for their acknowledgement at once; more wait until one is done.
const PUBLISHES_IN_FLIGHT: usize = 4096;
/// Longest wait between two attempts to connect again.
const RECONNECT_AT_MOST: Duration = Duration::from_secs(2);

/// Where NATS is and what is expected of it. Its `Debug` shows no secrets.
#[derive(Clone)]
pub struct NatsOptions {
    /// Addresses of servers of one cluster, such as `nats://host:4222` or `tls://host:4222`, with commas
    /// between them.
    pub url: String,
    /// The cell that the log and the buckets are of.
    pub cell: Cell,
    /// What the connection is called in the server's list of them, such as `muster-control`.
    pub name: String,
    /// Id of this cluster of Muster, which the stream carries. A role that has it creates what is absent;
    /// one that has none waits for it.
    pub cluster: Option<Uuid>,
    /// Servers that keep each entry and value: 1, 3 or 5.
    pub replicas: usize,
    /// Bytes of the log; past this it is full.
    pub max_bytes: u64,
    /// Bytes of the blobs; past this the store of blobs is full.
    pub max_blob_bytes: u64,
    /// Bytes of the largest payload of the log, where that is less than the server takes.
    pub max_payload: Option<usize>,
    /// Time to live of a value in the bucket of leases.
    pub lease_ttl: Duration,
    /// How long a role waits at start for the server, and for the stream.
    pub deadline: Duration,
    /// Longest wait for an answer to one operation.
    pub timeout: Duration,
    /// A token to log in with.
    pub token: Option<String>,
    /// A credentials file to log in with.
    pub credentials: Option<PathBuf>,
    /// Certificates of authorities, in PEM, for servers with TLS.
    pub root_certificates: Option<PathBuf>,
    /// The certificate that is shown to servers with TLS and its key, in PEM. Read anew at each connecting.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// How much may wait for one listener on the bus.
    pub listener: ListenerLimits,
}

/// How much may wait for one listener on the bus; past this it loses its oldest messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerLimits {
    /// Messages.
    pub messages: usize,
    /// Bytes of payload.
    pub bytes: usize,
}

impl NatsOptions {
    /// Settings of a role that creates nothing, on one replica: 8 GiB of log, 2 GiB of blobs, a minute to
    /// start, 5 s for an answer.
    pub fn new(url: impl Into<String>, cell: Cell) -> Self {
        Self {
            url: url.into(),
            cell,
            name: "muster".to_owned(),
            cluster: None,
            replicas: 1,
            max_bytes: 8 * 1024 * 1024 * 1024,
            max_blob_bytes: 2 * 1024 * 1024 * 1024,
            max_payload: None,
            lease_ttl: LEASE_TTL,
            deadline: Duration::from_secs(60),
            timeout: Duration::from_secs(5),
            token: None,
            credentials: None,
            root_certificates: None,
            client_certificate: None,
            listener: ListenerLimits { messages: 4096, bytes: 64 * 1024 * 1024 },
        }
    }

    fn servers(&self) -> String {
        masked(&self.url)
    }

    fn addresses(&self) -> Result<Vec<ServerAddr>, NatsError> {
        let parse = |url: &str| {
            url.trim().parse().map_err(|_| {
                NatsError::Settings(format!("{:?} is no address such as nats://host:4222", masked(url)))
            })
        };
        self.url.split(',').map(parse).collect()
    }

    fn check(&self) -> Result<(), NatsError> {
        if !matches!(self.replicas, 1 | 3 | 5) {
            let problem = format!("replicas must be 1, 3 or 5, and not {}", self.replicas);
            return Err(NatsError::Settings(problem));
        }
        for (what, bytes) in [("log", self.max_bytes), ("blobs", self.max_blob_bytes)] {
            if bytes == 0 || i64::try_from(bytes).is_err() {
                let problem = format!("the size of the {what} must be above 0 and below 2^63");
                return Err(NatsError::Settings(problem));
            }
        }
        if self.lease_ttl < Duration::from_secs(1) || self.timeout.is_zero() {
            return Err(NatsError::Settings("leases live a second or longer, waits are above 0".to_owned()));
        }
        Ok(())
    }

    async fn connect_options(&self) -> Result<ConnectOptions, NatsError> {
        let mut options = ConnectOptions::new()
            .name(&self.name)
            .max_reconnects(None)
            .request_timeout(Some(self.timeout))
            .ping_interval(Duration::from_secs(10))
            .reconnect_delay_callback(reconnect_delay);
        if let Some(token) = &self.token {
            options = options.token(token.clone());
        }
        if let Some(path) = &self.root_certificates {
            options = options.add_root_certificates(path.clone());
        }
        if let Some((cert, key)) = &self.client_certificate {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        if let Some(path) = &self.credentials {
            options = options.credentials_file(path).await.map_err(|error| {
                NatsError::Settings(format!(
                    "the credentials file {} cannot be used: {error}",
                    path.display()
                ))
            })?;
        }
        Ok(options)
    }
}

impl fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsOptions")
            .field("url", &self.servers())
            .field("cell", &self.cell)
            .field("name", &self.name)
            .field("cluster", &self.cluster)
            .field("replicas", &self.replicas)
            .field("max_bytes", &self.max_bytes)
            .field("max_blob_bytes", &self.max_blob_bytes)
            .field("max_payload", &self.max_payload)
            .field("lease_ttl", &self.lease_ttl)
            .field("deadline", &self.deadline)
            .field("timeout", &self.timeout)
            .field("token", &self.token.as_ref().map(|_| "***"))
            .field("credentials", &self.credentials)
            .field("root_certificates", &self.root_certificates)
            .field("client_certificate", &self.client_certificate)
            .field("listener", &self.listener)
            .finish()
    }
}

/// At once, then soon, then every two seconds.
fn reconnect_delay(attempts: usize) -> Duration {
    let steps = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    (Duration::from_millis(50) * steps).min(RECONNECT_AT_MOST)
}

/// A connection to NATS, on which the streams and the buckets of a cell were found fit.
#[derive(Clone)]
pub struct Nats {
    connection: Arc<Connection>,
    log: NatsLog,
    blobs: NatsBlobs,
    leases: NatsKeyValue,
    values: NatsKeyValue,
    credentials: NatsKeyValue,
    bus: NatsBus,
}

impl Nats {
    /// Connects, checks the server, and creates or waits for the streams and the buckets. It logs what it
    /// waits for, and gives up at the deadline.
    pub async fn connect(options: NatsOptions) -> Result<Self, NatsError> {
        options.check()?;
        let notices = Arc::new(Notices::default());
        let start = Start::new(&options);
        let (client, made) = start.connect(&notices).await?;
        let context = ContextBuilder::new()
            .timeout(options.timeout)
            .ack_timeout(options.timeout)
            .max_ack_inflight(PUBLISHES_IN_FLIGHT)
            .backpressure_on_inflight(true)
            .build(client.clone());
        let (cell, timeout) = (options.cell.clone(), options.timeout);
        let connection = Arc::new(Connection { client, context, cell, timeout, notices, made });
        start.jetstream(&connection.context).await?;
        let log = start.stream(&connection.context, streams::log_config(&options)).await?;
        let blobs = start.stream(&connection.context, streams::blobs_config(&options)).await?;
        let bucket = async |what, ttl| {
            let name = names::bucket(&options.cell, what);
            let config = streams::bucket_config(&options, &name, ttl);
            let stream = start.stream(&connection.context, config).await?;
            Ok::<_, NatsError>(NatsKeyValue::new(Arc::clone(&connection), name, stream))
        };
        Ok(Self {
            leases: bucket("leases", Some(options.lease_ttl)).await?,
            values: bucket("values", None).await?,
            credentials: bucket("credentials", None).await?,
            log: NatsLog::new(Arc::clone(&connection), log, options.max_payload),
            blobs: NatsBlobs::new(Arc::clone(&connection), blobs),
            bus: NatsBus::new(Arc::clone(&connection), options.listener),
            connection,
        })
    }

    /// The log of the cell.
    pub fn log(&self) -> NatsLog {
        self.log.clone()
    }

    /// The blobs of the cell.
    pub fn blobs(&self) -> NatsBlobs {
        self.blobs.clone()
    }

    /// The bucket of leases, whose values go away when they are not renewed.
    pub fn leases(&self) -> NatsKeyValue {
        self.leases.clone()
    }

    /// The bucket of agents' credentials.
    pub fn credentials(&self) -> NatsKeyValue {
        self.credentials.clone()
    }

    /// The bucket of values that stay.
    pub fn kv(&self) -> NatsKeyValue {
        self.values.clone()
    }

    /// The bus.
    pub fn bus(&self) -> NatsBus {
        self.bus.clone()
    }

    /// Whether the connection is up now.
    pub fn is_connected(&self) -> bool {
        self.connection.is_up()
    }

    /// Waits until the server has handled all that was sent before, so that a process may end.
    pub async fn flush(&self) -> Result<(), EngineError> {
        self.connection.settle().await
    }
}
