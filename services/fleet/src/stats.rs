//! What a fleet has done so far.

use std::collections::BTreeMap;

/// Counts over all agents of a fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Agents whose WebSocket is open now, or whose last poll was answered.
    pub connected: usize,
    /// WebSockets opened so far.
    pub connections: u64,
    /// Attempts to connect that failed.
    pub connect_failures: u64,
    /// WebSockets lost without the agent's doing.
    pub drops: u64,
    /// Messages sent.
    pub sent: u64,
    /// Messages received.
    pub received: u64,
    /// Reports sent with the agent's description, and so with everything else.
    pub full_states: u64,
    /// Times that the server asked for full state.
    pub full_states_asked: u64,
    /// Heartbeats sent because it was time.
    pub heartbeats: u64,
    /// Offers received, by the hash in hexadecimal digits.
    pub configs_received: BTreeMap<String, u64>,
    /// Offers that became the effective configuration.
    pub applied: u64,
    /// Offers that were refused.
    pub failed: u64,
    /// Agents that run with an offered configuration now, by its hash in hexadecimal digits.
    pub running: BTreeMap<String, usize>,
    /// New identities taken over.
    pub new_uids: u64,
    /// Error responses received.
    pub error_responses: u64,
    /// What a correct server never does, such as an offer to an agent that takes none; and agents
    /// of this fleet that broke down.
    pub errors: u64,
    /// The latest error of any sort, for people.
    pub last_error: Option<String>,
}

impl Stats {
    /// How often the configuration with this hash was received.
    pub fn received_of(&self, hash: &str) -> u64 {
        self.configs_received.get(hash).copied().unwrap_or(0)
    }

    /// How many agents run with the configuration with this hash.
    pub fn running_of(&self, hash: &str) -> usize {
        self.running.get(hash).copied().unwrap_or(0)
    }

    pub(crate) fn error(&mut self, reason: String) {
        self.errors += 1;
        self.last_error = Some(reason);
    }

    /// An agent went from the configuration `old`, if that was an offered one, to `new`.
    pub(crate) fn moved(&mut self, old: Option<String>, new: String) {
        if let Some(old) = old
            && let Some(agents) = self.running.get_mut(&old)
        {
            *agents = agents.saturating_sub(1);
            if *agents == 0 {
                self.running.remove(&old);
            }
        }
        *self.running.entry(new).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_counted_where_they_are() {
        let mut stats = Stats::default();
        stats.moved(None, "a".to_owned());
        stats.moved(None, "a".to_owned());
        stats.moved(Some("a".to_owned()), "b".to_owned());
        assert_eq!((stats.running_of("a"), stats.running_of("b")), (1, 1));
        stats.moved(Some("a".to_owned()), "b".to_owned());
        assert_eq!(stats.running, BTreeMap::from([("b".to_owned(), 2)]));
    }
}
