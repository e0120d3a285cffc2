//! Sessions of agents that poll over plain HTTP, as ownership keeps them: no gateway holds such a session,
//! each request may come to another one.
//!
//! Everything here happens at once for an agent. Ownership in memory calls it; ownership elsewhere does the
//! same in its own language, and [`vectors`] hold both to it.

mod tracks;
pub mod vectors;

use std::time::Duration;

use crate::capabilities::AgentCapabilities;
use crate::ids::{AgentKey, Claim, CommandId, ConfigHash, IntentRevision, PollId, SessionId, Timestamp};
use crate::sequence::{Known, Numbered, TrackerParts};

pub use tracks::{FORGET, NEAR, TURNS, Tracks};

/// One request, as ownership sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poll {
    /// The request.
    pub id: PollId,
    /// Session that begins with it, if one does.
    pub session: SessionId,
    /// Its place in the numbering; none for a message that holds only a uid.
    pub message: Option<Numbered>,
    /// Whether it holds nothing but uid, sequence number and capabilities.
    pub plain: bool,
    /// Its capabilities; zero means unchanged.
    pub capabilities: AgentCapabilities,
    /// When it came.
    pub now: Timestamp,
    /// How long it may be in flight: longer than its gateway works on it. One that is in flight for longer is
    /// lost with its gateway.
    pub lease: Duration,
    /// A session on a WebSocket that has been judged dead: it no longer stands in the way.
    pub displace: Option<SessionId>,
    /// Epoch of the agent's partition of the log, zero if it is not known: what was settled in another one
    /// may be lost with that log.
    pub epoch: u64,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// A pure heartbeat, in sequence, with nothing to say in return: it is settled already.
    Heartbeat,
    /// The very message before, once more: it has no effect.
    Repeat {
        /// Whether the answer to that message introduced the server.
        introduces: bool,
    },
    /// Another request of the agent is in flight: this one has no effect.
    Overlapping,
    /// Two agents use the instance_uid, and this is the one that came later: it has no effect.
    Newcomer,
    /// It is in flight from now on, and is to be ended.
    Taken(Box<Taken>),
}

/// A request in flight, and what ownership keeps of its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The session.
    pub session: SessionId,
    /// Its claim.
    pub claim: Claim,
    /// The session before, if there was one.
    pub previous: Option<SessionId>,
    /// What the requests before left.
    pub kept: Kept,
    /// What waits for the agent.
    pub mail: Mail,
}

/// What one request of a session leaves for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Its sequence.
    pub tracker: TrackerParts,
    /// When full state is to be asked for; `None` while that is not needed.
    pub ask_due: Option<Timestamp>,
    /// The last capabilities that the log has.
    pub capabilities: AgentCapabilities,
    /// Whether the log has the session's start.
    pub announced: bool,
    /// Sequence number of the message whose answer introduced the server.
    pub introduced: Option<u64>,
    /// Intent revision of the last offer that was sent: an older one is superseded.
    pub sent: IntentRevision,
    /// Whether the agent asked for its instance_uid and was given it.
    pub issued: bool,
}

/// What waits for an agent: never a body, never a secret.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mail {
    /// A remote config: its hash, and the intent revision at which it was desired.
    pub offer: Option<(ConfigHash, IntentRevision)>,
    /// It is to be asked for full state.
    pub full_state: bool,
    /// It is to be asked for the list of its available components.
    pub components: bool,
    /// Commands, in the order in which they came; no more than [`MAX_COMMANDS`].
    pub commands: Vec<CommandId>,
}

/// Most commands that wait for one agent.
pub const MAX_COMMANDS: usize = 16;

/// Something put before an agent's next request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The agent.
    pub key: AgentKey,
    /// The session that it is for.
    pub session: SessionId,
    /// What is put there. An offer of a lower revision than the one there or the last one sent is dropped.
    pub mail: Mail,
    /// A claim that is stored. A session with a lower one is over: the next request begins another one, with
    /// a higher claim.
    pub above: Claim,
}

/// The end of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollEnd {
    /// Its session.
    pub session: SessionId,
    /// The request.
    pub poll: PollId,
    /// What it leaves.
    pub kept: Kept,
    /// Sequence number up to which every message is settled now; `None` leaves that as it is.
    pub settled: Option<u64>,
    /// Mail that is done with: of an offer, this hash up to this revision.
    pub delivered: Mail,
    /// Whether the session is over.
    pub over: bool,
    /// When it ended.
    pub now: Timestamp,
}

/// What ownership says of an agent that control has not heard of for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// It was heard at this moment, which is later than the one asked about.
    Heard(Timestamp),
    /// It was not. If that session spoke for it, it does no longer.
    Over,
    /// Nothing is known of it.
    Unknown,
}

/// Everything that ownership keeps of an agent that no WebSocket holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The last session of any transport, and its claim.
    pub last: (SessionId, Claim),
    /// Sequence number up to which every message is settled.
    pub settled: Option<u64>,
    /// When the agent was heard last.
    pub seen: Timestamp,
    /// Present while the last session is one of polls and not over.
    pub open: Option<Open>,
    /// Whose sequence numbers come.
    pub tracks: Tracks,
    /// Epoch of the log that what is settled is of; zero if it is not known.
    pub epoch: u64,
}

/// A session of polls that is not over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    previous: Option<SessionId>,
    kept: Kept,
    /// The request in flight, since when, and for how long it may be.
    flight: Option<(PollId, Timestamp, Duration)>,
    mail: Mail,
    /// The newest epoch of the log that a request of it was taken in; zero if none is known.
    epoch: u64,
}

impl State {
    /// The first request of an agent of which nothing is known.
    pub fn first(poll: &Poll) -> (Self, Begun) {
        let mut state = Self {
            last: (poll.session, Claim(poll.now.0)),
            settled: None,
            seen: poll.now,
            open: None,
            tracks: Tracks::default(),
            epoch: 0,
        };
        if let Some(message) = poll.message {
            state.tracks.take(message.sequence_num, message.has_description);
        }
        let open = Open::new(None, Known::Nothing, poll.epoch);
        let begun = state.take(open, poll);
        (state, begun)
    }

    /// A request.
    pub fn begin(&mut self, poll: &Poll) -> Begun {
        self.seen = self.seen.max(poll.now);
        if let Some(open) = &self.open
            && let Some((id, since, lease)) = open.flight
        {
            if id == poll.id {
                // The answer to the same call was lost.
                return self.take(open.clone(), poll);
            }
            // A lease from the future is of a gateway whose clock is wrong: it does not count for longer.
            if Duration::from_micros(poll.now.0.abs_diff(since.0)) < lease {
                return Begun::Overlapping;
            }
        }
        // In a new epoch of the log, the session may be lost. The first one that is heard of is none.
        let is_lost = |open: &Open| poll.epoch > open.epoch && open.epoch > 0;
        // What became of a lost request is not known, and its gateway may still publish it: another session,
        // with a higher claim, makes that of no effect.
        let mut open = self.open.clone().filter(|open| open.flight.is_none() && !is_lost(open));
        let last = open.as_ref().and_then(|open| open.kept.tracker.last);
        if let Some(message) = poll.message {
            if last == Some((message.sequence_num, message.digest)) {
                let introduced = open.and_then(|open| open.kept.introduced);
                return Begun::Repeat { introduces: introduced == Some(message.sequence_num) };
            }
            if !self.tracks.take(message.sequence_num, message.has_description) {
                return Begun::Newcomer;
            }
        }
        let restarted = poll.message.is_some_and(|message| {
            message.has_description && last.is_some_and(|(last, _)| message.sequence_num < last)
        });
        if let Some(open) = &mut open {
            open.epoch = open.epoch.max(poll.epoch);
        }
        match open.filter(|_| !restarted) {
            Some(mut open) if open.settles(poll) => {
                if let Some(message) = poll.message {
                    open.kept.tracker.last = Some((message.sequence_num, message.digest));
                    if !open.kept.tracker.dirty {
                        (self.settled, self.epoch) = (Some(message.sequence_num), open.epoch);
                    }
                }
                self.open = Some(open);
                Begun::Heartbeat
            }
            Some(open) => self.take(open, poll),
            None => {
                let (previous, claim) = self.last;
                self.last = (poll.session, Claim(poll.now.0.max(claim.0.saturating_add(1))));
                let known = self.settled_in(poll.epoch).map_or(Known::Unsettled, Known::SettledTo);
                // A number of a life of the agent that is over could fit a later one by chance.
                self.settled = None;
                self.take(Open::new(Some(previous), known, poll.epoch), poll)
            }
        }
    }

    /// What is settled, as far as a session that begins in this epoch of the log may know.
    pub fn settled_in(&self, epoch: u64) -> Option<u64> {
        self.settled.filter(|_| self.epoch == epoch || self.epoch == 0 || epoch == 0)
    }

    fn take(&mut self, mut open: Open, poll: &Poll) -> Begun {
        open.flight = Some((poll.id, poll.now, poll.lease));
        let (session, claim) = self.last;
        let taken =
            Taken { session, claim, previous: open.previous, kept: open.kept, mail: open.mail.clone() };
        self.open = Some(open);
        Begun::Taken(Box::new(taken))
    }

    /// The end of a request. `false`, and no effect: it is not the one in flight any more.
    pub fn end(&mut self, end: &PollEnd) -> bool {
        let Some(open) = self.open.as_mut().filter(|_| self.last.0 == end.session) else { return false };
        if open.flight.is_none_or(|(id, ..)| id != end.poll) {
            return false;
        }
        open.flight = None;
        // What the session began with stays as it was.
        let known = open.kept.tracker.known;
        open.kept = end.kept;
        open.kept.tracker.known = known;
        open.mail.offer.take_if(|(hash, revision)| {
            end.delivered.offer.as_ref().is_some_and(|(sent, to)| sent == hash && *revision <= *to)
        });
        open.mail.full_state &= !end.delivered.full_state;
        open.mail.components &= !end.delivered.components;
        open.mail.commands.retain(|command| !end.delivered.commands.contains(command));
        if end.settled.is_some() {
            (self.settled, self.epoch) = (end.settled, open.epoch);
        }
        self.seen = self.seen.max(end.now);
        if end.over {
            self.open = None;
        }
        true
    }

    /// Puts something before the next request. `false`: the session is over, or there is no room for the
    /// commands. It is over from now on if its claim is below `above`.
    pub fn post(&mut self, session: SessionId, mail: &Mail, above: Claim) -> bool {
        let Some(open) = self.open.as_mut().filter(|_| self.last.0 == session) else { return false };
        if self.last.1 < above {
            self.last.1 = above;
            self.open = None;
            return false;
        }
        if let Some((_, revision)) = &mail.offer
            && *revision >= open.kept.sent
            && open.mail.offer.as_ref().is_none_or(|(_, there)| there <= revision)
        {
            open.mail.offer.clone_from(&mail.offer);
        }
        open.mail.full_state |= mail.full_state;
        open.mail.components |= mail.components;
        for command in &mail.commands {
            if open.mail.commands.contains(command) {
                continue;
            }
            if open.mail.commands.len() >= MAX_COMMANDS {
                return false;
            }
            open.mail.commands.push(*command);
        }
        true
    }

    /// Ends a session unless the agent was heard after `before`.
    pub fn expire(&mut self, session: SessionId, before: Timestamp) -> Silence {
        if self.seen > before {
            return Silence::Heard(self.seen);
        }
        if self.last.0 == session {
            self.open = None;
        }
        Silence::Over
    }
}

impl Open {
    fn new(previous: Option<SessionId>, known: Known, epoch: u64) -> Self {
        let kept = Kept {
            tracker: TrackerParts::new(known),
            ask_due: None,
            capabilities: AgentCapabilities::default(),
            announced: false,
            introduced: None,
            sent: IntentRevision(0),
            issued: false,
        };
        Self { previous, kept, flight: None, mail: Mail::default(), epoch }
    }

    /// Whether a request is settled by ownership alone: a pure heartbeat with nothing to say in return.
    fn settles(&self, poll: &Poll) -> bool {
        let kept = &self.kept;
        let unchanged =
            poll.capabilities == AgentCapabilities::default() || poll.capabilities == kept.capabilities;
        let follows = poll.message.is_none_or(|message| {
            kept.tracker.last.and_then(|(last, _)| last.checked_add(1)) == Some(message.sequence_num)
        });
        let asks = kept.ask_due.is_some_and(|due| due <= poll.now);
        poll.plain && kept.announced && unchanged && follows && !asks && self.mail == Mail::default()
    }
}

#[cfg(test)]
#[path = "poll/tests.rs"]
mod tests;
