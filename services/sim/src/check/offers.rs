//! The way of offers: committed, handed to a gateway, written to the session that they are for.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use muster_domain::ids::{ConfigHash, InstanceUid, SessionId};
use muster_ports::bus::Subject;
use muster_proto::Message;
use muster_proto::bus::Delivery;
use muster_proto::bus::delivery::Action;

use super::{Checker, invariant};
use crate::trace::{Hash, Short};

/// What is known of offers.
#[derive(Default)]
pub(super) struct Offers {
    /// The session that an agent on a connection published last.
    current: BTreeMap<(String, InstanceUid), SessionId>,
    /// Where each session is.
    peers: BTreeMap<SessionId, String>,
    committed: BTreeSet<(InstanceUid, SessionId, ConfigHash)>,
    /// What control handed on for each session: hashes and their intent revisions.
    delivered: BTreeMap<(InstanceUid, SessionId), Vec<(ConfigHash, u64)>>,
    /// The lowest revision that the last written offer of a session can be of.
    written: BTreeMap<SessionId, u64>,
}

impl Offers {
    pub(super) fn session_began(&mut self, peer: String, uid: InstanceUid, session: SessionId) {
        self.peers.insert(session, peer.clone());
        self.current.insert((peer, uid), session);
    }

    /// Where a session is.
    pub(super) fn peer(&self, session: SessionId) -> Option<&str> {
        self.peers.get(&session).map(String::as_str)
    }

    pub(super) fn committed(&mut self, uid: InstanceUid, session: SessionId, hash: ConfigHash) {
        self.committed.insert((uid, session, hash));
    }

    /// A gateway writes an offer.
    fn written(&mut self, peer: &str, uid: InstanceUid, hash: &[u8]) -> Result<(), (&'static str, String)> {
        let what = |why: &str| format!("agent {} is sent {}: {why}", Short(uid.0), Hash(hash));
        let Some(session) = self.current.get(&(peer.to_owned(), uid)) else {
            return Err((invariant::CURRENT, what("its session has published nothing")));
        };
        let delivered = self.delivered.get(&(uid, *session)).map_or(&[][..], Vec::as_slice);
        let revisions = delivered.iter().filter(|(known, _)| known.as_bytes() == hash);
        let Some(newest) = revisions.clone().map(|(_, revision)| *revision).max() else {
            return Err((invariant::CURRENT, what("control offered it to no current session")));
        };
        let last = self.written.get(session).copied().unwrap_or_default();
        let Some(lowest) =
            revisions.map(|(_, revision)| *revision).filter(|revision| *revision >= last).min()
        else {
            let why = format!("that is of revision {newest}, and {last} was sent before");
            return Err((invariant::NEWEST, what(&why)));
        };
        self.written.insert(*session, lowest);
        Ok(())
    }
}

impl Checker {
    /// Control hands something to the bus; in short what it is.
    pub(crate) fn delivering(&mut self, subject: &Subject, payload: &Bytes) -> String {
        if !matches!(subject, Subject::Deliveries(..)) {
            return String::new();
        }
        let Ok(Delivery { action: Some(action), .. }) = Delivery::decode(payload.clone()) else {
            return ": garbage".to_owned();
        };
        let offer = match action {
            Action::RemoteConfig(offer) => offer,
            Action::RequestFullState(request) => {
                return format!(": asks {} for full state", request.sessions.len());
            }
            Action::CloseSessions(close) => return format!(": closes {}", close.sessions.len()),
            Action::ReclaimSessions(reclaim) => {
                return format!(": has {} claimed above {}", reclaim.sessions.len(), reclaim.above);
            }
            Action::RequestComponents(request) => {
                return format!(": asks {} for components", request.sessions.len());
            }
            Action::Decided(decided) => return format!(": {} are decided", decided.sessions.len()),
            Action::SendCommands(send) => return format!(": {} commands", send.commands.len()),
        };
        let mut told = format!(": offers of {}", offer.intent_revision);
        for target in &offer.targets {
            let uid = InstanceUid::try_from(target.instance_uid.as_ref());
            let session = SessionId::try_from(target.session_id.as_ref());
            let (Ok(uid), Ok(session), Some(hash)) = (uid, session, ConfigHash::new(&target.config_hash))
            else {
                self.wrong(invariant::CURRENT, "an offer names no session or no hash".to_owned());
                continue;
            };
            self.looked.push(invariant::CURRENT);
            if !self.offers.committed.contains(&(uid, session, hash.clone())) {
                let what = format!("an offer to agent {} goes out that was not committed", Short(uid.0));
                self.wrong(invariant::CURRENT, what);
            }
            told += &format!(" {} to {} of {}", Hash(hash.as_bytes()), Short(session.0), Short(uid.0));
            self.offers.delivered.entry((uid, session)).or_default().push((hash, offer.intent_revision));
        }
        told
    }

    /// A gateway writes an offer to a connection.
    pub(super) fn offer_written(&mut self, peer: &str, uid: InstanceUid, hash: &[u8]) {
        self.looked.push(invariant::NEWEST);
        if let Err((invariant, what)) = self.offers.written(peer, uid, hash) {
            self.wrong(invariant, what);
        }
    }
}
