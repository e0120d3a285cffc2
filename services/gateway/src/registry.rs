//! Which connection of this gateway carries which session.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use muster_domain::ids::{AgentKey, SessionId};

use crate::mailbox::Mailbox;

/// Sessions of this gateway.
#[derive(Default)]
pub(crate) struct Registry {
    sessions: RwLock<HashMap<AgentKey, (SessionId, Arc<Mailbox>)>>,
}

impl Registry {
    /// The agent is on this connection from now on. Returns whether it was on none before.
    pub(crate) fn insert(&self, key: AgentKey, session: SessionId, mailbox: Arc<Mailbox>) -> bool {
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        sessions.insert(key, (session, mailbox)).is_none()
    }

    /// The session is over. Returns whether it was there: a newer one of the agent stays.
    pub(crate) fn remove(&self, key: &AgentKey, session: SessionId) -> bool {
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        if sessions.get(key).is_some_and(|(known, _)| *known == session) {
            sessions.remove(key);
            return true;
        }
        false
    }

    /// Every session, in order of the agents.
    pub(crate) fn all(&self) -> Vec<(AgentKey, SessionId, Arc<Mailbox>)> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        let all =
            sessions.iter().map(|(key, (session, mailbox))| (key.clone(), *session, Arc::clone(mailbox)));
        let mut all: Vec<_> = all.collect();
        drop(sessions);
        all.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        all
    }

    /// The mailbox of the connection that carries exactly this session.
    pub(crate) fn find(&self, key: &AgentKey, session: SessionId) -> Option<Arc<Mailbox>> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        sessions.get(key).filter(|(known, _)| *known == session).map(|(_, mailbox)| Arc::clone(mailbox))
    }
}
