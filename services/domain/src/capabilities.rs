//! What an agent or the server says that it can do: OpAMP's capability bits and their names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bits of AgentToServer.capabilities (enum AgentCapabilities). Unknown bits of newer agents are
/// kept. Zero means that the agent has not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AgentCapabilities(pub u64);

/// Name and bit of every agent capability of the specification.
const AGENT_NAMES: [(&str, u64); 16] = [
    ("ReportsStatus", 0x1),
    ("AcceptsRemoteConfig", 0x2),
    ("ReportsEffectiveConfig", 0x4),
    ("AcceptsPackages", 0x8),
    ("ReportsPackageStatuses", 0x10),
    ("ReportsOwnTraces", 0x20),
    ("ReportsOwnMetrics", 0x40),
    ("ReportsOwnLogs", 0x80),
    ("AcceptsOpAMPConnectionSettings", 0x100),
    ("AcceptsOtherConnectionSettings", 0x200),
    ("AcceptsRestartCommand", 0x400),
    ("ReportsHealth", 0x800),
    ("ReportsRemoteConfig", 0x1000),
    ("ReportsHeartbeat", 0x2000),
    ("ReportsAvailableComponents", 0x4000),
    ("ReportsConnectionSettingsStatus", 0x8000),
];

impl AgentCapabilities {
    /// The agent takes remote config.
    pub const ACCEPTS_REMOTE_CONFIG: Self = Self(0x2);
    /// The agent reports its effective config.
    pub const REPORTS_EFFECTIVE_CONFIG: Self = Self(0x4);
    /// The agent obeys the restart command.
    pub const ACCEPTS_RESTART_COMMAND: Self = Self(0x400);
    /// The agent reports its health.
    pub const REPORTS_HEALTH: Self = Self(0x800);
    /// The agent reports the status of its remote config.
    pub const REPORTS_REMOTE_CONFIG: Self = Self(0x1000);

    /// The agent reports the components that it can be configured with.
    pub const REPORTS_AVAILABLE_COMPONENTS: Self = Self(0x4000);
    /// ReportsHeartbeat.
    pub const REPORTS_HEARTBEAT: Self = Self(0x2000);

    /// Whether all these bits are set.
    pub fn has(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }

    /// Names of the bits that are set, in bit order; an unknown bit as `0x` and its value.
    pub fn names(self) -> Vec<String> {
        let known =
            AGENT_NAMES.iter().filter(|(_, bit)| self.0 & bit != 0).map(|(name, _)| (*name).to_owned());
        let all = AGENT_NAMES.iter().fold(0, |bits, (_, bit)| bits | bit);
        let unknown = (0..u64::BITS)
            .map(|shift| 1_u64 << shift)
            .filter(|bit| self.0 & !all & bit != 0)
            .map(|bit| format!("{bit:#x}"));
        known.chain(unknown).collect()
    }
}

impl fmt::Display for AgentCapabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(","))
    }
}

/// Bits of ServerToAgent.capabilities (enum ServerCapabilities). A bit is set only when the
/// feature behind it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ServerCapabilities(pub u64);

impl ServerCapabilities {
    /// What this version of the server does: AcceptsStatus, OffersRemoteConfig and
    /// AcceptsEffectiveConfig.
    pub const PRESENT: Self = Self(0x1 | 0x2 | 0x4);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_known_and_unknown_bits() {
        let capabilities = AgentCapabilities(0x1 | 0x1000 | 1 << 40);
        assert_eq!(capabilities.names(), ["ReportsStatus", "ReportsRemoteConfig", "0x10000000000"]);
        assert!(capabilities.has(AgentCapabilities::REPORTS_REMOTE_CONFIG));
        assert!(!capabilities.has(AgentCapabilities::ACCEPTS_REMOTE_CONFIG));
        assert_eq!(AgentCapabilities::default().names(), Vec::<String>::new());
    }
}
