//! Messages that are not sent, since they are larger than what agents are sent (specification, "WebSocket
//! Message Exchange"): that is told in the log.

use muster_domain::agent::Unsent;
use muster_domain::ids::{InstanceUid, SessionId};

use crate::connection::{Connection, Output, Publish};
use crate::session::InFlight;

impl Connection {
    /// Has the log told that the session is not sent this. While something of the session is on its way to
    /// the log it is not: what is not sent is tried again, and told then.
    pub fn unsent(&mut self, uid: InstanceUid, session: SessionId, unsent: Unsent) {
        let Some(active) = self.active(uid).filter(|active| active.claimed.session == session) else {
            return;
        };
        if !active.is_free() || !active.announced {
            return;
        }
        active.in_flight = Some((session, InFlight::Unsent));
        let publish = Publish {
            uid,
            session,
            claim: active.claimed.claim,
            started: None,
            message: None,
            ended: None,
            dirty: active.tracker.is_dirty(),
            silent: active.hearing.told,
            unsent: Some(unsent),
            sent: active.sent.clone(),
        };
        self.outputs.push_back(Output::Publish(publish));
        self.look(uid);
    }
}
