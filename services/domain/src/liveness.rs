//! Whether an agent can be reached, told by its session: what operators look for first.

use std::collections::BTreeSet;
use std::str::FromStr;

use crate::agent::{Agent, EndReason, Session};

/// Whether an agent can be reached, and if not, whose doing that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Liveness {
    /// A session is live, and the agent is heard on it.
    Connected,
    /// It should be there and is not heard: silent on a connection that is open or was given up, or lost
    /// without a word.
    Unreachable,
    /// Its connection was closed in order, or by the server, or was lost with the server.
    Disconnected,
    /// It said goodbye (agent_disconnect).
    ShutDown,
}

impl Liveness {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Connected, Self::Unreachable, Self::Disconnected, Self::ShutDown];

    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Unreachable => "unreachable",
            Self::Disconnected => "disconnected",
            Self::ShutDown => "shut_down",
        }
    }
}

/// A text that names no [`Liveness`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none: use connected, unreachable, disconnected or shut_down")]
pub struct NoLiveness(String);

impl FromStr for Liveness {
    type Err = NoLiveness;

    fn from_str(text: &str) -> Result<Self, NoLiveness> {
        let named = Self::ALL.into_iter().find(|liveness| liveness.name() == text);
        named.ok_or_else(|| NoLiveness(text.to_owned()))
    }
}

impl EndReason {
    /// What an agent is whose session ended so. The loss of a gateway is no fault of its agents.
    pub fn liveness(self) -> Liveness {
        match self {
            Self::AgentDisconnect => Liveness::ShutDown,
            Self::ConnectionLost | Self::Silent => Liveness::Unreachable,
            Self::Closed
            | Self::Operator
            | Self::GatewayStopped
            | Self::GatewayLost
            | Self::Superseded
            | Self::ProtocolError => Liveness::Disconnected,
        }
    }

    /// The nearest reason that every version of the program knows: rows are read by several.
    pub fn known_to_all(self) -> Self {
        match self {
            Self::Closed | Self::Operator => Self::ConnectionLost,
            other => other,
        }
    }
}

impl Session {
    /// What the agent is as far as this session tells.
    pub fn liveness(&self) -> Liveness {
        match (self.ended, self.silent_since) {
            (Some((_, reason)), _) => reason.liveness(),
            (None, Some(_)) => Liveness::Unreachable,
            (None, None) => Liveness::Connected,
        }
    }
}

impl Agent {
    /// Whether the agent can be reached.
    pub fn liveness(&self) -> Liveness {
        self.session.as_ref().map_or(Liveness::Disconnected, Session::liveness)
    }
}

/// Agents that are looked for by what they are, beside their attributes and labels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgentFilter {
    /// Those that are one of these; any where it is empty.
    pub liveness: BTreeSet<Liveness>,
    /// Those that have drifted, or have not.
    pub drifted: Option<bool>,
}

impl AgentFilter {
    /// Whether the agent is looked for.
    pub fn matches(&self, agent: &Agent) -> bool {
        (self.liveness.is_empty() || self.liveness.contains(&agent.liveness()))
            && self.drifted.is_none_or(|drifted| agent.state.drift.is_some() == drifted)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::agent::{AgentEvent, Entry};
    use crate::ids::{AgentKey, Claim, Incarnation, InstanceUid, SessionId, Timestamp};

    fn agent() -> Agent {
        let uid = InstanceUid(Uuid::from_u128(1));
        Agent::new(AgentKey { tenant: "default".parse().unwrap(), uid }, Timestamp(0))
    }

    fn entry(session: u128, at: u64) -> Entry {
        Entry {
            session: SessionId(Uuid::from_u128(session)),
            claim: Claim(session as u64),
            gateway: "gw-1".parse().unwrap(),
            incarnation: Incarnation(Uuid::from_u128(9)),
            received_at: Timestamp(at),
            sequence_num: at,
            started: None,
            report: None,
            sent: None,
            ended: None,
            silent: false,
            unsent: None,
        }
    }

    #[test]
    fn the_end_of_a_session_tells_what_the_agent_is() {
        let cases = [
            (EndReason::AgentDisconnect, "shut_down"),
            (EndReason::ConnectionLost, "unreachable"),
            (EndReason::Silent, "unreachable"),
            (EndReason::Closed, "disconnected"),
            (EndReason::Operator, "disconnected"),
            (EndReason::GatewayStopped, "disconnected"),
            (EndReason::GatewayLost, "disconnected"),
            (EndReason::ProtocolError, "disconnected"),
        ];
        assert_eq!(agent().liveness(), Liveness::Disconnected);
        for (reason, expected) in cases {
            let mut agent = agent();
            agent.fold(entry(1, 1));
            assert_eq!(agent.liveness(), Liveness::Connected);
            agent.fold(Entry { ended: Some(reason), ..entry(1, 2) });
            assert_eq!(agent.liveness().name(), expected, "{reason:?}");
        }
    }

    #[test]
    fn an_agent_that_is_silent_is_unreachable_until_it_is_heard() {
        let mut agent = agent();
        agent.fold(entry(1, 1));
        let silent = agent.fold(Entry { silent: true, ..entry(1, 2) });
        assert_eq!(silent.events, [AgentEvent::Unreachable]);
        assert!(silent.session_changed && !silent.state_changed);
        assert_eq!(agent.liveness(), Liveness::Unreachable);
        assert!(agent.live_session().is_some(), "it is still sent what it should run");
        assert_eq!(agent.fold(Entry { silent: true, ..entry(1, 3) }).events, []);
        let heard = agent.fold(entry(1, 4));
        assert_eq!(heard.events, [AgentEvent::Reachable]);
        assert_eq!(agent.liveness(), Liveness::Connected);
        // A new session begins as its first entry says, and the end of one is the end of its silence.
        let claimed_anew = agent.fold(Entry { silent: true, ..entry(2, 5) });
        assert_eq!(claimed_anew.events, [AgentEvent::Connected, AgentEvent::Unreachable]);
        let ended = agent.fold(Entry { silent: true, ended: Some(EndReason::GatewayLost), ..entry(2, 6) });
        assert_eq!(ended.events, [AgentEvent::Disconnected(EndReason::GatewayLost)]);
        assert_eq!(agent.liveness(), Liveness::Disconnected);
    }

    #[test]
    fn a_filter_looks_for_any_of_its_kinds() {
        let mut agent = agent();
        agent.fold(entry(1, 1));
        let of =
            |kinds: &[Liveness], drifted| AgentFilter { liveness: kinds.iter().copied().collect(), drifted };
        assert!(of(&[], None).matches(&agent));
        assert!(of(&[Liveness::ShutDown, Liveness::Connected], Some(false)).matches(&agent));
        assert!(!of(&[Liveness::ShutDown], None).matches(&agent));
        assert!(!of(&[], Some(true)).matches(&agent));
        assert_eq!(Liveness::ALL.map(|one| one.name().parse()), Liveness::ALL.map(Ok));
        assert!("gone".parse::<Liveness>().is_err());
    }
}
