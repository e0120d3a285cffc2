//! Gateways and controls as processes that start, stop, and die.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_gateway::Gateway;
use prometheus::Registry;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::engines::Wire;
use crate::process::Process;
use crate::rng::Rng;
use crate::socket::{Conn, GatewayEnd};
use crate::world::World;

/// Time between two attempts of a role to start.
const START_AGAIN: Duration = Duration::from_secs(1);

/// A connection before a gateway's listener.
pub(crate) struct Knock {
    pub(crate) stream: GatewayEnd,
    pub(crate) peer: SocketAddr,
    /// Whether the upgrade was granted.
    pub(crate) answer: oneshot::Sender<bool>,
}

/// One gateway's listener.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) name: String,
    pub(crate) sender: mpsc::UnboundedSender<Knock>,
}

/// The listeners that a load balancer knows.
#[derive(Default)]
pub(crate) struct Doors {
    open: Mutex<BTreeMap<String, mpsc::UnboundedSender<Knock>>>,
    conns: AtomicU32,
    calm: AtomicBool,
}

impl Doors {
    fn open(&self) -> MutexGuard<'_, BTreeMap<String, mpsc::UnboundedSender<Knock>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of the listeners.
    pub(crate) fn pick(&self, rng: &mut Rng) -> Option<Door> {
        let doors: Vec<_> = self
            .open()
            .iter()
            .map(|(name, sender)| Door { name: name.clone(), sender: sender.clone() })
            .collect();
        rng.pick(&doors)
    }

    /// A number for a new connection.
    pub(crate) fn next_conn(&self) -> Conn {
        self.conns.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Nothing happens to agents by itself any more.
    pub(crate) fn be_calm(&self) {
        self.calm.store(true, Ordering::Relaxed);
    }

    /// Whether nothing happens to agents by itself.
    pub(crate) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }
}

/// What a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Gateway,
    Control,
}

/// One process of the cluster.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) role: Role,
    world: Arc<World>,
    doors: Arc<Doors>,
    /// How far its clock is off, in microseconds.
    skew: i64,
    /// Whether the log ends with the process.
    embedded: bool,
    running: Option<(Arc<Process>, CancellationToken)>,
    seed: Rng,
}

impl Node {
    /// A process that does not run yet.
    pub(crate) fn new(
        world: &Arc<World>,
        doors: &Arc<Doors>,
        role: Role,
        number: u32,
        skew: i64,
        embedded: bool,
    ) -> Self {
        let kind = match role {
            Role::Gateway => "gateway",
            Role::Control => "control",
        };
        let name = format!("{kind}-{number}");
        Self {
            seed: Rng::new(world.seed, &name),
            name,
            role,
            world: Arc::clone(world),
            doors: Arc::clone(doors),
            skew,
            embedded,
            running: None,
        }
    }

    /// Whether it runs, held or stopping perhaps.
    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether it runs and is held still.
    pub(crate) fn is_held(&self) -> bool {
        self.running.as_ref().is_some_and(|(process, _)| process.is_held())
    }

    /// Whether it was told to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.running.as_ref().is_some_and(|(_, stop)| stop.is_cancelled())
    }

    /// Starts it, in the place of what may run of it.
    pub(crate) fn start(&mut self) {
        self.kill();
        let process = Process::new(&self.world, self.name.clone());
        let stop = CancellationToken::new();
        let rng = Rng::new(self.seed.next(), &self.name);
        let wire = Wire::new(&self.world, &process, rng, self.skew);
        self.running = Some((Arc::clone(&process), stop.clone()));
        let main = Main {
            world: Arc::clone(&self.world),
            doors: Arc::clone(&self.doors),
            wire,
            name: self.name.clone(),
            embedded: self.embedded,
            stop,
        };
        match self.role {
            Role::Gateway => process.spawn(main.gateway()),
            Role::Control => process.spawn(main.control()),
        }
    }

    /// Tells it to stop in good order.
    pub(crate) fn stop(&self) {
        if let Some((_, stop)) = &self.running {
            stop.cancel();
        }
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) {
        if let Some((process, _)) = self.running.take() {
            process.kill();
            self.doors.open().remove(&self.name);
        }
    }

    /// Holds it still, or lets it go on.
    pub(crate) fn hold(&self, held: bool) {
        match (&self.running, held) {
            (Some((process, _)), true) => process.hold(),
            (Some((process, _)), false) => process.resume(),
            (None, _) => {}
        }
    }
}

struct Main {
    world: Arc<World>,
    doors: Arc<Doors>,
    wire: Arc<Wire>,
    name: String,
    embedded: bool,
    stop: CancellationToken,
}

impl Main {
    fn failed(&self, error: &dyn std::fmt::Display) {
        self.world.trace.note(&self.name, format_args!("cannot start: {error}"));
    }

    async fn gateway(self) {
        let Ok(id) = self.name.parse() else { return };
        let settings = muster_gateway::Settings::new(self.world.cell.clone(), id);
        let gateway = loop {
            let Ok(metrics) = muster_gateway::Metrics::register(&Registry::new(), "sim") else { return };
            match Gateway::start(settings.clone(), self.wire.gateway_engines(), metrics).await {
                Ok(gateway) => break gateway,
                Err(error) => self.failed(&error),
            }
            sleep(START_AGAIN).await;
        };
        let (sender, mut knocks) = mpsc::unbounded_channel();
        self.doors.open().insert(self.name.clone(), sender);
        loop {
            let knock = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                knock = knocks.recv() => knock,
            };
            let Some(Knock { stream, peer, answer }) = knock else { break };
            let served = gateway.serve(stream, peer);
            // Who knocked may have gone.
            let _ = answer.send(served);
        }
        self.doors.open().remove(&self.name);
        drop(knocks);
        gateway.stop().await;
        self.world.trace.note(&self.name, format_args!("has stopped"));
    }

    async fn control(self) {
        while !self.stop.is_cancelled() {
            let settings = muster_control::Settings {
                fold_last_words: self.embedded,
                ..muster_control::Settings::new(self.world.cell.clone(), &self.name)
            };
            let Ok(metrics) = muster_control::Metrics::register(&Registry::new()) else { return };
            let engines = self.wire.control_engines();
            match muster_control::run(settings, engines, metrics, self.stop.clone()).await {
                Ok(()) => break,
                Err(error) => self.failed(&error),
            }
            sleep(START_AGAIN).await;
        }
        self.world.trace.note(&self.name, format_args!("has stopped"));
    }
}
