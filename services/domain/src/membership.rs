//! Which control works on which partition: rendezvous hashing over the members that are announced.

use crate::ids::{Digest, Partition};

/// The member that works on a partition: the one with the highest score, a digest of both names. A
/// member that joins or leaves moves only the partitions that it gains or had.
pub fn owner<'a>(partition: Partition, members: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let number = partition.number().to_be_bytes();
    members.into_iter().max_by_key(|member| {
        (Digest::of_parts([b"muster-partition-v1".as_slice(), &number, member.as_bytes()]), *member)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn owners<'a>(members: &[&'a str]) -> BTreeMap<u16, &'a str> {
        Partition::all()
            .map(|partition| (partition.number(), owner(partition, members.iter().copied()).unwrap()))
            .collect()
    }

    #[test]
    fn nobody_owns_without_members() {
        assert_eq!(Partition::all().find_map(|partition| owner(partition, [])), None);
    }

    #[test]
    fn two_members_share_about_evenly() {
        let first =
            owners(&["control-0", "control-1"]).into_values().filter(|owner| *owner == "control-0").count();
        assert!((16..=48).contains(&first), "{first}");
    }

    proptest! {
        /// Who joins takes from others only what it gets itself; the order of the list is nothing.
        #[test]
        fn a_join_moves_only_what_it_must(
            mut members in proptest::collection::btree_set("[a-z]{1,6}", 1..6),
            newcomer in "[A-Z]{1,6}",
        ) {
            let list: Vec<_> = members.iter().cloned().collect();
            let before: Vec<_> = list.iter().map(String::as_str).collect();
            members.insert(newcomer.clone());
            let mut after: Vec<_> = members.iter().map(String::as_str).collect();
            after.reverse();
            let (before, after) = (owners(&before), owners(&after));
            for (partition, owner) in after {
                prop_assert!(owner == newcomer || before[&partition] == owner);
            }
        }
    }
}
