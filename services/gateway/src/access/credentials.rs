//! Credentials that agents have shown: read once, remembered, and looked at again when the bucket says that
//! something was taken away.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use moka::future::Cache;
use muster_domain::credential::{Credential, Kind, Refusal};
use muster_domain::ids::{Digest, InstanceUid, Tenant, Timestamp};
use muster_ports::EngineError;
use muster_ports::bus::{Subject, Subscription};
use muster_ports::credentials::{Progress, head, read};
use muster_proto::Message;
use muster_proto::bus::{ControlReply, ControlRequest, JoinUid, control_reply, control_request};
use subtle::ConstantTimeEq;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Shared;
use crate::access::{Denied, Ways};

/// Credentials that are remembered, beside those of open connections.
const MOST: u64 = 100_000;
/// What was read this long ago is read again when it is shown.
const FRESH: Duration = Duration::from_secs(60);
/// While the bucket is away, what was read this long ago still counts.
const STALE: Duration = Duration::from_secs(15 * 60);
/// A key that nobody knows is not looked for again for so long.
const UNKNOWN_FOR: Duration = Duration::from_secs(2);
/// How often the bucket's head is looked at without a wake-up.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Longest wait for the bucket, and for a keeper.
const DEADLINE: Duration = Duration::from_secs(2);
const JOIN_DEADLINE: Duration = Duration::from_secs(10);
/// Credentials that are read again at once.
const AT_ONCE: usize = 64;

/// A credential that was shown.
pub(crate) struct Held {
    digest: Digest,
    pub(crate) tenant: Tenant,
    state: ArcSwap<State>,
    /// Somebody reads it again.
    reading: AtomicBool,
    revoked: CancellationToken,
}

struct State {
    credential: Credential,
    read: Instant,
}

impl Held {
    fn new(credential: Credential) -> Self {
        Self {
            digest: credential.digest,
            tenant: credential.tenant.clone(),
            state: ArcSwap::from_pointee(State { credential, read: Instant::now() }),
            reading: AtomicBool::new(false),
            revoked: CancellationToken::new(),
        }
    }

    /// Whether it lets somebody in.
    pub(crate) fn check(&self, now: Timestamp) -> Result<(), Refusal> {
        if self.revoked.is_cancelled() {
            return Err(Refusal::Revoked);
        }
        self.state.load().credential.check(now)
    }

    pub(crate) fn may_use(&self, uid: InstanceUid) -> bool {
        self.state.load().credential.may_use(uid)
    }

    pub(crate) fn expires_at(&self) -> Option<Timestamp> {
        self.state.load().credential.expires_at
    }

    /// What people call it.
    pub(crate) fn name(&self) -> String {
        self.state.load().credential.name.clone()
    }

    pub(crate) async fn revoked(&self) {
        self.revoked.cancelled().await;
    }

    fn age(&self) -> Duration {
        self.state.load().read.elapsed()
    }
}

/// What is remembered.
pub(crate) struct Credentials {
    held: Cache<Digest, Arc<Held>>,
    unknown: Cache<Digest, ()>,
    /// Those that connections hold, too, by digest.
    live: Mutex<HashMap<Digest, Weak<Held>>>,
    /// How often it was looked for what was taken away; rises with the lock of `live` held.
    looks: AtomicU64,
    /// How far the bucket was when it was looked at last.
    seen: Mutex<Option<Progress>>,
}

impl Default for Credentials {
    fn default() -> Self {
        Self {
            held: Cache::builder().max_capacity(MOST).time_to_idle(STALE).build(),
            unknown: Cache::builder().max_capacity(MOST).time_to_live(UNKNOWN_FOR).build(),
            live: Mutex::default(),
            looks: AtomicU64::new(0),
            seen: Mutex::default(),
        }
    }
}

impl Credentials {
    fn live(&self) -> MutexGuard<'_, HashMap<Digest, Weak<Held>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> Option<Progress> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The credential with this digest. One that is remembered costs nothing; others are looked for, unless too
/// many attempts of the address have failed.
pub(crate) async fn find(
    shared: &Shared,
    ways: &Ways,
    digest: Digest,
    kind: Kind,
    address: IpAddr,
) -> Result<Arc<Held>, Denied> {
    let credentials = &shared.access.credentials;
    let held = match credentials.held.get(&digest).await {
        Some(held) => {
            refresh(shared, ways, &held).await?;
            held
        }
        None => {
            if let Some(wait) = shared.access.failures.wait(address) {
                return Err(Denied::TooMany(wait));
            }
            if credentials.unknown.contains_key(&digest) {
                return Err(Denied::Unknown);
            }
            let look = credentials.held.try_get_with(digest, look_for(shared, ways, digest));
            look.await.map_err(|denied: Arc<Denied>| Denied::clone(&denied))?
        }
    };
    let state = held.state.load();
    // A digest that was found is compared whole, in a time that says nothing about it.
    let is_it = bool::from(state.credential.digest.0.ct_eq(&digest.0)) && state.credential.kind == kind;
    drop(state);
    if is_it { Ok(held) } else { Err(Denied::Unknown) }
}

async fn look_for(shared: &Shared, ways: &Ways, digest: Digest) -> Result<Arc<Held>, Denied> {
    let credentials = &shared.access.credentials;
    // Also that of a connection, if it is not remembered here any more.
    let live = credentials.live().get(&digest).and_then(Weak::upgrade);
    if let Some(held) = live.filter(|held| !held.revoked.is_cancelled() && held.age() < STALE) {
        return Ok(held);
    }
    let looks = credentials.looks.load(Ordering::Acquire);
    match read_one(shared, ways, &digest).await {
        Ok(Some(credential)) => {
            let held = Arc::new(Held::new(credential));
            let looked = {
                let mut live = credentials.live();
                if live.len() == live.capacity() {
                    live.retain(|_, held| held.strong_count() > 0);
                }
                live.insert(digest, Arc::downgrade(&held));
                credentials.looks.load(Ordering::Acquire)
            };
            // Who looked meanwhile did not know of this one.
            if looked != looks && look_again(shared, ways, &held).await.is_err() {
                return Err(Denied::NotNow);
            }
            Ok(held)
        }
        Ok(None) => {
            credentials.unknown.insert(digest, ()).await;
            Err(Denied::Unknown)
        }
        Err(error) => {
            tell(shared, &error);
            Err(Denied::NotNow)
        }
    }
}

/// Reads what was read too long ago; while that fails it counts for a while longer.
async fn refresh(shared: &Shared, ways: &Ways, held: &Arc<Held>) -> Result<(), Denied> {
    let age = held.age();
    if age < FRESH || held.reading.swap(true, Ordering::AcqRel) {
        return if age < STALE { Ok(()) } else { Err(Denied::NotNow) };
    }
    let read = look_again(shared, ways, held).await;
    held.reading.store(false, Ordering::Release);
    match read {
        Ok(()) => Ok(()),
        Err(error) => {
            tell(shared, &error);
            if age < STALE { Ok(()) } else { Err(Denied::NotNow) }
        }
    }
}

/// Takes up what the bucket says of a credential now. One that lets nobody in any more ends its connections.
async fn look_again(shared: &Shared, ways: &Ways, held: &Arc<Held>) -> Result<(), EngineError> {
    let found = read_one(shared, ways, &held.digest).await?;
    let is_over = found.as_ref().is_none_or(|found| found.check((shared.engines.clock)()).is_err());
    if let Some(credential) = found {
        held.state.store(Arc::new(State { credential, read: Instant::now() }));
    }
    if is_over {
        if !held.revoked.is_cancelled() {
            info!(event = "credential_ended", tenant = %held.tenant, credential = %held.name(), "a credential is revoked or has expired: its connections are closed");
        }
        held.revoked.cancel();
        shared.access.credentials.held.invalidate(&held.digest).await;
    }
    Ok(())
}

/// What the bucket has; `None` if nobody knows the credential.
async fn read_one(shared: &Shared, ways: &Ways, digest: &Digest) -> Result<Option<Credential>, EngineError> {
    let away = || EngineError::Unavailable {
        engine: "credentials bucket",
        reason: "it was not filled yet, or lost: a control fills it".to_owned(),
    };
    let (bucket, cell) = (ways.credentials.as_ref(), &shared.settings.cell);
    let work = async {
        let seen = match shared.access.credentials.seen() {
            Some(seen) => seen,
            None => head(bucket, cell).await?.ok_or_else(away)?.progress,
        };
        let found = read(bucket, cell, digest).await?;
        Ok(found.filter(|(_, generation)| *generation >= seen.generation).map(|(credential, _)| credential))
    };
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| Err(timed_out()))
}

fn timed_out() -> EngineError {
    EngineError::Unavailable { engine: "credentials bucket", reason: "no answer in time".to_owned() }
}

fn tell(shared: &Shared, error: &dyn std::fmt::Display) {
    if let Some(more) = shared.outages.credentials.tell((shared.engines.clock)()) {
        warn!(%error, more, "credentials could not be read");
    }
}

/// Looks at the bucket until `stop`, and at credentials of which something was taken away.
pub(crate) async fn keep(shared: Arc<Shared>, mut wake: Box<dyn Subscription>, stop: CancellationToken) {
    let Some(ways) = shared.access.ways.clone() else { return };
    loop {
        if let Err(error) = look(&shared, &ways).await {
            tell(&shared, &error);
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            received = wake.next() => if received.is_none() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn look(shared: &Shared, ways: &Ways) -> Result<(), EngineError> {
    let credentials = &shared.access.credentials;
    let found = tokio::time::timeout(DEADLINE, head(ways.credentials.as_ref(), &shared.settings.cell));
    let found = found.await.unwrap_or_else(|_| Err(timed_out()))?;
    let seen = credentials.seen();
    let now = found.as_ref().map(|head| head.progress);
    if seen == now {
        return Ok(());
    }
    let Some(head) = found else {
        // It was lost: a control fills it again. What is known counts for as long as it may.
        *credentials.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
        return Ok(());
    };
    let known: Vec<Arc<Held>> = {
        let mut live = credentials.live();
        live.retain(|_, held| held.strong_count() > 0);
        credentials.looks.fetch_add(1, Ordering::AcqRel);
        let is_told = seen
            .filter(|seen| seen.generation == head.progress.generation && seen.revision >= head.recent_after);
        match is_told {
            Some(seen) => {
                let since = head.recent.iter().filter(|(revision, _)| *revision > seen.revision);
                since.filter_map(|(_, digest)| live.get(digest)?.upgrade()).collect()
            }
            None => live.values().filter_map(Weak::upgrade).collect(),
        }
    };
    // From here on what is read counts by the new generation.
    *credentials.seen.lock().unwrap_or_else(PoisonError::into_inner) =
        seen.map(|seen| Progress { generation: head.progress.generation, ..seen });
    let looks = stream::iter(known).map(|held| async move { look_again(shared, ways, &held).await });
    let results: Vec<_> = looks.buffer_unordered(AT_ONCE).collect().await;
    results.into_iter().collect::<Result<Vec<()>, _>>()?;
    *credentials.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(head.progress);
    Ok(())
}

/// Asks a keeper to let an instance_uid join those of a credential.
pub(crate) async fn join(shared: &Shared, held: &Arc<Held>, uid: InstanceUid) -> Result<(), String> {
    let Some(ways) = &shared.access.ways else { return Ok(()) };
    let join = JoinUid {
        credential_digest: Bytes::copy_from_slice(&held.digest.0),
        instance_uid: uid.as_bytes().to_vec().into(),
    };
    let request = ControlRequest {
        cell: shared.settings.cell.to_string(),
        tenant: held.tenant.to_string(),
        traceparent: String::new(),
        request: Some(control_request::Request::JoinUid(join)),
    };
    let subject = Subject::Keeper(shared.settings.cell.clone());
    let answer = shared.engines.bus.request(&subject, request.encode_to_vec().into(), JOIN_DEADLINE).await;
    let answer = answer.map_err(|error| error.to_string())?;
    match ControlReply::decode(answer).map_err(|error| error.to_string())?.reply {
        Some(control_reply::Reply::Joined(_)) => {}
        Some(control_reply::Reply::Error(error)) => return Err(error),
        _ => return Err("control gave no answer".to_owned()),
    }
    look_again(shared, ways, held).await.map_err(|error| error.to_string())?;
    if held.may_use(uid) { Ok(()) } else { Err("the instance_uid did not join the credential".to_owned()) }
}
