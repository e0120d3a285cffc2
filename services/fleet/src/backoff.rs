//! How long an agent waits between failed attempts to connect, as opamp-go does.

use std::time::Duration;

const INITIAL: Duration = Duration::from_millis(500);
const MULTIPLIER: f64 = 1.5;
const LONGEST: Duration = Duration::from_secs(60);
const JITTER: f64 = 0.5;

/// The wait after `failures` failed attempts in a row: none after none, then 500 ms, growing by
/// half each time up to 60 s, and around that up to 50 % less or more. `random` is in 0..1.
pub(crate) fn delay(failures: u32, random: f64) -> Duration {
    let Some(growths) = failures.checked_sub(1) else { return Duration::ZERO };
    // 500 ms reach 60 s after 12 growths; the bound keeps the power finite.
    let growth = MULTIPLIER.powi(growths.min(32) as i32);
    let interval = INITIAL.mul_f64(growth).min(LONGEST);
    interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_is_at_once() {
        assert_eq!(delay(0, 0.9), Duration::ZERO);
    }

    #[test]
    fn waits_grow_by_half() {
        assert_eq!(delay(1, 0.5), Duration::from_millis(500));
        assert_eq!(delay(2, 0.5), Duration::from_millis(750));
        assert_eq!(delay(3, 0.5), Duration::from_millis(1125));
    }

    #[test]
    fn jitter_is_half_of_the_interval_to_either_side() {
        assert_eq!(delay(1, 0.0), Duration::from_millis(250));
        assert_eq!(delay(1, 1.0), Duration::from_millis(750));
    }

    #[test]
    fn no_wait_leaves_the_bounds() {
        for failures in 1..200 {
            for random in [0.0, 0.3, 0.999, 1.0, f64::INFINITY] {
                let wait = delay(failures, random);
                assert!(wait >= INITIAL / 2 && wait <= LONGEST * 3 / 2, "{failures} {random}: {wait:?}");
            }
        }
        assert_eq!(delay(u32::MAX, 0.5), LONGEST);
    }
}
