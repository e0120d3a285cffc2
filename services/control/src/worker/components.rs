//! Lists of components: what agents report is stored, and a list that none has reported is asked for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use muster_domain::ids::{AgentKey, Timestamp};
use muster_domain::report::{Components, ComponentsKey};
use tracing::warn;

use crate::mail::Route;
use crate::{Shared, offers};

/// Lists that are asked for at once, and agents that can be asked for one.
const MOST: (usize, usize) = (256, 8);
/// Lists that are remembered as stored.
const KNOWN: usize = 4096;
/// An agent that was asked may take this long before the next one is.
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent that can be asked for a list.
pub(crate) type Source = (AgentKey, Route);

/// What a partition's worker knows of lists.
#[derive(Default)]
pub(crate) struct Lists {
    known: BTreeSet<ComponentsKey>,
    wanted: BTreeMap<ComponentsKey, Wanted>,
}

#[derive(Default)]
struct Wanted {
    asked_at: Option<Timestamp>,
    sources: VecDeque<Source>,
}

impl Lists {
    /// Stores lists that agents reported. A list is a hint: what cannot be stored is passed over.
    pub(crate) async fn store(&mut self, shared: &Shared, lists: &BTreeMap<ComponentsKey, Components>) {
        if lists.is_empty() {
            return;
        }
        match shared.engines.components.put_components(lists, (shared.engines.clock)()).await {
            Ok(()) => lists.keys().for_each(|key| self.is_stored(key)),
            Err(error) => {
                if let Some(more) = shared.outages.components.tell((shared.engines.clock)()) {
                    warn!(%error, more, "lists of components were not stored; agents that report them again are asked for them");
                }
            }
        }
    }

    fn is_stored(&mut self, key: &ComponentsKey) {
        self.wanted.remove(key);
        if self.known.len() >= KNOWN {
            self.known.clear();
        }
        self.known.insert(key.clone());
    }

    /// Notes agents that told the hashes of their lists.
    pub(crate) fn note(&mut self, told: Vec<(ComponentsKey, Source)>) {
        for (key, source) in told {
            if self.known.contains(&key) || (self.wanted.len() >= MOST.0 && !self.wanted.contains_key(&key)) {
                continue;
            }
            let sources = &mut self.wanted.entry(key).or_default().sources;
            sources.retain(|(agent, ..)| *agent != source.0);
            if sources.len() < MOST.1 {
                sources.push_back(source);
            }
        }
    }

    /// Asks one agent for each list that is not stored, unless one was asked just before.
    pub(crate) async fn ask(&mut self, shared: &Shared) {
        let now = (shared.engines.clock)();
        let is_due = |wanted: &Wanted| wanted.asked_at.is_none_or(|at| at.plus(PATIENCE) <= now);
        let due: BTreeSet<_> =
            self.wanted.iter().filter(|(_, wanted)| is_due(wanted)).map(|(key, _)| key.clone()).collect();
        if due.is_empty() {
            return;
        }
        let missing = match shared.engines.components.missing_components(&due).await {
            Ok(missing) => missing,
            Err(error) => {
                if let Some(more) = shared.outages.components.tell(now) {
                    warn!(%error, more, "the store does not say which lists of components it has");
                }
                return;
            }
        };
        for key in due {
            if !missing.contains(&key) {
                self.is_stored(&key);
                continue;
            }
            let Some(wanted) = self.wanted.get_mut(&key) else { continue };
            match wanted.sources.pop_front() {
                Some((agent, route)) => {
                    wanted.asked_at = Some(now);
                    offers::request_components(shared, &agent, &route).await;
                }
                // Nobody is left to be asked: the next agent that tells the hash is.
                None => {
                    self.wanted.remove(&key);
                }
            }
        }
    }
}
