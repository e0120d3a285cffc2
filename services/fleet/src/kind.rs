//! The kinds of agents, and how many of each a fleet has.

use std::fmt;

use muster_proto::opamp::AgentCapabilities;

/// What an agent is and how it behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An OpenTelemetry Collector under its supervisor.
    Collector,
    /// Fluent Bit.
    FluentBit,
    /// An agent of somebody's own, which takes no remote configuration.
    Custom,
    /// A collector whose exporter is stuck.
    Unhealthy,
    /// A collector that refuses every configuration.
    Rejecting,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] =
        [Self::Collector, Self::FluentBit, Self::Custom, Self::Unhealthy, Self::Rejecting];

    /// The kind's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Collector => "collector",
            Self::FluentBit => "fluent-bit",
            Self::Custom => "custom",
            Self::Unhealthy => "unhealthy",
            Self::Rejecting => "rejecting",
        }
    }

    /// The `service.name` that agents of this kind report.
    pub fn service_name(self) -> &'static str {
        match self {
            Self::Collector | Self::Unhealthy | Self::Rejecting => "io.opentelemetry.collector",
            Self::FluentBit => "fluent-bit",
            Self::Custom => "acme-agent",
        }
    }

    /// Whether agents of this kind apply remote configurations, or try to.
    pub fn accepts_remote_config(self) -> bool {
        self != Self::Custom
    }

    /// The bits of `AgentToServer.capabilities`.
    pub fn capabilities(self) -> u64 {
        let all = AgentCapabilities::ReportsStatus as u64
            | AgentCapabilities::ReportsEffectiveConfig as u64
            | AgentCapabilities::ReportsHealth as u64
            | AgentCapabilities::ReportsHeartbeat as u64;
        match self.accepts_remote_config() {
            true => {
                all | AgentCapabilities::AcceptsRemoteConfig as u64
                    | AgentCapabilities::ReportsRemoteConfig as u64
                    | AgentCapabilities::AcceptsRestartCommand as u64
            }
            false => all,
        }
    }

    /// Whether agents of this kind obey the restart command, as a supervisor does.
    pub fn restarts(self) -> bool {
        self.capabilities() & AgentCapabilities::AcceptsRestartCommand as u64 != 0
    }

    /// Whether agents of this kind pause and resume.
    pub fn pauses(self) -> bool {
        self == Self::Custom
    }

    pub(crate) fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Collector | Self::Unhealthy | Self::Rejecting => &["0.139.0", "0.141.0", "0.128.0"],
            Self::FluentBit => &["4.1.1", "4.2.0", "3.2.10"],
            Self::Custom => &["2.4.1", "2.5.0"],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How many agents of each kind a fleet has, as weights against each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// Weight of [`Kind::Collector`].
    pub collector: f64,
    /// Weight of [`Kind::FluentBit`].
    pub fluent_bit: f64,
    /// Weight of [`Kind::Custom`].
    pub custom: f64,
    /// Weight of [`Kind::Unhealthy`].
    pub unhealthy: f64,
    /// Weight of [`Kind::Rejecting`].
    pub rejecting: f64,
}

impl Default for Mix {
    /// Of 25 agents: 14 collectors, 5 Fluent Bits, 3 custom ones, 2 unhealthy, 1 that rejects.
    fn default() -> Self {
        Self { collector: 14.0, fluent_bit: 5.0, custom: 3.0, unhealthy: 2.0, rejecting: 1.0 }
    }
}

impl Mix {
    /// Agents of one kind alone.
    pub fn only(kind: Kind) -> Self {
        let weight = |of: Kind| if of == kind { 1.0 } else { 0.0 };
        Self {
            collector: weight(Kind::Collector),
            fluent_bit: weight(Kind::FluentBit),
            custom: weight(Kind::Custom),
            unhealthy: weight(Kind::Unhealthy),
            rejecting: weight(Kind::Rejecting),
        }
    }

    fn weight(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Collector => self.collector,
            Kind::FluentBit => self.fluent_bit,
            Kind::Custom => self.custom,
            Kind::Unhealthy => self.unhealthy,
            Kind::Rejecting => self.rejecting,
        }
    }

    /// Whether every weight is a number, none is negative, and one is more than zero.
    pub(crate) fn is_valid(&self) -> bool {
        let weights = Kind::ALL.map(|kind| self.weight(kind));
        weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0)
            && weights.iter().any(|weight| *weight > 0.0)
    }

    /// The kinds of the agents 0, 1, 2 and so on; an agent's kind does not depend on the size of
    /// the fleet. The first agents are one of each kind, so that small fleets have them all.
    pub(crate) fn kinds(self) -> impl Iterator<Item = Kind> {
        let total: f64 = Kind::ALL.iter().map(|kind| self.weight(*kind)).sum();
        let present: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| self.weight(*kind) > 0.0).collect();
        let mut given = vec![0_u32; present.len()];
        (0_u32..).map_while(move |index| {
            let lack =
                |at: usize| f64::from(index + 1) * self.weight(present[at]) / total - f64::from(given[at]);
            let at = match usize::try_from(index) {
                Ok(first) if first < present.len() => first,
                _ => (0..present.len()).max_by(|a, b| lack(*a).total_cmp(&lack(*b)))?,
            };
            given[at] += 1;
            Some(present[at])
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn count(mix: Mix, agents: usize) -> BTreeMap<Kind, usize> {
        mix.kinds().take(agents).fold(BTreeMap::new(), |mut counts, kind| {
            *counts.entry(kind).or_default() += 1;
            counts
        })
    }

    #[test]
    fn the_demo_has_some_of_every_kind() {
        let expected = [
            (Kind::Collector, 14),
            (Kind::FluentBit, 5),
            (Kind::Custom, 3),
            (Kind::Unhealthy, 2),
            (Kind::Rejecting, 1),
        ];
        assert_eq!(count(Mix::default(), 25), BTreeMap::from(expected));
        assert_eq!(count(Mix::default(), 5).len(), 5);
    }

    #[test]
    fn large_fleets_follow_the_weights() {
        let counts = count(Mix::default(), 1000);
        assert_eq!(counts[&Kind::Collector], 560);
        assert_eq!(counts[&Kind::Rejecting], 40);
    }

    #[test]
    fn one_kind_alone() {
        assert_eq!(count(Mix::only(Kind::FluentBit), 100), BTreeMap::from([(Kind::FluentBit, 100)]));
    }

    #[test]
    fn impossible_weights_are_known() {
        let nothing = Mix { collector: 0.0, ..Mix::only(Kind::Collector) };
        assert!(!nothing.is_valid());
        assert!(!Mix { custom: -1.0, ..Mix::default() }.is_valid());
        assert!(!Mix { custom: f64::NAN, ..Mix::default() }.is_valid());
        assert_eq!(nothing.kinds().count(), 0);
    }
}
