//! Answers requests from control: is the agent of this session still there?

use std::sync::Arc;

use bytes::Bytes;
use muster_domain::agent::EndReason;
use muster_domain::ids::{AgentKey, InstanceUid, SessionId, Tenant};
use muster_ports::bus::{Received, Reply, Subscription};
use muster_proto::Message;
use muster_proto::bus::{
    GatewayReply, GatewayRequest, ProbeResult, ProbeSession, gateway_reply, gateway_request,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::mailbox::Order;
use crate::{Shared, probes};

/// Probes at once; who asks for a further one is told so, and the newcomer to come again. It is more than a
/// gateway has connections by default: each may be half-open, after a load balancer was lost.
const MAX_PROBES: usize = 16_384;

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
                warn!(gateway = %shared.settings.gateway, more, "too many probes at once, one is refused");
            }
            // Silence would be taken for the end of this gateway.
            answer(reply, Err("too many probes at once".to_owned())).await;
            continue;
        };
        let probing = Arc::clone(&shared);
        shared.spawn(&tasks, async move {
            let result = handle(&probing, payload).await;
            answer(reply, result).await;
            drop(place);
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn answer(reply: Box<dyn Reply>, result: Result<ProbeResult, String>) {
    let answer = match result {
        Ok(result) => gateway_reply::Reply::Probe(result.into()),
        Err(error) => gateway_reply::Reply::Error(error),
    };
    let answer = GatewayReply { reply: Some(answer) };
    if let Err(error) = reply.send(answer.encode_to_vec().into()).await {
        warn!(%error, "an answer to control was lost");
    }
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
    let (probe, listener) = probes::probe(uid, session);
    mailbox.put(Order::Probe(probe));
    let result = listener.result(|| mailbox.hold()).await?;
    if result == ProbeResult::Silent {
        mailbox.put(Order::Close(uid, session, EndReason::Silent));
    }
    Ok(result)
}
