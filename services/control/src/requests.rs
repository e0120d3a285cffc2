//! Answers requests from gateways: compiled bodies, contested instance_uids, offers to agents that poll.

use std::sync::Arc;

use bytes::Bytes;
use muster_domain::ids::{Digest, Tenant};
use muster_domain::template::{CompiledBody, Segment};
use muster_ports::bus::{MAX_PAYLOAD, Received, Subscription};
use muster_proto::Message;
use muster_proto::bus::{
    self, ControlReply, ControlRequest, GetBody, control_reply, control_request, segment,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::{Shared, contests, mail};

/// Requests at once, twice as many as contests; a further one stays unanswered and is made again.
const MAX_REQUESTS: usize = 2 * contests::MOST;
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
            contests::resolve(shared, &tenant, contest).await.map(control_reply::Reply::Contest)
        }
        Some(control_request::Request::GetOffer(wanted)) => {
            Ok(control_reply::Reply::Offer(mail::wanted(shared, &tenant, wanted).await?))
        }
        Some(control_request::Request::GetCommand(wanted)) => {
            Ok(control_reply::Reply::Command(mail::wanted_command(shared, &tenant, wanted).await?))
        }
        Some(control_request::Request::JoinUid(_)) | None => {
            Err("this version does not know the request".to_owned())
        }
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
