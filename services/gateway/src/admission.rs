//! Which connections are taken: as many and as fast as the gateway can serve, known agents before new ones.
//!
//! Refusals come before the upgrade: a connection that is accepted and then closed is tried again at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use muster_domain::budget::{Bucket, Rate};
use muster_domain::ids::{AgentKey, Tenant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::Shared;

/// Longest wait for ownership to say whether an agent is known.
const LOOK_UP_DEADLINE: Duration = Duration::from_millis(500);

/// Why a connection is not taken now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The gateway is stopping.
    Draining,
    /// It carries as many connections as it may.
    Full,
    /// It carries as many connections of the tenant as it may.
    TenantFull,
    /// Connections come faster than it takes them.
    TooFast,
}

impl Refusal {
    /// As metrics name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Full => "full",
            Self::TenantFull => "tenant_full",
            Self::TooFast => "too_fast",
        }
    }

    /// What the client is told.
    pub(crate) fn answer(self) -> (StatusCode, &'static str) {
        match self {
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "the gateway is stopping: try another one\n"),
            Self::Full => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the gateway carries as many connections as it may (server.websocket.max_connections)\n",
            ),
            Self::TenantFull => (
                StatusCode::TOO_MANY_REQUESTS,
                "the tenant has as many connections as it may (server.limits.max_connections_per_tenant)\n",
            ),
            Self::TooFast => (
                StatusCode::SERVICE_UNAVAILABLE,
                "too many agents connect at once (server.limits.connections_per_second): try again later\n",
            ),
        }
    }
}

/// A connection's place; given back when it is dropped.
pub(crate) struct Place {
    _of_all: OwnedSemaphorePermit,
    of_tenant: Tenant,
    tenants: Arc<Mutex<BTreeMap<Tenant, usize>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = tenants.get_mut(&self.of_tenant) {
            *count -= 1;
            if *count == 0 {
                tenants.remove(&self.of_tenant);
            }
        }
    }
}

/// Longest wait of a connection for its turn, and shortest between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

/// Hands out places.
pub(crate) struct Admission {
    rate: Rate,
    /// Connections of one tenant at once.
    per_tenant: usize,
    began: Instant,
    bucket: Mutex<Bucket>,
    places: Arc<Semaphore>,
    tenants: Arc<Mutex<BTreeMap<Tenant, usize>>>,
}

impl Admission {
    /// No connection yet. `rate` is of connections.
    pub(crate) fn new(max_connections: usize, per_tenant: usize, rate: Rate) -> Self {
        Self {
            rate,
            per_tenant,
            began: Instant::now(),
            bucket: Mutex::default(),
            places: Arc::new(Semaphore::new(max_connections)),
            tenants: Arc::default(),
        }
    }

    /// A place, if there is one.
    pub(crate) fn place(&self, tenant: &Tenant) -> Result<Place, Refusal> {
        let of_all = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Refusal::Full)?;
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let count = tenants.entry(tenant.clone()).or_default();
        if *count >= self.per_tenant {
            return Err(Refusal::TenantFull);
        }
        *count += 1;
        Ok(Place { _of_all: of_all, of_tenant: tenant.clone(), tenants: Arc::clone(&self.tenants) })
    }

    /// Takes a place for a connection that was asked for now. `key` is the agent, where it says who it
    /// is. When connections come fast they wait for their turn, known agents before new ones: half of a burst
    /// is theirs alone.
    pub(crate) async fn admit(
        &self,
        shared: &Shared,
        tenant: &Tenant,
        key: Option<AgentKey>,
    ) -> Result<Place, Refusal> {
        let place = self.place(tenant)?;
        let Err(wait) = self.take(true) else { return Ok(place) };
        // Without an answer nobody is known.
        let is_known = async {
            let look_up = shared.engines.ownership.look_up(std::slice::from_ref(key.as_ref()?));
            let found = tokio::time::timeout(LOOK_UP_DEADLINE, look_up).await.ok()?.ok()?;
            found.into_iter().next()?
        };
        let is_new = is_known.await.is_none();
        let taken = tokio::time::timeout(LONGEST_WAIT, async {
            let mut wait = if is_new { wait } else { Duration::ZERO };
            loop {
                tokio::time::sleep(wait).await;
                match self.take(is_new) {
                    Ok(()) => return,
                    Err(more) => wait = more.max(SHORTEST_WAIT),
                }
            }
        });
        taken.await.map(|()| place).map_err(|_| Refusal::TooFast)
    }

    /// Takes one connection of the rate, for a new agent only while half of a burst is left.
    ///
    /// # Errors
    /// How long it takes at least until there is one.
    fn take(&self, is_new: bool) -> Result<(), Duration> {
        let now = self.began.elapsed();
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        if is_new {
            bucket.take(self.rate, self.rate.burst / 2 + 1, now)?;
        }
        *bucket = bucket.take(self.rate, 1, now)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 20 };

    fn tenant(name: &str) -> Tenant {
        name.parse().unwrap()
    }

    #[test]
    fn places_are_limited_for_each_tenant_and_for_all() {
        let admission = Admission::new(3, 2, RATE);
        let (one, other) = (tenant("a"), tenant("b"));
        let places = [admission.place(&one), admission.place(&one)];
        assert!(places.iter().all(Result::is_ok));
        assert_eq!(admission.place(&one).err(), Some(Refusal::TenantFull));
        let third = admission.place(&other);
        assert_eq!(admission.place(&other).err(), Some(Refusal::Full));
        drop(places);
        assert!(admission.place(&other).is_ok() && third.is_ok());
        assert_eq!(admission.tenants.lock().unwrap().get(&one), None, "a tenant that is gone costs nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_a_burst_is_for_known_agents() {
        let admission = Admission::new(100, 100, RATE);
        assert_eq!((0..30).filter(|_| admission.take(true).is_ok()).count(), 10);
        assert_eq!((0..30).filter(|_| admission.take(false).is_ok()).count(), 10);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(admission.take(true).is_err(), "the first to be taken after a storm are known ones");
        assert_eq!((0..30).filter(|_| admission.take(false).is_ok()).count(), 10);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!((0..30).filter(|_| admission.take(true).is_ok()).count(), 10);
    }
}
