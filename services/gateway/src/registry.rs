//! Which connection of this gateway carries which session.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use muster_domain::ids::{AgentKey, Incarnation, Partition, SessionId};

use crate::mailbox::Mailbox;

/// Sessions of this gateway.
#[derive(Default)]
pub(crate) struct Registry {
    sessions: RwLock<HashMap<AgentKey, Place>>,
}

/// Where a session is.
#[derive(Clone)]
pub(crate) struct Place {
    /// The session.
    pub(crate) session: SessionId,
    /// Life of the gateway in which it was claimed.
    pub(crate) incarnation: Incarnation,
    /// The mailbox of its connection.
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Registry {
    /// The agent is here from now on. Returns where it was before.
    pub(crate) fn insert(&self, key: AgentKey, place: Place) -> Option<Place> {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner).insert(key, place)
    }

    /// The session is over. Returns whether it was there: a newer one of the agent stays.
    pub(crate) fn remove(&self, key: &AgentKey, session: SessionId) -> bool {
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        if sessions.get(key).is_some_and(|place| place.session == session) {
            sessions.remove(key);
            return true;
        }
        false
    }

    /// Sessions that were claimed in another life of the gateway than this, in order of the agents.
    pub(crate) fn of_other_lives(&self, incarnation: Incarnation) -> Vec<(AgentKey, Place)> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        let others = sessions.iter().filter(|(_, place)| place.incarnation != incarnation);
        let mut others: Vec<_> = others.map(|(key, place)| (key.clone(), place.clone())).collect();
        drop(sessions);
        others.sort_by(|(a, _), (b, _)| a.cmp(b));
        others
    }

    /// Partitions of the agents that are here.
    pub(crate) fn partitions(&self) -> BTreeSet<Partition> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        sessions.keys().map(Partition::of).collect()
    }

    /// The mailbox of the connection that carries exactly this session.
    pub(crate) fn find(&self, key: &AgentKey, session: SessionId) -> Option<Arc<Mailbox>> {
        self.place(key, session).map(|place| place.mailbox)
    }

    /// Where the agent is now, in whatever session.
    pub(crate) fn current(&self, key: &AgentKey) -> Option<Place> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Where exactly this session is.
    pub(crate) fn place(&self, key: &AgentKey, session: SessionId) -> Option<Place> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        sessions.get(key).filter(|place| place.session == session).cloned()
    }
}
