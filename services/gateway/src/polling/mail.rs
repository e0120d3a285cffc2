//! What waits for an agent that polls: fetched from control, which renders nothing and forgets nothing.

use bytes::Bytes;
use muster_domain::ids::{AgentKey, CommandId, ConfigHash, IntentRevision, SessionId, Timestamp};
use muster_ports::bus::Subject;
use muster_proto::Message;
use muster_proto::bus::{
    ControlReply, ControlRequest, GetCommand, GetOffer, SessionRef, WantedCommand, WantedOffer,
    control_reply, control_request,
};
use tokio::time::{Instant, timeout_at};

use crate::Shared;
use crate::deliveries::offer_of_one;
use crate::mailbox::{Command, Offer};

/// The command that an agent's mailbox names; none if the agent is not to be sent it.
///
/// # Errors
/// With the reason, if control does not say before the deadline: the mailbox still has it then.
pub(crate) async fn command(
    shared: &Shared,
    key: &AgentKey,
    session: SessionId,
    id: CommandId,
    deadline: Instant,
) -> Result<Option<Command>, String> {
    let wanted =
        GetCommand { session: Some(session_ref(key, session)), id: Bytes::copy_from_slice(id.as_bytes()) };
    match ask(shared, key, control_request::Request::GetCommand(wanted), deadline).await? {
        control_reply::Reply::Command(WantedCommand { command: None }) => Ok(None),
        control_reply::Reply::Command(WantedCommand { command: Some(command) }) => {
            let action = command.action.ok_or("the command is one that this version does not know")?;
            let expires_at = Timestamp(command.expires_at_us);
            Ok(Some(Command { session, id, expires_at, action }))
        }
        control_reply::Reply::Error(error) => Err(error),
        _ => Err("control gave no command".to_owned()),
    }
}

/// The offer that an agent's mailbox names; none if that is not what the agent should get now.
///
/// # Errors
/// With the reason, if control does not say before the deadline: the mailbox still has it then.
pub(crate) async fn fetch(
    shared: &Shared,
    key: &AgentKey,
    session: SessionId,
    (hash, revision): &(ConfigHash, IntentRevision),
    deadline: Instant,
) -> Result<Option<Offer>, String> {
    let wanted = GetOffer {
        session: Some(session_ref(key, session)),
        config_hash: hash.as_bytes().to_vec().into(),
        intent_revision: revision.0,
    };
    let work = async {
        match ask(shared, key, control_request::Request::GetOffer(wanted), deadline).await? {
            control_reply::Reply::Offer(WantedOffer { remote_config: None }) => Ok(None),
            control_reply::Reply::Offer(WantedOffer { remote_config: Some(offer) }) => {
                offer_of_one(shared, &key.tenant, offer).await.map(Some)
            }
            control_reply::Reply::Error(error) => Err(error),
            _ => Err("control gave no offer".to_owned()),
        }
    };
    match timeout_at(deadline, work).await {
        Ok(Ok(Some(offer))) if offer.session != session => {
            Err("control gave an offer for another session".to_owned())
        }
        Ok(fetched) => fetched,
        Err(_) => Err("no answer in time".to_owned()),
    }
}

async fn ask(
    shared: &Shared,
    key: &AgentKey,
    request: control_request::Request,
    deadline: Instant,
) -> Result<control_reply::Reply, String> {
    let request = ControlRequest {
        cell: shared.settings.cell.to_string(),
        tenant: key.tenant.to_string(),
        traceparent: String::new(),
        request: Some(request),
    };
    let subject = Subject::Control(shared.settings.cell.clone());
    let left = deadline.saturating_duration_since(Instant::now());
    let work = shared.engines.bus.request(&subject, request.encode_to_vec().into(), left);
    let answer = timeout_at(deadline, work).await.map_err(|_| "no answer in time".to_owned())?;
    let answer = answer.map_err(|error| error.to_string())?;
    let answer = ControlReply::decode(answer).map_err(|error| error.to_string())?;
    answer.reply.ok_or_else(|| "control gave no answer".to_owned())
}

fn session_ref(key: &AgentKey, session: SessionId) -> SessionRef {
    SessionRef {
        instance_uid: Bytes::copy_from_slice(key.uid.as_bytes()),
        session_id: Bytes::copy_from_slice(session.as_bytes()),
    }
}
