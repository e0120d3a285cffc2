//! The control role: folds reports into agent state, decides what each agent should run, and sends
//! offers to the gateway that holds it.

mod blobs;
mod changes;
mod commands;
mod contests;
mod decode;
mod events;
mod intents;
mod janitor;
mod keeper;
mod mail;
mod members;
mod metrics;
mod offers;
mod outages;
mod polls;
mod requests;
mod rollouts;
mod split;
mod trace;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use muster_domain::agent::Entry;
use muster_domain::ids::{AgentKey, Cell};
use muster_ports::blobs::Blobs;
use muster_ports::bus::{Bus, Subject};
use muster_ports::kv::KeyValue;
use muster_ports::log::Log;
use muster_ports::polls::Polls;
use muster_ports::rollouts::RolloutStore;
use muster_ports::store::{CommandStore, ComponentStore, FleetStore, FoldStore, IntentStore};
use muster_ports::{Clock, EngineError, Random, Spawner};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;
use uuid::Uuid;

pub use crate::keeper::Keeper;
pub use crate::metrics::Metrics;

/// What a control is told once, at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Region of the control.
    pub cell: Cell,
    /// Its name, unique in the cell.
    pub id: String,
    /// Whether a worker that stops first folds what is still in the log: for a log that ends with the
    /// process.
    pub fold_last_words: bool,
    /// Most log entries folded in one transaction.
    pub max_batch: usize,
    /// How often every partition looks for sessions of gateways that are gone.
    pub sweep_every: Duration,
    /// How long a gateway's life has to be without a lease until its sessions are ended.
    pub orphan_grace: Duration,
    /// How often intent is looked at without a wake-up.
    pub poll_every: Duration,
    /// An agent that polls and is not heard for this long is disconnected.
    pub poll_deadline: Duration,
}

impl Settings {
    /// The settings of a control with all defaults.
    pub fn new(cell: Cell, id: impl Into<String>) -> Self {
        Self {
            cell,
            id: id.into(),
            fold_last_words: false,
            max_batch: 256,
            sweep_every: Duration::from_secs(10),
            orphan_grace: Duration::from_secs(10),
            poll_every: Duration::from_secs(5),
            poll_deadline: Duration::from_secs(90),
        }
    }
}

/// The engines that a control works on.
#[derive(Clone)]
pub struct Engines {
    /// Where reports come from.
    pub log: Arc<dyn Log>,
    /// Where reports are that are too large for the log, and bodies go to that are for the bus.
    pub blobs: Arc<dyn Blobs>,
    /// Deliveries, requests, wake-ups.
    pub bus: Arc<dyn Bus>,
    /// Leases of gateways and controls: a bucket with a time to live of
    /// [`LEASE_TTL`](muster_ports::LEASE_TTL).
    pub leases: Arc<dyn KeyValue>,
    /// Floors and epochs: a bucket without a time to live.
    pub values: Arc<dyn KeyValue>,
    /// The sessions of agents that poll.
    pub polls: Arc<dyn Polls>,
    /// State of agents.
    pub fold: Arc<dyn FoldStore>,
    /// Lists of components.
    pub components: Arc<dyn ComponentStore>,
    /// What operators want.
    pub intent: Arc<dyn IntentStore>,
    /// Changes on their way to agents.
    pub rollouts: Arc<dyn RolloutStore>,
    /// The fleet, for choosing the agents of a stage.
    pub fleet: Arc<dyn FleetStore>,
    /// Orders of operators.
    pub commands: Arc<dyn CommandStore>,
    /// The time.
    pub clock: Clock,
    /// Random bits.
    pub random: Random,
    /// Runs the control's tasks.
    pub spawner: Spawner,
}

impl Engines {
    /// A new UUIDv7.
    fn new_id(&self) -> Uuid {
        self.random.uuid((self.clock)())
    }
}

/// What every task of a control shares.
struct Shared {
    settings: Settings,
    engines: Engines,
    metrics: Metrics,
    intents: intents::Intents,
    commands: commands::Commands,
    events: events::Events,
    /// Workers take turns at the value that all write.
    raising_epochs: Mutex<()>,
    outages: outages::Outages,
    /// Memory for blobs that are folded.
    room: blobs::Room,
    bodies: blobs::Bodies,
    contests: contests::Contests,
    rollouts: rollouts::Rollouts,
}

impl Shared {
    fn new(settings: Settings, engines: Engines, metrics: Metrics) -> Self {
        Self {
            settings,
            engines,
            metrics,
            intents: intents::Intents::default(),
            commands: commands::Commands::default(),
            events: events::Events::default(),
            raising_epochs: Mutex::default(),
            outages: outages::Outages::default(),
            room: blobs::Room::default(),
            bodies: blobs::Bodies::default(),
            contests: contests::Contests::default(),
            rollouts: rollouts::Rollouts::default(),
        }
    }

    /// Starts a task that the tracker waits for.
    fn spawn(&self, tracker: &TaskTracker, work: impl Future<Output = ()> + Send + 'static) {
        self.engines.spawner.spawn(tracker.track_future(work));
    }
}

/// Reads one entry of the log as workers do, but for a report that is a blob.
///
/// # Errors
/// Why it cannot be folded, for people.
pub fn read_entry(payload: Bytes) -> Result<(AgentKey, Entry), String> {
    let read = decode::envelope(payload).map_err(|error| error.to_string())?;
    Ok((read.key, read.entry))
}

/// Works until `stop` is cancelled, then finishes what is begun and returns.
///
/// # Errors
/// If the bus cannot be set up at the start.
pub async fn run(
    settings: Settings,
    engines: Engines,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<(), EngineError> {
    let cell = settings.cell.clone();
    let shared = Arc::new(Shared::new(settings, engines, metrics));
    let wake = shared.engines.bus.subscribe(&Subject::Wake(cell.clone())).await?;
    let requests = shared.engines.bus.subscribe(&Subject::Control(cell.clone())).await?;
    shared.intents.refresh(&shared).await?;

    let tasks = TaskTracker::new();
    shared.spawn(&tasks, members::run(Arc::clone(&shared), stop.clone()));
    shared.spawn(&tasks, intents::watch(Arc::clone(&shared), wake, stop.clone()));
    shared.spawn(&tasks, events::publish(Arc::clone(&shared), stop.clone()));
    shared.spawn(&tasks, requests::serve(Arc::clone(&shared), requests, stop.clone()));
    shared.spawn(&tasks, rollouts::run(Arc::clone(&shared), stop.clone()));
    shared.spawn(&tasks, janitor::run(Arc::clone(&shared), stop.clone()));
    info!(%cell, control = %shared.settings.id, "control is running");
    tasks.close();
    tasks.wait().await;
    Ok(())
}
