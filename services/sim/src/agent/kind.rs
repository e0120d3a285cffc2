//! How clients differ, as far as a server notices.

use std::time::Duration;

/// A kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An agent with the Go client in it: a reconnect sends no state, UNAVAILABLE is ignored.
    Go,
    /// A supervised collector: unhealthy at first, slow to apply, refuses some configs and then reports
    /// the one before as applied.
    Supervisor,
    /// The Java client: uses up sequence numbers while it is not connected, leaves on UNAVAILABLE and
    /// sends again what was refused, names no hash in its status.
    Java,
    /// Takes configs and reports no status.
    Silent,
    /// The extension of a collector: reports only.
    Observer,
    /// Its heartbeats hold nothing but the uid, and its reports name capabilities once.
    Sparse,
    /// The Python client: its numbers have gaps and repeats, it never takes a new uid.
    Python,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] =
        [Self::Go, Self::Supervisor, Self::Java, Self::Silent, Self::Observer, Self::Sparse, Self::Python];

    /// `service.name` of such an agent.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::Supervisor => "supervisor",
            Self::Java => "java",
            Self::Silent => "silent",
            Self::Observer => "observer",
            Self::Sparse => "sparse",
            Self::Python => "python",
        }
    }

    /// Bits of AgentToServer.capabilities: status, effective config, health; remote config where taken.
    pub(crate) fn capabilities(self) -> u64 {
        const REPORTS: u64 = 0x1 | 0x4 | 0x800;
        match self {
            Self::Observer => REPORTS,
            Self::Silent => REPORTS | 0x2,
            _ => REPORTS | 0x2 | 0x1000,
        }
    }

    /// Whether it says what became of a config.
    pub(crate) fn reports_status(self) -> bool {
        !matches!(self, Self::Observer | Self::Silent)
    }

    /// The number of its first message.
    pub(crate) fn first_sequence(self) -> u64 {
        match self {
            Self::Sparse | Self::Java => 1,
            _ => 0,
        }
    }

    /// Shortest and longest time that it takes to apply a config, in milliseconds.
    pub(crate) fn applies_in(self) -> (u64, u64) {
        match self {
            Self::Supervisor => (2000, 8000),
            _ => (0, 1500),
        }
    }

    /// Time between heartbeats.
    pub(crate) fn heartbeat(self) -> Duration {
        match self {
            Self::Python => Duration::from_secs(20),
            _ => Duration::from_secs(30),
        }
    }
}
