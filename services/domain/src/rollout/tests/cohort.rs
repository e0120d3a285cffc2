//! Which agents a stage admits.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::cohort::{Candidate, Population};
use super::super::strategy::Size;
use super::{share, uid};

fn population(count: u128, exposed: &[u128]) -> Population {
    Population {
        candidates: (0..count).map(|n| Candidate { uid: uid(n), is_of_stage: n % 4 == 0 }).collect(),
        exposed: exposed.iter().map(|n| uid(*n)).collect(),
    }
}

#[test]
fn the_order_has_a_test_vector() {
    // Agents that have a change would lose their places if the order moved.
    let first: Vec<_> = population(8, &[]).next("blue", &Size::Count(3), 3);
    assert_eq!(first, VECTOR.map(uid));
    assert_ne!(
        population(8, &[]).next("red", &Size::Count(3), 3),
        first,
        "another assignment, another order"
    );
}

const VECTOR: [u128; 3] = [7, 1, 0];

#[test]
fn targets_are_exact() {
    let cases = [
        (Size::Share(share(0.05)), 100, 0, 5),
        (Size::Share(share(0.05)), 1, 0, 1),
        (Size::Share(share(0.05)), 0, 0, 0),
        (Size::Share(share(0.05)), 100, 9, 9),
        (Size::Count(10), 4, 0, 10),
        (Size::Count(10), 100, 3, 10),
        (Size::Matching(Default::default()), 8, 0, 2),
        (Size::Matching(Default::default()), 8, 1, 2),
        (Size::Matching(Default::default()), 8, 2, 3),
    ];
    for (size, count, exposed, expected) in cases {
        let exposed: Vec<_> = (0..exposed).collect();
        assert_eq!(population(count, &exposed).target(&size), expected, "{size:?} of {count}, {exposed:?}");
    }
}

proptest! {
    /// A larger stage keeps the agents of a smaller one, whatever the fleet's order, and admits exactly as many
    /// as it should.
    #[test]
    fn cohorts_are_stable_and_grow(count in 1_u128..60, small in 1_u64..30, more in 0_u64..30, seed in any::<u64>()) {
        let whole = population(count, &[]);
        let size = Size::Count(small);
        let first = whole.next("a", &size, small);
        prop_assert_eq!(first.len() as u64, small.min(count as u64));
        let mut shuffled = whole.clone();
        shuffled.candidates.sort_by_key(|candidate| candidate.uid.0.as_u128().wrapping_mul(u128::from(seed) | 1));
        prop_assert_eq!(&shuffled.next("a", &size, small), &first);
        // In one go, or in two.
        let together = whole.next("a", &size, small + more);
        let rest = Population { exposed: first.iter().copied().collect(), ..whole.clone() };
        let second = rest.next("a", &size, more);
        let union: BTreeSet<_> = first.iter().chain(&second).copied().collect();
        prop_assert_eq!(union, together.into_iter().collect::<BTreeSet<_>>());
        prop_assert!(second.iter().all(|uid| !first.contains(uid)));
        // Newcomers do not displace those that were admitted.
        let grown = Population { exposed: first.iter().copied().collect(), ..population(count + 20, &[]) };
        prop_assert!(grown.next("a", &size, more).iter().all(|uid| !first.contains(uid)));
    }
}
