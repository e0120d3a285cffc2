//! The sessions of one connection: what each message does, what is published, what is answered.
//!
//! A [`Connection`] is fed with frames and with results of what it asked for; what is to be done is
//! polled from it as [`Output`]s. Replies and publishes of one session stay in the order of its
//! messages; sessions do not wait for each other. Nothing is answered before it is safe: a
//! heartbeat at once, everything else when the log has it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use muster_domain::agent::EndReason;
use muster_domain::capabilities::AgentCapabilities;
use muster_domain::ids::{Claim, InstanceUid, IntentRevision, SessionId, Timestamp};
use muster_domain::sequence::{Known, Step, Tracker};

use crate::frame;
use crate::head::Head;
use crate::reply::Reply;

/// Messages of one session that may wait for the log at once; one more is refused.
const MAX_WAITING: usize = 32;

/// Bounds of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Agents on one connection.
    pub max_sessions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_sessions: 10_000 }
    }
}

/// Something to be done for a connection, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Claim this agent for a session; answer with [`Connection::claimed`],
    /// [`Connection::duplicate`] or [`Connection::claim_failed`].
    Claim(InstanceUid),
    /// Publish to the log; answer with [`Connection::published`].
    Publish(Publish),
    /// Send this to the agent.
    Send(Reply),
    /// Everything of the session up to this sequence number is settled; `None` says only that the
    /// agent was heard.
    Settled {
        /// The agent.
        uid: InstanceUid,
        /// Its session.
        session: SessionId,
        /// The sequence number.
        sequence_num: Option<u64>,
    },
    /// The session is over: give the agent back.
    Ended {
        /// The agent.
        uid: InstanceUid,
        /// Its session.
        session: SessionId,
    },
}

/// An entry for the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Publish {
    /// The agent.
    pub uid: InstanceUid,
    /// Its session.
    pub session: SessionId,
    /// The session's claim.
    pub claim: Claim,
    /// Set on the session's first entry; holds the session before, if there was one.
    pub started: Option<Option<SessionId>>,
    /// The agent's message, without header.
    pub message: Option<(Head, Bytes)>,
    /// Set on the session's last entry.
    pub ended: Option<EndReason>,
    /// The session's state may be incomplete.
    pub dirty: bool,
}

/// A claim that was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    /// The session's id.
    pub session: SessionId,
    /// Its claim.
    pub claim: Claim,
    /// What was known of the agent.
    pub known: Known,
    /// The session before.
    pub previous: Option<SessionId>,
}

/// Why an offer may not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// It is for a session that does not speak for the agent (any more).
    SessionGone,
    /// The session was sent an offer of a later intent revision.
    Superseded,
}

impl Stale {
    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SessionGone => "session_gone",
            Self::Superseded => "superseded",
        }
    }
}

/// Something that could not be done now, and when the agent should try again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotNow {
    /// For the agent's operator.
    pub reason: String,
    /// For the agent.
    pub retry_after: Duration,
}

impl NotNow {
    fn to(&self, uid: InstanceUid) -> Output {
        Output::Send(Reply::Unavailable { uid, reason: self.reason.clone(), retry_after: self.retry_after })
    }
}

/// The sessions of one connection.
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    sessions: HashMap<InstanceUid, Session>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Session {
    phase: Phase,
    /// Messages that wait for the claim, or for the log to take the message before.
    waiting: VecDeque<(Head, Bytes)>,
}

#[derive(Debug)]
enum Phase {
    /// Ownership has been asked.
    Claiming,
    /// The session speaks for its agent.
    Active(Box<Active>),
}

#[derive(Debug, Clone, Copy)]
enum InFlight {
    /// A message, to be answered when the log has it.
    Message(Head),
    /// The start of a session that took the place of another on this connection.
    Start,
}

#[derive(Debug)]
struct Active {
    claimed: Claimed,
    tracker: Tracker,
    /// The last capabilities the agent named.
    capabilities: AgentCapabilities,
    /// The log was given the session's start, and may have it.
    attempted: bool,
    /// The log has the session's start.
    announced: bool,
    /// The server's capabilities have been sent.
    introduced: bool,
    /// The intent revision of the last offer.
    offered: IntentRevision,
    /// What the log is taking, and the session that it is of.
    in_flight: Option<(SessionId, InFlight)>,
    /// The session is to end for this reason once the log has what is in flight.
    ending: Option<EndReason>,
}

impl Connection {
    /// A connection without sessions.
    pub fn new(limits: Limits) -> Self {
        Self { limits, sessions: HashMap::new(), outputs: VecDeque::new() }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        if output.is_none() && self.outputs.capacity() > 0 {
            self.outputs = VecDeque::new();
        }
        output
    }

    /// Takes the payload of one binary WebSocket message.
    pub fn frame(&mut self, bytes: &Bytes, now: Timestamp) {
        let message = match frame::decode(bytes) {
            Ok(message) => message,
            Err(error) => return self.refuse(None, error.to_string()),
        };
        match Head::read(&message) {
            Ok(head) => self.message(head, message, now),
            Err(error) => self.refuse(None, error.to_string()),
        }
    }

    /// Takes one AgentToServer whose head was read.
    pub fn message(&mut self, head: Head, message: Bytes, now: Timestamp) {
        if !self.sessions.contains_key(&head.uid) {
            if self.sessions.len() >= self.limits.max_sessions {
                let reason = format!("this connection already carries {} agents", self.sessions.len());
                return self.refuse(Some(head.uid), reason);
            }
            self.outputs.push_back(Output::Claim(head.uid));
            self.sessions.insert(head.uid, Session { phase: Phase::Claiming, waiting: VecDeque::new() });
        }
        let Some(session) = self.sessions.get_mut(&head.uid) else { return };
        match &mut session.phase {
            Phase::Active(active) if active.is_free() && session.waiting.is_empty() => {
                active.take(head, message, now, &mut self.outputs);
            }
            _ if session.waiting.len() >= MAX_WAITING => {
                if let Phase::Active(active) = &mut session.phase {
                    active.tracker.mark_dirty();
                }
                let not_now = NotNow {
                    reason: "too many messages are waiting to be stored".to_owned(),
                    retry_after: Duration::from_secs(30),
                };
                self.outputs.push_back(not_now.to(head.uid));
            }
            _ => session.waiting.push_back((head, message)),
        }
    }

    /// The claim was granted.
    pub fn claimed(&mut self, uid: InstanceUid, claimed: Claimed, now: Timestamp) {
        match self.sessions.get_mut(&uid) {
            Some(session) if matches!(session.phase, Phase::Claiming) => {
                session.phase = Phase::Active(Box::new(Active {
                    claimed,
                    tracker: Tracker::new(claimed.known),
                    capabilities: AgentCapabilities::default(),
                    attempted: false,
                    announced: false,
                    introduced: false,
                    offered: IntentRevision::default(),
                    in_flight: None,
                    ending: None,
                }));
                self.pump(uid, now);
            }
            // The connection was closed meanwhile: nobody is there to hold the agent.
            _ => self.outputs.push_back(Output::Ended { uid, session: claimed.session }),
        }
    }

    /// The claim was not granted: what waits is refused, and the session forgotten.
    pub fn claim_failed(&mut self, uid: InstanceUid, not_now: &NotNow) {
        let Some(session) = self.sessions.get(&uid) else { return };
        if !matches!(session.phase, Phase::Claiming) {
            return;
        }
        for _ in 0..session.waiting.len() {
            self.outputs.push_back(not_now.to(uid));
        }
        self.sessions.remove(&uid);
    }

    /// Another live agent holds the uid: what waits is answered with the one to be used from now on, and
    /// takes no effect. Full state is asked for at once, since a client that takes a new uid over says
    /// nothing by itself.
    pub fn duplicate(&mut self, uid: InstanceUid, new_uid: InstanceUid) {
        let Some(session) = self.sessions.get(&uid) else { return };
        if !matches!(session.phase, Phase::Claiming) {
            return;
        }
        for number in 0..session.waiting.len() {
            let (first, new_uid) = (number == 0, Some(new_uid));
            self.outputs.push_back(Output::Send(Reply::Answer { uid, first, full_state: first, new_uid }));
        }
        self.sessions.remove(&uid);
    }

    /// The log took the session's entry, or did not.
    pub fn published(
        &mut self,
        uid: InstanceUid,
        session: SessionId,
        result: Result<(), NotNow>,
        now: Timestamp,
    ) {
        let Some(active) = self.active(uid) else { return };
        let Some((_, in_flight)) = active.in_flight.take_if(|(of, _)| *of == session) else { return };
        if active.claimed.session == session {
            active.announced |= result.is_ok();
        }
        let InFlight::Message(head) = in_flight else { return self.settle_ending(uid, now) };
        match result {
            Ok(()) => {
                let settled = active.settled(&head);
                let answer = active.answer(&head, now);
                if head.is_disconnect() {
                    active.ending = Some(EndReason::AgentDisconnect);
                }
                self.outputs.extend([settled, answer]);
            }
            Err(not_now) => {
                active.tracker.lost();
                self.outputs.push_back(not_now.to(uid));
            }
        }
        self.settle_ending(uid, now);
    }

    /// After something in flight: ends the session if it is to end, else goes on.
    fn settle_ending(&mut self, uid: InstanceUid, now: Timestamp) {
        let Some(active) = self.active(uid) else { return };
        let claimed = active.claimed;
        match active.ending {
            // The goodbye itself was the session's last entry.
            Some(EndReason::AgentDisconnect) => self.forget(uid, claimed),
            Some(_) => self.end(uid, claimed),
            None => self.pump(uid, now),
        }
    }

    /// The agent was claimed anew for its connection: a new session takes the place of the one before,
    /// with all that is known of its messages.
    pub fn reclaimed(&mut self, uid: InstanceUid, claimed: Claimed) {
        match self.active(uid).filter(|active| active.ending.is_none()) {
            Some(active) => {
                active.claimed = claimed;
                active.attempted = true;
                active.announced = false;
                let dirty = active.tracker.is_dirty();
                // A message on its way to the log was of the session before; the next one announces this.
                if active.in_flight.is_none() {
                    active.in_flight = Some((claimed.session, InFlight::Start));
                    self.outputs.push_back(Output::Publish(Publish {
                        uid,
                        session: claimed.session,
                        claim: claimed.claim,
                        started: Some(claimed.previous),
                        message: None,
                        ended: None,
                        dirty,
                    }));
                }
            }
            None => self.outputs.push_back(Output::Ended { uid, session: claimed.session }),
        }
    }

    /// The connection is gone or is being closed: every session ends for this reason.
    pub fn close(&mut self, reason: EndReason) {
        let mut uids: Vec<_> = self.sessions.keys().copied().collect();
        uids.sort_unstable();
        for uid in uids {
            self.close_session(uid, None, reason);
        }
    }

    /// Ends one session, if it is the one named (any, for `None`).
    pub fn close_session(&mut self, uid: InstanceUid, only: Option<SessionId>, reason: EndReason) {
        let Some(session) = self.sessions.get_mut(&uid) else { return };
        session.waiting.clear();
        match &mut session.phase {
            Phase::Claiming => {
                self.sessions.remove(&uid);
            }
            Phase::Active(active) => {
                if only.is_some_and(|only| only != active.claimed.session) {
                    return;
                }
                active.ending = Some(reason);
                if active.in_flight.is_none() {
                    let claimed = active.claimed;
                    self.end(uid, claimed);
                }
            }
        }
    }

    /// Asks an agent for its full state, if the session is there.
    pub fn request_full_state(&mut self, uid: InstanceUid, session: SessionId, now: Timestamp) {
        let Some(active) = self.active(uid).filter(|active| active.claimed.session == session) else {
            return;
        };
        active.tracker.asked(now);
        self.ask(uid);
    }

    /// Whether an offer that was decided at this intent revision may be sent to this session; if so it
    /// counts as sent. Only the current session of an agent is sent offers, and none that is older
    /// than the one before.
    ///
    /// # Errors
    /// Why it may not.
    pub fn offer(
        &mut self,
        uid: InstanceUid,
        session: SessionId,
        revision: IntentRevision,
    ) -> Result<(), Stale> {
        let active = self.active(uid).filter(|active| active.claimed.session == session);
        let active = active.ok_or(Stale::SessionGone)?;
        if revision < active.offered {
            return Err(Stale::Superseded);
        }
        active.offered = revision;
        Ok(())
    }

    /// When [`Connection::timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.sessions.values().filter_map(|session| session.ask_due()).min()
    }

    /// Asks those agents for full state whose time has come.
    pub fn timeout(&mut self, now: Timestamp) {
        let mut due: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.ask_due().is_some_and(|due| due <= now))
            .map(|(uid, _)| *uid)
            .collect();
        due.sort_unstable();
        for uid in due {
            if let Some(active) = self.active(uid) {
                active.tracker.asked(now);
                self.ask(uid);
            }
        }
    }

    /// The session that speaks for an agent on this connection.
    pub fn session(&self, uid: InstanceUid) -> Option<SessionId> {
        match &self.sessions.get(&uid)?.phase {
            Phase::Active(active) => Some(active.claimed.session),
            Phase::Claiming => None,
        }
    }

    /// How many agents the connection carries.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    fn active(&mut self, uid: InstanceUid) -> Option<&mut Active> {
        match &mut self.sessions.get_mut(&uid)?.phase {
            Phase::Active(active) => Some(active),
            Phase::Claiming => None,
        }
    }

    fn refuse(&mut self, uid: Option<InstanceUid>, reason: String) {
        self.outputs.push_back(Output::Send(Reply::BadRequest { uid, reason }));
    }

    fn ask(&mut self, uid: InstanceUid) {
        self.outputs.push_back(Output::Send(Reply::Answer {
            uid,
            first: false,
            full_state: true,
            new_uid: None,
        }));
    }

    /// Takes messages that waited, until one has to wait for the log.
    fn pump(&mut self, uid: InstanceUid, now: Timestamp) {
        let Some(session) = self.sessions.get_mut(&uid) else { return };
        let Phase::Active(active) = &mut session.phase else { return };
        while active.is_free() {
            let Some((head, message)) = session.waiting.pop_front() else {
                session.waiting = VecDeque::new();
                return;
            };
            active.take(head, message, now, &mut self.outputs);
        }
    }

    /// Publishes a session's end, if the log may know its start, and forgets it.
    fn end(&mut self, uid: InstanceUid, claimed: Claimed) {
        if let Some(active) = self.active(uid)
            && active.attempted
        {
            let publish = Publish {
                uid,
                session: claimed.session,
                claim: claimed.claim,
                started: None,
                message: None,
                ended: active.ending,
                dirty: active.tracker.is_dirty(),
            };
            self.outputs.push_back(Output::Publish(publish));
        }
        self.forget(uid, claimed);
    }

    fn forget(&mut self, uid: InstanceUid, claimed: Claimed) {
        self.sessions.remove(&uid);
        self.outputs.push_back(Output::Ended { uid, session: claimed.session });
    }
}

impl Session {
    fn ask_due(&self) -> Option<Timestamp> {
        match &self.phase {
            Phase::Active(active) if active.is_free() => active.tracker.ask_due(),
            _ => None,
        }
    }
}

impl Active {
    /// Whether the next message can be taken.
    fn is_free(&self) -> bool {
        self.in_flight.is_none() && self.ending.is_none()
    }

    fn take(&mut self, head: Head, message: Bytes, now: Timestamp, outputs: &mut VecDeque<Output>) {
        let unnumbered = head.is_unnumbered();
        if !unnumbered && self.tracker.step(head.numbered()) == Step::Repeat {
            outputs.push_back(self.answer(&head, now));
            return;
        }
        let unchanged = head.capabilities == AgentCapabilities::default()
            || (head.capabilities == self.capabilities && self.announced);
        if head.is_plain() && unchanged && self.announced {
            outputs.push_back(self.settled(&head));
            outputs.push_back(self.answer(&head, now));
            return;
        }
        if head.capabilities != AgentCapabilities::default() {
            self.capabilities = head.capabilities;
        }
        self.in_flight = Some((self.claimed.session, InFlight::Message(head)));
        self.attempted = true;
        outputs.push_back(Output::Publish(Publish {
            uid: head.uid,
            session: self.claimed.session,
            claim: self.claimed.claim,
            started: (!self.announced).then_some(self.claimed.previous),
            message: Some((head, message)),
            ended: head.is_disconnect().then_some(EndReason::AgentDisconnect),
            dirty: self.tracker.is_dirty(),
        }));
    }

    /// A dirty session settles nothing: whoever takes the agent over must ask as well.
    fn settled(&self, head: &Head) -> Output {
        let counts = !head.is_unnumbered() && !self.tracker.is_dirty();
        Output::Settled {
            uid: head.uid,
            session: self.claimed.session,
            sequence_num: counts.then_some(head.sequence_num),
        }
    }

    fn answer(&mut self, head: &Head, now: Timestamp) -> Output {
        let ask = self.tracker.ask_due().is_some_and(|due| due <= now);
        if ask {
            self.tracker.asked(now);
        }
        let first = !self.introduced;
        self.introduced = true;
        Output::Send(Reply::Answer { uid: head.uid, first, full_state: ask, new_uid: None })
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
