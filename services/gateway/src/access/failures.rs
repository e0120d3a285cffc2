//! Attempts that failed, by address: who fails too often waits before more is looked into.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use moka::sync::Cache;
use muster_domain::budget::{Bucket, Rate};
use tokio::time::Instant;

/// Addresses that are remembered.
const MOST: u64 = 100_000;

/// The failures.
pub(crate) struct Failures {
    rate: Rate,
    began: Instant,
    of: Cache<IpAddr, Bucket>,
}

impl Failures {
    pub(crate) fn new(rate: Rate) -> Self {
        // A bucket that is full again says nothing.
        let full_after = Duration::from_secs(rate.burst.max(1) / rate.per_second.max(1) + 1);
        Self {
            rate,
            began: Instant::now(),
            of: Cache::builder().max_capacity(MOST).time_to_idle(full_after).build(),
        }
    }

    /// One more.
    pub(crate) fn count(&self, address: IpAddr) {
        let now = self.began.elapsed();
        self.of.entry(network(address)).and_upsert_with(|entry| {
            let bucket = entry.map(moka::Entry::into_value).unwrap_or_default();
            bucket.take(self.rate, 1, now).unwrap_or(bucket)
        });
    }

    /// How long the address has to wait, if it has.
    pub(crate) fn wait(&self, address: IpAddr) -> Option<Duration> {
        let bucket = self.of.get(&network(address))?;
        bucket.take(self.rate, 1, self.began.elapsed()).err()
    }
}

/// Of IPv6 the network: one machine has many addresses there.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_fails_too_often_waits() {
        let failures = Failures::new(Rate { per_second: 1, burst: 3 });
        let (bad, good): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for _ in 0..3 {
            assert_eq!(failures.wait(bad), None);
            failures.count(bad);
        }
        assert!(failures.wait(bad).is_some());
        assert_eq!(failures.wait(good), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(failures.wait(bad), None);
    }

    #[test]
    fn addresses_of_one_network_are_one() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
