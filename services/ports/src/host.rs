//! What a role gets from its process besides engines: the time, random bits, somebody to run its
//! tasks. Injected, so that tests and simulation rule over them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use muster_domain::ids::Timestamp;
use uuid::Uuid;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Draws random bits, and makes ids of them. A process draws from a generator that nobody can foresee.
#[derive(Clone)]
pub struct Random(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Random {
    /// A source whose every call of `draw` gives 64 new bits.
    pub fn new(draw: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(draw))
    }

    /// 64 random bits.
    pub fn bits(&self) -> u64 {
        (self.0)()
    }

    /// A new UUIDv7 of this time: 48 bits of milliseconds, 74 random bits.
    pub fn uuid(&self, now: Timestamp) -> Uuid {
        let mut bits = [0; 10];
        let [first, second] = [(self.0)(), (self.0)()].map(u64::to_be_bytes);
        bits[..8].copy_from_slice(&first);
        bits[8..].copy_from_slice(&second[..2]);
        uuid::Builder::from_unix_timestamp_millis(now.0 / 1000, &bits).into_uuid()
    }

    /// A time from `from` to `to`, in milliseconds, all as likely as each other.
    pub fn between(&self, from: Duration, to: Duration) -> Duration {
        let width = u64::try_from(to.saturating_sub(from).as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        // The high half of the product, which spreads 64 bits over the width.
        let offset = (u128::from((self.0)()) * u128::from(width)) >> 64;
        // Below the width, a u64.
        from + Duration::from_millis(offset as u64)
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}

/// A task of a role.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs tasks beside whoever starts them. Every task that a role starts goes through here, so that a
/// simulated process can be held and ended as a whole. Who starts a task also sees to its end, by a
/// tracker or a channel.
#[derive(Clone)]
pub struct Spawner(Arc<dyn Fn(Task) + Send + Sync>);

impl Spawner {
    /// A spawner that hands tasks to `spawn`, which returns at once.
    pub fn new(spawn: impl Fn(Task) + Send + Sync + 'static) -> Self {
        Self(Arc::new(spawn))
    }

    /// Starts a task.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        (self.0)(Box::pin(work));
    }
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spawner")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn ids_are_version_7_of_the_given_time_and_differ() {
        let count = AtomicU64::new(0);
        let random =
            Random::new(move || count.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let now = Timestamp(1_700_000_000_123_456);
        let (one, two) = (random.uuid(now), random.uuid(now));
        assert_ne!(one, two);
        assert_eq!(one.get_version_num(), 7);
        assert_eq!(one.as_u128() >> 80, 1_700_000_000_123);
        assert_eq!(one.get_variant(), uuid::Variant::RFC4122);
    }

    #[test]
    fn a_time_between_two_others_is_between_them() {
        let (from, to) = (Duration::from_secs(30), Duration::from_secs(60));
        let drawn = |bits: u64| Random::new(move || bits).between(from, to);
        assert_eq!(drawn(0), from);
        assert_eq!(drawn(u64::MAX), to);
        assert_eq!(drawn(1 << 63), Duration::from_millis(45_000));
        assert_eq!(Random::new(|| u64::MAX).between(to, from), to);
    }
}
