//! Answers requests from gateways: compiled bodies, contested instance_uids.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use muster_domain::ids::{Digest, GatewayId, Tenant};
use muster_domain::template::{CompiledBody, Segment};
use muster_ports::bus::{MAX_PAYLOAD, Received, RequestError, Subject, Subscription};
use muster_proto::Message;
use muster_proto::bus::{self, ContestResolved, ContestVerdict, ControlReply, ControlRequest, GetBody};
use muster_proto::bus::{
    GatewayReply, GatewayRequest, ProbeResult, ProbeSession, ResolveContest, SessionRef,
};
use muster_proto::bus::{control_reply, control_request, gateway_reply, gateway_request, segment};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::Shared;

/// A gateway that does not answer a probe for this long is taken for gone.
const PROBE_DEADLINE: Duration = Duration::from_millis(3500);
/// Requests at once; a further one stays unanswered and is made again.
const MAX_REQUESTS: usize = 4096;
/// More than what stands around one field of an answer.
const FRAME: usize = 24;

/// Handles requests until `stop`.
pub(crate) async fn serve(shared: Arc<Shared>, mut requests: Box<dyn Subscription>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let places = Arc::new(Semaphore::new(MAX_REQUESTS));
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
                warn!(more, "too many requests from gateways at once, one is left unanswered");
            }
            continue;
        };
        let answering = Arc::clone(&shared);
        shared.spawn(&tasks, async move {
            let answer = handle(&answering, payload).await.unwrap_or_else(control_reply::Reply::Error);
            let answer = ControlReply { reply: Some(answer) };
            if let Err(error) = reply.send(answer.encode_to_vec().into()).await {
                warn!(%error, "an answer to a gateway was lost");
            }
            drop(place);
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn handle(shared: &Shared, payload: Bytes) -> Result<control_reply::Reply, String> {
    let request = ControlRequest::decode(payload).map_err(|error| error.to_string())?;
    let tenant: Tenant = request.tenant.parse().map_err(|error| format!("{error}"))?;
    match request.request {
        Some(control_request::Request::GetBody(GetBody { body_digest })) => {
            let digest = Digest::try_from(body_digest.as_ref()).map_err(|error| error.to_string())?;
            let planner = shared.intents.planner(&tenant);
            let body = planner.body(&digest).ok_or("no assignment uses this body (any more)")?;
            if fits(body) {
                return Ok(control_reply::Reply::Body(wire_body(body)));
            }
            let encode = || Bytes::from(wire_body(body).encode_to_vec());
            let blob = shared.bodies.put(shared, &tenant, digest, encode).await?;
            let digest = Bytes::copy_from_slice(&blob.digest.0);
            Ok(control_reply::Reply::BodyBlob(bus::BlobRef { digest, size: blob.size }))
        }
        Some(control_request::Request::ResolveContest(contest)) => {
            let verdict = resolve(shared, &tenant, contest).await?;
            let new_instance_uid = match verdict {
                ContestVerdict::HolderAlive => Bytes::copy_from_slice(shared.engines.new_id().as_bytes()),
                ContestVerdict::Takeover | ContestVerdict::Unspecified => Bytes::new(),
            };
            let resolved = ContestResolved { verdict: verdict.into(), new_instance_uid };
            Ok(control_reply::Reply::Contest(resolved))
        }
        None => Err("this version does not know the request".to_owned()),
    }
}

/// Whether a body is small enough for an answer.
fn fits(body: &CompiledBody) -> bool {
    let bytes = |segment: &Segment| match segment {
        Segment::Literal(text) => text.len(),
        Segment::Slot(_) => 0,
    };
    body.segments.iter().map(|segment| bytes(segment) + FRAME).sum::<usize>() + FRAME <= MAX_PAYLOAD
}

fn wire_body(body: &CompiledBody) -> bus::CompiledBody {
    let segment = |segment: &Segment| bus::Segment {
        kind: Some(match segment {
            Segment::Literal(text) => segment::Kind::Literal(Bytes::copy_from_slice(text.as_bytes())),
            Segment::Slot(index) => segment::Kind::Slot(*index),
        }),
    };
    bus::CompiledBody { segments: body.segments.iter().map(segment).collect() }
}

/// Asks the holder's gateway whether the old session is alive. Whoever cannot say so is not.
async fn resolve(
    shared: &Shared,
    tenant: &Tenant,
    contest: ResolveContest,
) -> Result<ContestVerdict, String> {
    let gateway: GatewayId = contest.holder_gateway.parse().map_err(|error| format!("{error}"))?;
    let session = SessionRef {
        instance_uid: contest.instance_uid.clone(),
        session_id: contest.holder_session_id.clone(),
    };
    let request = GatewayRequest {
        cell: shared.settings.cell.to_string(),
        tenant: tenant.to_string(),
        traceparent: String::new(),
        request: Some(gateway_request::Request::Probe(ProbeSession { session: Some(session) })),
    };
    let subject = Subject::Gateway(shared.settings.cell.clone(), gateway.clone());
    let answer = shared.engines.bus.request(&subject, request.encode_to_vec().into(), PROBE_DEADLINE).await;
    let (verdict, why) = match answer {
        Ok(answer) => match GatewayReply::decode(answer).map_err(|error| error.to_string())?.reply {
            Some(gateway_reply::Reply::Probe(result)) => match ProbeResult::try_from(result) {
                Ok(ProbeResult::Alive) => (ContestVerdict::HolderAlive, "the old session answered"),
                Ok(ProbeResult::Silent) => (ContestVerdict::Takeover, "the old session is silent"),
                Ok(ProbeResult::Absent) => (ContestVerdict::Takeover, "the old session is gone"),
                Ok(ProbeResult::Unspecified) | Err(_) => {
                    return Err("the probe's result is unknown".to_owned());
                }
            },
            Some(gateway_reply::Reply::Error(error)) => return Err(error),
            None => return Err("the gateway gave no answer".to_owned()),
        },
        Err(RequestError::NoResponders) => (ContestVerdict::Takeover, "the old session's gateway is gone"),
        Err(RequestError::TimedOut) => {
            (ContestVerdict::Takeover, "the old session's gateway does not answer")
        }
        Err(RequestError::Engine(error)) => return Err(error.to_string()),
    };
    let uid = muster_domain::ids::InstanceUid::try_from(contest.instance_uid.as_ref());
    let agent_id = uid.map(|uid| uid.to_string()).unwrap_or_default();
    info!(event = "instance_uid_contested", %tenant, agent_id, %gateway, verdict = verdict.as_str_name(), why, "decided on a contested instance_uid");
    Ok(verdict)
}
