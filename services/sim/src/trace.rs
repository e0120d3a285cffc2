//! The history of a run: one line a step, folded into a hash; the last lines are kept.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;
use uuid::Uuid;

/// Lines that are kept for a report.
const TAIL: usize = 120;
/// FNV-1a.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

/// What has happened so far.
pub(crate) struct Trace {
    began: Instant,
    print: bool,
    state: Mutex<State>,
}

struct State {
    /// How often what happened, and what was checked.
    counts: BTreeMap<String, u64>,
    hash: u64,
    steps: u64,
    tail: VecDeque<String>,
}

impl Trace {
    /// An empty history that begins now. `print` writes every line to standard output too.
    pub(crate) fn new(print: bool) -> Self {
        let state =
            State { counts: BTreeMap::new(), hash: OFFSET, steps: 0, tail: VecDeque::with_capacity(TAIL) };
        Self { began: Instant::now(), print, state: Mutex::new(state) }
    }

    /// Adds a step.
    pub(crate) fn note(&self, who: &str, what: fmt::Arguments<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = match state.tail.len() {
            TAIL => state.tail.pop_front().unwrap_or_default(),
            _ => String::with_capacity(128),
        };
        line.clear();
        state.steps += 1;
        let at = self.began.elapsed();
        // Writing to a string cannot fail.
        let _ = write!(line, "{:>6} {:>4}.{:06} {who:<10} ", state.steps, at.as_secs(), at.subsec_micros());
        let _ = line.write_fmt(what);
        for byte in line.bytes() {
            state.hash = (state.hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
        if self.print {
            println!("{line}");
        }
        state.tail.push_back(line);
    }

    /// Counts something that happened or was checked.
    pub(crate) fn count(&self, what: impl Into<String>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state.counts.entry(what.into()).or_default() += 1;
    }

    /// How often what happened, and what was checked.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).counts.clone()
    }

    /// Steps so far, and a hash over all of them.
    pub(crate) fn summary(&self) -> (u64, u64) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.steps, state.hash)
    }

    /// The last lines.
    pub(crate) fn tail(&self) -> Vec<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).tail.iter().cloned().collect()
    }
}

/// The end of an id: enough to tell those of a run apart.
pub(crate) struct Short(pub(crate) Uuid);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.0.as_u128() & 0xff_ffff)
    }
}

/// The beginning of a hash.
pub(crate) struct Hash<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Hash<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(3).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
