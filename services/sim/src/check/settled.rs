//! Rest: what must be so some time after the last fault.

use std::collections::{BTreeMap, BTreeSet};

use muster_domain::capabilities::AgentCapabilities;
use muster_domain::desired::{Desired, Planner};
use muster_domain::ids::{AgentKey, ConfigHash, InstanceUid};
use muster_domain::report::ConfigStatus;
use muster_ports::ownership::Ownership;
use muster_ports::store::{FleetStore, IntentStore, StoredAgent};

use super::fold::Reported;
use crate::trace::Short;
use crate::world::World;

/// An agent as it is, by its own account.
#[derive(Debug, Clone)]
pub(crate) struct AgentView {
    /// Its name in the trace.
    pub(crate) who: String,
    pub(crate) uid: InstanceUid,
    /// Where it is connected from, if it is.
    pub(crate) peer: Option<String>,
    /// What a full report would say.
    pub(crate) reported: Reported,
    /// Whether it has something to say or to do yet.
    pub(crate) is_busy: bool,
    /// Hash of the config it runs, and others of the same files if it names none.
    pub(crate) runs: BTreeSet<ConfigHash>,
    /// Whether it names no hash in its config status.
    pub(crate) names_no_hash: bool,
    /// Whether it takes no other uid: of two such with one uid, one is refused.
    pub(crate) keeps_uid: bool,
}

/// What was found at the end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settled {
    /// What is not yet as it should be; nothing if all is.
    pub(crate) not_yet: Vec<String>,
}

/// Compares agents, store and ownership.
pub(crate) async fn settled(world: &World, views: &[AgentView]) -> anyhow::Result<Settled> {
    let engines = world.engines();
    let mut not_yet = world.check(|checker| {
        let mut behind = Vec::new();
        for partition in checker.partitions() {
            let (folded, end) = checker.folded_to(partition);
            if folded != end {
                behind.push(format!("partition {partition} is folded to {}, not to {}", folded.0, end.0));
            }
        }
        behind
    });
    let planner = Planner::new(&engines.store.intent(&world.tenant).await?);
    for (uid, peer) in world.check(|checker| checker.live()) {
        let is_there = |view: &AgentView| view.uid == uid && view.peer.as_ref() == Some(&peer);
        if !views.iter().any(is_there) {
            not_yet.push(format!("agent {} is stored as connected from {peer}, and is not", Short(uid.0)));
        }
    }
    let mut by_uid: BTreeMap<InstanceUid, Vec<&AgentView>> = BTreeMap::new();
    for view in views {
        by_uid.entry(view.uid).or_default().push(view);
    }
    for (uid, views) in by_uid {
        let key = AgentKey { tenant: world.tenant.clone(), uid };
        let owned = engines.ownership.look_up(std::slice::from_ref(&key)).await?;
        let holder = owned.into_iter().flatten().find_map(|owned| owned.holder);
        let Some((stored, _)) = engines.store.agent(&key).await? else {
            not_yet.push(format!("agent {} is not stored", views[0].who));
            continue;
        };
        let session = stored.agent.live_session();
        let peer = session.and_then(|session| world.check(|checker| checker.peer(session.id)));
        let Some(view) = views.iter().find(|view| view.peer.is_some() && view.peer == peer) else {
            let (who, at) = (&views[0].who, &views[0].peer);
            not_yet.push(format!("agent {who} ({}) is at {at:?}, and stored at {peer:?}", Short(uid.0)));
            continue;
        };
        for other in views.iter().filter(|other| other.who != view.who && !other.keeps_uid) {
            not_yet.push(format!("agent {} has the uid of agent {}", other.who, view.who));
        }
        if let Some(session) = session
            && holder.as_ref().map(|holder| holder.session) != Some(session.id)
        {
            let holder = holder.map(|holder| holder.session);
            not_yet
                .push(format!("agent {}: ownership has {holder:?}, the store has {}", view.who, session.id));
        }
        not_yet.extend(difference(view, &stored, &planner).map(|what| format!("agent {}: {what}", view.who)));
    }
    Ok(Settled { not_yet })
}

fn difference(view: &AgentView, stored: &StoredAgent, planner: &Planner) -> Option<String> {
    if view.is_busy {
        return Some("it has more to say".to_owned());
    }
    let known = Reported::stored(&stored.agent);
    let mut own = view.reported.clone();
    if view.names_no_hash {
        own.remote.0.clone_from(&known.remote.0);
    }
    if known != own {
        return Some(format!("it is {own:?}, and is known as {known:?}"));
    }
    let state = &stored.agent.state;
    let desired = match planner.desired(&stored.agent, &stored.labels) {
        Desired::Config(config) => Some(config.hash),
        Desired::Held { .. } | Desired::Nothing => None,
    };
    if state.desired != desired {
        return Some(format!("it is to run {:?}, and should {desired:?}", state.desired));
    }
    let desired = desired?;
    if !state.capabilities.has(AgentCapabilities::ACCEPTS_REMOTE_CONFIG) {
        return None;
    }
    if !state.capabilities.has(AgentCapabilities::REPORTS_REMOTE_CONFIG) {
        // It is sent the config once a session; that message may be lost, and nobody would know.
        let session = stored.agent.live_session().map(|session| session.id);
        let offered = state.offered.as_ref().filter(|offered| offered.hash == desired);
        let is_sent = offered.map(|offered| offered.session) == session && session.is_some();
        return (!is_sent).then(|| format!("it was not sent {desired}"));
    }
    match (&known.remote, &state.failed) {
        ((Some(hash), ConfigStatus::Applied), _) if *hash == desired => {
            (!view.runs.contains(&desired)).then(|| format!("it runs {:?}, not {desired}", view.runs))
        }
        (_, Some(failed)) if failed.hash == desired => None,
        ((Some(hash), ConfigStatus::Failed), _) if *hash == desired => None,
        (remote, _) => Some(format!("it reports {remote:?}, and should run {desired}")),
    }
}
