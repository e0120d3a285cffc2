//! Entries of the log as a fold takes them: decoded, with the reports that are apart, and no more of them
//! than there is memory for.

use std::time::Duration;

use muster_domain::ids::AgentKey;
use muster_ports::EngineError;
use muster_ports::log::LogEntry;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::decode::{self, Read};
use crate::mail::Route;
use crate::{Shared, blobs};

/// Bytes of reports that are folded in one transaction; a single larger one is folded alone.
const MAX_BYTES: u64 = 32 << 20;
/// How long a worker that is to stop goes on reading blobs.
const STOP_AFTER: Duration = Duration::from_secs(3);

/// An entry that cannot be folded.
pub(crate) struct Bad {
    /// Why, for people.
    pub(crate) reason: String,
    /// Whose it is and where its session was, as far as that can be told.
    pub(crate) from: Option<(AgentKey, Route)>,
}

impl Bad {
    /// Whose it is, if that can be told.
    pub(crate) fn key(&self) -> Option<&AgentKey> {
        self.from.as_ref().map(|(key, ..)| key)
    }
}

/// The first entries, as many as there was memory for: at least one.
pub(crate) struct Part {
    /// Each whole, or why it cannot be folded.
    pub(crate) items: Vec<Result<Read, Bad>>,
    /// Held until the reports are written.
    _room: Option<OwnedSemaphorePermit>,
}

/// Reads the first of these entries.
///
/// # Errors
/// If the blob store does not answer; nothing is lost then, and it is to be tried again.
pub(crate) async fn read(
    shared: &Shared,
    entries: &[LogEntry],
    stop: &CancellationToken,
) -> Result<Part, EngineError> {
    let (mut decoded, mut bytes, mut apart) = (Vec::new(), 0_u64, 0_u64);
    for entry in entries {
        let read = decode::envelope(entry.payload.clone());
        let blob = read.as_ref().ok().and_then(|read| read.blob.as_ref()).map_or(0, |blob| blob.size);
        bytes = bytes.saturating_add(blob).saturating_add(entry.payload.len() as u64);
        if bytes > MAX_BYTES && !decoded.is_empty() {
            break;
        }
        apart = apart.saturating_add(blob);
        decoded.push(read);
    }
    let fetch = async {
        let room = shared.room.take(apart).await?;
        let mut items = Vec::with_capacity(decoded.len());
        for read in decoded {
            items.push(match read {
                Ok(read) => complete(shared, read).await?,
                Err(error) => Err(Bad { reason: error.to_string(), from: None }),
            });
        }
        Ok(Part { items, _room: room })
    };
    tokio::select! {
        biased;
        part = fetch => part,
        () = async { stop.cancelled().await; tokio::time::sleep(STOP_AFTER).await } => {
            Err(EngineError::Unavailable { engine: "control", reason: "it is stopping".to_owned() })
        }
    }
}

/// Adds its report to an entry, if that is apart.
async fn complete(shared: &Shared, mut read: Read) -> Result<Result<Read, Bad>, EngineError> {
    let Some(blob) = read.blob else { return Ok(Ok(read)) };
    let reason = match blobs::get(shared, &read.key.tenant, &blob).await {
        Ok(Some(bytes)) => match decode::report_of(bytes) {
            Ok(report) => {
                read.entry.report = Some(report);
                return Ok(Ok(read));
            }
            Err(error) => error.to_string(),
        },
        Ok(None) => format!("its report, the blob {} of {} bytes, is not there", blob.digest, blob.size),
        Err(error @ EngineError::Corrupt { .. }) => error.to_string(),
        Err(error) => return Err(error),
    };
    Ok(Err(Bad { reason, from: Some((read.key, Route::from(&read.entry))) }))
}
