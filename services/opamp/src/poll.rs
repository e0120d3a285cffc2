//! One request of an agent that polls over plain HTTP: what is published, what is answered, what is left for
//! the next request, on whatever gateway.
//!
//! The session is kept in ownership ([`muster_domain::poll`]); a [`Turn`] is what a gateway makes of the part
//! of it that it is given with a request in flight.

use std::time::Duration;

use bytes::Bytes;
use muster_domain::agent::EndReason;
use muster_domain::capabilities::{AgentCapabilities, ServerCapabilities};
use muster_domain::ids::{
    CommandId, ConfigHash, Digest, InstanceUid, IntentRevision, PollId, SessionId, Timestamp,
};
use muster_domain::poll::{Kept, Mail, Poll, PollEnd, Taken};
use muster_domain::sequence::{Step, Tracker};
use muster_proto::Message;
use muster_proto::opamp::{
    AgentToServer, CommandType, CustomCapabilities, CustomMessage, ServerToAgent, ServerToAgentCommand,
    ServerToAgentFlags,
};

use crate::connection::{NotNow, Publish};
use crate::head::{BadMessage, Head};
use crate::reply::Reply;

/// Reads the head of a message that came alone, as the body of a request.
///
/// # Errors
/// With a text for people, if the message is not an AgentToServer of a 16-byte instance_uid.
pub fn head(message: &Bytes) -> Result<Head, BadMessage> {
    let head = Head::read(message)?;
    // The request may be compared with one that another version of the program has seen.
    let [a, b, c, d, e, f, g, h, ..] = Digest::of_parts([message.as_ref()]).0;
    Ok(Head { digest: u64::from_be_bytes([a, b, c, d, e, f, g, h]), ..head })
}

/// The request as ownership sees it, which may be in flight for as long as the lease, in this life of the log.
pub fn request(
    head: &Head,
    (id, session): (PollId, SessionId),
    now: Timestamp,
    lease: Duration,
    epoch: u64,
) -> Poll {
    Poll {
        id,
        session,
        message: (!head.is_unnumbered()).then(|| head.numbered()),
        plain: head.is_plain(),
        capabilities: head.capabilities,
        now,
        lease,
        displace: None,
        epoch,
    }
}

/// A request in flight.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    poll: PollId,
    /// The uid that is claimed: the message's own, or one that it asks for.
    uid: InstanceUid,
    taken: Taken,
    head: Head,
    tracker: Tracker,
    step: Effect,
    custom: Option<Vec<String>>,
}

/// What an agent is answered. Other than on a WebSocket, it is all in one message.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// The answer.
    pub reply: Reply,
    /// Whether the list of available components is asked for.
    pub components: bool,
    /// Custom capabilities of the agent that the server takes part in.
    pub custom: Option<Vec<String>>,
    /// A command.
    pub order: Option<Order>,
}

/// A command, as agents are told it.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// The agent restarts.
    Restart,
    /// A custom message.
    Message(CustomMessage),
}

impl Order {
    /// How much longer an answer gets by it, at most, in bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Restart => 8,
            Self::Message(message) => message.encoded_len() + 8,
        }
    }
}

/// What becomes of the commands that wait, with a request.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Orders {
    /// Those that need not wait any more: each is sent now or never.
    pub done: Vec<CommandId>,
    /// The one that is sent with the answer. A restart is alone in it: an agent ignores what else is there
    /// (specification, "ServerToAgentCommand Message").
    pub sent: Option<Order>,
}

impl Said {
    /// The message.
    pub fn message(&self) -> ServerToAgent {
        let mut message = self.reply.message();
        if message.error_response.is_some() {
            return message;
        }
        match &self.order {
            Some(Order::Restart) => {
                return ServerToAgent {
                    instance_uid: message.instance_uid,
                    capabilities: ServerCapabilities::PRESENT.0,
                    command: Some(ServerToAgentCommand { r#type: CommandType::Restart.into() }),
                    ..ServerToAgent::default()
                };
            }
            Some(Order::Message(custom)) => message.custom_message = Some(custom.clone()),
            None => {}
        }
        if self.components {
            message.flags |= ServerToAgentFlags::ReportAvailableComponents as u64;
        }
        message.custom_capabilities =
            self.custom.clone().map(|capabilities| CustomCapabilities { capabilities });
        message
    }
}

impl From<Reply> for Said {
    fn from(reply: Reply) -> Self {
        Self { reply, components: false, custom: None, order: None }
    }
}

/// What becomes of an offer with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OfferEnd {
    /// There is none, or it waits for the next request.
    Waits,
    /// It is sent with the answer.
    Sent(ConfigHash, IntentRevision),
    /// It need not be sent any more.
    DoneWith(ConfigHash, IntentRevision),
}

/// What a message does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// It is published.
    Published,
    /// It says nothing new.
    Heard,
    /// It is older than what was taken last, and not of a restarted agent: it says nothing.
    Stale,
}

impl Turn {
    /// Begins with what ownership keeps of the agent with this uid: the message's own, or one that it asks
    /// for. What is to be published, if anything is, is published before the turn ends.
    pub fn new(
        poll: PollId,
        uid: InstanceUid,
        taken: Taken,
        head: Head,
        message: Bytes,
    ) -> (Self, Option<Publish>) {
        let mut tracker = Tracker::from(taken.kept.tracker);
        let step = step(&mut tracker, &taken.kept, &head);
        let custom = head.custom_capabilities(&message).filter(|_| step == Effect::Published);
        let publish = (step == Effect::Published).then(|| Publish {
            uid,
            session: taken.session,
            claim: taken.claim,
            started: (!taken.kept.announced).then_some(taken.previous),
            message: Some((head, message)),
            ended: head.is_disconnect().then_some(EndReason::AgentDisconnect),
            dirty: tracker.is_dirty(),
            silent: false,
            unsent: None,
            sent: None,
        });
        (Self { poll, uid, taken, head, tracker, step, custom }, publish)
    }

    /// The session that speaks for the agent.
    pub fn session(&self) -> SessionId {
        self.taken.session
    }

    /// What waits for the agent.
    pub fn mail(&self) -> &Mail {
        &self.taken.mail
    }

    /// Whether this is the first report of its session, of an agent that takes remote config: control may
    /// have something for it at once.
    pub fn is_first_report(&self) -> bool {
        let kept = &self.taken.kept;
        let takes_config = self.head.capabilities.has(AgentCapabilities::ACCEPTS_REMOTE_CONFIG);
        !kept.announced && !self.head.is_plain() && !self.head.is_disconnect() && takes_config
    }

    /// Intent revision of the last offer that the session was sent: an older one is superseded.
    pub fn sent(&self) -> IntentRevision {
        self.taken.kept.sent
    }

    /// How long the answer may get without an offer, in bytes.
    pub fn longest_answer(&self) -> usize {
        let uid = self.head.uid;
        let reply = Reply::Answer { uid, first: true, full_state: true, new_uid: Some(uid) };
        Said { reply, components: true, custom: self.custom.clone(), order: None }.message().encoded_len()
    }

    /// Ends with what became of the publish, `Ok` where nothing was to be published, of an offer, and of
    /// commands; the latter two are sent only where the publish is `Ok`.
    pub fn end(
        self,
        result: Result<(), NotNow>,
        offer: OfferEnd,
        orders: Orders,
        now: Timestamp,
    ) -> (PollEnd, Said) {
        let Self { poll, uid: claimed, taken, head, mut tracker, step, custom } = self;
        let uid = head.uid;
        let new_uid = (claimed != uid).then_some(claimed);
        let mut kept = taken.kept;
        let done_with = match offer {
            OfferEnd::Waits => None,
            OfferEnd::DoneWith(hash, revision) => Some((hash, revision)),
            OfferEnd::Sent(hash, revision) => {
                kept.sent = kept.sent.max(revision);
                Some((hash, revision))
            }
        };
        let Orders { done, sent: order } = orders;
        let has_room = order != Some(Order::Restart);
        let mut settled = None;
        let mut asks = false;
        let reply = match result {
            Ok(()) => {
                if step == Effect::Published {
                    kept.announced = true;
                    if head.capabilities != AgentCapabilities::default() {
                        kept.capabilities = head.capabilities;
                    }
                }
                if taken.mail.full_state {
                    // Something that it said is lost: it is asked until it answers.
                    tracker.mark_dirty();
                }
                let counts = step != Effect::Stale && !head.is_unnumbered() && !tracker.is_dirty();
                settled = counts.then_some(head.sequence_num);
                kept.issued |= new_uid.is_some();
                // Not with a new uid: some clients would repeat their request for one in the full state.
                let is_due = taken.mail.full_state || tracker.ask_due().is_some_and(|due| due <= now);
                asks = new_uid.is_none() && is_due && has_room;
                if asks {
                    tracker.asked(now);
                }
                let first = kept.introduced.is_none();
                kept.introduced = kept.introduced.or(Some(head.sequence_num));
                Reply::Answer { uid, first, full_state: asks, new_uid }
            }
            Err(NotNow { reason, retry_after }) => {
                tracker.lost();
                Reply::Unavailable { uid, reason, retry_after }
            }
        };
        let answered = matches!(reply, Reply::Answer { .. });
        let components = answered && has_room && taken.mail.components;
        let end = PollEnd {
            session: taken.session,
            poll,
            kept: Kept { tracker: tracker.parts(), ask_due: tracker.ask_due(), ..kept },
            settled,
            delivered: Mail { offer: done_with, full_state: asks, components, commands: done },
            over: answered && head.is_disconnect(),
            now,
        };
        (end, Said { reply, components, custom, order })
    }
}

fn step(tracker: &mut Tracker, kept: &Kept, head: &Head) -> Effect {
    if !head.is_unnumbered() {
        if !head.has_description() && tracker.last() > Some(head.sequence_num) {
            tracker.mark_dirty();
            return Effect::Stale;
        }
        // Ownership has seen to repeats; one that it does not know for one says the same again.
        if tracker.step(head.numbered()) == Step::Repeat {
            return Effect::Heard;
        }
    }
    let unchanged =
        head.capabilities == AgentCapabilities::default() || head.capabilities == kept.capabilities;
    if head.is_plain() && unchanged && kept.announced { Effect::Heard } else { Effect::Published }
}

/// Gives back a request that is to have no effect: another one is carried out in its place.
pub fn give_back(poll: PollId, taken: &Taken, now: Timestamp) -> PollEnd {
    PollEnd {
        session: taken.session,
        poll,
        kept: taken.kept,
        settled: None,
        delivered: Mail::default(),
        // A session that nobody else knows of was begun by this request.
        over: !taken.kept.announced,
        now,
    }
}

/// Whether the message reports on the remote config with this hash, whatever became of it.
pub fn reports_on(head: &Head, message: &Bytes, hash: &ConfigHash) -> bool {
    if !head.has_config_status() {
        return false;
    }
    // The head was read, so the message can be decoded.
    let status = AgentToServer::decode(message.clone()).ok().and_then(|message| message.remote_config_status);
    status.is_some_and(|status| status.last_remote_config_hash == hash.as_bytes())
}

#[cfg(test)]
#[path = "poll_tests.rs"]
mod tests;
