//! Whether a session's messages are a whole: sequence numbers, gaps, and when to ask for full state.
//!
//! A session is *in sync* while every message followed the one before; otherwise it is *dirty*, and
//! stays so until the agent has reported its full state after being asked (OpAMP, "Agent status
//! compression" and ServerToAgentFlags.ReportFullState).

use std::time::Duration;

use crate::ids::Timestamp;

/// Shortest distance between two asks for full state of one session; doubled with each ask that is
/// not followed by full state.
pub const ASK_INTERVAL: Duration = Duration::from_secs(10);
/// Longest distance between two asks.
pub const LAST_ASK_INTERVAL: Duration = Duration::from_secs(3600);

/// What ownership knew of an agent when its session claimed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Nothing: a new agent, or ownership was lost.
    Nothing,
    /// Every message up to this sequence number is settled.
    SettledTo(u64),
    /// The agent is known, but not how far its messages are settled.
    Unsettled,
}

/// The parts of a message that sequence tracking looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbered {
    /// AgentToServer.sequence_num.
    pub sequence_num: u64,
    /// A digest of the message's bytes.
    pub digest: u64,
    /// Whether agent_description is present.
    pub has_description: bool,
    /// Whether all is present that the capabilities of the message promise: a full report.
    pub is_full: bool,
}

/// What to do with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The very message before, once more: answer it, and let it have no effect.
    Repeat,
    /// A message to be taken.
    Take,
}

/// A [`Tracker`] in parts, for where a session is not kept in one process's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackerParts {
    /// Sequence number and digest of the message taken last.
    pub last: Option<(u64, u64)>,
    /// What the session began with; of no use once a message was taken.
    pub known: Known,
    /// Whether the session's state may be incomplete.
    pub dirty: bool,
    /// The last ask, and whether it was made since the session became dirty last.
    pub asked: Option<(Timestamp, bool)>,
    /// Asks since the session was in sync last.
    pub asks: u32,
}

impl TrackerParts {
    /// The parts of a session that begins with what ownership knew.
    pub fn new(known: Known) -> Self {
        Tracker::new(known).parts()
    }
}

impl From<TrackerParts> for Tracker {
    fn from(parts: TrackerParts) -> Self {
        let TrackerParts { last, known, dirty, asked, asks } = parts;
        // Only the next message's parts count, never the last one's.
        let last = last.map(|(sequence_num, digest)| Numbered {
            sequence_num,
            digest,
            has_description: false,
            is_full: false,
        });
        Self { last, known, dirty, asked, asks }
    }
}

/// Tracks the messages of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracker {
    last: Option<Numbered>,
    known: Known,
    dirty: bool,
    /// The last ask, and whether it was made since the session became dirty last.
    asked: Option<(Timestamp, bool)>,
    /// Asks since the session was in sync last.
    asks: u32,
}

impl Tracker {
    /// A session that begins with what ownership knew.
    pub fn new(known: Known) -> Self {
        Self { last: None, known, dirty: false, asked: None, asks: 0 }
    }

    /// Its parts.
    pub fn parts(&self) -> TrackerParts {
        let last = self.last.map(|last| (last.sequence_num, last.digest));
        TrackerParts { last, known: self.known, dirty: self.dirty, asked: self.asked, asks: self.asks }
    }

    /// Sequence number of the message taken last.
    pub fn last(&self) -> Option<u64> {
        self.last.map(|last| last.sequence_num)
    }

    /// Takes the next message.
    pub fn step(&mut self, message: Numbered) -> Step {
        let sequence_num = message.sequence_num;
        let fell_back = self.last.is_none_or(|last| sequence_num < last.sequence_num);
        // Some clients begin with 1. Others say only what has changed there, and the one before may be lost.
        let is_first = message.has_description && (sequence_num == 0 || sequence_num == 1 && message.is_full);
        let restarted = is_first && fell_back;
        let in_sync = match self.last {
            Some(last) if last.sequence_num == sequence_num && last.digest == message.digest => {
                return Step::Repeat;
            }
            Some(last) => last.sequence_num.checked_add(1) == Some(sequence_num) || restarted,
            None => match self.known {
                Known::SettledTo(settled) => settled.checked_add(1) == Some(sequence_num) || restarted,
                // A description alone proves nothing: clients send it by itself when it changes.
                Known::Nothing | Known::Unsettled => restarted,
            },
        };
        if !in_sync {
            self.mark_dirty();
        } else if message.has_description && self.dirty && self.asked.is_some_and(|(_, since)| since) {
            self.mark_clean();
        }
        if restarted {
            self.mark_clean();
        }
        self.last = Some(message);
        Step::Take
    }

    fn mark_clean(&mut self) {
        self.dirty = false;
        self.asks = 0;
    }

    /// Something of this session was lost: full state is to be asked for.
    pub fn mark_dirty(&mut self) {
        self.dirty = true;
        if let Some((_, since)) = &mut self.asked {
            *since = false;
        }
    }

    /// The message taken last was lost: the session is dirty, and the same message sent again is
    /// not a repeat.
    pub fn lost(&mut self) {
        self.mark_dirty();
        if let Some(last) = &mut self.last {
            last.digest = !last.digest;
        }
    }

    /// Whether the session's state may be incomplete.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// When full state is to be asked for; `None` while that is not needed.
    pub fn ask_due(&self) -> Option<Timestamp> {
        let interval =
            ASK_INTERVAL.saturating_mul(1 << self.asks.saturating_sub(1).min(9)).min(LAST_ASK_INTERVAL);
        self.dirty.then(|| self.asked.map_or(Timestamp(0), |(at, _)| at.plus(interval)))
    }

    /// Full state is asked for now.
    pub fn asked(&mut self, now: Timestamp) {
        self.asked = Some((now, true));
        self.asks = self.asks.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(sequence_num: u64, has_description: bool) -> Numbered {
        Numbered {
            sequence_num,
            digest: sequence_num * 2 + u64::from(has_description),
            has_description,
            is_full: has_description,
        }
    }

    fn after(known: Known, messages: &[(u64, bool)]) -> Tracker {
        let mut tracker = Tracker::new(known);
        for (sequence_num, has_description) in messages {
            tracker.step(message(*sequence_num, *has_description));
        }
        tracker
    }

    #[test]
    fn first_messages() {
        let dirty =
            |known, sequence_num, description| after(known, &[(sequence_num, description)]).is_dirty();
        assert!(!dirty(Known::Nothing, 0, true));
        assert!(!dirty(Known::Nothing, 1, true));
        assert!(dirty(Known::Nothing, 57, true));
        assert!(dirty(Known::Nothing, 57, false));
        assert!(!dirty(Known::SettledTo(56), 57, false));
        assert!(dirty(Known::SettledTo(55), 57, false));
        assert!(dirty(Known::SettledTo(57), 57, false));
        assert!(!dirty(Known::SettledTo(57), 0, true));
        let mut tracker = Tracker::new(Known::Nothing);
        tracker.step(Numbered { is_full: false, ..message(1, true) });
        assert!(tracker.is_dirty(), "the message with 0 is missing");
        assert!(dirty(Known::SettledTo(57), 0, false));
        assert!(dirty(Known::Unsettled, 57, true));
        assert!(dirty(Known::SettledTo(u64::MAX), 5, false));
    }

    #[test]
    fn a_gap_is_asked_for_once_and_cleared_by_a_description_after_the_ask() {
        let mut tracker = after(Known::Nothing, &[(0, true), (1, false), (3, false)]);
        assert_eq!(tracker.ask_due(), Some(Timestamp(0)));
        tracker.step(message(4, true));
        assert!(tracker.is_dirty(), "a description before the ask proves nothing");
        tracker.asked(Timestamp(7));
        assert_eq!(tracker.ask_due(), Some(Timestamp(7).plus(ASK_INTERVAL)));
        tracker.step(message(5, false));
        assert!(tracker.is_dirty());
        tracker.step(message(6, true));
        assert_eq!((tracker.is_dirty(), tracker.ask_due()), (false, None));
    }

    #[test]
    fn a_second_gap_waits_for_the_interval() {
        let mut tracker = after(Known::Nothing, &[(0, true), (2, false)]);
        tracker.asked(Timestamp(7));
        tracker.step(message(9, false));
        assert_eq!(tracker.ask_due(), Some(Timestamp(7).plus(ASK_INTERVAL)));
        tracker.step(message(10, true));
        assert!(tracker.is_dirty(), "the ask was before this gap");
    }

    #[test]
    fn a_repeat_has_no_effect_but_another_body_with_the_number_does() {
        let mut tracker = after(Known::Nothing, &[(0, true), (1, false)]);
        assert_eq!(tracker.step(message(1, false)), Step::Repeat);
        assert!(!tracker.is_dirty());
        assert_eq!(tracker.step(Numbered { digest: 99, ..message(1, false) }), Step::Take);
        assert!(tracker.is_dirty());
    }

    #[test]
    fn a_tracker_goes_on_from_its_parts() {
        let mut tracker = after(Known::SettledTo(3), &[(4, false), (6, false)]);
        tracker.asked(Timestamp(7));
        let mut copy = Tracker::from(tracker.parts());
        assert_eq!(copy.parts(), tracker.parts());
        for next in [message(6, false), message(7, true), message(7, true), message(0, true)] {
            assert_eq!((copy.step(next), copy.parts()), (tracker.step(next), tracker.parts()));
        }
    }

    #[test]
    fn a_restarted_agent_is_in_sync() {
        assert!(!after(Known::Nothing, &[(0, true), (7, false), (0, true)]).is_dirty());
        assert!(!after(Known::SettledTo(6), &[(7, false), (1, true)]).is_dirty());
    }
}
