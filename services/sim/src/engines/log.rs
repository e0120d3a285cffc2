//! The log: appended to, read, replaced.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use muster_adapters_memory::MemoryBlobs;
use muster_domain::ids::{MessageId, Partition};
use muster_ports::EngineError;
use muster_ports::blobs::{BlobRef, Blobs as _};
use muster_ports::log::{Log, LogEntry, LogReader, Position, PublishError};
use muster_proto::Message;
use muster_proto::bus::Envelope;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Wire, unavailable};
use crate::rng::Rng;
use crate::weather::Engine;

/// The log as a process sees it.
pub(crate) struct SimLog(pub(super) Arc<Wire>);

#[async_trait]
impl Log for SimLog {
    async fn publish(
        &self,
        partition: Partition,
        id: MessageId,
        payload: Bytes,
    ) -> Result<Position, PublishError> {
        let (world, name) = (Arc::clone(&self.0.world), self.0.process.name.clone());
        world.check(|checker| checker.publishing(&payload));
        let work = async move {
            let engines = world.engines();
            let report = report(&engines.blobs, &payload).await;
            let result = engines.log.1.publish(partition, id, payload.clone()).await;
            match &result {
                Ok(position) => {
                    let told =
                        world.check(|checker| checker.appended(partition, *position, id, &payload, report));
                    world.trace.note(&name, format_args!("appends {partition}/{} {told}", position.0));
                }
                Err(error) => world.trace.note(&name, format_args!("cannot append: {error}")),
            }
            result
        };
        self.0.call(Engine::Log, Some(u64::from(partition.number())), work).await
    }

    async fn read(&self, partition: Partition, after: Position) -> Result<Box<dyn LogReader>, EngineError> {
        let (world, wire) = (Arc::clone(&self.0.world), Arc::clone(&self.0));
        let work = async move {
            let (life, log) = world.engines().log;
            let inner = log.read(partition, after).await?;
            Ok(Box::new(SimReader { wire, life, inner, held: None }) as Box<dyn LogReader>)
        };
        self.0.call(Engine::Log, None, work).await
    }

    async fn id_at(
        &self,
        partition: Partition,
        position: Position,
    ) -> Result<Option<MessageId>, EngineError> {
        let world = Arc::clone(&self.0.world);
        let work = async move { world.engines().log.1.id_at(partition, position).await };
        self.0.call(Engine::Log, None, work).await
    }

    fn max_payload(&self) -> usize {
        self.0.world.lock_engines().log.1.max_payload()
    }

    async fn last(&self, partition: Partition) -> Result<Position, EngineError> {
        let world = Arc::clone(&self.0.world);
        let work = async move { world.engines().log.1.last(partition).await };
        self.0.call(Engine::Log, None, work).await
    }

    async fn purge(&self, partition: Partition, position: Position) -> Result<(), EngineError> {
        let (world, name) = (Arc::clone(&self.0.world), self.0.process.name.clone());
        let work = async move {
            world.trace.note(&name, format_args!("purges {partition} below {}", position.0));
            world.check(|checker| checker.purged(partition, position));
            world.engines().log.1.purge(partition, position).await
        };
        self.0.call(Engine::Log, None, work).await
    }
}

/// The report of an entry, which may be in the entry or a blob.
async fn report(blobs: &MemoryBlobs, payload: &Bytes) -> Option<Bytes> {
    let envelope = Envelope::decode(payload.clone()).ok()?;
    let Some(blob) = envelope.agent_to_server_blob else { return envelope.agent_to_server };
    let blob = BlobRef { digest: blob.digest.as_ref().try_into().ok()?, size: blob.size };
    blobs.get(&envelope.tenant.parse().ok()?, &blob).await.ok().flatten()
}

struct SimReader {
    wire: Arc<Wire>,
    /// Number of the log that is read: another one ends the reader.
    life: u64,
    inner: Box<dyn LogReader>,
    /// What was read and is on its way.
    held: Option<(Instant, Vec<LogEntry>)>,
}

impl SimReader {
    /// Why nothing can be read now.
    fn broken(&self) -> Option<&'static str> {
        let world = &self.wire.world;
        if world.lock_engines().log.0 != self.life {
            return Some("the stream that was read is gone");
        }
        let is_away = world.weather.is_away(&self.wire.process.name, Engine::Log);
        is_away.then_some("it is away")
    }
}

#[async_trait]
impl LogReader for SimReader {
    async fn next(&mut self, max: usize) -> Result<Vec<LogEntry>, EngineError> {
        let world = Arc::clone(&self.wire.world);
        if self.held.is_none() {
            if let Some(why) = self.broken() {
                sleep(self.wire.draw(|rng| rng.millis(1, 50))).await;
                return Err(unavailable(Engine::Log, why));
            }
            let batch = self.wire.draw(|rng| 1 + rng.below(8)).min(max as u64);
            // Small batches: more meets in the middle of them.
            let max = usize::try_from(batch).unwrap_or(max);
            let wire = Arc::clone(&self.wire);
            let life = self.life;
            let gone = world.weather.until(|| {
                let replaced = world.lock_engines().log.0 != life;
                (replaced || world.weather.is_away(&wire.process.name, Engine::Log)).then_some(())
            });
            tokio::select! {
                biased;
                () = gone => return Err(unavailable(Engine::Log, "it went away")),
                entries = self.inner.next(max) => {
                    let (_, usual) = world.weather.odds();
                    let way = self.wire.draw(|rng: &mut Rng| rng.millis(0, usual));
                    self.held = Some((Instant::now() + way, entries?));
                }
            }
        }
        if let Some((at, _)) = &self.held {
            sleep_until(*at).await;
        }
        Ok(self.held.take().map(|(_, entries)| entries).unwrap_or_default())
    }
}
