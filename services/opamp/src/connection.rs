//! The sessions of one connection: what each message does, what is published, what is answered.
//!
//! A [`Connection`] is fed with frames and with results of what it asked for; what is to be done is
//! polled from it as [`Output`]s. Replies and publishes of one session stay in the order of its
//! messages; sessions do not wait for each other. Nothing is answered before it is safe: a
//! heartbeat at once, everything else when the log has it.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use muster_domain::agent::{EndReason, Unsent};
use muster_domain::ids::{Claim, ConfigHash, InstanceUid, IntentRevision, SessionId, Timestamp};
use muster_domain::sequence::Known;

use crate::frame;
use crate::head::Head;
pub use crate::refusal::{NotNow, Stale};
use crate::rekeying::{Rekeying, Way};
use crate::reply::Reply;
use crate::session::{Active, InFlight, Phase, Session};

/// Messages of one session that may wait for the log at once; one more is refused.
const MAX_WAITING: usize = 32;

/// Sequence numbers below this prove nothing when they fit what was settled: an agent that was restarted may
/// have come as far again, its first messages lost.
const PROOF: u64 = 2;

/// Bounds of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Agents on one connection.
    pub max_sessions: usize,
    /// An agent that reports heartbeats is silent after so long without any message of it.
    pub silent_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_sessions: 10_000, silent_after: Duration::from_secs(90) }
    }
}

/// Something to be done for a connection, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Claim this agent for a session; answer with [`Connection::claimed`],
    /// [`Connection::duplicate`] or [`Connection::claim_failed`].
    Claim(InstanceUid),
    /// The agent that uses this uid asks for another (AgentToServerFlags.RequestInstanceUid): make one and
    /// claim it; answer with [`Connection::issued`], [`Connection::duplicate`] or
    /// [`Connection::claim_failed`].
    Issue(InstanceUid),
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
    /// An agent uses the new uid that it was given.
    Taken {
        /// The uid that it used before.
        uid: InstanceUid,
        /// The new one.
        new_uid: InstanceUid,
    },
    /// The connection ends, and the agent that uses this uid did not take the new one.
    NotTaken(InstanceUid),
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
    /// The agent says nothing, on a connection that is open.
    pub silent: bool,
    /// Something that the agent is not sent.
    pub unsent: Option<Unsent>,
    /// The config that the agent was sent last on its connection.
    pub sent: Option<ConfigHash>,
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

/// The sessions of one connection.
#[derive(Debug)]
pub struct Connection {
    pub(crate) limits: Limits,
    sessions: HashMap<InstanceUid, Session>,
    /// When sessions are to be looked at: each has its own moment, and those of sessions that are gone stay.
    pub(crate) due: BTreeSet<(Timestamp, InstanceUid)>,
    rekeying: Rekeying,
    /// Agents of which messages were refused, and that have no session now: what they said is lost, whatever
    /// the numbers of their next messages fit.
    refused: HashSet<InstanceUid>,
    /// Bytes of the messages that wait in all sessions.
    waiting_bytes: usize,
    pub(crate) outputs: VecDeque<Output>,
}

impl Connection {
    /// A connection without sessions.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            sessions: HashMap::new(),
            due: BTreeSet::new(),
            rekeying: Rekeying::default(),
            refused: HashSet::new(),
            waiting_bytes: 0,
            outputs: VecDeque::new(),
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        if output.is_none() && self.outputs.capacity() > 0 {
            self.outputs = VecDeque::new();
        }
        output
    }

    /// Takes the payload of one binary WebSocket message. Returns the agent that it is of.
    pub fn frame(&mut self, bytes: &Bytes, now: Timestamp) -> Option<InstanceUid> {
        let message = match frame::decode(bytes) {
            Ok(message) => message,
            Err(error) => {
                self.refuse(None, error.to_string());
                return None;
            }
        };
        match Head::read(&message) {
            Ok(head) => Some(self.message(head, message, now)),
            Err(error) => {
                self.refuse(error.uid, error.reason);
                error.uid
            }
        }
    }

    /// Takes one AgentToServer whose head was read. Returns the agent that it is of: the message may carry
    /// another uid while the agent does not know its new one.
    pub fn message(&mut self, head: Head, message: Bytes, now: Timestamp) -> InstanceUid {
        if let Some(uid) = self.rekeying.taken(head.uid) {
            self.outputs.push_back(Output::Taken { uid, new_uid: head.uid });
        }
        let uid = match self.rekeying.way(head.uid, now) {
            Way::Session(uid) => uid,
            Way::Away(new_uid) => {
                self.outputs.push_back(turned_away(head.uid, new_uid, false));
                return head.uid;
            }
        };
        if !self.sessions.contains_key(&uid) {
            if self.sessions.len() >= self.limits.max_sessions {
                let reason = format!("this connection already carries {} agents", self.sessions.len());
                self.refuse(Some(head.uid), reason);
                return uid;
            }
            let asks = head.requests_uid && head.uid == uid;
            self.outputs.push_back(if asks { Output::Issue(uid) } else { Output::Claim(uid) });
            self.sessions.insert(uid, Session { phase: Phase::Claiming, waiting: VecDeque::new() });
        }
        let Some(session) = self.sessions.get_mut(&uid) else { return uid };
        match &mut session.phase {
            Phase::Active(active)
                if active.is_free() && session.waiting.is_empty() && !active.is_asked_for_another(&head) =>
            {
                active.take(head, message, now, &mut self.outputs);
            }
            _ if session.waiting.len() >= MAX_WAITING => {
                match &mut session.phase {
                    Phase::Active(active) => active.tracker.mark_dirty(),
                    Phase::Claiming => self.refused.extend([uid]),
                }
                let not_now = NotNow {
                    reason: "too many messages are waiting to be stored".to_owned(),
                    retry_after: Duration::from_secs(30),
                };
                self.outputs.push_back(not_now.to(head.uid));
            }
            _ => {
                self.waiting_bytes += message.len();
                session.waiting.push_back((head, message));
                self.pump(uid, now);
            }
        }
        self.look(uid);
        uid
    }

    /// The claim was granted.
    pub fn claimed(&mut self, uid: InstanceUid, claimed: Claimed, now: Timestamp) {
        match self.sessions.get_mut(&uid) {
            Some(session) if matches!(session.phase, Phase::Claiming) => {
                let is_proof = !matches!(claimed.known, Known::SettledTo(settled) if settled < PROOF);
                let known = if is_proof { claimed.known } else { Known::Unsettled };
                let mut active = Active::new(uid, Claimed { known, ..claimed }, false);
                if self.refused.remove(&uid) {
                    active.tracker.mark_dirty();
                }
                session.phase = Phase::Active(Box::new(active));
                self.rekeying.forget(uid);
                self.pump(uid, now);
                self.look(uid);
            }
            // The connection was closed meanwhile: nobody is there to hold the agent.
            _ => self.outputs.push_back(Output::Ended { uid, session: claimed.session }),
        }
    }

    /// A new uid was made and claimed for the agent that uses this one. Its messages are those of the new
    /// one, and are answered under the uid that they carry. Returns false, and gives the new one back, if the
    /// agent had some and did not take them, or is gone.
    pub fn issued(
        &mut self,
        uid: InstanceUid,
        new_uid: InstanceUid,
        claimed: Claimed,
        now: Timestamp,
    ) -> bool {
        if self.is_claiming(uid)
            && !self.sessions.contains_key(&new_uid)
            && self.rekeying.give(uid, Some(new_uid), true, self.limits.max_sessions, now).is_some()
            && let Some(mut session) = self.sessions.remove(&uid)
        {
            session.phase = Phase::Active(Box::new(Active::new(new_uid, claimed, true)));
            self.sessions.insert(new_uid, session);
            self.pump(new_uid, now);
            self.look(new_uid);
            return true;
        }
        self.forget_claim(uid, |head, _| turned_away(head.uid, None, false));
        self.outputs.push_back(Output::Ended { uid: new_uid, session: claimed.session });
        false
    }

    /// Another live agent holds the uid: what waits takes no effect, and is answered with the uid to be
    /// used from now on, or refused if there is none or if the agent had some. Full state is asked for at
    /// once, since a client that takes a new uid over says nothing by itself. Returns the uid that it is
    /// given.
    pub fn duplicate(
        &mut self,
        uid: InstanceUid,
        new_uid: Option<InstanceUid>,
        now: Timestamp,
    ) -> Option<InstanceUid> {
        if !self.is_claiming(uid) {
            return None;
        }
        let new_uid = self.rekeying.give(uid, new_uid, false, self.limits.max_sessions, now);
        self.forget_claim(uid, |head, first| turned_away(head.uid, new_uid, first));
        new_uid
    }

    /// The claim was not granted: what waits is refused, and the session forgotten.
    pub fn claim_failed(&mut self, uid: InstanceUid, not_now: &NotNow) {
        self.forget_claim(uid, |head, _| not_now.to(head.uid));
        if self.refused.len() < self.limits.max_sessions {
            self.refused.insert(uid);
        }
    }

    /// The agent's credential may not be used for the uid: what waits is refused, and the session forgotten.
    pub fn forbidden(&mut self, uid: InstanceUid, reason: &str) {
        self.forget_claim(uid, |head, _| Output::Send(Reply::refusal(head.uid, reason)));
    }

    fn is_claiming(&self, uid: InstanceUid) -> bool {
        self.sessions.get(&uid).is_some_and(|session| matches!(session.phase, Phase::Claiming))
    }

    /// Answers what waits for a claim, and forgets the session. The first message is marked.
    fn forget_claim(&mut self, uid: InstanceUid, answer: impl Fn(&Head, bool) -> Output) {
        if self.is_claiming(uid)
            && let Some(session) = self.sessions.remove(&uid)
        {
            self.waiting_bytes -= session.waiting_bytes();
            let answers = session.waiting.iter().zip(0..).map(|((head, _), at)| answer(head, at == 0));
            self.outputs.extend(answers);
        }
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
        let InFlight::Message(head) = in_flight else {
            if let InFlight::Silence(silent) = in_flight {
                active.told_silence(silent, result.is_ok(), now);
            }
            self.settle_ending(uid, now);
            return self.look(uid);
        };
        let custom = active.custom.take();
        match result {
            Ok(()) => {
                active.hearing.told = false;
                let settled = active.settled(&head);
                let answer = active.answer(&head, now);
                if head.is_disconnect() {
                    active.ending = Some(EndReason::AgentDisconnect);
                }
                let custom =
                    custom.map(|capabilities| Reply::CustomCapabilities { uid: head.uid, capabilities });
                self.outputs.extend([settled, answer].into_iter().chain(custom.map(Output::Send)));
            }
            Err(not_now) => {
                active.tracker.lost();
                self.outputs.push_back(not_now.to(head.uid));
            }
        }
        self.settle_ending(uid, now);
        self.look(uid);
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
                    // The claim has forgotten what was settled.
                    let sequence_num = active.tracker.last().filter(|_| !dirty);
                    let start = Publish {
                        uid,
                        session: claimed.session,
                        claim: claimed.claim,
                        started: Some(claimed.previous),
                        message: None,
                        ended: None,
                        dirty,
                        silent: active.hearing.told,
                        unsent: None,
                        sent: active.sent.clone(),
                    };
                    let session = claimed.session;
                    self.outputs.push_back(Output::Settled { uid, session, sequence_num });
                    self.outputs.push_back(Output::Publish(start));
                }
            }
            None => self.outputs.push_back(Output::Ended { uid, session: claimed.session }),
        }
        self.look(uid);
    }

    /// The connection is gone or is being closed: every session ends for this reason.
    pub fn close(&mut self, reason: EndReason) {
        let mut uids: Vec<_> = self.sessions.keys().copied().collect();
        uids.sort_unstable();
        for uid in uids {
            self.close_session(uid, None, reason);
        }
        self.outputs.extend(self.rekeying.not_taken().map(Output::NotTaken));
    }

    /// Ends one session, if it is the one named (any, for `None`).
    pub fn close_session(&mut self, uid: InstanceUid, only: Option<SessionId>, reason: EndReason) {
        let named = self.session(uid);
        let Some(session) = self.sessions.get_mut(&uid).filter(|_| only.is_none() || only == named) else {
            return;
        };
        self.waiting_bytes -= session.waiting_bytes();
        session.waiting.clear();
        match &mut session.phase {
            Phase::Claiming => {
                self.sessions.remove(&uid);
            }
            Phase::Active(active) => {
                active.ending = Some(reason);
                if active.in_flight.is_none() {
                    let claimed = active.claimed;
                    self.end(uid, claimed);
                }
            }
        }
    }

    /// Asks an agent for its full state, if the session is there. Something that it said is lost: it is asked
    /// until it answers.
    pub fn request_full_state(&mut self, uid: InstanceUid, session: SessionId, now: Timestamp) {
        let Some(active) = self.active(uid).filter(|active| active.claimed.session == session) else {
            return;
        };
        active.tracker.mark_dirty();
        active.tracker.asked(now);
        self.ask(uid);
        self.look(uid);
    }

    /// Asks an agent for the list of its available components, if the session is there.
    pub fn request_components(&mut self, uid: InstanceUid, session: SessionId) {
        if self.session(uid) == Some(session) {
            self.outputs.push_back(Output::Send(Reply::AskComponents { uid }));
        }
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
        hash: ConfigHash,
    ) -> Result<(), Stale> {
        let active = self.active(uid).filter(|active| active.claimed.session == session);
        let active = active.ok_or(Stale::SessionGone)?;
        if revision < active.offered {
            return Err(Stale::Superseded);
        }
        active.offered = revision;
        active.sent = Some(hash);
        Ok(())
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

    /// Bytes of the messages that wait for claims and for the log.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    pub(crate) fn active(&mut self, uid: InstanceUid) -> Option<&mut Active> {
        match &mut self.sessions.get_mut(&uid)?.phase {
            Phase::Active(active) => Some(active),
            Phase::Claiming => None,
        }
    }

    fn refuse(&mut self, uid: Option<InstanceUid>, reason: String) {
        self.outputs.push_back(Output::Send(Reply::BadRequest { uid, reason }));
    }

    pub(crate) fn ask(&mut self, uid: InstanceUid) {
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
            if active.is_asked_for_another(&head) {
                // The session is over, and what the agent says from here on is of the one to come.
                session.waiting.push_front((head, message));
                let waiting = std::mem::take(&mut session.waiting);
                active.ending = Some(EndReason::Superseded);
                let claimed = active.claimed;
                self.end(uid, claimed);
                self.outputs.push_back(Output::Issue(uid));
                self.sessions.insert(uid, Session { phase: Phase::Claiming, waiting });
                return;
            }
            self.waiting_bytes -= message.len();
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
                silent: false,
                unsent: None,
                sent: active.sent.clone(),
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

/// What an agent is told whose message takes no effect: the new uid, or that it is refused.
fn turned_away(uid: InstanceUid, new_uid: Option<InstanceUid>, first: bool) -> Output {
    Output::Send(match new_uid {
        Some(_) => Reply::Answer { uid, first, full_state: first, new_uid },
        None => Reply::uid_refused(uid),
    })
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
