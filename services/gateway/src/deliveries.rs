//! Takes deliveries from the bus and puts them before the connections that carry the sessions.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use muster_domain::agent::EndReason;
use muster_domain::ids::{
    AgentKey, Claim, ConfigHash, Digest, InstanceUid, IntentRevision, SessionId, Tenant,
};
use muster_ports::bus::Subscription;
use muster_proto::Message;
use muster_proto::bus::delivery::Action;
use muster_proto::bus::{Delivery, OfferTarget, RemoteConfigOffer, SessionRef};
use muster_proto::opamp::{AgentConfigFile, AgentConfigMap, AgentRemoteConfig};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug_span, error, warn};

use crate::bodies::render;
use crate::mailbox::{Offer, Order};
use crate::trace::following;
use crate::{Shared, commands};

/// Handles deliveries until `stop`.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    mut deliveries: Box<dyn Subscription>,
    stop: CancellationToken,
) {
    loop {
        // The stop comes once; until then every delivery is taken.
        let received = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            received = deliveries.next() => received,
        };
        let Some(received) = received else { return };
        if let Err(error) = handle(&shared, received.payload).await {
            error!(gateway = %shared.settings.gateway, %error, "a delivery from control was dropped; control sends it again");
        }
    }
}

async fn handle(shared: &Shared, payload: Bytes) -> Result<(), String> {
    let delivery = Delivery::decode(payload).map_err(|error| format!("it is not a delivery: {error}"))?;
    let tenant: Tenant = delivery.tenant.parse().map_err(|error| format!("{error}"))?;
    match delivery.action {
        Some(Action::RemoteConfig(offer)) => {
            let span = following(
                &delivery.traceparent,
                || debug_span!("offer", %tenant, agents = offer.targets.len(), otel.kind = "consumer"),
            );
            offer_config(shared, &tenant, offer).instrument(span).await
        }
        Some(Action::RequestFullState(request)) => {
            for target in request.sessions {
                put(shared, &tenant, &target, Order::RequestFullState)?;
            }
            Ok(())
        }
        Some(Action::RequestComponents(request)) => {
            for target in request.sessions {
                put(shared, &tenant, &target, Order::RequestComponents)?;
            }
            Ok(())
        }
        Some(Action::CloseSessions(close)) => {
            for target in close.sessions {
                put(shared, &tenant, &target, |uid, session| {
                    Order::Close(uid, session, EndReason::Superseded)
                })?;
            }
            Ok(())
        }
        Some(Action::SendCommands(send)) => commands::deliver(shared, &tenant, send.commands),
        Some(Action::ReclaimSessions(reclaim)) => {
            for target in reclaim.sessions {
                let (key, session) = session_of(&tenant, &target.instance_uid, &target.session_id)?;
                let Some(place) = shared.registry.current(&key) else { continue };
                place.mailbox.put(match place.session == session {
                    true => Order::Reclaim(key.uid, session, Claim(reclaim.above)),
                    // It was claimed anew meanwhile, and what it said before was not folded.
                    false => Order::RequestFullState(key.uid, place.session),
                });
            }
            Ok(())
        }
        Some(Action::Decided(decided)) => {
            for target in decided.sessions {
                let (key, session) = session_of(&tenant, &target.instance_uid, &target.session_id)?;
                shared.waiting.decided(&key, session);
            }
            Ok(())
        }
        None => Err("it asks for something that this version does not know".to_owned()),
    }
}

fn put(
    shared: &Shared,
    tenant: &Tenant,
    target: &SessionRef,
    order: impl FnOnce(InstanceUid, SessionId) -> Order,
) -> Result<(), String> {
    let (key, session) = session_of(tenant, &target.instance_uid, &target.session_id)?;
    if let Some(mailbox) = shared.registry.find(&key, session) {
        mailbox.put(order(key.uid, session));
    }
    Ok(())
}

pub(crate) fn session_of(
    tenant: &Tenant,
    uid: &[u8],
    session: &[u8],
) -> Result<(AgentKey, SessionId), String> {
    let uid = InstanceUid::try_from(uid).map_err(|error| error.to_string())?;
    let session = SessionId::try_from(session).map_err(|error| error.to_string())?;
    Ok((AgentKey { tenant: tenant.clone(), uid }, session))
}

/// Compiled bodies in the order of an offer's files.
type Compiled = Vec<Arc<muster_proto::bus::CompiledBody>>;

async fn compiled(shared: &Shared, tenant: &Tenant, offer: &RemoteConfigOffer) -> Result<Compiled, String> {
    let mut bodies = Vec::with_capacity(offer.files.len());
    for file in &offer.files {
        let digest = Digest::try_from(file.body_digest.as_ref()).map_err(|error| error.to_string())?;
        let body = shared
            .bodies
            .get(shared, tenant, digest)
            .await
            .map_err(|error| format!("body {digest} of file {:?}: {error}", file.name))?;
        bodies.push(body);
    }
    Ok(bodies)
}

/// The offer for the one session that a delivery is for.
pub(crate) async fn offer_of_one(
    shared: &Shared,
    tenant: &Tenant,
    offer: RemoteConfigOffer,
) -> Result<Offer, String> {
    let [target] = &offer.targets[..] else { return Err("it is not for one session".to_owned()) };
    let (_, session) = session_of(tenant, &target.instance_uid, &target.session_id)?;
    let remote_config = remote_config(&offer, target, &compiled(shared, tenant, &offer).await?)?;
    Ok(Offer {
        session,
        incarnation: shared.incarnation(),
        revision: IntentRevision(offer.intent_revision),
        assignments: offer.assignments.iter().cloned().collect(),
        hash: ConfigHash::new(&target.config_hash).ok_or("an offer has no config hash")?,
        remote_config,
    })
}

async fn offer_config(shared: &Shared, tenant: &Tenant, offer: RemoteConfigOffer) -> Result<(), String> {
    let bodies = compiled(shared, tenant, &offer).await?;
    // Agents with one hash have the same inputs, so they share the bytes.
    let assignments: Arc<[String]> = offer.assignments.iter().cloned().collect();
    let mut rendered: HashMap<ConfigHash, Bytes> = HashMap::new();
    for target in &offer.targets {
        let (key, session) = session_of(tenant, &target.instance_uid, &target.session_id)?;
        let place = shared.registry.place(&key, session);
        let Some(place) = place.or_else(|| shared.waiting.place(&key, session)) else {
            shared.metrics.offers.with_label_values(&["session_gone"]).inc();
            continue;
        };
        let hash = ConfigHash::new(&target.config_hash).ok_or("an offer has no config hash")?;
        let remote_config = match rendered.get(&hash) {
            Some(bytes) => bytes.clone(),
            None => match remote_config(&offer, target, &bodies) {
                Ok(bytes) => {
                    rendered.insert(hash.clone(), bytes.clone());
                    bytes
                }
                Err(error) => {
                    warn!(tenant = %key.tenant, agent_id = %key.uid, config_hash = %hash, %error, "an offer could not be rendered");
                    shared.metrics.offers.with_label_values(&["unrenderable"]).inc();
                    continue;
                }
            },
        };
        let offer = Offer {
            session,
            incarnation: place.incarnation,
            revision: IntentRevision(offer.intent_revision),
            assignments: Arc::clone(&assignments),
            hash,
            remote_config,
        };
        place.mailbox.put(Order::Offer(key.uid, offer));
    }
    Ok(())
}

/// The encoded AgentRemoteConfig for one target.
fn remote_config(
    offer: &RemoteConfigOffer,
    target: &OfferTarget,
    bodies: &[Arc<muster_proto::bus::CompiledBody>],
) -> Result<Bytes, String> {
    // An empty config map stops some agents: it is never sent.
    if offer.files.is_empty() || target.slots.len() != offer.files.len() {
        return Err(format!("{} files but slot values for {}", offer.files.len(), target.slots.len()));
    }
    let mut config_map = AgentConfigMap::default();
    for ((file, body), slots) in offer.files.iter().zip(bodies).zip(&target.slots) {
        let body = render(body, slots).map_err(|error| format!("file {:?}: {error}", file.name))?;
        let content_type = file.content_type.clone();
        config_map.config_map.insert(file.name.clone(), AgentConfigFile { body: body.into(), content_type });
    }
    let remote_config =
        AgentRemoteConfig { config: Some(config_map), config_hash: target.config_hash.to_vec() };
    Ok(remote_config.encode_to_vec().into())
}
