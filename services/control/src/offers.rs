//! Turns committed offers into deliveries: one for all sessions of a gateway that get the same
//! compiled bodies.

use std::collections::{BTreeMap, BTreeSet};

use muster_domain::command::Action as Ordered;
use muster_domain::desired::{DesiredConfig, DesiredFile};
use muster_domain::ids::{
    AgentKey, CommandId, Digest, GatewayId, IntentRevision, SessionId, Tenant, Timestamp,
};
use muster_domain::report::CustomMessage;
use muster_ports::bus::{MAX_PAYLOAD, Subject};
use muster_proto::Message;
use muster_proto::bus::delivery::Action;
use muster_proto::bus::{
    AgentMessage, CloseSessions, Delivery, DisconnectAgent, EndReason, OfferTarget, OfferedFile,
    ReclaimSessions, RemoteConfigOffer, ReportFullState, RequestComponents, RequestFullState, RestartAgent,
    SendCommand, SendCommands, SessionRef, SlotValues, send_command,
};
use tracing::{error, warn};

use crate::Shared;
use crate::mail::{self, Route, bytes};
use crate::split::split;
use crate::trace::Folding;
use crate::worker::batch::Outclaimed;
use crate::worker::commands::OutgoingCommand;

/// Most sessions in one delivery.
const MAX_TARGETS: usize = 500;
/// More than what stands around the targets of a delivery (names, traceparent), and around each of them.
const DELIVERY_ROOM: usize = 512;
const TARGET_ROOM: usize = 16;
/// Bytes of commands in one delivery, but for one that is larger by itself.
const MAX_COMMANDS: usize = 256 << 10;

/// An offer that was committed.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// The agent.
    pub(crate) key: AgentKey,
    /// Where it goes.
    pub(crate) route: Route,
    /// What it is offered.
    pub(crate) config: DesiredConfig,
    /// The intent that this rests on.
    pub(crate) revision: IntentRevision,
}

/// What all targets of a delivery have in common.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    tenant: Tenant,
    gateway: GatewayId,
    revision: IntentRevision,
    /// Name, content type and body of each.
    files: Vec<(String, String, Digest)>,
    assignments: BTreeSet<String>,
}

/// Sends offers, those that answer traced reports as a part of their traces. One that is lost is sent
/// again when its retry is due. Agents that poll find theirs in their mailboxes; the first request of a
/// session that has just begun may still wait for it.
pub(crate) async fn send(
    shared: &Shared,
    outgoing: Vec<Outgoing>,
    begun: Vec<(AgentKey, Route)>,
    folding: &Folding,
) {
    mail::offer(shared, &outgoing).await;
    shared.metrics.offers.inc_by(outgoing.len() as u64);
    let waits: BTreeSet<_> = begun.iter().map(|(_, route)| route.session).collect();
    let mut groups: BTreeMap<Group, Vec<Outgoing>> = BTreeMap::new();
    for offer in
        outgoing.into_iter().filter(|offer| !offer.route.polls || waits.contains(&offer.route.session))
    {
        let file = |file: &DesiredFile| (file.name.clone(), file.content_type.clone(), file.digest);
        let group = Group {
            tenant: offer.key.tenant.clone(),
            gateway: offer.route.gateway.clone(),
            revision: offer.revision,
            files: offer.config.files.iter().map(file).collect(),
            assignments: offer.config.assignments.clone(),
        };
        groups.entry(group).or_default().push(offer);
    }
    for (Group { tenant, gateway, revision, files, assignments }, targets) in groups {
        let file = |(name, content_type, digest): &(String, String, Digest)| OfferedFile {
            name: name.clone(),
            content_type: content_type.clone(),
            body_digest: bytes(&digest.0),
        };
        let files: Vec<_> = files.iter().map(file).collect();
        let offer = RemoteConfigOffer {
            intent_revision: revision.0,
            files,
            targets: Vec::new(),
            assignments: assignments.into_iter().collect(),
        };
        let room = MAX_PAYLOAD.saturating_sub(offer.encoded_len() + DELIVERY_ROOM);
        let sized = targets.iter().map(|outgoing| {
            let target = target(outgoing);
            let bytes = target.encoded_len() + TARGET_ROOM;
            ((outgoing, target), bytes)
        });
        let (chunks, too_large) = split(sized, MAX_TARGETS, room);
        for chunk in chunks {
            let (chunk, targets): (Vec<_>, Vec<_>) = chunk.into_iter().unzip();
            let offer = RemoteConfigOffer { targets, ..offer.clone() };
            let traceparent = folding.traceparent(chunk.iter().map(|outgoing| &outgoing.key));
            deliver(shared, &tenant, &gateway, traceparent, Action::RemoteConfig(offer)).await;
        }
        for (Outgoing { key, config, .. }, target) in too_large {
            tell_too_large(shared, key, config, target.encoded_len(), room);
        }
    }
    mail::decided(shared, begun).await;
}

/// Says that one agent's offer does not fit into a message.
pub(crate) fn tell_too_large(
    shared: &Shared,
    key: &AgentKey,
    config: &DesiredConfig,
    bytes: usize,
    limit: usize,
) {
    shared.metrics.offers_too_large.inc();
    error!(event = "offer_too_large", tenant = %key.tenant, agent_id = %key.uid, config_hash = %config.hash, bytes, limit, "a config is not offered: the values of its templates are too large for this agent; make them shorter");
}

impl From<&Outgoing> for RemoteConfigOffer {
    /// The delivery for this one session.
    fn from(offer: &Outgoing) -> Self {
        let file = |file: &DesiredFile| OfferedFile {
            name: file.name.clone(),
            content_type: file.content_type.clone(),
            body_digest: bytes(&file.digest.0),
        };
        Self {
            intent_revision: offer.revision.0,
            files: offer.config.files.iter().map(file).collect(),
            targets: vec![target(offer)],
            assignments: offer.config.assignments.iter().cloned().collect(),
        }
    }
}

fn target(offer: &Outgoing) -> OfferTarget {
    let slots = |file: &DesiredFile| SlotValues { values: file.slots.clone() };
    OfferTarget {
        instance_uid: bytes(offer.key.uid.as_bytes()),
        session_id: bytes(offer.route.session.as_bytes()),
        config_hash: bytes(offer.config.hash.as_bytes()),
        slots: offer.config.files.iter().map(slots).collect(),
    }
}

/// Tells a gateway to close a session that another one took over from. A session of polls is over by itself.
pub(crate) async fn close(shared: &Shared, key: &AgentKey, route: &Route) {
    if route.polls {
        return;
    }
    let sessions = vec![session_ref(key, route.session)];
    let close = CloseSessions { sessions, reason: EndReason::Superseded.into() };
    deliver(shared, &key.tenant, &route.gateway, String::new(), Action::CloseSessions(close)).await;
}

/// Has sessions whose claims are below one that is stored claimed anew. Which of them are on a WebSocket and
/// which are of polls is not known: to the others it means nothing.
pub(crate) async fn reclaim(shared: &Shared, outclaimed: Outclaimed) {
    mail::reclaim(shared, &outclaimed).await;
    for ((key, session), (gateway, above)) in outclaimed {
        let reclaim = ReclaimSessions { sessions: vec![session_ref(&key, session)], above: above.0 };
        deliver(shared, &key.tenant, &gateway, String::new(), Action::ReclaimSessions(reclaim)).await;
    }
}

/// Asks an agent for its full state.
pub(crate) async fn request_full_state(shared: &Shared, key: &AgentKey, route: &Route) {
    if route.polls {
        return mail::ask_full_state(shared, key, route.session).await;
    }
    let request = RequestFullState { sessions: vec![session_ref(key, route.session)] };
    deliver(shared, &key.tenant, &route.gateway, String::new(), Action::RequestFullState(request)).await;
}

/// Asks an agent for the list of its available components.
pub(crate) async fn request_components(shared: &Shared, key: &AgentKey, route: &Route) {
    if route.polls {
        return mail::ask_components(shared, key, route.session).await;
    }
    let request = RequestComponents { sessions: vec![session_ref(key, route.session)] };
    deliver(shared, &key.tenant, &route.gateway, String::new(), Action::RequestComponents(request)).await;
}

/// Sends commands that were settled as sent, in order. One that is lost is not sent again.
pub(crate) async fn send_commands(shared: &Shared, commands: Vec<OutgoingCommand>) {
    let (polls, commands): (Vec<_>, Vec<_>) = commands.into_iter().partition(|command| command.polls);
    mail::command(shared, &polls).await;
    let mut groups: BTreeMap<(Tenant, GatewayId), Vec<SendCommand>> = BTreeMap::new();
    for command in commands {
        let group = (command.key.tenant.clone(), command.gateway.clone());
        let send =
            send_command(&command.key, command.session, (command.id, command.expires_at), &command.action);
        groups.entry(group).or_default().push(send);
    }
    for ((tenant, gateway), mut commands) in groups {
        while !commands.is_empty() {
            let mut size = 0;
            let mut fits = |command: &SendCommand| {
                let before = size;
                size += command.encoded_len();
                before == 0 || size <= MAX_COMMANDS
            };
            let count = commands.iter().take_while(|command| fits(command)).count();
            let rest = commands.split_off(count);
            let send = SendCommands { commands: std::mem::replace(&mut commands, rest) };
            deliver(shared, &tenant, &gateway, String::new(), Action::SendCommands(send)).await;
        }
    }
}

/// A command, with its id and its expiry, as gateways are told of it.
pub(crate) fn send_command(
    key: &AgentKey,
    session: SessionId,
    (id, expires_at): (CommandId, Timestamp),
    action: &Ordered,
) -> SendCommand {
    let message = |message: CustomMessage| AgentMessage {
        capability: message.capability,
        r#type: message.kind,
        data: message.data.into(),
        data_left_out: false,
    };
    let action = match (action.as_message(), action) {
        (Some(custom), _) => send_command::Action::Message(message(custom)),
        (None, Ordered::Disconnect) => send_command::Action::Disconnect(DisconnectAgent {}),
        (None, Ordered::ReportFullState) => send_command::Action::ReportFullState(ReportFullState {}),
        (None, _) => send_command::Action::Restart(RestartAgent {}),
    };
    SendCommand {
        session: Some(session_ref(key, session)),
        id: bytes(id.as_bytes()),
        expires_at_us: expires_at.0,
        action: Some(action),
    }
}

/// A session as gateways are told of it.
pub(crate) fn session_ref(key: &AgentKey, session: SessionId) -> SessionRef {
    SessionRef { instance_uid: bytes(key.uid.as_bytes()), session_id: bytes(session.as_bytes()) }
}

/// Sends a delivery to a gateway.
pub(crate) async fn deliver(
    shared: &Shared,
    tenant: &Tenant,
    gateway: &GatewayId,
    traceparent: String,
    action: Action,
) {
    let delivery = Delivery {
        cell: shared.settings.cell.to_string(),
        tenant: tenant.to_string(),
        traceparent,
        action: Some(action),
    };
    let subject = Subject::Deliveries(shared.settings.cell.clone(), gateway.clone());
    if let Err(error) = shared.engines.bus.publish(&subject, delivery.encode_to_vec().into()).await
        && let Some(more) = shared.outages.deliveries.tell((shared.engines.clock)())
    {
        warn!(%tenant, %gateway, %error, more, "a delivery was not sent; it is sent again when its retry is due");
    }
}
