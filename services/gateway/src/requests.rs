//! Answers requests from control: is the agent of this session still there?

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use muster_domain::ids::{AgentKey, InstanceUid, SessionId, Tenant};
use muster_ports::bus::{Received, Subscription};
use muster_proto::Message;
use muster_proto::bus::{
    GatewayReply, GatewayRequest, ProbeResult, ProbeSession, gateway_reply, gateway_request,
};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::Shared;
use crate::mailbox::Order;

/// A probed agent that says nothing for this long is gone.
const PROBE_WAIT: Duration = Duration::from_secs(3);
/// Probes at once; further requests are left unanswered, which control takes for a dead gateway's
/// session only after its own deadline.
const MAX_PROBES: usize = 4096;

/// Handles requests until `stop`.
pub(crate) async fn serve(shared: Arc<Shared>, mut requests: Box<dyn Subscription>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let places = Arc::new(Semaphore::new(MAX_PROBES));
    loop {
        // The stop comes once; until then every request is taken.
        let received = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            received = requests.next() => received,
        };
        let Some(Received { payload, reply: Some(reply) }) = received else { break };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            if let Some(more) = shared.outages.requests.tell((shared.engines.clock)()) {
                warn!(gateway = %shared.settings.gateway, more, "too many probes at once, one is left unanswered");
            }
            continue;
        };
        let probing = Arc::clone(&shared);
        shared.spawn(&tasks, async move {
            let answer = match handle(&probing, payload).await {
                Ok(result) => gateway_reply::Reply::Probe(result.into()),
                Err(error) => gateway_reply::Reply::Error(error),
            };
            let answer = GatewayReply { reply: Some(answer) };
            if let Err(error) = reply.send(answer.encode_to_vec().into()).await {
                warn!(%error, "an answer to control was lost");
            }
            drop(place);
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn handle(shared: &Shared, payload: Bytes) -> Result<ProbeResult, String> {
    let request = GatewayRequest::decode(payload).map_err(|error| error.to_string())?;
    let tenant: Tenant = request.tenant.parse().map_err(|error| format!("{error}"))?;
    let Some(gateway_request::Request::Probe(ProbeSession { session: Some(target) })) = request.request
    else {
        return Err("this version does not know the request".to_owned());
    };
    let uid = InstanceUid::try_from(target.instance_uid.as_ref()).map_err(|error| error.to_string())?;
    let session = SessionId::try_from(target.session_id.as_ref()).map_err(|error| error.to_string())?;
    let key = AgentKey { tenant, uid };
    let Some(mailbox) = shared.registry.find(&key, session) else { return Ok(ProbeResult::Absent) };
    let (answer, answered) = oneshot::channel();
    mailbox.put(Order::Probe(uid, session, answer));
    match tokio::time::timeout(PROBE_WAIT, answered).await {
        Ok(Ok(true)) => Ok(ProbeResult::Alive),
        // The connection went away while it was asked.
        Ok(Ok(false) | Err(_)) => Ok(ProbeResult::Absent),
        Err(_) => {
            mailbox.put(Order::Close(uid, session, muster_domain::agent::EndReason::Silent));
            Ok(ProbeResult::Silent)
        }
    }
}
