//! Who an agent is: what follows from the fleet's seed and the agent's index.

use muster_proto::opamp::{AgentDescription, AnyValue, KeyValue, any_value};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use crate::kind::Kind;

const REGIONS: [(&str, &str); 3] = [("eu-west-1", "euw1"), ("us-east-1", "use1"), ("ap-south-1", "aps1")];
const ENVIRONMENTS: [&str; 4] = ["prod", "prod", "staging", "dev"];
const TEAMS: [&str; 5] = ["payments", "checkout", "search", "platform", "data"];
const SYSTEMS: [&str; 6] = ["linux", "linux", "linux", "linux", "linux", "windows"];

/// 2026-01-01, in milliseconds since 1970: the time in uids that are made from the seed.
const STABLE_EPOCH: u64 = 1_767_225_600_000;

/// The facts of one agent that never change, but for its uid.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) index: usize,
    pub(crate) uid: Uuid,
    pub(crate) kind: Kind,
    version: &'static str,
    region: &'static str,
    environment: &'static str,
    team: &'static str,
    system: &'static str,
    host: String,
}

/// The source of everything random about one agent, apart from those of the others.
pub(crate) fn random(seed: u64, index: usize) -> StdRng {
    // The finalizer of SplitMix64 spreads neighbouring indexes.
    let mut mixed = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    StdRng::seed_from_u64(mixed ^ (mixed >> 31))
}

impl Identity {
    /// Draws the agent's facts; always as many draws, so that what follows stays the same.
    pub(crate) fn draw(random: &mut StdRng, index: usize, kind: Kind, stable_uid: bool) -> Self {
        let mut pick = |count: usize| random.random_range(0..count.max(1));
        let (region, code) = REGIONS[pick(REGIONS.len())];
        let environment = ENVIRONMENTS[pick(ENVIRONMENTS.len())];
        let team = TEAMS[pick(TEAMS.len())];
        let system = SYSTEMS[pick(SYSTEMS.len())];
        let versions = kind.versions();
        let version = versions[pick(versions.len())];
        let bytes: [u8; 10] = random.random();
        let uid = match stable_uid {
            true => {
                uuid::Builder::from_unix_timestamp_millis(STABLE_EPOCH + index as u64, &bytes).into_uuid()
            }
            false => Uuid::now_v7(),
        };
        let host = format!("{team}-{code}-{index:04}");
        Self { index, uid, kind, version, region, environment, team, system, host }
    }

    pub(crate) fn description(&self) -> AgentDescription {
        let uid = self.uid.hyphenated().to_string();
        AgentDescription {
            identifying_attributes: vec![
                text("service.name", self.kind.service_name()),
                text("service.version", self.version),
                text("service.instance.id", uid),
            ],
            non_identifying_attributes: vec![
                text("os.type", self.system),
                text("host.name", self.host.as_str()),
                text("cloud.region", self.region),
                text("deployment.environment", self.environment),
                text("team", self.team),
            ],
        }
    }
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.into())) };
    KeyValue { key: key.to_owned(), value: Some(value) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn draw(seed: u64, index: usize) -> Identity {
        Identity::draw(&mut random(seed, index), index, Kind::Collector, true)
    }

    #[test]
    fn the_same_seed_gives_the_same_agents() {
        for index in 0..100 {
            let (first, second) = (draw(7, index), draw(7, index));
            assert_eq!(first.uid, second.uid);
            assert_eq!(first.description(), second.description());
            assert_ne!(first.uid, draw(8, index).uid);
        }
    }

    #[test]
    fn uids_are_distinct_and_of_version_7() {
        let uids: BTreeSet<Uuid> = (0..1000).map(|index| draw(7, index).uid).collect();
        assert_eq!(uids.len(), 1000);
        assert!(uids.iter().all(|uid| uid.get_version_num() == 7));
    }

    #[test]
    fn agents_differ_in_their_attributes() {
        let agents: Vec<Identity> = (0..200).map(|index| draw(7, index)).collect();
        let distinct = |of: fn(&Identity) -> &str| agents.iter().map(of).collect::<BTreeSet<_>>().len();
        assert_eq!(distinct(|agent| agent.region), 3);
        assert_eq!(distinct(|agent| agent.environment), 3);
        assert_eq!(distinct(|agent| agent.team), 5);
        assert_eq!(distinct(|agent| agent.version), 3);
        assert_eq!(distinct(|agent| &agent.host), 200);
    }

    #[test]
    fn unstable_uids_leave_the_rest_as_it_is() {
        let (mut stable, mut other) = (random(7, 3), random(7, 3));
        let stable_one = Identity::draw(&mut stable, 3, Kind::Custom, true);
        let other_one = Identity::draw(&mut other, 3, Kind::Custom, false);
        assert_ne!(stable_one.uid, other_one.uid);
        assert_eq!(stable_one.host, other_one.host);
        assert_eq!(stable.random::<u64>(), other.random::<u64>());
    }
}
