//! What goes wrong on the way to the engines, for all or for one process.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Engine {
    Log,
    Blobs,
    Ownership,
    Bus,
    Values,
    Store,
}

impl Engine {
    pub(crate) const ALL: [Self; 6] =
        [Self::Log, Self::Blobs, Self::Ownership, Self::Bus, Self::Values, Self::Store];

    /// Its name in errors.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Log => "the log",
            Self::Blobs => "the blob store",
            Self::Ownership => "ownership",
            Self::Bus => "the bus",
            Self::Values => "key-value",
            Self::Store => "the store",
        }
    }
}

/// How an engine is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// Every call fails at once.
    Refuses,
    /// Calls wait, and are carried out when it is back.
    Hangs,
}

/// How often of a thousand times something happens to a call or message.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Odds {
    /// A call takes long.
    pub(crate) slow: u64,
    /// A call does not arrive.
    pub(crate) lost: u64,
    /// A call is carried out, and its answer does not arrive.
    pub(crate) unanswered: u64,
    /// A message on the bus is lost.
    pub(crate) message_lost: u64,
    /// A message on the bus comes twice.
    pub(crate) message_doubled: u64,
    /// A message on the bus comes late, after others.
    pub(crate) message_late: u64,
}

#[derive(Default)]
struct State {
    /// For all processes.
    away: BTreeMap<Engine, Outage>,
    /// For one process.
    cut: BTreeMap<(String, Engine), Outage>,
    odds: Odds,
    /// Longest usual time one way, in milliseconds.
    usual: u64,
}

/// How long a call may take before its client gives it up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(6);

/// The present weather.
pub(crate) struct Weather {
    state: Mutex<State>,
    /// It has changed, or an engine was replaced.
    changed: Notify,
}

impl Default for Weather {
    fn default() -> Self {
        Self { state: Mutex::new(State { usual: 2, ..State::default() }), changed: Notify::new() }
    }
}

impl Weather {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how often what happens to calls and messages.
    pub(crate) fn set_odds(&self, odds: Odds) {
        self.state().odds = odds;
    }

    /// Sets the longest usual time one way, in milliseconds.
    pub(crate) fn set_usual(&self, millis: u64) {
        self.state().usual = millis;
    }

    /// How often what happens now, and the longest usual time one way.
    pub(crate) fn odds(&self) -> (Odds, u64) {
        let state = self.state();
        (state.odds, state.usual)
    }

    /// Takes an engine away, from one process or from all; `None` brings it back.
    pub(crate) fn set_away(&self, process: Option<&str>, engine: Engine, outage: Option<Outage>) {
        {
            let mut state = self.state();
            match (process, outage) {
                (None, Some(outage)) => drop(state.away.insert(engine, outage)),
                (None, None) => drop(state.away.remove(&engine)),
                (Some(name), Some(outage)) => drop(state.cut.insert((name.to_owned(), engine), outage)),
                (Some(name), None) => drop(state.cut.remove(&(name.to_owned(), engine))),
            }
        }
        self.stir();
    }

    /// Everything is well from here on.
    pub(crate) fn clear(&self) {
        {
            let mut state = self.state();
            *state = State { usual: state.usual, ..State::default() };
        }
        self.stir();
    }

    /// Says that something has changed.
    pub(crate) fn stir(&self) {
        self.changed.notify_waiters();
    }

    fn outage(&self, process: &str, engine: Engine) -> Option<Outage> {
        let state = self.state();
        let cut = || state.cut.iter().find(|((name, cut), _)| name == process && *cut == engine);
        state.away.get(&engine).copied().or_else(|| cut().map(|(_, outage)| *outage))
    }

    /// Waits until this is so; it is looked at with every change.
    pub(crate) async fn until<T>(&self, mut is_so: impl FnMut() -> Option<T>) -> T {
        loop {
            // Made before looking: it hears of what changes from here on.
            let changed = self.changed.notified();
            if let Some(found) = is_so() {
                return found;
            }
            changed.await;
        }
    }

    /// Waits while the engine hangs for this process. Whether the call then gets through.
    pub(crate) async fn pass(&self, process: &str, engine: Engine) -> bool {
        self.until(|| match self.outage(process, engine) {
            None => Some(true),
            Some(Outage::Refuses) => Some(false),
            Some(Outage::Hangs) => None,
        })
        .await
    }

    /// Whether the engine is away from this process.
    pub(crate) fn is_away(&self, process: &str, engine: Engine) -> bool {
        self.outage(process, engine).is_some()
    }
}
