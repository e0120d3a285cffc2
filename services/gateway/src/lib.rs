//! The gateway role: terminates agent connections and holds no durable state.
//!
//! It frames and validates what agents send, keeps each session's sequence, answers heartbeats
//! itself, publishes everything else to the log, and writes what control delivers.

mod accept;
mod access;
mod admission;
mod bodies;
mod budgets;
mod claims;
mod commands;
mod connection;
mod deliveries;
mod epochs;
mod fence;
mod lease;
mod listener;
mod mailbox;
mod metrics;
mod outages;
mod owed;
mod payload;
mod polling;
mod probes;
mod registry;
mod requests;
mod settler;
mod socket;
mod trace;
mod upstream;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use muster_domain::budget::Rate;
use muster_domain::duplicates::Given;
use muster_domain::ids::{Cell, GatewayId, Incarnation};
use muster_ports::blobs::Blobs;
use muster_ports::bus::{Bus, Subject};
use muster_ports::kv::KeyValue;
use muster_ports::log::Log;
use muster_ports::ownership::Ownership;
use muster_ports::polls::Polls;
use muster_ports::{Clock, EngineError, Random, Spawner};
use muster_tls::Listener;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use uuid::Uuid;

use crate::access::Pass;
pub use crate::access::{Access, Ways};
use crate::admission::Admission;
pub use crate::budgets::Limits as Budgets;
pub use crate::metrics::Metrics;
use crate::socket::Socket;

/// When the gateway stops, so long passes from one connection's close to the next.
const CLOSE_EACH: Duration = Duration::from_millis(2);

/// What a gateway is told once, at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Region of the gateway.
    pub cell: Cell,
    /// Its name on the bus, unique in the cell.
    pub gateway: GatewayId,
    /// Path of the OpAMP endpoint; the specification's default is `/v1/opamp`.
    pub path: String,
    /// Connections at once; further upgrades get 503.
    pub max_connections: usize,
    /// Longest message taken, in bytes; a longer one closes a WebSocket with 1009, and gets 413 over HTTP.
    pub max_message_size: usize,
    /// Longest message sent, in bytes without the header; a longer one is not sent.
    pub max_sent_message_size: usize,
    /// How much may be published.
    pub budgets: Budgets,
    /// Connections of one tenant at once; further upgrades get 429.
    pub max_connections_per_tenant: usize,
    /// Connections taken a second, and at once; further upgrades wait for a moment and then get 503. Half of
    /// what is taken at once is kept for agents that are known.
    pub connection_rate: Rate,
    /// How agents show who they are.
    pub access: Access,
    /// Over how long connections are closed when the gateway stops.
    pub drain: Duration,
    /// A ping is sent after this long without one.
    pub ping_every: Duration,
    /// A connection without any frame for this long is dead.
    pub silent_after: Duration,
    /// A write that takes longer closes the connection.
    pub write_deadline: Duration,
    /// Agents on one connection; messages of further ones are refused.
    pub max_agents_per_connection: usize,
    /// An agent that reports heartbeats is told to be silent after so long without a message.
    pub agent_silent_after: Duration,
    /// Requests of agents that poll at once; further ones get 503.
    pub max_polls: usize,
    /// Largest answer to an agent that polls, in bytes; a larger one is not sent.
    pub max_answer_size: usize,
    /// A request whose body takes longer gets 408.
    pub body_timeout: Duration,
}

impl Settings {
    /// The settings of a gateway with all defaults.
    pub fn new(cell: Cell, gateway: GatewayId) -> Self {
        Self {
            cell,
            gateway,
            path: "/v1/opamp".to_owned(),
            max_connections: 10_000,
            max_connections_per_tenant: usize::MAX,
            connection_rate: Rate { per_second: 5_000, burst: 10_000 },
            max_message_size: 64 << 20,
            max_sent_message_size: 64 << 20,
            budgets: Budgets::default(),
            access: Access::default(),
            drain: Duration::from_secs(30),
            ping_every: Duration::from_secs(25),
            silent_after: Duration::from_secs(60),
            write_deadline: Duration::from_secs(10),
            max_agents_per_connection: 10_000,
            agent_silent_after: Duration::from_secs(90),
            max_polls: 4096,
            max_answer_size: 64 << 20,
            body_timeout: Duration::from_secs(10),
        }
    }
}

/// The engines that a gateway works on.
#[derive(Clone)]
pub struct Engines {
    /// Where reports go.
    pub log: Arc<dyn Log>,
    /// Where reports go that are too large for the log, and bodies come from that are for the bus.
    pub blobs: Arc<dyn Blobs>,
    /// Who holds which agent.
    pub ownership: Arc<dyn Ownership>,
    /// The sessions of agents that poll.
    pub polls: Arc<dyn Polls>,
    /// Deliveries and requests.
    pub bus: Arc<dyn Bus>,
    /// Gateway leases: a bucket with a time to live of [`LEASE_TTL`](muster_ports::LEASE_TTL).
    pub leases: Arc<dyn KeyValue>,
    /// Floors and epochs: a bucket without a time to live.
    pub values: Arc<dyn KeyValue>,
    /// The time.
    pub clock: Clock,
    /// Random bits, for ids and for delays that are to differ.
    pub random: Random,
    /// Runs the gateway's tasks.
    pub spawner: Spawner,
}

impl Engines {
    /// A new UUIDv7.
    fn new_id(&self) -> Uuid {
        self.random.uuid((self.clock)())
    }
}

/// What every task of a gateway shares.
struct Shared {
    settings: Settings,
    incarnation: ArcSwap<Incarnation>,
    engines: Engines,
    metrics: Metrics,
    registry: registry::Registry,
    settler: settler::Settler,
    given: Mutex<Given>,
    bodies: bodies::Bodies,
    budgets: budgets::Budgets,
    /// Of reports that are put as blobs.
    turns: payload::Turns,
    fence: fence::Fence,
    /// Ends of sessions that the log is to be told of.
    owed: owed::Owed,
    lives: epochs::Lives,
    outages: outages::Outages,
    admission: Admission,
    access: access::Guard,
    /// Over how long connections are to close; none are taken any more once this is there.
    closing_over: OnceLock<Duration>,
    /// Places for requests of agents that poll, and room for their bodies.
    polls: Arc<Semaphore>,
    room: polling::Room,
    waiting: polling::Waiting,
    /// Cancelled when they are to close.
    closing: CancellationToken,
    tracker: TaskTracker,
}

impl Shared {
    fn new(settings: Settings, engines: Engines, metrics: Metrics) -> Self {
        Self {
            incarnation: ArcSwap::from_pointee(Incarnation(engines.new_id())),
            admission: Admission::new(
                settings.max_connections,
                settings.max_connections_per_tenant,
                settings.connection_rate,
            ),
            access: access::Guard::new(&settings.access),
            outages: outages::Outages::default(),
            closing_over: OnceLock::new(),
            polls: Arc::new(Semaphore::new(settings.max_polls)),
            room: polling::Room::new(settings.max_message_size),
            waiting: polling::Waiting::default(),
            registry: registry::Registry::default(),
            settler: settler::Settler::default(),
            given: Mutex::default(),
            bodies: bodies::Bodies::new(),
            budgets: budgets::Budgets::new(settings.budgets),
            turns: payload::Turns::default(),
            fence: fence::Fence::default(),
            owed: owed::Owed::default(),
            lives: epochs::Lives::default(),
            closing: CancellationToken::new(),
            tracker: TaskTracker::new(),
            settings,
            engines,
            metrics,
        }
    }

    /// The present life of the gateway.
    fn incarnation(&self) -> Incarnation {
        **self.incarnation.load()
    }

    /// Whether the gateway is stopping.
    fn is_draining(&self) -> bool {
        self.closing_over.get().is_some()
    }

    /// Counts a connection that is not taken.
    fn refused(&self, reason: &str) {
        self.metrics.refused_connections.with_label_values(&[reason]).inc();
    }

    /// What is remembered of uids that were given to agents.
    fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins another life.
    fn new_incarnation(&self) {
        self.incarnation.store(Arc::new(Incarnation(self.engines.new_id())));
    }

    /// Starts a task that the tracker waits for.
    fn spawn(&self, tracker: &TaskTracker, work: impl Future<Output = ()> + Send + 'static) {
        self.engines.spawner.spawn(tracker.track_future(work));
    }
}

/// A gateway that runs, wherever its connections come from.
pub struct Gateway {
    shared: Arc<Shared>,
    background: CancellationToken,
    helpers: TaskTracker,
}

impl Gateway {
    /// Takes the gateway's lease and starts what serves connections.
    ///
    /// # Errors
    /// If the bus or the lease cannot be set up.
    pub async fn start(settings: Settings, engines: Engines, metrics: Metrics) -> Result<Self, EngineError> {
        let (cell, gateway) = (settings.cell.clone(), settings.gateway.clone());
        let shared = Arc::new(Shared::new(settings, engines, metrics));
        let deliveries =
            shared.engines.bus.subscribe(&Subject::Deliveries(cell.clone(), gateway.clone())).await?;
        let requests = shared.engines.bus.subscribe(&Subject::Gateway(cell.clone(), gateway)).await?;
        let floors = shared.engines.bus.subscribe(&Subject::Floors(cell.clone())).await?;
        let credentials = shared.engines.bus.subscribe(&Subject::Credentials(cell)).await?;
        lease::take(&shared).await?;

        // What serves the connections outlives them, so it stops only when they are closed.
        let background = CancellationToken::new();
        let helpers = TaskTracker::new();
        shared.spawn(&helpers, lease::keep(Arc::clone(&shared), background.clone()));
        shared.spawn(&helpers, fence::keep(Arc::clone(&shared), floors, background.clone()));
        shared.spawn(&helpers, access::keep(Arc::clone(&shared), credentials, background.clone()));
        shared.spawn(&helpers, deliveries::serve(Arc::clone(&shared), deliveries, background.clone()));
        shared.spawn(&helpers, requests::serve(Arc::clone(&shared), requests, background.clone()));
        shared.spawn(&helpers, owed::keep(Arc::clone(&shared), background.clone()));
        shared.spawn(&helpers, settler::keep(Arc::clone(&shared), background.clone()));
        shared.spawn(&helpers, budgets::keep(Arc::clone(&shared), background.clone()));
        helpers.close();
        Ok(Self { shared, background, helpers })
    }

    /// Serves a WebSocket whose handshake is done, in a task of its own. Returns whether there is a
    /// place for it.
    pub fn serve<S>(&self, stream: S, peer: SocketAddr) -> bool
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Some(pass) = Pass::anonymous() else { return false };
        let Ok(place) = self.shared.admission.place(&pass.tenant) else { return false };
        let shared = Arc::clone(&self.shared);
        self.shared.spawn(&self.shared.tracker, async move {
            let socket = Socket::new(stream, &[], shared.settings.max_message_size);
            connection::serve(shared, socket, peer, pass).await;
            drop(place);
        });
        true
    }

    /// Takes no connections any more, and closes those that are open one after the other, so that their
    /// agents do not all come back at once.
    async fn drain(&self) {
        let shared = &self.shared;
        let open = u32::try_from(shared.tracker.len()).unwrap_or(u32::MAX);
        let over = (CLOSE_EACH * open).min(shared.settings.drain / 5 * 4);
        if shared.closing_over.set(over).is_err() {
            return;
        }
        info!(open, over_ms = over.as_millis(), "connections are closed");
        shared.closing.cancel();
        shared.tracker.close();
        if tokio::time::timeout(shared.settings.drain, shared.tracker.wait()).await.is_err() {
            warn!(open = shared.tracker.len(), "connections did not close within the drain time");
        }
    }

    /// Closes what is open, gives the lease back, and returns.
    pub async fn stop(self) {
        self.drain().await;
        let shared = &self.shared;
        self.background.cancel();
        self.helpers.wait().await;
        lease::give_up(shared).await;
    }
}

/// Serves agents on a listener until `stop` is cancelled, then closes what is open and returns.
///
/// # Errors
/// If the bus or the lease cannot be set up at the start.
pub async fn run(
    settings: Settings,
    engines: Engines,
    metrics: Metrics,
    listener: impl Into<Listener>,
    stop: CancellationToken,
) -> Result<(), EngineError> {
    let listener = listener.into();
    let gateway = Gateway::start(settings, engines, metrics).await?;
    let shared = &gateway.shared;
    info!(
        gateway = %shared.settings.gateway,
        incarnation = %shared.incarnation(),
        address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default(),
        "gateway is serving agents"
    );
    // Until the last connection is closed, who comes is told to go elsewhere.
    let drained = CancellationToken::new();
    let drain = async {
        stop.cancelled().await;
        gateway.drain().await;
        drained.cancel();
    };
    tokio::join!(drain, listener::serve(shared, listener, drained.clone()));
    gateway.stop().await;
    Ok(())
}
