//! How many requests are served: of each tenant, and failed attempts of each address.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use muster_domain::budget::{Bucket, Rate};
use tokio::time::Instant;

/// Buckets that are remembered. With more that are not full, all are forgotten: memory is bounded, also
/// against one who has many addresses.
const MOST: usize = 10_000;

/// A bucket for each key.
pub(crate) struct Limits<K> {
    began: Instant,
    buckets: Mutex<HashMap<K, Bucket>>,
}

impl<K: Eq + Hash> Limits<K> {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), buckets: Mutex::default() }
    }

    /// Takes one.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub(crate) fn take(&self, key: K, rate: Rate) -> Result<(), Duration> {
        let now = self.began.elapsed();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.get(&key).copied().unwrap_or_default().take(rate, 1, now)?;
        if buckets.len() >= MOST && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| !bucket.is_full(now));
            if buckets.len() >= MOST {
                buckets.clear();
            }
        }
        buckets.insert(key, bucket);
        Ok(())
    }

    /// Whether there is one, without taking it.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub(crate) fn look(&self, key: &K, rate: Rate) -> Result<(), Duration> {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.get(key).copied().unwrap_or_default();
        bucket.take(rate, 1, self.began.elapsed()).map(drop)
    }
}

/// What failed attempts are counted by: an IPv6 client has a whole network of addresses.
pub(crate) fn client(address: Option<IpAddr>) -> Option<IpAddr> {
    Some(match address?.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        v4 => v4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 1, burst: 2 };

    #[tokio::test(start_paused = true)]
    async fn each_key_has_a_bucket_of_its_own() {
        let limits = Limits::new();
        assert_eq!((limits.take("a", RATE), limits.take("a", RATE)), (Ok(()), Ok(())));
        assert_eq!(limits.take("a", RATE), Err(Duration::from_secs(1)));
        assert_eq!(limits.look(&"a", RATE), Err(Duration::from_secs(1)));
        assert_eq!((limits.look(&"b", RATE), limits.take("b", RATE)), (Ok(()), Ok(())));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(limits.look(&"a", RATE), Ok(()), "looking takes nothing");
        assert_eq!(limits.take("a", RATE), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let limits = Limits::new();
        for key in 0..3 * MOST {
            limits.take(key, RATE).unwrap();
            assert!(limits.buckets.lock().unwrap().len() <= MOST);
        }
    }

    #[test]
    fn an_ipv6_client_is_its_network() {
        let client = |text: &str| client(Some(text.parse().unwrap())).unwrap().to_string();
        assert_eq!(client("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(client("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
