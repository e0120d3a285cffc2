//! How an entry gets into the log: as it is, or, where it is too large for that, with its report as a blob.

use std::time::Duration;

use muster_domain::ids::{AgentKey, MessageId, Partition};
use muster_ports::EngineError;
use muster_ports::blobs::{MAX_BLOB, PutError, USED_WITHIN, patience};
use muster_ports::log::{Position, PublishError};
use muster_proto::Message;
use muster_proto::bus::{BlobRef, Envelope};
use tokio::time::{Instant, timeout};

use crate::Shared;

/// Longest wait for the log.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);

/// Publishes an entry and waits until it is durable: first its report, if that has to go apart.
///
/// # Errors
/// As [`Log::publish`](muster_ports::log::Log::publish). What is away or does not answer in time is an
/// [`EngineError::Unavailable`].
pub(crate) async fn publish(
    shared: &Shared,
    key: &AgentKey,
    id: MessageId,
    mut envelope: Envelope,
) -> Result<Position, PublishError> {
    let began = Instant::now();
    if envelope.encoded_len() > shared.engines.log.max_payload()
        && let Some(report) = envelope.agent_to_server.take()
    {
        let size = report.len();
        let put = shared.engines.blobs.put(&key.tenant, report);
        let put = timeout(patience(size as u64), put).await;
        let result = if matches!(put, Ok(Ok(_))) { "stored" } else { "failed" };
        shared.metrics.blobs.with_label_values(&[result]).inc();
        let blob = match put {
            Ok(Ok(blob)) => blob,
            Ok(Err(PutError::TooLarge { size })) => {
                return Err(PublishError::TooLarge { size, limit: MAX_BLOB });
            }
            Ok(Err(PutError::Engine(error))) => return Err(error.into()),
            Err(_) => return Err(late("blob store")),
        };
        // A process that was halted meanwhile may be so late that the blob is removed already.
        if began.elapsed() >= USED_WITHIN {
            return Err(late("blob store"));
        }
        let digest = blob.digest.0.to_vec().into();
        envelope.agent_to_server_blob = Some(BlobRef { digest, size: blob.size });
    }
    let work = shared.engines.log.publish(Partition::of(key), id, envelope.encode_to_vec().into());
    timeout(PUBLISH_DEADLINE, work).await.unwrap_or_else(|_| Err(late("log")))
}

fn late(engine: &'static str) -> PublishError {
    EngineError::Unavailable { engine, reason: "no answer in time".to_owned() }.into()
}
