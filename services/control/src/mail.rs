//! What agents that poll get: letters in their mailboxes in place of deliveries, and the offers that these
//! letters name, when a gateway asks for them.

use std::collections::BTreeMap;

use bytes::Bytes;
use muster_domain::agent::{Entry, Session, Transport};
use muster_domain::command::{Action, Command, Status};
use muster_domain::desired::Desired;
use muster_domain::ids::{
    AgentKey, Claim, CommandId, ConfigHash, GatewayId, InstanceUid, IntentRevision, SessionId, Tenant,
    Timestamp,
};
use muster_domain::poll::{Letter, Mail};
use muster_domain::reconcile::{Decision, reconcile_agent};
use muster_ports::bus::MAX_PAYLOAD;
use muster_proto::Message;
use muster_proto::bus::delivery;
use muster_proto::bus::{
    Decided, GetCommand, GetOffer, RemoteConfigOffer, SessionRef, WantedCommand, WantedOffer,
};
use tracing::{debug, warn};

use crate::Shared;
use crate::offers::{self, Outgoing};
use crate::worker::batch::Outclaimed;
use crate::worker::commands::OutgoingCommand;

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

/// Puts commands that were settled as sent into mailboxes. One that is not there after that is lost.
pub(crate) async fn command(shared: &Shared, commands: &[OutgoingCommand]) {
    let letter = |command: &OutgoingCommand| {
        let mail = match command.action {
            // Whatever else asks for it asks for the same.
            Action::ReportFullState => Mail { full_state: true, ..Mail::default() },
            _ => Mail { commands: vec![command.id], ..Mail::default() },
        };
        Letter { key: command.key.clone(), session: command.session, mail, above: Claim::default() }
    };
    let posted = post(shared, commands.iter().map(letter).collect()).await;
    for (at, command) in commands.iter().enumerate() {
        if posted.as_ref().is_none_or(|posted| posted.get(at) != Some(&true)) {
            let (tenant, agent_id, id) = (&command.key.tenant, &command.key.uid, &command.id);
            warn!(event = "command_lost", %tenant, %agent_id, command = %id, action = command.action.name(), "a command does not wait for its agent, whose mailbox is full, gone or away; it is not tried again");
        }
    }
}

async fn post(shared: &Shared, letters: Vec<Letter>) -> Option<Vec<bool>> {
    if letters.is_empty() {
        return Some(Vec::new());
    }
    let count = letters.len();
    let error = match tokio::time::timeout(DEADLINE, shared.engines.polls.post(letters)).await {
        Ok(Ok(posted)) => {
            let over = posted.iter().filter(|is_there| !**is_there).count();
            if over > 0 {
                debug!(over, "sessions of agents that poll were over before something was put before them");
            }
            return Some(posted);
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    if let Some(more) = shared.outages.mail.tell((shared.engines.clock)()) {
        warn!(error, count, more, "mail for agents that poll was not delivered; it is when its retry is due");
    }
    None
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
            let action = delivery::Action::Decided(Decided { sessions: chunk.to_vec() });
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

/// The command that a letter named, if it is that agent's and was settled as sent.
///
/// # Errors
/// With the reason, if the store cannot be read.
pub(crate) async fn wanted_command(
    shared: &Shared,
    tenant: &Tenant,
    request: GetCommand,
) -> Result<WantedCommand, String> {
    let asked = request.session.ok_or("the request names no session")?;
    let uid = InstanceUid::try_from(asked.instance_uid.as_ref()).map_err(|error| error.to_string())?;
    let session = SessionId::try_from(asked.session_id.as_ref()).map_err(|error| error.to_string())?;
    let id = CommandId::try_from(request.id.as_ref()).map_err(|error| error.to_string())?;
    let found = shared.engines.commands.commands(tenant, &[id]).await.map_err(|error| error.to_string())?;
    let found = found
        .into_iter()
        .find(|command| command.id == id && command.key.uid == uid && command.state.status == Status::Sent);
    let command = found.map(|command| {
        let Command { id, key, action, expires_at, .. } = &command;
        offers::send_command(key, session, (*id, *expires_at), action)
    });
    Ok(WantedCommand { command })
}

/// The bytes of an id or a hash.
pub(crate) fn bytes(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
