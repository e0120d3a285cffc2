//! What a connection asks of the engines: claims and publishes, with deadlines and refusals that an
//! agent's operator can read.

use std::time::Duration;

use bytes::Bytes;
use muster_domain::agent::{EndReason, Transport};
use muster_domain::duplicates::{ASK_AGAIN_AFTER, Client, Patience};
use muster_domain::ids::{AgentKey, Claim, InstanceUid, MessageId, Partition, SessionId, Timestamp};
use muster_domain::sequence::Known;
use muster_opamp::connection::{Claimed, NotNow, Publish};
use muster_opamp::head::Head;
use muster_ports::bus::{RequestError, Subject};
use muster_ports::log::PublishError;
use muster_ports::ownership::{ClaimOutcome, ClaimRequest, Holder};
use muster_proto::Message;
use muster_proto::bus::{
    self, ContestVerdict, ControlReply, ControlRequest, Envelope, ResolveContest, SessionEnded,
    SessionStarted, Unsent, control_reply, control_request,
};
use tracing::{Instrument as _, debug_span, error, warn};

use crate::{Shared, budgets, payload, trace};

/// Longest wait for ownership.
pub(crate) const CLAIM_DEADLINE: Duration = Duration::from_secs(2);
/// Longest wait for control's verdict on a contested claim.
const CONTEST_DEADLINE: Duration = Duration::from_secs(5);

/// How long an agent is asked to stay away: 30 to 60 s, so that a crowd does not return at once.
pub(crate) fn retry_after(shared: &Shared) -> Duration {
    shared.engines.random.between(Duration::from_secs(30), Duration::from_secs(60))
}

pub(crate) fn not_now(shared: &Shared, reason: &str) -> NotNow {
    NotNow { reason: reason.to_owned(), retry_after: retry_after(shared) }
}

/// Why an agent was not claimed.
pub(crate) enum ClaimError {
    /// Another live agent holds it: this one is to use the new instance_uid, which nobody has claimed yet.
    Duplicate {
        /// A UUIDv7.
        new_uid: InstanceUid,
    },
    /// Another live agent holds it, and this one had its share of new uids
    /// ([`Given`](muster_domain::duplicates::Given)) and took none.
    Refused,
    /// The credential may not be used for it.
    Forbidden,
    /// Nobody could say: the agent is told to come again.
    Unknown(NotNow),
}

/// Claims an agent for a new session, in the place of `before` where that is the connection's own. A
/// contested claim is decided by control. The claim's number is above `above`. The address tells clients
/// with one uid apart, of which one does not take a new one.
pub(crate) async fn claim(
    shared: &Shared,
    client: &Client,
    before: Option<SessionId>,
    above: Claim,
) -> Result<Claimed, ClaimError> {
    let (key, _) = client;
    let session = SessionId(shared.engines.new_id());
    let mut displace = before;
    // Each turn follows a verdict, or the lack of one; a second contest after a takeover means that the agent
    // came back twice meanwhile.
    for turn in 0..3 {
        match try_claim(shared, key, session, displace, above).await.map_err(ClaimError::Unknown)? {
            ClaimOutcome::Granted { claim } => {
                count(shared, "granted");
                return Ok(Claimed { session, claim, known: Known::Nothing, previous: None });
            }
            ClaimOutcome::Resumed { claim, settled, previous } => {
                count(shared, "resumed");
                let settled = settled.filter(|_| !shared.lives.is_recent(key));
                let known = settled.map_or(Known::Unsettled, Known::SettledTo);
                return Ok(Claimed { session, claim, known, previous: Some(previous) });
            }
            ClaimOutcome::Contested { holder } => {
                count(shared, "contested");
                if let Some(dead) = contested(shared, client, session, holder, turn == 0).await? {
                    displace = Some(dead);
                }
            }
        }
    }
    Err(ClaimError::Unknown(not_now(shared, "several agents claim this instance_uid at once")))
}

/// Whether a newcomer may take the agent from the session that holds it, which is returned then. None: it is
/// to try once more.
pub(crate) async fn contested(
    shared: &Shared,
    client: &Client,
    newcomer: SessionId,
    holder: Holder,
    is_first: bool,
) -> Result<Option<SessionId>, ClaimError> {
    let (key, _) = client;
    let patience = shared.given().patience(client, (shared.engines.clock)());
    if patience == Patience::OverAndKnown {
        return Err(ClaimError::Refused);
    }
    match resolve(shared, key, newcomer, &holder).await {
        Ok(Verdict::Takeover) => Ok(Some(holder.session)),
        Ok(Verdict::Duplicate { new_uid }) => Err(duplicate(shared, client, new_uid)),
        // The holder's gateway may have been too busy to tell.
        Ok(Verdict::Undecided(_)) if is_first => Ok(None),
        Ok(Verdict::Undecided(error)) | Err(error) => {
            if let Some(more) = shared.outages.contest.tell((shared.engines.clock)()) {
                warn!(tenant = %key.tenant, agent_id = %key.uid, %error, more, "control did not decide on a contested instance_uid");
            }
            let reason = "the server cannot tell whether another agent uses this instance_uid";
            Err(ClaimError::Unknown(not_now(shared, reason)))
        }
    }
}

/// Another live agent holds the uid: the newcomer is given a new one, if it has not had its share of them.
pub(crate) fn duplicate(shared: &Shared, client: &Client, new_uid: InstanceUid) -> ClaimError {
    let now = (shared.engines.clock)();
    let mut given = shared.given();
    if given.patience(client, now) == Patience::Left {
        return ClaimError::Duplicate { new_uid };
    }
    given.refused(client, now);
    ClaimError::Refused
}

/// Makes a uid for an agent that asks for one (AgentToServerFlags.RequestInstanceUid) and claims it.
pub(crate) async fn issue(shared: &Shared, client: &Client) -> Result<(InstanceUid, Claimed), ClaimError> {
    let (asking, address) = client;
    let now = (shared.engines.clock)();
    if shared.given().patience(client, now) != Patience::Left {
        return Err(ClaimError::Refused);
    }
    // A second turn, if the uid was issued before and another agent took it: then it is issued no more.
    for _ in 0..2 {
        let new = InstanceUid(shared.engines.new_id());
        let uid = shared.given().issue(client.clone(), new, now);
        let key = AgentKey { tenant: asking.tenant.clone(), uid };
        match claim(shared, &(key, *address), None, Claim::default()).await {
            Ok(claimed) => return Ok((uid, claimed)),
            Err(ClaimError::Duplicate { .. } | ClaimError::Refused | ClaimError::Forbidden) => {
                shared.given().taken(client);
            }
            Err(error @ ClaimError::Unknown(_)) => return Err(error),
        }
    }
    Err(ClaimError::Unknown(not_now(shared, "the server has no instance_uid for the agent now")))
}

fn count(shared: &Shared, result: &str) {
    shared.metrics.claims.with_label_values(&[result]).inc();
}

async fn try_claim(
    shared: &Shared,
    key: &AgentKey,
    session: SessionId,
    displace: Option<SessionId>,
    above: Claim,
) -> Result<ClaimOutcome, NotNow> {
    let request = ClaimRequest {
        key: key.clone(),
        session,
        gateway: shared.settings.gateway.clone(),
        incarnation: shared.incarnation(),
        // The number of a claim is not below the time.
        now: (shared.engines.clock)().max(Timestamp(above.0.saturating_add(1))),
        displace,
        epoch: shared.lives.of(Partition::of(key)),
    };
    let error = match tokio::time::timeout(CLAIM_DEADLINE, shared.engines.ownership.claim(request)).await {
        Ok(Ok(outcome)) => return Ok(outcome),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    count(shared, "failed");
    if let Some(more) = shared.outages.claim.tell((shared.engines.clock)()) {
        warn!(tenant = %key.tenant, agent_id = %key.uid, error, more, "an agent could not be claimed");
    }
    Err(not_now(shared, "the server cannot register the agent now"))
}

/// What control decided on a contested claim.
enum Verdict {
    /// The holder is dead.
    Takeover,
    /// The holder is another live agent.
    Duplicate { new_uid: InstanceUid },
    /// Control could not tell, for this reason.
    Undecided(String),
}

/// Has control decide on a contested instance_uid.
async fn resolve(
    shared: &Shared,
    key: &AgentKey,
    newcomer: SessionId,
    holder: &Holder,
) -> Result<Verdict, String> {
    let contest = ResolveContest {
        instance_uid: key.uid.as_bytes().to_vec().into(),
        newcomer_session_id: newcomer.as_bytes().to_vec().into(),
        newcomer_gateway: shared.settings.gateway.to_string(),
        holder_session_id: holder.session.as_bytes().to_vec().into(),
        holder_gateway: holder.gateway.to_string(),
        holder_claim: holder.claim.0,
    };
    let request = ControlRequest {
        cell: shared.settings.cell.to_string(),
        tenant: key.tenant.to_string(),
        traceparent: String::new(),
        request: Some(control_request::Request::ResolveContest(contest)),
    };
    let subject = Subject::Control(shared.settings.cell.clone());
    let payload = Bytes::from(request.encode_to_vec());
    let ask = || shared.engines.bus.request(&subject, payload.clone(), CONTEST_DEADLINE);
    let mut answer = ask().await;
    if matches!(answer, Err(RequestError::NoResponders)) {
        // A control that just connects to the bus anew listens again in a moment.
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
        answer = ask().await;
    }
    let answer = answer.map_err(|error| error.to_string())?;
    match ControlReply::decode(answer).map_err(|error| error.to_string())?.reply {
        Some(control_reply::Reply::Contest(resolved)) => match resolved.verdict() {
            ContestVerdict::Takeover => Ok(Verdict::Takeover),
            ContestVerdict::HolderAlive => match InstanceUid::try_from(resolved.new_instance_uid.as_ref()) {
                Ok(new_uid) => Ok(Verdict::Duplicate { new_uid }),
                // A control of a version that gives none.
                Err(_) => Ok(Verdict::Duplicate { new_uid: InstanceUid(shared.engines.new_id()) }),
            },
            ContestVerdict::Unspecified => Err("control's verdict is unknown".to_owned()),
        },
        Some(control_reply::Reply::Error(error)) => Ok(Verdict::Undecided(error)),
        _ => Err("control gave no verdict".to_owned()),
    }
}

/// Publishes one entry of a session on a WebSocket and waits until the log has it. A report has to be within
/// the budgets; what is said of a session alone, such as its end, is not refused.
pub(crate) async fn publish(
    shared: &Shared,
    key: &AgentKey,
    publish: Publish,
    remote_addr: &str,
) -> Result<(), NotNow> {
    publish_over(shared, key, publish, Transport::WebSocket, remote_addr).await
}

/// As [`publish`], of a session on either transport.
pub(crate) async fn publish_over(
    shared: &Shared,
    key: &AgentKey,
    publish: Publish,
    transport: Transport,
    remote_addr: &str,
) -> Result<(), NotNow> {
    if let Some((_, message)) = &publish.message {
        budgets::spend(shared, key, message.len())?;
    }
    let span = debug_span!("report", tenant = %key.tenant, agent_id = %key.uid, otel.kind = "producer");
    let mut envelope = envelope(shared, key, publish, transport, remote_addr);
    envelope.traceparent = trace::traceparent(&span);
    let id = MessageId(shared.engines.new_id());
    let stored = payload::publish(shared, key, id, envelope).instrument(span.clone()).await;
    let _reporting = span.entered();
    let (result, refusal) = match stored {
        Ok(_) => ("stored", None),
        Err(PublishError::TooLarge { size, limit }) => {
            error!(tenant = %key.tenant, agent_id = %key.uid, size, limit, "a report is too large for the log");
            ("too_large", Some("the report is too large for the server"))
        }
        Err(error) => {
            if let Some(more) = shared.outages.publish.tell((shared.engines.clock)()) {
                warn!(tenant = %key.tenant, agent_id = %key.uid, %error, more, "a report was not stored");
            }
            ("failed", Some("the server cannot store the report now"))
        }
    };
    shared.metrics.publishes.with_label_values(&[result]).inc();
    refusal.map_or(Ok(()), |reason| Err(not_now(shared, reason)))
}

fn envelope(
    shared: &Shared,
    key: &AgentKey,
    publish: Publish,
    transport: Transport,
    remote_addr: &str,
) -> Envelope {
    let publishable = |(head, message): (Head, _)| (head, head.publishable(message));
    let (head, message) = publish.message.map(publishable).unzip();
    Envelope {
        cell: shared.settings.cell.to_string(),
        tenant: key.tenant.to_string(),
        instance_uid: key.uid.as_bytes().to_vec().into(),
        session_id: publish.session.as_bytes().to_vec().into(),
        claim: publish.claim.0,
        gateway: shared.settings.gateway.to_string(),
        incarnation: shared.incarnation().as_bytes().to_vec().into(),
        traceparent: String::new(),
        received_at_us: (shared.engines.clock)().0,
        sequence_num: head.map_or(0, |head| head.sequence_num),
        kinds: head.map_or(0, |head| head.kinds),
        agent_to_server: message,
        agent_to_server_blob: None,
        started: publish.started.map(|previous| SessionStarted {
            previous_session_id: previous.map(|id| id.as_bytes().to_vec().into()).unwrap_or_default(),
            transport: wire(transport).into(),
            remote_addr: remote_addr.to_owned(),
        }),
        ended: publish.ended.map(|reason| SessionEnded { reason: end_reason(reason).into() }),
        dirty: publish.dirty,
        silent: publish.silent,
        transport: match transport {
            Transport::WebSocket => bus::Transport::Unspecified.into(),
            Transport::Http => bus::Transport::Http.into(),
        },
        unsent: publish.unsent.map(|unsent| Unsent {
            config_hash: unsent.hash.as_bytes().to_vec().into(),
            size: unsent.size,
            limit: unsent.limit,
        }),
        // What polls were sent is for control to know.
        sent_config_hash: (transport == Transport::WebSocket)
            .then(|| publish.sent.map(|hash| hash.as_bytes().to_vec().into()).unwrap_or_default()),
    }
}

fn wire(transport: Transport) -> bus::Transport {
    match transport {
        Transport::WebSocket => bus::Transport::Websocket,
        Transport::Http => bus::Transport::Http,
    }
}

fn end_reason(reason: EndReason) -> muster_proto::bus::EndReason {
    use bus::EndReason as Wire;
    match reason {
        EndReason::AgentDisconnect => Wire::AgentDisconnect,
        EndReason::ConnectionLost | EndReason::GatewayLost => Wire::ConnectionLost,
        EndReason::Closed => Wire::Closed,
        EndReason::Operator => Wire::Operator,
        EndReason::GatewayStopped => Wire::GatewayStopped,
        EndReason::Superseded => Wire::Superseded,
        EndReason::Silent => Wire::Silent,
        EndReason::ProtocolError => Wire::ProtocolError,
    }
}
