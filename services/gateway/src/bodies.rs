//! Compiled config bodies: each is fetched from control once and then shared.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use moka::future::Cache;
use muster_domain::ids::{Digest, Tenant};
use muster_ports::blobs::{BlobRef, patience};
use muster_ports::bus::Subject;
use muster_proto::Message;
use muster_proto::bus as wire;
use muster_proto::bus::segment::Kind;
use muster_proto::bus::{
    CompiledBody, ControlReply, ControlRequest, GetBody, SlotValues, control_reply, control_request,
};

use crate::Shared;

/// Bodies kept, in bytes.
const CAPACITY: u64 = 256 << 20;
/// Longest wait for one control's answer, and how many are asked.
const DEADLINE: Duration = Duration::from_secs(1);
const ATTEMPTS: usize = 4;

/// The bodies that this gateway has.
pub(crate) struct Bodies {
    cache: Cache<(Tenant, Digest), Arc<CompiledBody>>,
}

impl Bodies {
    /// No bodies yet.
    pub(crate) fn new() -> Self {
        let weigher = |_: &(Tenant, Digest), body: &Arc<CompiledBody>| {
            u32::try_from(body.encoded_len()).unwrap_or(u32::MAX)
        };
        Self { cache: Cache::builder().max_capacity(CAPACITY).weigher(weigher).build() }
    }

    /// A body, from control if it is not here.
    ///
    /// # Errors
    /// With the reason, if control does not have it or does not answer.
    pub(crate) async fn get(
        &self,
        shared: &Shared,
        tenant: &Tenant,
        digest: Digest,
    ) -> Result<Arc<CompiledBody>, Arc<String>> {
        let key = (tenant.clone(), digest);
        self.cache.try_get_with(key, fetch(shared, tenant, digest)).await
    }
}

async fn fetch(shared: &Shared, tenant: &Tenant, digest: Digest) -> Result<Arc<CompiledBody>, String> {
    let request = ControlRequest {
        cell: shared.settings.cell.to_string(),
        tenant: tenant.to_string(),
        traceparent: String::new(),
        request: Some(control_request::Request::GetBody(GetBody { body_digest: digest.0.to_vec().into() })),
    };
    let subject = Subject::Control(shared.settings.cell.clone());
    let payload = Bytes::from(request.encode_to_vec());
    // The first control that is asked may be halted; another one answers.
    let mut answer = shared.engines.bus.request(&subject, payload.clone(), DEADLINE).await;
    for _ in 1..ATTEMPTS {
        if answer.is_err() {
            answer = shared.engines.bus.request(&subject, payload.clone(), DEADLINE).await;
        }
    }
    let answer = answer.map_err(|error| error.to_string())?;
    match ControlReply::decode(answer).map_err(|error| error.to_string())?.reply {
        Some(control_reply::Reply::Body(body)) => Ok(Arc::new(body)),
        Some(control_reply::Reply::BodyBlob(blob)) => read(shared, tenant, &blob).await.map(Arc::new),
        Some(control_reply::Reply::Error(error)) => Err(error),
        _ => Err("control gave no body".to_owned()),
    }
}

/// A body that control put as a blob.
async fn read(shared: &Shared, tenant: &Tenant, blob: &wire::BlobRef) -> Result<CompiledBody, String> {
    let digest = Digest::try_from(blob.digest.as_ref()).map_err(|error| error.to_string())?;
    let blob = BlobRef { digest, size: blob.size };
    let found = tokio::time::timeout(patience(blob.size), shared.engines.blobs.get(tenant, &blob)).await;
    let content = match found {
        Ok(Ok(Some(content))) => content,
        Ok(Ok(None)) => return Err(format!("blob {digest} of control is not there (any more)")),
        Ok(Err(error)) => return Err(format!("blob {digest} of control: {error}")),
        Err(_) => return Err(format!("blob {digest} of control was not read in time")),
    };
    CompiledBody::decode(content).map_err(|error| format!("blob {digest} of control is no body: {error}"))
}

/// Writes literals and slot values one after the other.
///
/// # Errors
/// If a slot has no value.
pub(crate) fn render(body: &CompiledBody, slots: &SlotValues) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    for segment in &body.segments {
        match &segment.kind {
            Some(Kind::Literal(literal)) => text.extend_from_slice(literal),
            Some(Kind::Slot(slot)) => {
                let value = usize::try_from(*slot).ok().and_then(|slot| slots.values.get(slot));
                text.extend_from_slice(value.ok_or_else(|| format!("slot {slot} has no value"))?.as_bytes());
            }
            None => return Err("a segment is of a kind that this version does not know".to_owned()),
        }
    }
    Ok(text)
}
