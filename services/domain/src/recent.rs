//! A bounded memory of what happened lately.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Duration;

use crate::ids::Timestamp;

/// Values by key that are forgotten some time after they were put in, and before that where there are
/// too many: the oldest first.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    values: HashMap<K, Kept<V>>,
    /// The keys in the order in which they were put in.
    order: BTreeMap<u64, K>,
    next: u64,
    keep: Duration,
    most: usize,
}

#[derive(Debug)]
struct Kept<V> {
    place: u64,
    until: Timestamp,
    value: V,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    /// Remembers at most this many values for this long.
    pub(crate) fn new(keep: Duration, most: usize) -> Self {
        Self { values: HashMap::new(), order: BTreeMap::new(), next: 0, keep, most }
    }

    /// The value that was put in lately.
    pub(crate) fn get(&self, key: &K, now: Timestamp) -> Option<&V> {
        self.values.get(key).filter(|kept| now < kept.until).map(|kept| &kept.value)
    }

    /// As [`get`](Self::get). The value is forgotten when it would have been without this.
    pub(crate) fn get_mut(&mut self, key: &K, now: Timestamp) -> Option<&mut V> {
        self.values.get_mut(key).filter(|kept| now < kept.until).map(|kept| &mut kept.value)
    }

    /// Puts a value in, in the place of one that may be there.
    pub(crate) fn put(&mut self, key: K, value: V, now: Timestamp) {
        self.remove(&key);
        let place = self.next;
        self.next += 1;
        self.order.insert(place, key.clone());
        self.values.insert(key, Kept { place, until: now.plus(self.keep), value });
        while let Some(first) = self.order.first_entry() {
            let old = self.values.get(first.get()).is_none_or(|kept| kept.until <= now);
            if !old && self.values.len() <= self.most {
                break;
            }
            self.values.remove(&first.remove());
        }
    }

    /// Forgets a value.
    pub(crate) fn remove(&mut self, key: &K) {
        if let Some(kept) = self.values.remove(key) {
            self.order.remove(&kept.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEEP: Duration = Duration::from_micros(10);

    #[test]
    fn what_is_old_is_forgotten() {
        let mut recent = Recent::new(KEEP, 100);
        recent.put("a", 1, Timestamp(0));
        assert_eq!(recent.get(&"a", Timestamp(9)), Some(&1));
        assert_eq!(recent.get(&"a", Timestamp(10)), None);
        assert_eq!(recent.get_mut(&"a", Timestamp(10)), None);
        recent.put("b", 2, Timestamp(10));
        assert_eq!((recent.values.len(), recent.order.len()), (1, 1));
        recent.remove(&"b");
        assert_eq!(recent.get(&"b", Timestamp(10)), None);
    }

    #[test]
    fn the_oldest_gives_way() {
        let mut recent = Recent::new(KEEP, 2);
        for (n, key) in ["a", "b", "c"].into_iter().enumerate() {
            recent.put(key, n, Timestamp(n as u64));
        }
        let known = ["a", "b", "c"].map(|key| recent.get(&key, Timestamp(3)).copied());
        assert_eq!(known, [None, Some(1), Some(2)]);
    }

    proptest! {
        /// Whatever is put in and removed: it stays bounded, and what was put in last is there.
        #[test]
        fn it_stays_bounded(steps in proptest::collection::vec((0_u8..6, 0_u64..4, any::<bool>()), 0..200)) {
            let mut recent = Recent::new(KEEP, 4);
            let mut now = Timestamp(0);
            for (key, later, put) in steps {
                now.0 += later;
                if put {
                    recent.put(key, now, now);
                    prop_assert_eq!(recent.get(&key, now), Some(&now));
                } else {
                    recent.remove(&key);
                    prop_assert_eq!(recent.get(&key, now), None);
                }
                prop_assert!(recent.values.len() == recent.order.len() && recent.order.len() <= 4);
            }
        }
    }
}
