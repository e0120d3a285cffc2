//! What agents that poll get: letters in their mailboxes in place of deliveries, and the offers that these
//! letters name, when a gateway asks for them.

use std::collections::BTreeMap;

use bytes::Bytes;
use muster_domain::agent::{Entry, Session, Transport};
use muster_domain::desired::Desired;
use muster_domain::ids::{
    AgentKey, Claim, ConfigHash, GatewayId, InstanceUid, IntentRevision, SessionId, Tenant, Timestamp,
};
use muster_domain::poll::{Letter, Mail};
use muster_domain::reconcile::{Decision, reconcile_agent};
use muster_ports::bus::MAX_PAYLOAD;
use muster_proto::Message;
use muster_proto::bus::delivery::Action;
use muster_proto::bus::{Decided, GetOffer, RemoteConfigOffer, SessionRef, WantedOffer};
use tracing::{debug, warn};

use crate::Shared;
use crate::offers::{self, Outgoing};
use crate::worker::batch::Outclaimed;

/// Most sessions in one delivery.
const MAX_SESSIONS: usize = 500;
/// Room in an answer for what surrounds an offer.
const ANSWER_ROOM: usize = 1 << 10;
/// Longest wait for ownership.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(2);

/// Where something for an agent goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    /// Its session.
    pub(crate) session: SessionId,
    /// The gateway that the session began on, and that holds it if it is on a WebSocket.
    pub(crate) gateway: GatewayId,
    /// Whether the agent polls.
    pub(crate) polls: bool,
}

impl From<&Session> for Route {
    fn from(session: &Session) -> Self {
        Self {
            session: session.id,
            gateway: session.gateway.clone(),
            polls: session.transport == Transport::Http,
        }
    }
}

impl From<&Entry> for Route {
    fn from(entry: &Entry) -> Self {
        let polls = entry.started.as_ref().is_some_and(|(transport, _)| *transport == Transport::Http);
        Self { session: entry.session, gateway: entry.gateway.clone(), polls }
    }
}

/// Puts offers into mailboxes. One that is not there is put there again when its retry is due.
pub(crate) async fn offer(shared: &Shared, outgoing: &[Outgoing]) {
    let letter = |offer: &Outgoing| Letter {
        key: offer.key.clone(),
        session: offer.route.session,
        mail: Mail { offer: Some((offer.config.hash.clone(), offer.revision)), ..Mail::default() },
        above: Claim::default(),
    };
    let letters: Vec<_> = outgoing.iter().filter(|offer| offer.route.polls).map(letter).collect();
    post(shared, letters).await;
}

/// Has an agent asked for full state with its next request.
pub(crate) async fn ask_full_state(shared: &Shared, key: &AgentKey, session: SessionId) {
    let mail = Mail { full_state: true, ..Mail::default() };
    post(shared, vec![Letter { key: key.clone(), session, mail, above: Claim::default() }]).await;
}

/// Has an agent asked for the list of its available components with its next request.
pub(crate) async fn ask_components(shared: &Shared, key: &AgentKey, session: SessionId) {
    let mail = Mail { components: true, ..Mail::default() };
    post(shared, vec![Letter { key: key.clone(), session, mail, above: Claim::default() }]).await;
}

/// Ends sessions with a claim below one that is stored: the next request begins another one above it.
pub(crate) async fn reclaim(shared: &Shared, outclaimed: &Outclaimed) {
    let letter = |((key, session), (_, above)): (&(AgentKey, SessionId), &(GatewayId, Claim))| Letter {
        key: key.clone(),
        session: *session,
        mail: Mail::default(),
        above: *above,
    };
    post(shared, outclaimed.iter().map(letter).collect()).await;
}

async fn post(shared: &Shared, letters: Vec<Letter>) {
    if letters.is_empty() {
        return;
    }
    let count = letters.len();
    let error = match tokio::time::timeout(DEADLINE, shared.engines.polls.post(letters)).await {
        Ok(Ok(posted)) => {
            let over = posted.iter().filter(|is_there| !**is_there).count();
            if over > 0 {
                debug!(over, "sessions of agents that poll were over before something was put before them");
            }
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    if let Some(more) = shared.outages.mail.tell((shared.engines.clock)()) {
        warn!(error, count, more, "mail for agents that poll was not delivered; it is when its retry is due");
    }
}

/// Tells gateways that the first reports of these sessions are decided on: requests may wait for that.
pub(crate) async fn decided(shared: &Shared, begun: Vec<(AgentKey, Route)>) {
    let mut groups: BTreeMap<(Tenant, GatewayId), Vec<SessionRef>> = BTreeMap::new();
    for (key, route) in begun {
        let session = offers::session_ref(&key, route.session);
        groups.entry((key.tenant, route.gateway)).or_default().push(session);
    }
    for ((tenant, gateway), sessions) in groups {
        for chunk in sessions.chunks(MAX_SESSIONS) {
            let action = Action::Decided(Decided { sessions: chunk.to_vec() });
            offers::deliver(shared, &tenant, &gateway, String::new(), action).await;
        }
    }
}

/// The offer that a letter named, if that is still what the agent should get.
///
/// # Errors
/// With the reason, if the store or the intent cannot be read.
pub(crate) async fn wanted(
    shared: &Shared,
    tenant: &Tenant,
    request: GetOffer,
) -> Result<WantedOffer, String> {
    let asked = request.session.ok_or("the request names no session")?;
    let uid = InstanceUid::try_from(asked.instance_uid.as_ref()).map_err(|error| error.to_string())?;
    let session = SessionId::try_from(asked.session_id.as_ref()).map_err(|error| error.to_string())?;
    let hash = ConfigHash::new(&request.config_hash).ok_or("the request names no config hash")?;
    if shared.intents.planner(tenant).revision() < IntentRevision(request.intent_revision) {
        shared.intents.refresh(shared).await.map_err(|error| error.to_string())?;
    }
    let key = AgentKey { tenant: tenant.clone(), uid };
    let cell = &shared.settings.cell;
    let stored = shared.engines.fold.agents(cell, std::slice::from_ref(&key)).await;
    let mut stored = stored.map_err(|error| error.to_string())?;
    let nothing = Ok(WantedOffer { remote_config: None });
    let Some(mut stored) = stored.pop() else { return nothing };
    let planner = shared.intents.planner(tenant);
    let Desired::Config(config) = planner.desired(&stored.agent, &stored.labels) else { return nothing };
    let Some(route) = stored.agent.live_session().map(Route::from) else { return nothing };
    if config.hash != hash || route.session != session {
        return nothing;
    }
    // Whether it is wanted at all; that it was offered before is why it is asked for.
    let state = &mut stored.agent.state;
    state.set_desired(Some(config.hash.clone()), None);
    state.offered = None;
    let Decision::Offer(_) = reconcile_agent(&stored.agent, Timestamp(0)) else { return nothing };
    let outgoing = Outgoing { key, route, config, revision: planner.revision() };
    let offer = RemoteConfigOffer::from(&outgoing);
    let (bytes, limit) = (offer.encoded_len(), MAX_PAYLOAD - ANSWER_ROOM);
    if bytes > limit {
        offers::tell_too_large(shared, &outgoing.key, &outgoing.config, bytes, limit);
        return nothing;
    }
    Ok(WantedOffer { remote_config: Some(offer) })
}

/// The bytes of an id or a hash.
pub(crate) fn bytes(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
