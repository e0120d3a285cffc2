//! How an entry gets into the log: as it is, or, where it is too large for that, with its report as a blob.

use std::time::Duration;

use bytes::Bytes;
use muster_domain::ids::{AgentKey, MessageId, Partition};
use muster_ports::EngineError;
use muster_ports::blobs::{MAX_BLOB, PutError, USED_WITHIN, patience};
use muster_ports::log::{Position, PublishError};
use muster_proto::Message;
use muster_proto::bus::{BlobRef, Envelope};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use crate::Shared;

/// Bytes of reports that are put as blobs at once; a single larger one goes alone.
const AT_ONCE: usize = 32 << 20;
/// The unit in which these bytes are counted.
const UNIT: usize = 1 << 10;
/// Longest wait of a report for its turn.
const TURN: Duration = Duration::from_secs(10);
/// Longest wait for the log.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);

/// How long publishing a report of this size may take.
pub(crate) fn longest(shared: &Shared, bytes: usize) -> Duration {
    // What surrounds the report in an entry is small.
    let is_apart = bytes.saturating_add(UNIT) > shared.engines.log.max_payload();
    PUBLISH_DEADLINE + if is_apart { TURN + patience(bytes as u64) } else { Duration::ZERO }
}

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
    if envelope.encoded_len() > shared.engines.log.max_payload()
        && let Some(report) = envelope.agent_to_server.take()
    {
        let put = put(shared, key, report).await;
        let result = if put.is_ok() { "stored" } else { "failed" };
        shared.metrics.blobs.with_label_values(&[result]).inc();
        envelope.agent_to_server_blob = Some(put?);
    }
    let work = shared.engines.log.publish(Partition::of(key), id, envelope.encode_to_vec().into());
    timeout(PUBLISH_DEADLINE, work).await.unwrap_or_else(|_| Err(late("log")))
}

/// Puts a report as a blob, when it is its turn.
async fn put(shared: &Shared, key: &AgentKey, report: Bytes) -> Result<BlobRef, PublishError> {
    let size = report.len();
    let _turn = shared.turns.take(size).await?;
    let began = Instant::now();
    let put = timeout(patience(size as u64), shared.engines.blobs.put(&key.tenant, report)).await;
    // A process that was halted meanwhile may be so late that the blob is removed already.
    if began.elapsed() >= USED_WITHIN {
        return Err(late("blob store"));
    }
    match put {
        Ok(Ok(blob)) => Ok(BlobRef { digest: blob.digest.0.to_vec().into(), size: blob.size }),
        Ok(Err(PutError::TooLarge { size })) => Err(PublishError::TooLarge { size, limit: MAX_BLOB }),
        Ok(Err(PutError::Engine(error))) => Err(error.into()),
        Err(_) => Err(late("blob store")),
    }
}

/// Lets some puts go ahead at once, the others one after the other. All at once would share the way to the
/// engine until none is done in time, and would hold up what else has to go there, such as the lease.
pub(crate) struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Self {
        Self(Semaphore::new(units(AT_ONCE) as usize))
    }
}

fn units(bytes: usize) -> u32 {
    // AT_ONCE is far below 4 TiB.
    bytes.min(AT_ONCE).div_ceil(UNIT) as u32
}

impl Turns {
    async fn take(&self, bytes: usize) -> Result<SemaphorePermit<'_>, PublishError> {
        let reason = "too many large reports come at once".to_owned();
        let late = EngineError::Unavailable { engine: "blob store", reason };
        match timeout(TURN, self.0.acquire_many(units(bytes))).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(late.into()),
        }
    }
}

fn late(engine: &'static str) -> PublishError {
    EngineError::Unavailable { engine, reason: "no answer in time".to_owned() }.into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use muster_adapters_memory::log::Limits;
    use muster_adapters_memory::{MemoryBlobs, MemoryBus, MemoryKeyValue, MemoryLog, MemoryOwnership};
    use muster_domain::agent::EndReason;
    use muster_domain::budget::{Budget, Rate};
    use muster_domain::ids::{Claim, Digest, InstanceUid, SessionId, Timestamp};
    use muster_opamp::connection::Publish;
    use muster_opamp::head::Head;
    use muster_ports::blobs::Blobs as _;
    use muster_ports::host::{Random, Spawner};
    use muster_ports::log::{Log as _, LogEntry};
    use muster_proto::opamp::{AgentToServer, CustomMessage};
    use prometheus::Registry;
    use uuid::Uuid;

    use super::*;
    use crate::{Engines, Metrics, Settings, upstream};

    /// Bytes that the log under test takes.
    const LOG: usize = 2000;

    struct Rig {
        shared: Arc<Shared>,
        log: Arc<MemoryLog>,
        blobs: Arc<MemoryBlobs>,
    }

    fn key() -> AgentKey {
        AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(1)) }
    }

    /// A gateway whose store of blobs has this much room.
    fn rig(room: usize, settings: impl FnOnce(&mut Settings)) -> Rig {
        let log = Arc::new(MemoryLog::new(Limits { payload_bytes: LOG, total_bytes: 1 << 20 }));
        let blobs = Arc::new(MemoryBlobs::new(room));
        let engines = Engines {
            log: log.clone(),
            blobs: blobs.clone(),
            ownership: Arc::new(MemoryOwnership::default()),
            polls: Arc::new(MemoryOwnership::default()),
            bus: Arc::new(MemoryBus::default()),
            leases: Arc::new(MemoryKeyValue::new(None)),
            values: Arc::new(MemoryKeyValue::new(None)),
            clock: Arc::new(|| Timestamp(1)),
            random: Random::new(|| Uuid::new_v4().as_u64_pair().1),
            spawner: Spawner::new(|task| drop(tokio::spawn(task))),
        };
        let mut own = Settings::new("default".parse().unwrap(), "gw".parse().unwrap());
        settings(&mut own);
        let metrics = Metrics::register(&Registry::new(), "default").unwrap();
        Rig { shared: Arc::new(Shared::new(own, engines, metrics)), log, blobs }
    }

    /// A report of about this many bytes.
    fn report(bytes: usize) -> Bytes {
        let custom = CustomMessage { data: vec![7; bytes], ..CustomMessage::default() };
        let message = AgentToServer {
            instance_uid: key().uid.as_bytes().to_vec(),
            custom_message: Some(custom),
            ..AgentToServer::default()
        };
        message.encode_to_vec().into()
    }

    fn entry(message: Option<Bytes>) -> Publish {
        Publish {
            uid: key().uid,
            session: SessionId(Uuid::from_u128(2)),
            claim: Claim(3),
            started: None,
            message: message.map(|message| (Head::read(&message).unwrap(), message)),
            ended: Some(EndReason::ConnectionLost),
            silent: false,
            unsent: None,
            dirty: false,
            sent: None,
        }
    }

    impl Rig {
        async fn publish(&self, message: Option<Bytes>) -> Result<(), String> {
            let published = upstream::publish(&self.shared, &key(), entry(message), "peer").await;
            published.map_err(|not_now| not_now.reason)
        }

        /// What is in the log.
        async fn envelopes(&self) -> Vec<(usize, Envelope)> {
            let partition = Partition::of(&key());
            if self.log.last(partition).await.unwrap() == Position::default() {
                return Vec::new();
            }
            let mut reader = self.log.read(partition, Position::default()).await.unwrap();
            let entries = reader.next(100).await.unwrap().into_iter();
            let decode = |entry: LogEntry| (entry.payload.len(), Envelope::decode(entry.payload).unwrap());
            entries.map(decode).collect()
        }
    }

    #[tokio::test]
    async fn a_report_goes_apart_only_where_the_log_does_not_take_it() {
        let rig = rig(1 << 20, |_| {});
        let mut apart = 0;
        let mut largest = 0;
        for bytes in (1700..2100).step_by(10).chain([100_000]) {
            let message = report(bytes);
            rig.publish(Some(message.clone())).await.unwrap();
            let (size, envelope) = rig.envelopes().await.pop().unwrap();
            match envelope.agent_to_server_blob {
                None => {
                    assert_eq!(envelope.agent_to_server, Some(message));
                    largest = largest.max(size);
                }
                Some(blob) => {
                    apart += 1;
                    assert_eq!(envelope.agent_to_server, None);
                    let digest = Digest::try_from(blob.digest.as_ref()).unwrap();
                    assert_eq!(digest, Digest::of(&message));
                    let blob = muster_ports::blobs::BlobRef { digest, size: blob.size };
                    assert_eq!(rig.blobs.get(&key().tenant, &blob).await.unwrap(), Some(message));
                }
            }
            assert!(envelope.kinds != 0 && envelope.ended.is_some(), "the rest of the entry is as ever");
        }
        assert!(
            apart > 5 && (LOG - 10..=LOG).contains(&largest),
            "{apart} apart, {largest} bytes in the log"
        );
    }

    #[tokio::test]
    async fn a_report_whose_blob_is_not_taken_is_not_in_the_log() {
        let rig = rig(50_000, |_| {});
        let refused = rig.publish(Some(report(60_000))).await;
        assert_eq!(refused, Err("the server cannot store the report now".to_owned()));
        assert_eq!(rig.envelopes().await, []);
        rig.publish(Some(report(1000))).await.unwrap();
        rig.publish(Some(report(40_000))).await.unwrap();
        assert_eq!(rig.envelopes().await.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn large_reports_take_turns_and_do_not_wait_for_ever() {
        const MIB: usize = 1 << 20;
        let turns = Turns::default();
        let first = turns.take(20 * MIB).await.unwrap();
        let second = turns.take(12 * MIB).await.unwrap();
        let began = Instant::now();
        assert!(turns.take(1).await.unwrap_err().to_string().contains("too many large reports"));
        assert_eq!(began.elapsed(), TURN);
        drop(second);
        drop(turns.take(12 * MIB).await.unwrap());
        let whole = turns.take(128 * MIB);
        let (whole, ()) = tokio::join!(whole, async { drop(first) });
        assert!(whole.is_ok(), "a very large one goes alone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_refuses_reports_and_never_the_end_of_a_session() {
        let rate = Rate { per_second: 1, burst: 2 };
        let bytes = Rate { per_second: 1 << 20, burst: 1 << 20 };
        let rig = rig(1 << 20, |settings| settings.budgets.agent = Budget { messages: rate, bytes });
        for _ in 0..2 {
            rig.publish(Some(report(10))).await.unwrap();
        }
        let refused = rig.publish(Some(report(10))).await.unwrap_err();
        assert!(refused.contains("server.budgets.agent"), "{refused}");
        assert_eq!(rig.shared.metrics.over_budget.with_label_values(&["agent"]).get(), 1);
        rig.publish(None).await.unwrap();
        assert_eq!(rig.envelopes().await.len(), 3);
        tokio::time::advance(Duration::from_secs(1)).await;
        rig.publish(Some(report(10))).await.unwrap();
    }
}
