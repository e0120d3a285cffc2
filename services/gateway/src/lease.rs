//! The gateway's lease: as long as it is renewed, sessions of this life of the gateway are alive.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use muster_ports::EngineError;
use muster_ports::kv::{Precondition, PutError};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::Shared;

/// How often it is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(3);

fn key(shared: &Shared) -> String {
    format!("gateways/{}/{}", shared.settings.cell, shared.settings.gateway)
}

/// Takes the lease for this life.
pub(crate) async fn take(shared: &Shared) -> Result<(), EngineError> {
    let value = Bytes::copy_from_slice(shared.incarnation.as_bytes());
    match shared.engines.leases.put(&key(shared), value, Precondition::Any).await {
        Ok(_) => Ok(()),
        Err(PutError::Engine(error)) => Err(error),
        Err(PutError::Conflict) => Err(EngineError::Unavailable {
            engine: "lease bucket",
            reason: "an unconditional write was refused".to_owned(),
        }),
    }
}

/// Renews the lease until `stop`.
pub(crate) async fn keep(shared: Arc<Shared>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(RENEW_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        match tokio::time::timeout(RENEW_EVERY, take(&shared)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the gateway's lease was not renewed"),
            Err(_) => warn!("the gateway's lease was not renewed in time"),
        }
    }
}

/// Gives the lease back when the gateway has stopped.
pub(crate) async fn give_up(shared: &Shared) {
    match tokio::time::timeout(RENEW_EVERY, shared.engines.leases.remove(&key(shared))).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "the gateway's lease was not given back; it lapses by itself"),
        Err(_) => warn!("the gateway's lease was not given back in time; it lapses by itself"),
    }
}
