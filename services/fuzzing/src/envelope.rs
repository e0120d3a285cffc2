//! An entry of the log: it is refused with a reason, or is folded into a state that can be stored.

use bytes::Bytes;
use muster_domain::agent::{Agent, AgentState};
use muster_domain::ids::{ConfigHash, Timestamp};
use muster_domain::reconcile::reconcile_agent;

/// Folds an entry twice, and decides for the agent.
pub fn envelope(data: &[u8]) {
    let (key, entry) = match muster_control::read_entry(Bytes::copy_from_slice(data)) {
        Ok(read) => read,
        Err(reason) => return assert!(!reason.is_empty()),
    };
    let mut agent = Agent::new(key, entry.received_at);
    for _ in 0..2 {
        agent.fold(entry.clone());
        agent.state.set_desired(ConfigHash::new(&[1]), None);
        let _ = reconcile_agent(&agent, Timestamp(5));
    }
    let _ = agent.state.components_key(&agent.key.tenant);
    let text = match serde_json::to_string(&agent.state) {
        Ok(text) => text,
        Err(error) => panic!("the state cannot be stored: {error}"),
    };
    match serde_json::from_str::<AgentState>(&text) {
        Ok(state) => assert_eq!(state, agent.state, "{text}"),
        Err(error) => panic!("the stored state cannot be read: {error}: {text}"),
    }
}
