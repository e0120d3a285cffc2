//! Whose sequence numbers come: one agent's, or those of two that share an instance_uid.
//!
//! One agent repeats numbers, leaves gaps, sends a late message now and then, and begins anew when it
//! restarts. Two agents take turns: each goes on where it was, not where the other one is.

/// Numbers that are no further apart may be of one track: a gap, or a late message.
pub const NEAR: u64 = 8;
/// So many turns between two tracks are two agents.
pub const TURNS: u32 = 3;
/// After so many messages of one track in a row, the other one is forgotten.
pub const FORGET: u32 = 64;
/// Numbers above this are compared as if they were this.
const LARGEST: u64 = 1 << 52;

/// The last two tracks of sequence numbers of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tracks {
    /// Last number of the track that the last message was of.
    pub here: Option<u64>,
    /// Last number of the track before.
    pub other: Option<u64>,
    /// Whether `here` is the one that began later.
    pub newer: bool,
    /// Turns from one track to the other, up to [`TURNS`].
    pub turns: u32,
    /// Messages since the last turn, up to [`FORGET`].
    pub run: u32,
}

/// Where a number belongs.
enum Place {
    Here,
    Other,
    /// Behind the track it is of.
    Late,
    New,
}

impl Tracks {
    /// Takes the next number. `false`: there are two agents, and it is of the one that came later.
    pub fn take(&mut self, sequence_num: u64, has_description: bool) -> bool {
        let number = sequence_num.min(LARGEST);
        match self.place(number, has_description) {
            Place::Here => {
                self.here = Some(number);
                self.run = (self.run + 1).min(FORGET);
                if self.run == FORGET {
                    *self = Self { here: self.here, run: FORGET, ..Self::default() };
                }
            }
            Place::Other if self.turns == TURNS && !self.newer => {
                self.other = Some(number);
                return false;
            }
            Place::Other => {
                let turns = (self.turns + 1).min(TURNS);
                *self = Self { here: Some(number), other: self.here, newer: !self.newer, turns, run: 0 };
            }
            Place::Late => {}
            Place::New => {
                let newer = self.here.is_some();
                *self = Self { here: Some(number), other: self.here, newer, turns: 0, run: 0 };
            }
        }
        true
    }

    fn place(&self, number: u64, has_description: bool) -> Place {
        let Some(here) = self.here else { return Place::New };
        let goes_on = |from: u64| number == from + 1;
        let follows = |from: u64| number >= from && number - from <= NEAR;
        match self.other {
            _ if goes_on(here) => Place::Here,
            Some(other) if goes_on(other) => Place::Other,
            // One that was refused tries again.
            Some(other) if number == other && self.turns == TURNS => Place::Other,
            _ if follows(here) => Place::Here,
            Some(other) if number > other && follows(other) => Place::Other,
            _ if number > here || has_description || here - number > NEAR => Place::New,
            _ => Place::Late,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes these; a negative one has a description. Returns those that are of the newcomer.
    fn refused(numbers: &[i64]) -> Vec<i64> {
        let mut tracks = Tracks::default();
        let is_newcomers = |number: &i64| !tracks.take(number.unsigned_abs(), *number < 0);
        numbers.iter().copied().filter(is_newcomers).collect()
    }

    #[test]
    fn two_agents_are_told_apart_at_the_third_turn() {
        let refused = |text: &[i64]| refused(text);
        // One at 50, then another one that begins with 1.
        assert_eq!(refused(&[50, 51, -1, 52, 2, 53, 3, 54, 4, 5, 55]), [3, 4, 5]);
        // Both near each other.
        assert_eq!(refused(&[-2, 3, -1, 4, 2, 5, 3, 6, 4, 7]), [3, 4]);
        // Nothing of their beginnings was seen.
        assert_eq!(refused(&[50, 7, 51, 8, 52, 9, 53, 10]), [9, 10]);
        // With gaps.
        assert_eq!(refused(&[50, -1, 53, 3, 55, 5, 58, 7]), [5, 7]);
        // What is refused comes again.
        assert_eq!(refused(&[-2, 3, -1, 4, 2, 5, 3, 3, 3, 6, 4, 4]), [3, 3, 3, 4, 4]);
        // One of them polls seldom.
        let seldom: Vec<i64> = (0..4).flat_map(|at| (50 + at * 9..59 + at * 9).chain([at + 1])).collect();
        assert_eq!(refused(&seldom), [3, 4]);
    }

    #[test]
    fn one_agent_is_one_agent() {
        // Repeats, gaps, late messages, disorder.
        assert_eq!(refused(&[-1, 2, 2, 2, 3, 5, 4, 6, 8, 7, 9, 9, 30, 31, 200, 201]), [0; 0]);
        assert_eq!(refused(&[3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15]), [0; 0]);
        // Restarts, also past where it was before, also often.
        let lives: Vec<i64> = (1..9).flat_map(|life| std::iter::once(-1).chain(2..life * 7)).collect();
        assert_eq!(refused(&lives), [0; 0]);
    }

    #[test]
    fn a_track_that_is_not_heard_any_more_is_forgotten() {
        let mut numbers = vec![50, -1, 51, 2, 52];
        numbers.extend(53..53 + i64::from(FORGET));
        numbers.push(3);
        assert_eq!(refused(&numbers), [0; 0]);
    }

    proptest! {
        /// An agent whose messages come at most a few places out of order, some lost and some twice.
        #[test]
        fn no_disorder_of_one_agent_makes_two(
            start in 0_u64..1000,
            steps in proptest::collection::vec((0_u64..4, 0_u64..4), 1..200),
        ) {
            let mut tracks = Tracks::default();
            let mut at = start + 4;
            tracks.take(at, true);
            for (forward, back) in steps {
                at += forward;
                prop_assert!(tracks.take(at - back, false));
            }
        }

        /// Two that take turns, wherever they are, once they are apart.
        #[test]
        fn two_that_take_turns_are_found(one in 0_u64..10_000, two in 0_u64..10_000) {
            prop_assume!(one.abs_diff(two) > NEAR + 1);
            let mut tracks = Tracks::default();
            let mut refused = 0;
            for at in 0..4 {
                prop_assert!(tracks.take(one + at, false));
                refused += u32::from(!tracks.take(two + at, at == 0));
            }
            prop_assert_eq!(refused, 2);
        }

        #[test]
        fn no_number_is_too_large(numbers in proptest::collection::vec(any::<(u64, bool)>(), 0..50)) {
            let mut tracks = Tracks::default();
            for (number, described) in numbers {
                tracks.take(number, described);
                tracks.take(u64::MAX, described);
            }
        }
    }
}
