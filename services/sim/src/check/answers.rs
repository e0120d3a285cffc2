//! Answers: a gateway answers heartbeats by itself, and everything else when the log has it.

use std::collections::{BTreeMap, BTreeSet};

use muster_domain::ids::InstanceUid;
use muster_proto::opamp::{AgentToServer, ServerToAgent};

use super::{Checker, invariant};
use crate::trace::Short;

/// What agents sent and gateways answered.
#[derive(Default)]
pub(super) struct Answers {
    /// Digests of what a log has had of an agent.
    stored: BTreeSet<(InstanceUid, u64)>,
    /// By connection and agent.
    sessions: BTreeMap<(String, InstanceUid), Session>,
}

#[derive(Default)]
struct Session {
    /// Digest of each message, and whether it may be answered without the log.
    sent: Vec<(u64, bool)>,
    answered: usize,
}

/// A digest of a message.
pub(crate) fn digest(message: &[u8]) -> u64 {
    message
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Answers {
    pub(super) fn stored(&mut self, uid: InstanceUid, message: &[u8]) {
        self.stored.insert((uid, digest(message)));
    }
}

impl Checker {
    /// An agent sends a message.
    pub(crate) fn sent(&mut self, peer: &str, uid: InstanceUid, message: &AgentToServer, digest: u64) {
        let session = self.answers.sessions.entry((peer.to_owned(), uid)).or_default();
        let plain = AgentToServer {
            instance_uid: message.instance_uid.clone(),
            sequence_num: message.sequence_num,
            capabilities: message.capabilities,
            ..AgentToServer::default()
        };
        // The first message of a session is its start, which the log is to have.
        let is_heartbeat = *message == plain && !session.sent.is_empty();
        session.sent.push((digest, is_heartbeat));
    }

    /// A gateway has written a message to an agent.
    pub(crate) fn written(&mut self, peer: &str, message: &ServerToAgent) {
        let Ok(uid) = InstanceUid::try_from(message.instance_uid.as_slice()) else { return };
        if let Some(offer) = &message.remote_config {
            self.offer_written(peer, uid, &offer.config_hash);
            return;
        }
        // What asks for full state may be an answer or not; a refusal is no answer, nor is a new uid.
        if message.error_response.is_some() || message.agent_identification.is_some() || message.flags != 0 {
            return;
        }
        let stored = &self.answers.stored;
        let Some(session) = self.answers.sessions.get_mut(&(peer.to_owned(), uid)) else {
            let what = format!("agent {} is answered, and has said nothing", Short(uid.0));
            return self.wrong(invariant::ANSWERS, what);
        };
        session.answered += 1;
        self.looked.push(invariant::ANSWERS);
        let is_safe =
            |(digest, is_heartbeat): &&(u64, bool)| *is_heartbeat || stored.contains(&(uid, *digest));
        let (answered, safe) = (session.answered, session.sent.iter().filter(is_safe).count());
        if answered > safe {
            let what = format!(
                "agent {} has {answered} answers, and the log has {safe} of its messages",
                Short(uid.0)
            );
            self.wrong(invariant::ANSWERS, what);
        }
    }
}
