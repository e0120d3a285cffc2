//! One request from its head to its answer.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use muster_domain::agent::Transport;
use muster_domain::duplicates::Patience;
use muster_domain::ids::{AgentKey, ConfigHash, InstanceUid, IntentRevision, Partition, PollId, SessionId};
use muster_domain::poll::{Begun, PollEnd, Taken};
use muster_opamp::connection::NotNow;
use muster_opamp::head::Head;
use muster_opamp::poll::{self, OfferEnd, Order, Orders, Said, Turn};
use muster_opamp::reply::Reply;
use muster_ports::polls::PollOutcome;
use muster_proto::bus::send_command::Action;
use muster_proto::opamp::CustomMessage;
use tokio::time::{Instant, timeout};
use tracing::{debug, error, info, warn};

use crate::access::Pass;
use crate::mailbox::{Command, Offer};
use crate::polling::answer::{self, Answer};
use crate::polling::mail;
use crate::upstream::ClaimError;
use crate::{Shared, access, commands, payload, upstream};

/// How long ownership may take to hear of a request's end.
const END: Duration = Duration::from_secs(2);
/// How much longer a request may be in flight than its report takes to publish.
const LEASE: Duration = Duration::from_secs(5);
/// How long a request waits for control in all.
const CONTROL_WAIT: Duration = Duration::from_millis(400);
const _: () = assert!(LEASE.as_millis() > END.as_millis() + CONTROL_WAIT.as_millis() + 2000);

/// What came.
struct Request<'a> {
    shared: &'a Shared,
    /// The agent it is taken for. The uid is that of the message, or one that it asks for.
    key: AgentKey,
    peer: SocketAddr,
    pass: Pass,
    head: Head,
    message: Bytes,
}

/// What becomes of the commands in a mailbox.
#[derive(Default)]
struct Ordered {
    orders: Orders,
    /// Each with what becomes of it, as metrics name it.
    told: Vec<(Command, &'static str)>,
}

/// Takes a request.
pub(crate) async fn take(
    shared: &Shared,
    (peer, pass): (SocketAddr, Pass),
    head: Head,
    message: Bytes,
) -> Answer {
    let key = AgentKey { tenant: pass.tenant.clone(), uid: head.uid };
    let request = Request { shared, key, peer, pass, head, message };
    if !request.pass.may_use(head.uid) {
        // A uid that another agent has, or one until the server gives one.
        return if head.requests_uid { request.issue().await } else { request.forbidden() };
    }
    let begun = request.begin().await;
    if !head.requests_uid {
        return request.begun(begun).await;
    }
    match begun {
        // A client that was given the uid it asked for may go on asking.
        Ok((id, Begun::Taken(taken))) if !taken.kept.issued => {
            request.end(poll::give_back(id, &taken, (shared.engines.clock)())).await;
            request.issue().await
        }
        Err(ClaimError::Duplicate { .. }) => request.issue().await,
        begun => request.begun(begun).await,
    }
}

impl Request<'_> {
    /// Sees to it that nobody else holds the agent.
    async fn begin(&self) -> Result<(PollId, Begun), ClaimError> {
        let Self { shared, key, head, message, .. } = self;
        let (id, session) = (PollId(shared.engines.new_id()), SessionId(shared.engines.new_id()));
        let client = (key.clone(), self.peer.ip());
        let lease = payload::longest(shared, message.len()) + LEASE;
        let epoch = shared.lives.of(Partition::of(key));
        let mut poll = poll::request(head, (id, session), (shared.engines.clock)(), lease, epoch);
        // Each turn follows a verdict, or the lack of one; a second contest after a takeover means that the
        // agent came back twice meanwhile.
        for turn in 0..3 {
            let work = shared.engines.polls.begin(key, poll.clone());
            let error = match timeout(upstream::CLAIM_DEADLINE, work).await {
                Ok(Ok(PollOutcome::Begun(Begun::Newcomer))) => {
                    let new_uid = InstanceUid(shared.engines.new_id());
                    return Err(upstream::duplicate(shared, &client, new_uid));
                }
                Ok(Ok(PollOutcome::Begun(begun))) => return Ok((id, begun)),
                Ok(Ok(PollOutcome::Contested { holder })) => {
                    if let Some(dead) =
                        upstream::contested(shared, &client, session, holder, turn == 0).await?
                    {
                        poll.displace = Some(dead);
                    }
                    poll.now = (shared.engines.clock)();
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            if let Some(more) = shared.outages.claim.tell((shared.engines.clock)()) {
                warn!(tenant = %key.tenant, agent_id = %key.uid, error, more, "a request of an agent that polls could not be taken");
            }
            return Err(self.unknown("the server cannot register the agent now"));
        }
        Err(self.unknown("several agents claim this instance_uid at once"))
    }

    fn unknown(&self, reason: &str) -> ClaimError {
        ClaimError::Unknown(upstream::not_now(self.shared, reason))
    }

    async fn begun(self, begun: Result<(PollId, Begun), ClaimError>) -> Answer {
        let uid = self.head.uid;
        match begun {
            Ok((id, Begun::Taken(taken))) => self.work(id, *taken).await,
            Ok((_, Begun::Heartbeat)) => self.plain(false, "heartbeat"),
            Ok((_, Begun::Repeat { introduces })) => self.plain(introduces, "repeat"),
            Ok((_, Begun::Overlapping | Begun::Newcomer)) => self.plain(false, "overlapping"),
            Err(ClaimError::Duplicate { new_uid }) => match self.pass.join(self.shared, new_uid).await {
                Ok(()) => self.duplicate(new_uid),
                Err(error) => self.not_joined(new_uid, &error),
            },
            Err(ClaimError::Refused) => self.refused(),
            Err(ClaimError::Forbidden) => self.forbidden(),
            Err(ClaimError::Unknown(not_now)) => Answer::unavailable(uid, not_now, "unavailable"),
        }
    }

    /// An answer without an effect.
    fn plain(&self, first: bool, result: &'static str) -> Answer {
        let (uid, claimed) = (self.head.uid, self.key.uid);
        let new_uid = (claimed != uid).then_some(claimed);
        Answer::message(&Reply::Answer { uid, first, full_state: false, new_uid }.into(), None, result)
    }

    /// Another live agent uses the uid: this one is to use the new one from now on. Full state is asked for at
    /// once, since a client that takes a new uid over says nothing by itself.
    fn duplicate(&self, new_uid: InstanceUid) -> Answer {
        let Self { shared, key: AgentKey { tenant, uid }, peer, .. } = self;
        shared.given().gave((self.key.clone(), peer.ip()), new_uid, (shared.engines.clock)());
        self.count_new_uid("given");
        info!(event = "agent_rekeyed", %tenant, agent_id = %uid, new_agent_id = %new_uid, remote_addr = %peer, "another live agent uses the instance_uid: this one was given a new one");
        let reply = Reply::Answer { uid: *uid, first: true, full_state: true, new_uid: Some(new_uid) };
        Answer::message(&reply.into(), None, "duplicate")
    }

    /// The credential may not be used for the uid.
    fn forbidden(&self) -> Answer {
        let Self { key: AgentKey { tenant, uid }, peer, .. } = self;
        warn!(event = "agent_refused", %tenant, agent_id = %uid, remote_addr = %peer, "an agent's credential may not be used for its instance_uid");
        let reply = Reply::refusal(*uid, &access::not_for(*uid));
        Answer::message(&reply.into(), None, "forbidden")
    }

    /// A uid that the agent was to be given could not join its credential.
    fn not_joined(&self, new_uid: InstanceUid, error: &str) -> Answer {
        warn!(tenant = %self.key.tenant, agent_id = %new_uid, error, "a new instance_uid cannot join its agent's credential");
        let not_now = upstream::not_now(self.shared, "the server cannot give the agent an instance_uid now");
        Answer::unavailable(self.head.uid, not_now, "unavailable")
    }

    /// The agent was given new uids and does not take them.
    fn refused(&self) -> Answer {
        let Self { key: AgentKey { tenant, uid }, peer, .. } = self;
        self.count_new_uid("refused");
        warn!(event = "agent_refused", %tenant, agent_id = %uid, remote_addr = %peer, "an agent is refused: its instance_uid is another live agent's, and it does not take the new one that it is given; configure one of its own");
        Answer::message(&Reply::uid_refused(*uid).into(), None, "refused")
    }

    fn count_new_uid(&self, result: &str) {
        self.shared.metrics.new_uids.with_label_values(&[result]).inc();
    }

    /// Takes the request for a new agent: it asks for a uid.
    async fn issue(self) -> Answer {
        let shared = self.shared;
        let (client, now) = ((self.key.clone(), self.peer.ip()), (shared.engines.clock)());
        if shared.given().patience(&client, now) != Patience::Left {
            return self.refused();
        }
        let new = InstanceUid(shared.engines.new_id());
        let uid = shared.given().issue_to(client.clone(), self.head.digest, new, now);
        if let Err(error) = self.pass.join(shared, uid).await {
            return self.not_joined(uid, &error);
        }
        let key = AgentKey { uid, ..self.key.clone() };
        let request = Self { key, ..self };
        let begun = match request.begin().await {
            Err(ClaimError::Duplicate { .. } | ClaimError::Refused | ClaimError::Forbidden) => {
                Err(request.unknown("the server has no instance_uid for the agent now"))
            }
            begun => begun,
        };
        if matches!(begun, Ok((_, Begun::Taken(_)))) {
            shared.given().gave(client, uid, now);
            request.count_new_uid("issued");
            info!(event = "agent_rekeyed", tenant = %request.key.tenant, agent_id = %request.head.uid, new_agent_id = %uid, remote_addr = %request.peer, "an agent asked for an instance_uid and is given one");
        }
        request.begun(begun).await
    }

    /// Has ownership take note that a request is over. Returns whether its session is still the agent's.
    async fn end(&self, end: PollEnd) -> bool {
        let Self { shared, key, .. } = self;
        let error = match timeout(END, shared.engines.polls.end(key, end)).await {
            Ok(Ok(is_ended)) => return is_ended,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        if let Some(more) = shared.outages.polls.tell((shared.engines.clock)()) {
            warn!(tenant = %key.tenant, agent_id = %key.uid, error, more, "the end of a request was not recorded: the agent's requests have no effect for some seconds");
        }
        false
    }

    /// A request in flight, until it is ended.
    async fn work(self, id: PollId, taken: Taken) -> Answer {
        let Self { shared, key, peer, head, message, .. } = &self;
        if head.uid == key.uid && shared.given().came(key, (shared.engines.clock)()) {
            self.count_new_uid("taken");
        }
        let (turn, publish) = Turn::new(id, key.uid, taken, *head, message.clone());
        let session = turn.session();
        let waiting =
            turn.is_first_report().then(|| shared.waiting.expect(key, session, shared.incarnation()));
        let stored = match publish {
            None => Ok(()),
            Some(publish) => {
                let remote_addr = peer.to_string();
                let work = upstream::publish_over(shared, key, publish, Transport::Http, &remote_addr);
                let late = |_| Err(upstream::not_now(shared, "the server cannot store the report now"));
                timeout(payload::longest(shared, message.len()), work).await.unwrap_or_else(late)
            }
        };
        let mut result = if stored.is_ok() { "answered" } else { "unavailable" };
        let (mut offer, mut what) = (None, OfferEnd::Waits);
        let mut ordered = Ordered::default();
        let deadline = Instant::now() + CONTROL_WAIT;
        if stored.is_ok() && !head.is_disconnect() {
            ordered = self.commands(&turn, deadline).await;
        }
        // An offer waits while a command is sent.
        if stored.is_ok() && !head.is_disconnect() && ordered.orders.sent.is_none() {
            if let Some(waiting) = &waiting {
                offer = waiting.offer(deadline).await;
            }
            if offer.is_none()
                && let Some(waits) = turn.mail().offer.clone()
            {
                (offer, what) = self.mail(session, waits, deadline).await;
            }
        }
        drop(waiting);
        if let Some(ready) = &offer {
            what = OfferEnd::Sent(ready.hash.clone(), ready.revision);
            if let Some((refusal, is_final)) = self.refusal(ready, &turn) {
                shared.metrics.offers.with_label_values(&[refusal]).inc();
                what = if is_final {
                    OfferEnd::DoneWith(ready.hash.clone(), ready.revision)
                } else {
                    OfferEnd::Waits
                };
                offer = None;
            }
        }
        let (end, said) = turn.end(stored, what, ordered.orders, (shared.engines.clock)());
        let is_ended = self.end(end).await;
        // A command is sent once or never: what is not known to be out of the mailbox is sent later.
        for (command, result) in ordered.told {
            commands::tell(
                shared,
                &key.tenant,
                key.uid,
                &command,
                if is_ended { result } else { "session_gone" },
            );
        }
        let said = if is_ended { said } else { Said { order: None, ..said } };
        // Only the current session of an agent is sent offers.
        if let Some(gone) = offer.take_if(|_| !is_ended) {
            debug!(tenant = %key.tenant, agent_id = %key.uid, config_hash = %gone.hash, "an offer is not sent: the session may be over");
            shared.metrics.offers.with_label_values(&["session_gone"]).inc();
        }
        if let Some(offer) = &offer {
            result = "offered";
            shared.metrics.offers.with_label_values(&["sent"]).inc();
            info!(event = "config_offered", tenant = %key.tenant, agent_id = %key.uid, config_hash = %offer.hash, remote_addr = %peer, "offered a remote config");
        }
        match said {
            Said { reply: Reply::Unavailable { uid, reason, retry_after }, .. } => {
                Answer::unavailable(uid, NotNow { reason, retry_after }, result)
            }
            said => Answer::message(&said, offer.as_ref().map(|offer| &offer.remote_config), result),
        }
    }

    /// What to do about the commands in the mailbox: the first that can be sent is, alone.
    async fn commands(&self, turn: &Turn, deadline: Instant) -> Ordered {
        let Self { shared, key, .. } = self;
        let mut ordered = Ordered::default();
        for id in &turn.mail().commands {
            let command = match mail::command(shared, key, turn.session(), *id, deadline).await {
                Ok(Some(command)) => command,
                Ok(None) => {
                    ordered.orders.done.push(*id);
                    continue;
                }
                Err(error) => {
                    if let Some(more) = shared.outages.mail.tell((shared.engines.clock)()) {
                        warn!(tenant = %key.tenant, agent_id = %key.uid, command = %id, error, more, "a command that waits for an agent could not be fetched; its next request tries again");
                    }
                    break;
                }
            };
            ordered.orders.done.push(*id);
            let order = match &command.action {
                Action::Restart(_) => Some(Order::Restart),
                Action::Message(message) => Some(Order::Message(CustomMessage {
                    capability: message.capability.clone(),
                    r#type: message.r#type.clone(),
                    data: message.data.to_vec(),
                })),
                // Asking for full state needs no command, and there is no connection to end.
                Action::ReportFullState(_) | Action::Disconnect(_) => None,
            };
            let size = turn.longest_answer() + order.as_ref().map_or(0, Order::size);
            let result = if command.expires_at <= (shared.engines.clock)() {
                "expired"
            } else if order.is_none() {
                "unknown"
            } else if size > shared.settings.max_answer_size {
                "too_large"
            } else {
                "sent"
            };
            ordered.told.push((command, result));
            if result == "sent" {
                ordered.orders.sent = order;
                break;
            }
        }
        ordered
    }

    /// What to do about the offer in the mailbox: send it, be done with it, or leave it there.
    async fn mail(
        &self,
        session: SessionId,
        waits: (ConfigHash, IntentRevision),
        deadline: Instant,
    ) -> (Option<Offer>, OfferEnd) {
        if poll::reports_on(&self.head, &self.message, &waits.0) {
            return (None, OfferEnd::DoneWith(waits.0, waits.1));
        }
        match mail::fetch(self.shared, &self.key, session, &waits, deadline).await {
            Ok(Some(offer)) => (Some(offer), OfferEnd::Waits),
            // Control puts there what is wanted now, if it has not already.
            Ok(None) => (None, OfferEnd::DoneWith(waits.0, waits.1)),
            Err(error) => {
                if let Some(more) = self.shared.outages.mail.tell((self.shared.engines.clock)()) {
                    warn!(tenant = %self.key.tenant, agent_id = %self.key.uid, config_hash = %waits.0, error, more, "an offer that waits for an agent could not be fetched; its next request tries again");
                }
                (None, OfferEnd::Waits)
            }
        }
    }

    /// Why an offer is not sent, as metrics name it, and whether that is so for good.
    fn refusal(&self, offer: &Offer, turn: &Turn) -> Option<(&'static str, bool)> {
        let (shared, key) = (self.shared, &self.key);
        if offer.revision < turn.sent() {
            return Some(("superseded", true));
        }
        if let Some(refusal) = shared.fence.refusal(shared, &key.tenant, offer) {
            debug!(tenant = %key.tenant, agent_id = %key.uid, config_hash = %offer.hash, ?refusal, "an offer is not sent");
            return Some((refusal.name(), false));
        }
        let size = answer::length(turn.longest_answer(), &offer.remote_config);
        let limit = shared.settings.max_answer_size;
        if size > limit {
            error!(event = "answer_too_large", tenant = %key.tenant, agent_id = %key.uid, config_hash = %offer.hash, size, limit, "a remote config is not sent: the answer would be larger than server.polling.max_answer_size");
            return Some(("too_large", true));
        }
        None
    }
}
