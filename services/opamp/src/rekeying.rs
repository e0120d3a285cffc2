//! New instance_uids that were given on one connection, and whether they are taken.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_domain::ids::{InstanceUid, Timestamp};

/// Times that one uid is answered with a new one on a connection; then it is refused.
const TRIES: u32 = 3;
/// Messages that come this soon after a new uid was given were sent before the agent could know of it.
const UNDER_WAY: Duration = Duration::from_secs(5);
/// A uid that was refused is refused for this long, without looking whether the other agent still lives.
const REFUSED_FOR: Duration = Duration::from_secs(30);

/// Where a message under some uid belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the session of this uid.
    Session(InstanceUid),
    /// Nowhere: it is answered with the new uid, or refused if there is none.
    Away(Option<InstanceUid>),
}

/// The new uids of one connection.
#[derive(Debug, Default)]
pub(crate) struct Rekeying {
    /// By the uid that the agent used.
    given: BTreeMap<InstanceUid, Given>,
    /// The uid that the agent used, by the new one, while that is not taken.
    open: BTreeMap<InstanceUid, InstanceUid>,
}

#[derive(Debug)]
struct Given {
    /// None where the uid is refused.
    new_uid: Option<InstanceUid>,
    /// The agent asked for it: what it says under the old uid is said under the new one. Otherwise the old
    /// uid is another agent's.
    asked_for: bool,
    tries: u32,
    /// What is said here holds until then.
    until: Timestamp,
}

impl Rekeying {
    /// Where a message under this uid belongs.
    pub(crate) fn way(&mut self, uid: InstanceUid, now: Timestamp) -> Way {
        let Some(given) = self.given.get_mut(&uid) else { return Way::Session(uid) };
        let over = now >= given.until;
        match given.new_uid {
            // The other agent may be dead by now.
            _ if over && !given.asked_for => Way::Session(uid),
            // Who took its uid and comes with the old one begins anew.
            Some(new_uid) if given.asked_for && !self.open.contains_key(&new_uid) => Way::Session(uid),
            new_uid if !given.asked_for => Way::Away(new_uid),
            Some(_) if over && given.tries >= TRIES => {
                given.new_uid = None;
                Way::Away(None)
            }
            Some(new_uid) => {
                if over {
                    given.tries += 1;
                    given.until = now.plus(UNDER_WAY);
                }
                Way::Session(new_uid)
            }
            None => Way::Away(None),
        }
    }

    /// The agent that uses this uid is to use the new one: one that it asked for, or one in the place of
    /// another agent's. Returns the one that it is given; none if there is none or if it had some and did
    /// not take them: then it is refused. Nothing is remembered of more than `most` uids.
    pub(crate) fn give(
        &mut self,
        uid: InstanceUid,
        new_uid: Option<InstanceUid>,
        asked_for: bool,
        most: usize,
        now: Timestamp,
    ) -> Option<InstanceUid> {
        let before = self.given.get(&uid);
        let tries = before.map_or(0, |before| before.tries);
        // One that was given and not taken stays the one.
        let open = before.and_then(|before| before.new_uid).filter(|new_uid| self.open.contains_key(new_uid));
        let new_uid = match new_uid {
            Some(_) if tries >= TRIES => None,
            Some(new_uid) if asked_for => Some(new_uid),
            Some(new_uid) => Some(open.unwrap_or(new_uid)),
            None => None,
        };
        if before.is_some() || self.given.len() < most {
            let until = now.plus(if new_uid.is_some() { UNDER_WAY } else { REFUSED_FOR });
            self.given.insert(uid, Given { new_uid, asked_for, tries: tries.saturating_add(1), until });
            if let Some(new_uid) = new_uid {
                self.open.insert(new_uid, uid);
            }
        }
        new_uid
    }

    /// The uid is the agent's after all.
    pub(crate) fn forget(&mut self, uid: InstanceUid) {
        if self.given.remove(&uid).is_some() {
            self.open.retain(|_, used| *used != uid);
        }
    }

    /// An agent uses this uid. Returns the one that it used before, the first time.
    pub(crate) fn taken(&mut self, new_uid: InstanceUid) -> Option<InstanceUid> {
        self.open.remove(&new_uid)
    }

    /// The uids whose agents did not take the new one, once.
    pub(crate) fn not_taken(&mut self) -> impl Iterator<Item = InstanceUid> {
        std::mem::take(&mut self.open).into_values()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);
    const LATER: Timestamp = Timestamp(NOW.0 + 5_000_000);
    const MOST: usize = 2;

    fn uid(number: u8) -> InstanceUid {
        InstanceUid(Uuid::from_bytes([number; 16]))
    }

    #[test]
    fn a_duplicate_gets_one_new_uid_three_times_and_is_then_refused() {
        let mut rekeying = Rekeying::default();
        let mut now = NOW;
        for other in 2..5 {
            assert_eq!(rekeying.way(uid(1), now), Way::Session(uid(1)), "it is looked into again");
            assert_eq!(rekeying.give(uid(1), Some(uid(other)), false, MOST, now), Some(uid(2)));
            assert_eq!(rekeying.way(uid(1), now), Way::Away(Some(uid(2))), "sent before the answer came");
            now = now.plus(UNDER_WAY);
        }
        assert_eq!(rekeying.give(uid(1), Some(uid(9)), false, MOST, now), None);
        assert_eq!(rekeying.way(uid(1), now), Way::Away(None));
        now = now.plus(REFUSED_FOR);
        assert_eq!(rekeying.way(uid(1), now), Way::Session(uid(1)), "the other may be dead by now");
        assert_eq!(rekeying.give(uid(1), Some(uid(9)), false, MOST, now), None);
        assert_eq!(rekeying.not_taken().collect::<Vec<_>>(), [uid(1)]);
    }

    #[test]
    fn one_that_took_its_uid_and_uses_the_old_one_again_is_bounded_too() {
        let mut rekeying = Rekeying::default();
        let mut now = NOW;
        for new in 2..5 {
            assert_eq!(rekeying.give(uid(1), Some(uid(new)), false, MOST, now), Some(uid(new)));
            assert_eq!(rekeying.taken(uid(new)), Some(uid(1)));
            assert_eq!(rekeying.taken(uid(new)), None);
            now = now.plus(UNDER_WAY);
        }
        assert_eq!(rekeying.give(uid(1), Some(uid(5)), false, MOST, now), None);
        assert_eq!(rekeying.not_taken().count(), 0);
    }

    #[test]
    fn what_is_said_under_the_uid_of_the_request_is_said_under_the_new_one() {
        let mut rekeying = Rekeying::default();
        assert_eq!(rekeying.give(uid(1), Some(uid(2)), true, MOST, NOW), Some(uid(2)));
        let mut now = NOW;
        for _ in 0..TRIES {
            assert_eq!(rekeying.way(uid(1), now), Way::Session(uid(2)));
            assert_eq!(rekeying.way(uid(1), now), Way::Session(uid(2)));
            now = now.plus(UNDER_WAY);
        }
        assert_eq!(rekeying.way(uid(1), now), Way::Away(None));
        assert_eq!(rekeying.way(uid(1), now.plus(REFUSED_FOR * 10)), Way::Away(None));
    }

    #[test]
    fn requests_for_uids_are_bounded_too() {
        let mut rekeying = Rekeying::default();
        for new in 2..5 {
            assert_eq!(rekeying.way(uid(1), NOW), Way::Session(uid(1)));
            assert_eq!(rekeying.give(uid(1), Some(uid(new)), true, MOST, NOW), Some(uid(new)));
            rekeying.taken(uid(new));
        }
        assert_eq!(rekeying.give(uid(1), Some(uid(9)), true, MOST, NOW), None);
    }

    #[test]
    fn a_uid_that_is_the_agents_after_all_is_forgotten() {
        let mut rekeying = Rekeying::default();
        rekeying.give(uid(1), Some(uid(2)), false, MOST, NOW);
        rekeying.forget(uid(1));
        assert_eq!(rekeying.way(uid(1), NOW), Way::Session(uid(1)));
        assert_eq!(rekeying.not_taken().count(), 0);
    }

    #[test]
    fn who_has_no_patience_left_is_refused_at_once() {
        let mut rekeying = Rekeying::default();
        assert_eq!(rekeying.give(uid(1), None, false, MOST, NOW), None);
        assert_eq!(rekeying.way(uid(1), LATER), Way::Away(None));
    }

    #[test]
    fn a_bounded_number_is_remembered() {
        let mut rekeying = Rekeying::default();
        for number in 1..100 {
            let given = rekeying.give(uid(number), Some(uid(number + 100)), false, MOST, NOW);
            assert_eq!(given, Some(uid(number + 100)));
        }
        assert_eq!((rekeying.given.len(), rekeying.open.len()), (MOST, MOST));
    }
}
