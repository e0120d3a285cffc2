//! The gateway's lease: as long as it is renewed, sessions of this life of the gateway are alive.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use muster_domain::ids::{Claim, Partition};
use muster_ports::EngineError;
use muster_ports::kv::{Precondition, PutError};
use muster_proto::Message;
use muster_proto::bus::GatewayLease;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::Shared;
use crate::mailbox::Order;

/// How often it is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// In a new life, this many sessions are claimed anew this often.
const RECLAIMS: usize = 50;
const RECLAIM_EVERY: Duration = Duration::from_millis(50);
/// Partitions that open an epoch do so together; the gateway waits this long for the others.
const EPOCHS_SETTLE: Duration = Duration::from_secs(2);

fn key(shared: &Shared) -> String {
    format!("gateways/{}/{}", shared.settings.cell, shared.settings.gateway)
}

/// Takes the lease for this life, and says to which floors this gateway keeps. A lease that held at the
/// beginning and lapsed meanwhile is not renewed by it: others may have seen that it was gone.
pub(crate) async fn take(shared: &Shared) -> Result<(), EngineError> {
    let began = Instant::now();
    let held = shared.fence.is_leased();
    let incarnation = Bytes::copy_from_slice(shared.incarnation().as_bytes());
    let lease = GatewayLease { incarnation, floors: shared.fence.applied() };
    let value = lease.encode_to_vec().into();
    match shared.engines.leases.put(&key(shared), value, Precondition::Any).await {
        Ok(_) if held && !shared.fence.is_leased() => Err(EngineError::Unavailable {
            engine: "lease bucket",
            reason: "the lease lapsed before it was renewed".to_owned(),
        }),
        Ok(_) => {
            shared.fence.renewed(began);
            Ok(())
        }
        Err(PutError::Engine(error)) => Err(error),
        Err(PutError::Conflict) => Err(EngineError::Unavailable {
            engine: "lease bucket",
            reason: "an unconditional write was refused".to_owned(),
        }),
    }
}

/// Renews the lease until `stop`. When it has lapsed, a new life begins: others may have ended this
/// gateway's sessions, so it claims them anew, and again until none of another life is left. So it does when
/// an epoch of the log has begun: the store may know other sessions than there are, and not all that agents
/// have said.
pub(crate) async fn keep(shared: Arc<Shared>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(RENEW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut to_ask = BTreeSet::new();
    let mut reclaims = false;
    loop {
        // The stop comes once; until then every tick is taken.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
            () = shared.fence.risen.notified() => {}
            () = shared.lives.risen.notified() => tokio::time::sleep(EPOCHS_SETTLE).await,
        }
        let lapsed = !shared.fence.is_leased();
        to_ask.extend(shared.lives.take_to_ask());
        if lapsed || !to_ask.is_empty() || shared.owed.take_overflow() {
            shared.new_incarnation();
            reclaims = true;
        }
        match tokio::time::timeout(RENEW_EVERY, take(&shared)).await {
            Ok(Ok(())) => {
                if lapsed {
                    warn!(event = "lease_lapsed", gateway = %shared.settings.gateway, incarnation = %shared.incarnation(), "the gateway's lease had lapsed: its sessions are claimed anew");
                }
                if reclaims {
                    let to_ask = std::mem::take(&mut to_ask);
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        left = reclaim(&shared, &to_ask) => reclaims = left,
                    }
                }
            }
            Ok(Err(error)) => tell(&shared, &error),
            Err(_) => tell(&shared, &"no answer in time"),
        }
    }
}

fn tell(shared: &Shared, error: &dyn std::fmt::Display) {
    if let Some(more) = shared.outages.lease.tell((shared.engines.clock)()) {
        warn!(%error, more, "the gateway's lease was not renewed");
    }
}

/// Has every session of another life claimed anew, some at a time, the lease kept meanwhile; agents of the
/// partitions `to_ask` are asked for full state. Returns whether there was any: it is looked for again,
/// since a claim may fail.
async fn reclaim(shared: &Shared, to_ask: &BTreeSet<Partition>) -> bool {
    let sessions = shared.registry.of_other_lives(shared.incarnation());
    let mut renewed = Instant::now();
    for sessions in sessions.chunks(RECLAIMS) {
        for (key, place) in sessions {
            if to_ask.contains(&Partition::of(key)) {
                place.mailbox.put(Order::RequestFullState(key.uid, place.session));
            }
            place.mailbox.put(Order::Reclaim(key.uid, place.session, Claim::default()));
        }
        tokio::time::sleep(RECLAIM_EVERY).await;
        if renewed.elapsed() >= RENEW_EVERY {
            if let Err(error) = take(shared).await {
                tell(shared, &error);
            }
            renewed = Instant::now();
        }
    }
    !sessions.is_empty()
}

/// Gives the lease back when the gateway has stopped.
pub(crate) async fn give_up(shared: &Shared) {
    match tokio::time::timeout(RENEW_EVERY, shared.engines.leases.remove(&key(shared))).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "the gateway's lease was not given back; it lapses by itself"),
        Err(_) => warn!("the gateway's lease was not given back in time; it lapses by itself"),
    }
}
