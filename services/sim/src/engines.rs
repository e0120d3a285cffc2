//! The engines as a process sees them: behind a network on which calls are slow, lost, or unanswered.
//!
//! What a process asks for travels without it: a killed or held process has its calls carried out all the
//! same. Each engine tells the checker what it did, at the moment when it did it.

mod blobs;
mod bus;
mod kv;
mod log;
mod ownership;
mod store;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_domain::ids::Timestamp;
use muster_ports::{Clock, EngineError, Random};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::process::Process;
use crate::rng::Rng;
use crate::weather::{Engine, PATIENCE};
use crate::world::World;

use blobs::SimBlobs;
use bus::SimBus;
use kv::{Bucket, SimKeyValue};
use log::SimLog;
use ownership::SimOwnership;
use store::SimStore;

/// What a process has of the engines.
pub(crate) struct Wire {
    world: Arc<World>,
    process: Arc<Process>,
    rng: Mutex<Rng>,
    /// When the last call on each lane arrives: calls of a lane arrive in their order.
    lanes: Mutex<BTreeMap<(Engine, u64), Instant>>,
    /// How far the process's clock is ahead, or behind, in microseconds.
    skew: i64,
}

/// What becomes of a call.
struct Fate {
    there: Duration,
    back: Duration,
    lost: bool,
    unanswered: bool,
    /// What is not answered is told to the caller at once, as by a connection that breaks.
    breaks: bool,
}

impl Wire {
    /// The wires of a process.
    pub(crate) fn new(world: &Arc<World>, process: &Arc<Process>, rng: Rng, skew: i64) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::clone(world),
            process: Arc::clone(process),
            rng: Mutex::new(rng),
            lanes: Mutex::default(),
            skew,
        })
    }

    /// The process's clock.
    pub(crate) fn clock(self: &Arc<Self>) -> Clock {
        let wire = Arc::clone(self);
        Arc::new(move || Timestamp(wire.world.now().0.saturating_add_signed(wire.skew)))
    }

    /// The process's random bits.
    pub(crate) fn random(self: &Arc<Self>) -> Random {
        let wire = Arc::clone(self);
        Random::new(move || wire.draw(Rng::next))
    }

    /// What a gateway works on.
    pub(crate) fn gateway_engines(self: &Arc<Self>) -> muster_gateway::Engines {
        muster_gateway::Engines {
            log: Arc::new(SimLog(Arc::clone(self))),
            blobs: Arc::new(SimBlobs(Arc::clone(self))),
            ownership: Arc::new(SimOwnership(Arc::clone(self))),
            // No agent under simulation polls.
            polls: self.world.engines().ownership.clone(),
            bus: Arc::new(SimBus(Arc::clone(self))),
            leases: Arc::new(SimKeyValue(Arc::clone(self), Bucket::Leases)),
            values: Arc::new(SimKeyValue(Arc::clone(self), Bucket::Values)),
            clock: self.clock(),
            random: self.random(),
            spawner: self.process.spawner(),
        }
    }

    /// What a control works on.
    pub(crate) fn control_engines(self: &Arc<Self>) -> muster_control::Engines {
        let store = Arc::new(SimStore::new(self));
        muster_control::Engines {
            log: Arc::new(SimLog(Arc::clone(self))),
            blobs: Arc::new(SimBlobs(Arc::clone(self))),
            polls: self.world.engines().ownership.clone(),
            bus: Arc::new(SimBus(Arc::clone(self))),
            leases: Arc::new(SimKeyValue(Arc::clone(self), Bucket::Leases)),
            values: Arc::new(SimKeyValue(Arc::clone(self), Bucket::Values)),
            fold: store.clone(),
            intent: store,
            // What has no history under simulation yet is not disturbed either.
            commands: self.world.engines().store.clone(),
            rollouts: self.world.engines().store.clone(),
            fleet: self.world.engines().store.clone(),
            components: self.world.engines().store.clone(),
            clock: self.clock(),
            random: self.random(),
            spawner: self.process.spawner(),
        }
    }

    /// The store as the process sees it, and its bus, for those who change intent.
    pub(crate) fn operator_engines(self: &Arc<Self>) -> (SimStore, SimBus) {
        (SimStore::new(self), SimBus(Arc::clone(self)))
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn fate(&self) -> Fate {
        let (odds, usual) = self.world.weather.odds();
        self.draw(|rng| {
            let slow = rng.chance(odds.slow);
            Fate {
                there: if slow { rng.millis(100, 4000) } else { rng.millis(0, usual) },
                back: rng.millis(0, usual),
                lost: rng.chance(odds.lost),
                unanswered: rng.chance(odds.unanswered),
                breaks: rng.chance(500),
            }
        })
    }

    /// When a call arrives that is sent now and would take this long.
    fn arrival(&self, engine: Engine, lane: Option<u64>, there: Duration) -> Instant {
        let at = Instant::now() + there;
        let Some(lane) = lane else { return at };
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let last = lanes.entry((engine, lane)).or_insert(at);
        // Timers of one millisecond are of one order.
        *last = at.max(*last + Duration::from_millis(1));
        *last
    }

    /// Has an engine do something. Calls of one lane arrive in their order.
    async fn call<T, E>(
        &self,
        engine: Engine,
        lane: Option<u64>,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<EngineError> + Send + 'static,
    {
        let fate = self.fate();
        let arrival = self.arrival(engine, lane, fate.there);
        let (answer, answered) = oneshot::channel();
        let (world, process) = (Arc::clone(&self.world), Arc::clone(&self.process));
        Handle::current().spawn(async move {
            sleep_until(arrival).await;
            if !world.weather.pass(&process.name, engine).await {
                let _ = answer.send(Err(unavailable(engine, "it is away").into()));
                return;
            }
            if fate.lost {
                world.trace.note(&process.name, format_args!("a call to {} is lost", engine.name()));
            } else {
                let result = work.await;
                if !fate.unanswered {
                    sleep(fate.back).await;
                    // A caller that is gone does not care.
                    let _ = answer.send(result);
                    return;
                }
                world.trace.note(&process.name, format_args!("an answer of {} is lost", engine.name()));
            }
            if !fate.breaks {
                sleep(PATIENCE).await;
            }
        });
        match timeout(PATIENCE, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(unavailable(engine, "the connection broke").into()),
            Err(_) => Err(unavailable(engine, "no answer in time").into()),
        }
    }
}

fn unavailable(engine: Engine, reason: &str) -> EngineError {
    EngineError::Unavailable { engine: engine.name(), reason: reason.to_owned() }
}
