//! One session: what is known of its agent, and what becomes of each message.

use std::collections::VecDeque;

use bytes::Bytes;
use muster_domain::agent::EndReason;
use muster_domain::capabilities::AgentCapabilities;
use muster_domain::ids::{ConfigHash, InstanceUid, IntentRevision, SessionId, Timestamp};
use muster_domain::sequence::{Step, Tracker};

use crate::connection::{Claimed, Output, Publish};
use crate::head::Head;
use crate::reply::Reply;
use crate::timing::Hearing;

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) phase: Phase,
    /// Messages that wait for the claim, or for the log to take the message before.
    pub(crate) waiting: VecDeque<(Head, Bytes)>,
}

#[derive(Debug)]
pub(crate) enum Phase {
    /// Ownership has been asked.
    Claiming,
    /// The session speaks for its agent.
    Active(Box<Active>),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum InFlight {
    /// A message, to be answered when the log has it.
    Message(Head),
    /// The start of a session that took the place of another on this connection.
    Start,
    /// That the agent is silent, or is no longer.
    Silence(bool),
    /// That something was not sent.
    Unsent,
}

#[derive(Debug)]
pub(crate) struct Active {
    /// The uid that is claimed. A message carries another one while the agent does not know of it.
    pub(crate) uid: InstanceUid,
    pub(crate) claimed: Claimed,
    /// The agent asked for its uid and has it.
    pub(crate) issued: bool,
    pub(crate) tracker: Tracker,
    /// The last capabilities the agent named.
    capabilities: AgentCapabilities,
    /// The log was given the session's start, and may have it.
    pub(crate) attempted: bool,
    /// The log has the session's start.
    pub(crate) announced: bool,
    /// The server's capabilities have been sent.
    introduced: bool,
    /// The intent revision of the last offer.
    pub(crate) offered: IntentRevision,
    /// The config that the agent was sent last.
    pub(crate) sent: Option<ConfigHash>,
    /// Custom capabilities in what the log is taking, to be answered.
    pub(crate) custom: Option<Vec<String>>,
    /// What the log is taking, and the session that it is of.
    pub(crate) in_flight: Option<(SessionId, InFlight)>,
    /// The session is to end for this reason once the log has what is in flight.
    pub(crate) ending: Option<EndReason>,
    pub(crate) hearing: Hearing,
    /// When the session is to be looked at, as [`Connection`](crate::connection::Connection) has it noted.
    pub(crate) due: Option<Timestamp>,
}

impl Session {
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(|(_, message)| message.len()).sum()
    }
}

impl Active {
    pub(crate) fn new(uid: InstanceUid, claimed: Claimed, issued: bool) -> Self {
        Self {
            uid,
            claimed,
            issued,
            tracker: Tracker::new(claimed.known),
            capabilities: AgentCapabilities::default(),
            attempted: false,
            announced: false,
            introduced: false,
            offered: IntentRevision::default(),
            sent: None,
            custom: None,
            in_flight: None,
            ending: None,
            hearing: Hearing::default(),
            due: None,
        }
    }

    /// Whether the agent wants another uid than that of this session. Some clients repeat the request in
    /// the first message under the uid that they asked for.
    pub(crate) fn is_asked_for_another(&self, head: &Head) -> bool {
        head.requests_uid && head.uid == self.uid && !self.issued
    }

    /// Whether the next message can be taken.
    pub(crate) fn is_free(&self) -> bool {
        self.in_flight.is_none() && self.ending.is_none()
    }

    pub(crate) fn take(
        &mut self,
        head: Head,
        message: Bytes,
        now: Timestamp,
        outputs: &mut VecDeque<Output>,
    ) {
        self.hearing.hear(head.capabilities, now);
        let unnumbered = head.is_unnumbered();
        if !unnumbered && self.tracker.step(head.numbered()) == Step::Repeat {
            outputs.push_back(self.answer(&head, now));
            return self.tell_if_silent(outputs);
        }
        let unchanged = head.capabilities == AgentCapabilities::default()
            || (head.capabilities == self.capabilities && self.announced);
        if head.is_plain() && unchanged && self.announced {
            outputs.push_back(self.settled(&head));
            outputs.push_back(self.answer(&head, now));
            return self.tell_if_silent(outputs);
        }
        if head.capabilities != AgentCapabilities::default() {
            self.capabilities = head.capabilities;
        }
        self.custom = head.custom_capabilities(&message);
        self.in_flight = Some((self.claimed.session, InFlight::Message(head)));
        self.attempted = true;
        outputs.push_back(Output::Publish(Publish {
            uid: self.uid,
            session: self.claimed.session,
            claim: self.claimed.claim,
            started: (!self.announced).then_some(self.claimed.previous),
            message: Some((head, message)),
            ended: head.is_disconnect().then_some(EndReason::AgentDisconnect),
            dirty: self.tracker.is_dirty(),
            silent: false,
            unsent: None,
            sent: self.sent.clone(),
        }));
    }

    /// An agent that the log knows as silent was heard, and nothing of it is published that says so.
    fn tell_if_silent(&mut self, outputs: &mut VecDeque<Output>) {
        if self.hearing.told && self.announced {
            outputs.push_back(self.tell_silence(false));
        }
    }

    /// A dirty session settles nothing: whoever takes the agent over must ask as well.
    pub(crate) fn settled(&self, head: &Head) -> Output {
        let counts = !head.is_unnumbered() && !self.tracker.is_dirty();
        Output::Settled {
            uid: self.uid,
            session: self.claimed.session,
            sequence_num: counts.then_some(head.sequence_num),
        }
    }

    pub(crate) fn answer(&mut self, head: &Head, now: Timestamp) -> Output {
        let new_uid = (head.uid != self.uid).then_some(self.uid);
        // Not both: some clients would repeat their request for a uid in the full state.
        let ask = new_uid.is_none() && self.tracker.ask_due().is_some_and(|due| due <= now);
        if ask {
            self.tracker.asked(now);
        }
        let first = !self.introduced;
        self.introduced = true;
        Output::Send(Reply::Answer { uid: head.uid, first, full_state: ask, new_uid })
    }
}
