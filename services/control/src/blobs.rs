//! Blobs as control uses them: reports that were too large for the log, compiled bodies that are too
//! large for the bus.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use muster_domain::ids::{Digest, Tenant};
use muster_ports::EngineError;
use muster_ports::blobs::{BlobRef, USED_WITHIN, patience};
use muster_proto::bus;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use crate::Shared;

/// Bytes of blobs that all workers together hold while they fold; a single larger one goes alone. What
/// is held exists several times over for a moment: as it came, decoded, and on its way to the store.
const IN_MEMORY: u64 = 128 << 20;
/// The unit in which these bytes are counted.
const UNIT: u64 = 1 << 10;
/// Longest wait of a worker for the others to be done with theirs.
const ROOM_DEADLINE: Duration = Duration::from_secs(60);
/// How often a blob is looked for that is not there, and how long after each time.
const LOOKS: u32 = 3;
const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// How long a body that was put for one gateway is given to the next one without another put. The last
/// of them still has time to read it.
const FRESH: Duration = Duration::from_secs(USED_WITHIN.as_secs() / 2);
/// Longest wait for another body's put.
const TURN: Duration = Duration::from_secs(2);

/// Room in memory for blobs.
pub(crate) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(units(IN_MEMORY) as usize)))
    }
}

fn units(bytes: u64) -> u32 {
    // IN_MEMORY is far below 4 TiB.
    bytes.min(IN_MEMORY).div_ceil(UNIT) as u32
}

impl Room {
    /// Waits until there is room for this many bytes, and takes it. Whoever holds some must not ask for
    /// more.
    pub(crate) async fn take(&self, bytes: u64) -> Result<Option<OwnedSemaphorePermit>, EngineError> {
        if bytes == 0 {
            return Ok(None);
        }
        let room = Arc::clone(&self.0).acquire_many_owned(units(bytes));
        match timeout(ROOM_DEADLINE, room).await {
            Ok(Ok(room)) => Ok(Some(room)),
            Ok(Err(_)) | Err(_) => Err(unavailable("other partitions' large reports take too long".into())),
        }
    }
}

/// A blob reference as it stands in a message.
pub(crate) fn from_wire(blob: &bus::BlobRef) -> Result<BlobRef, muster_domain::ids::InvalidId> {
    Ok(BlobRef { digest: Digest::try_from(blob.digest.as_ref())?, size: blob.size })
}

/// A blob; none if it is gone for good.
///
/// # Errors
/// As [`Blobs::get`](muster_ports::blobs::Blobs::get).
pub(crate) async fn get(
    shared: &Shared,
    tenant: &Tenant,
    blob: &BlobRef,
) -> Result<Option<Bytes>, EngineError> {
    for look in 1..=LOOKS {
        let found = timeout(patience(blob.size), shared.engines.blobs.get(tenant, blob)).await;
        let found = found.unwrap_or_else(|_| Err(unavailable("no answer in time".to_owned())));
        let result = match &found {
            Ok(Some(_)) => "found",
            Ok(None) => "absent",
            Err(EngineError::Corrupt { .. }) => "corrupt",
            Err(EngineError::Unavailable { .. }) => "failed",
        };
        shared.metrics.blobs.with_label_values(&[result]).inc();
        match found {
            // It was there before anything referred to it, so this is a loss, or a server that has just
            // begun to lead and lags.
            Ok(None) if look < LOOKS => sleep(LOOK_AGAIN).await,
            found => return found,
        }
    }
    Ok(None)
}

fn unavailable(reason: String) -> EngineError {
    EngineError::Unavailable { engine: "blob store", reason }
}

/// Bodies that were put for gateways to read.
#[derive(Default)]
pub(crate) struct Bodies(Mutex<HashMap<(Tenant, Digest), (BlobRef, Instant)>>);

impl Bodies {
    /// Puts a body, unless that was done a moment ago. One at a time: many gateways ask at once.
    ///
    /// # Errors
    /// With the reason, for people.
    pub(crate) async fn put(
        &self,
        shared: &Shared,
        tenant: &Tenant,
        body: Digest,
        encode: impl FnOnce() -> Bytes,
    ) -> Result<BlobRef, String> {
        let mut put = timeout(TURN, self.0.lock()).await.map_err(|_| "another body is put now")?;
        put.retain(|_, (_, at)| at.elapsed() < FRESH);
        if let Some((blob, _)) = put.get(&(tenant.clone(), body)) {
            return Ok(*blob);
        }
        let content = encode();
        let began = Instant::now();
        let work = timeout(patience(content.len() as u64), shared.engines.blobs.put(tenant, content));
        let blob = work
            .await
            .map_err(|_| "the blob store did not take the body in time".to_owned())?
            .map_err(|error| format!("the body was not put as a blob: {error}"))?;
        put.insert((tenant.clone(), body), (blob, began));
        Ok(blob)
    }
}
