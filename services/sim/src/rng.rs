//! Random numbers of one actor: all of a run follow from its seed.

use std::time::Duration;

/// A SplitMix64 generator. Every actor has its own, so that what one draws changes no other.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The generator of an actor in the run of this seed.
    pub(crate) fn new(seed: u64, actor: &str) -> Self {
        let mut rng = Self(seed);
        for byte in actor.bytes() {
            rng.0 = rng.next() ^ u64::from(byte);
        }
        rng
    }

    /// 64 random bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product, which is below the bound.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Whether something happens that happens so often of a thousand times.
    pub(crate) fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    /// A time from `from` to `to`, in milliseconds.
    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to.saturating_sub(from) + 1))
    }

    /// One of these, if there is one.
    pub(crate) fn pick<T: Clone>(&mut self, items: &[T]) -> Option<T> {
        match items.len() {
            0 => None,
            // An index below a length, both of this machine's size.
            count => items.get(self.below(count as u64) as usize).cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actors_draw_apart_and_repeatably() {
        let draw = |seed, actor| Rng::new(seed, actor).next();
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
        let mut rng = Rng::new(1, "a");
        assert!((0..1000).all(|_| rng.below(3) < 3));
        assert!(!rng.chance(0) && rng.chance(1000));
    }
}
