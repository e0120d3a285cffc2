//! Saying something at most once a minute, however often it happens.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use muster_domain::ids::Timestamp;

/// Time between two sayings.
const EVERY: Duration = Duration::from_secs(60);

/// What is said seldom: an engine that is away is away for every message, and its log has one line for all.
#[derive(Debug, Default)]
pub struct Seldom {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    said: Option<Timestamp>,
    /// How often it was not said since.
    unsaid: u64,
}

impl Seldom {
    /// Whether to say it now; if so, how often it happened unsaid since it was said last.
    pub fn tell(&self, now: Timestamp) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back does not silence it.
        let is_due = state.said.is_none_or(|said| now < said || said.plus(EVERY) <= now);
        if !is_due {
            state.unsaid += 1;
            return None;
        }
        state.said = Some(now);
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_a_minute_with_what_was_not_said() {
        let seldom = Seldom::default();
        let start = Timestamp(1_000_000_000);
        let told = |seconds| seldom.tell(start.plus(Duration::from_secs(seconds)));
        assert_eq!(told(0), Some(0));
        assert_eq!((told(1), told(59)), (None, None));
        assert_eq!(told(60), Some(2));
        assert_eq!(told(61), None);
        assert_eq!(seldom.tell(Timestamp(7)), Some(1), "the clock was set back");
    }
}
