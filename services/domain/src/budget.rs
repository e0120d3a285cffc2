//! Budgets: how much may pass in a time, with room for bursts (token buckets).
//!
//! Time is the time since some fixed moment, the same for all calls on a bucket; it never goes back.

use std::time::Duration;

/// How much may pass: this much a second in the long run, and this much at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units a second; zero counts as one.
    pub per_second: u64,
    /// Units at once; zero counts as one.
    pub burst: u64,
}

impl Rate {
    /// How long it takes until this much may pass.
    fn time_of(self, amount: u64) -> Duration {
        let per_second = u128::from(self.per_second.max(1));
        let nanoseconds = u128::from(amount) * 1_000_000_000 / per_second;
        let seconds = u64::try_from(nanoseconds / 1_000_000_000).unwrap_or(u64::MAX);
        // The remainder is below a second.
        Duration::new(seconds, u32::try_from(nanoseconds % 1_000_000_000).unwrap_or_default())
    }
}

/// What was taken of a [`Rate`]; the default is nothing.
///
/// It is a single point in time, so that nothing has to be kept of a bucket that is full again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bucket {
    /// When everything that was taken is there again.
    full_at: Duration,
}

impl Bucket {
    /// The bucket after this much was taken. What is larger than a whole burst passes when the bucket is
    /// full, since else it never would.
    ///
    /// # Errors
    /// How long it takes until there is enough; then nothing is taken.
    pub fn take(self, rate: Rate, amount: u64, now: Duration) -> Result<Self, Duration> {
        let burst = rate.burst.max(1);
        let empty_at = now.saturating_add(rate.time_of(burst));
        let full_at = self.full_at.max(now).saturating_add(rate.time_of(amount.min(burst)));
        match full_at.saturating_sub(empty_at) {
            Duration::ZERO => Ok(Self { full_at }),
            wait => Err(wait),
        }
    }

    /// Whether nothing is missing.
    pub fn is_full(self, now: Duration) -> bool {
        self.full_at <= now
    }
}

/// How many messages and how many bytes may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Messages.
    pub messages: Rate,
    /// Their bytes.
    pub bytes: Rate,
}

/// What was taken of a [`Budget`]; the default is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    messages: Bucket,
    bytes: Bucket,
}

impl Spent {
    /// What is spent once a message of this many bytes has passed.
    ///
    /// # Errors
    /// How long it takes until the message may pass; then nothing is spent on it.
    pub fn take(self, budget: &Budget, bytes: u64, now: Duration) -> Result<Self, Duration> {
        let messages = self.messages.take(budget.messages, 1, now);
        let bytes = self.bytes.take(budget.bytes, bytes, now);
        match (messages, bytes) {
            (Ok(messages), Ok(bytes)) => Ok(Self { messages, bytes }),
            (messages, bytes) => Err(messages.err().unwrap_or_default().max(bytes.err().unwrap_or_default())),
        }
    }

    /// Whether the whole budget is there again: then this need not be kept.
    pub fn is_nothing(self, now: Duration) -> bool {
        self.messages.is_full(now) && self.bytes.is_full(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 30 };
    const START: Duration = Duration::from_secs(1000);

    fn after(seconds: f64) -> Duration {
        START + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_burst_passes_and_then_so_much_a_second() {
        let mut bucket = Bucket::default();
        for _ in 0..30 {
            bucket = bucket.take(RATE, 1, START).unwrap();
        }
        assert_eq!(bucket.take(RATE, 1, START), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(RATE, 5, START), Err(Duration::from_millis(500)));
        let bucket = bucket.take(RATE, 5, after(0.5)).unwrap();
        assert_eq!(bucket.take(RATE, 1, after(0.5)), Err(Duration::from_millis(100)));
        assert!(!bucket.is_full(after(3.4)));
        assert!(bucket.is_full(after(3.5)));
    }

    #[test]
    fn what_is_larger_than_a_burst_passes_a_full_bucket() {
        let bucket = Bucket::default().take(RATE, 1_000_000, START).unwrap();
        assert_eq!(bucket.take(RATE, 1_000_000, after(1.0)), Err(Duration::from_secs(2)));
        assert!(bucket.take(RATE, 1_000_000, after(3.0)).is_ok());
    }

    #[test]
    fn extremes_do_not_overflow() {
        for rate in [Rate { per_second: 0, burst: u64::MAX }, Rate { per_second: u64::MAX, burst: 0 }] {
            for amount in [0, 1, u64::MAX] {
                let bucket = Bucket::default().take(rate, amount, Duration::MAX);
                let _ = bucket.and_then(|bucket| bucket.take(rate, amount, START));
            }
        }
    }

    #[test]
    fn a_message_passes_when_both_its_count_and_its_bytes_do() {
        let budget = Budget { messages: Rate { per_second: 1, burst: 2 }, bytes: RATE };
        let spent = Spent::default().take(&budget, 25, START).unwrap();
        assert_eq!(spent.take(&budget, 10, START), Err(Duration::from_millis(500)));
        let spent = spent.take(&budget, 5, START).unwrap();
        assert_eq!(spent.take(&budget, 5, after(0.6)), Err(Duration::from_millis(400)), "the count");
        assert!(!spent.is_nothing(after(2.9)) && spent.is_nothing(after(3.0)));
    }

    proptest! {
        /// However messages come, no more passes than the burst and what the time gives.
        #[test]
        fn no_more_passes_than_the_rate(steps in proptest::collection::vec((0_u64..30, 0_u64..3000), 1..200)) {
            let (mut bucket, mut now, mut passed) = (Bucket::default(), START, 0);
            for (amount, pause) in steps {
                now += Duration::from_millis(pause);
                if let Ok(after) = bucket.take(RATE, amount, now) {
                    bucket = after;
                    passed += amount;
                }
                let limit = 30.0 + (now - START).as_secs_f64() * 10.0;
                prop_assert!(passed as f64 <= limit + 0.001, "{} of {}", passed, limit);
            }
        }
    }
}
