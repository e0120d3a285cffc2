//! What every part of a run shares: the time, the history, the engines as they are, the checker.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_adapters_memory::log::Limits;
use muster_adapters_memory::{
    MemoryBlobs, MemoryBus, MemoryKeyValue, MemoryLog, MemoryOwnership, MemoryStore,
};
use muster_domain::ids::{Cell, MessageId, Tenant, Timestamp};
use muster_ports::LEASE_TTL;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Broken;
use crate::check::Checker;
use crate::trace::Trace;
use crate::weather::Weather;

/// The time at which every run begins, in microseconds since 1970.
const EPOCH: u64 = 1_750_000_000_000_000;

/// A rule that did not hold.
#[derive(Debug, Clone)]
pub struct Violation {
    /// Seed of the run.
    pub seed: u64,
    /// Name of the rule.
    pub invariant: &'static str,
    /// What was found.
    pub what: String,
    /// The step at which it was found.
    pub step: u64,
    /// The last lines of the history.
    pub tail: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, invariant, what, step, tail } = self;
        for line in tail {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {seed}, step {step}: {invariant} does not hold: {what}")?;
        write!(f, "`cargo xtask sim --seed {seed} --trace` shows all of it")
    }
}

/// One run's world.
pub(crate) struct World {
    /// Its seed.
    pub(crate) seed: u64,
    /// What is broken on purpose.
    pub(crate) broken: Option<Broken>,
    /// The region of everything.
    pub(crate) cell: Cell,
    /// The tenant of everything.
    pub(crate) tenant: Tenant,
    /// The history.
    pub(crate) trace: Trace,
    /// What goes wrong with the engines now.
    pub(crate) weather: Weather,
    /// The engines as they are now.
    pub(crate) engines: Mutex<Engines>,
    /// The bus.
    pub(crate) bus: MemoryBus,
    began: Instant,
    checker: Mutex<Checker>,
    verdict: Mutex<Option<Violation>>,
    judged: Notify,
}

/// The engines behind all that goes wrong on the way to them.
#[derive(Clone)]
pub(crate) struct Engines {
    /// The log, and how many there were before it.
    pub(crate) log: (u64, Arc<MemoryLog>),
    pub(crate) blobs: Arc<MemoryBlobs>,
    pub(crate) ownership: Arc<MemoryOwnership>,
    pub(crate) leases: Arc<MemoryKeyValue>,
    pub(crate) values: Arc<MemoryKeyValue>,
    pub(crate) store: Arc<MemoryStore>,
}

/// The empty log that comes after so many others; it takes small payloads only, so that large reports go as blobs.
pub(crate) fn new_log(life: u64) -> Arc<MemoryLog> {
    let limits = Limits { payload_bytes: 1500, total_bytes: 64 << 20 };
    Arc::new(MemoryLog::with_id(limits, MessageId(uuid::Uuid::from_u128(u128::from(life)))))
}

impl Engines {
    fn new() -> Self {
        Self {
            log: (0, new_log(0)),
            blobs: Arc::default(),
            ownership: Arc::default(),
            leases: Arc::new(MemoryKeyValue::new(Some(LEASE_TTL))),
            values: Arc::default(),
            store: Arc::default(),
        }
    }
}

impl World {
    /// A world in which nothing has happened.
    pub(crate) fn new(seed: u64, broken: Option<Broken>, print: bool) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            seed,
            broken,
            cell: "default".parse()?,
            tenant: "default".parse()?,
            trace: Trace::new(print),
            weather: Weather::default(),
            engines: Mutex::new(Engines::new()),
            bus: MemoryBus::default(),
            began: Instant::now(),
            checker: Mutex::default(),
            verdict: Mutex::default(),
            judged: Notify::new(),
        }))
    }

    /// The true time.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(EPOCH).plus(self.began.elapsed())
    }

    /// The engines as they are now.
    pub(crate) fn engines(&self) -> Engines {
        self.lock_engines().clone()
    }

    /// The engines, to be changed.
    pub(crate) fn lock_engines(&self) -> MutexGuard<'_, Engines> {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks or tells the checker something; what it finds wrong ends the run.
    pub(crate) fn check<T>(&self, act: impl FnOnce(&mut Checker) -> T) -> T {
        let (result, found) = {
            let mut checker = self.checker.lock().unwrap_or_else(PoisonError::into_inner);
            let result = act(&mut checker);
            for rule in checker.take_looked() {
                self.trace.count(format!("checks {rule}"));
            }
            (result, checker.take_found())
        };
        if let Some((invariant, what)) = found {
            self.violate(invariant, what);
        }
        result
    }

    /// Ends the run: a rule does not hold. Only the first one counts.
    pub(crate) fn violate(&self, invariant: &'static str, what: String) {
        let mut verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        if verdict.is_none() {
            self.trace.note("checker", format_args!("{invariant}: {what}"));
            let (step, _) = self.trace.summary();
            *verdict = Some(Violation { seed: self.seed, invariant, what, step, tail: self.trace.tail() });
            self.judged.notify_one();
        }
    }

    /// Simulated time since the beginning.
    pub(crate) fn elapsed(&self) -> std::time::Duration {
        self.began.elapsed()
    }

    /// Waits for a rule that does not hold.
    pub(crate) async fn violated(&self) -> Violation {
        loop {
            if let Some(violation) = self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                return violation;
            }
            self.judged.notified().await;
        }
    }
}
