//! What waits for an agent that polls: fetched from control, which renders nothing and forgets nothing.

use muster_domain::ids::{AgentKey, ConfigHash, IntentRevision, SessionId};
use muster_ports::bus::Subject;
use muster_proto::Message;
use muster_proto::bus::{
    ControlReply, ControlRequest, GetOffer, SessionRef, WantedOffer, control_reply, control_request,
};
use tokio::time::{Instant, timeout_at};

use crate::Shared;
use crate::deliveries::offer_of_one;
use crate::mailbox::Offer;

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
    let session_ref = SessionRef {
        instance_uid: key.uid.as_bytes().to_vec().into(),
        session_id: session.as_bytes().to_vec().into(),
    };
    let wanted = GetOffer {
        session: Some(session_ref),
        config_hash: hash.as_bytes().to_vec().into(),
        intent_revision: revision.0,
    };
    let request = ControlRequest {
        cell: shared.settings.cell.to_string(),
        tenant: key.tenant.to_string(),
        traceparent: String::new(),
        request: Some(control_request::Request::GetOffer(wanted)),
    };
    let work = async {
        let subject = Subject::Control(shared.settings.cell.clone());
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = shared.engines.bus.request(&subject, request.encode_to_vec().into(), left).await;
        let answer = answer.map_err(|error| error.to_string())?;
        match ControlReply::decode(answer).map_err(|error| error.to_string())?.reply {
            Some(control_reply::Reply::Offer(WantedOffer { remote_config: None })) => Ok(None),
            Some(control_reply::Reply::Offer(WantedOffer { remote_config: Some(offer) })) => {
                offer_of_one(shared, &key.tenant, offer).await.map(Some)
            }
            Some(control_reply::Reply::Error(error)) => Err(error),
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
