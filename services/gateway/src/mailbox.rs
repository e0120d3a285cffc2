//! What waits to be done on one connection: the latest message of each kind for each session, and commands
//! in their order.
//!
//! Nothing here grows with time: a newer offer takes the place of an older one, and of commands there are
//! so many and no more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use muster_domain::agent::EndReason;
use muster_domain::ids::{
    Claim, CommandId, ConfigHash, Incarnation, InstanceUid, IntentRevision, SessionId, Timestamp,
};
use muster_proto::bus::send_command::Action;
use tokio::sync::Notify;

use crate::probes::Probe;

/// A remote config to be written to one agent.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    /// The session that it is for.
    pub(crate) session: SessionId,
    /// Life of the gateway in which the session was claimed: it knows nothing of what came after that.
    pub(crate) incarnation: Incarnation,
    /// Intent revision: the higher one wins.
    pub(crate) revision: IntentRevision,
    /// The assignments that give the config.
    pub(crate) assignments: Arc<[String]>,
    /// Its hash.
    pub(crate) hash: ConfigHash,
    /// The encoded AgentRemoteConfig, shared between all agents that get the same bytes.
    pub(crate) remote_config: Bytes,
}

/// Commands that may wait on one connection, and bytes of what they say. Many agents may share it.
const MAX_COMMANDS: (usize, usize) = (1024, 4 << 20);

/// A command for one agent. It has left the queue: it is written once, or never.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    /// The session that it is for.
    pub(crate) session: SessionId,
    /// Its id.
    pub(crate) id: CommandId,
    /// From when on it is not written.
    pub(crate) expires_at: Timestamp,
    /// What the agent is to do.
    pub(crate) action: Action,
}

impl Command {
    fn size(&self) -> usize {
        match &self.action {
            Action::Message(message) => message.capability.len() + message.r#type.len() + message.data.len(),
            Action::Restart(_) | Action::ReportFullState(_) | Action::Disconnect(_) => 0,
        }
    }
}

/// Too many commands wait on the connection.
#[derive(Debug, thiserror::Error)]
#[error("too many commands wait on the connection")]
pub(crate) struct Overflow;

/// Something that is to be done for one session.
#[derive(Debug)]
pub(crate) enum Order {
    /// Write this offer.
    Offer(InstanceUid, Offer),
    /// Ask for full state.
    RequestFullState(InstanceUid, SessionId),
    /// Ask for the list of available components.
    RequestComponents(InstanceUid, SessionId),
    /// Claim the agent anew, above this claim: ownership, the lease or the log was lost.
    Reclaim(InstanceUid, SessionId, Claim),
    /// End the session.
    Close(InstanceUid, SessionId, EndReason),
    /// Find out whether the agent is there.
    Probe(Probe),
}

/// What keeps a connection from reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Hold {
    /// Nothing.
    None,
    /// Its peer, which does not take what is written.
    Peer,
    /// Ownership, control or the log.
    Engines,
}

/// What waits for one connection.
#[derive(Default)]
pub(crate) struct Mailbox {
    waiting: Mutex<Waiting>,
    changed: Notify,
    /// A [`Hold`].
    hold: AtomicU8,
}

#[derive(Default)]
struct Waiting {
    /// The connection ends: nobody is probed any more.
    closed: bool,
    offers: BTreeMap<InstanceUid, Offer>,
    full_state: BTreeMap<InstanceUid, SessionId>,
    components: BTreeMap<InstanceUid, SessionId>,
    reclaim: BTreeMap<InstanceUid, (SessionId, Claim)>,
    close: BTreeMap<InstanceUid, (SessionId, EndReason)>,
    /// As many as are asked at once, which is bounded.
    probes: Vec<Probe>,
    commands: VecDeque<(InstanceUid, Command)>,
    command_bytes: usize,
}

impl Mailbox {
    /// Adds a command after those that wait, if there is room.
    pub(crate) fn put_command(&self, uid: InstanceUid, command: Command) -> Result<(), Overflow> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = waiting.command_bytes + command.size();
        if waiting.commands.len() >= MAX_COMMANDS.0 || bytes > MAX_COMMANDS.1 {
            return Err(Overflow);
        }
        waiting.command_bytes = bytes;
        waiting.commands.push_back((uid, command));
        drop(waiting);
        self.changed.notify_one();
        Ok(())
    }

    /// Adds an order. An older offer of the same agent gives way, a newer one stays.
    pub(crate) fn put(&self, order: Order) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match order {
            Order::Offer(uid, offer) => {
                let known = waiting.offers.get(&uid);
                if known
                    .is_none_or(|known| known.session != offer.session || known.revision <= offer.revision)
                {
                    waiting.offers.insert(uid, offer);
                }
            }
            Order::RequestFullState(uid, session) => {
                waiting.full_state.insert(uid, session);
            }
            Order::RequestComponents(uid, session) => {
                waiting.components.insert(uid, session);
            }
            Order::Reclaim(uid, session, above) => {
                let known = waiting.reclaim.get(&uid).filter(|(known, _)| *known == session);
                let above = known.map_or(above, |(_, known)| above.max(*known));
                waiting.reclaim.insert(uid, (session, above));
            }
            Order::Close(uid, session, reason) => {
                waiting.close.insert(uid, (session, reason));
            }
            // One that is dropped tells that the session is gone.
            Order::Probe(probe) if waiting.closed => drop(probe),
            Order::Probe(probe) => waiting.probes.push(probe),
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// The connection ends: whoever probes one of its sessions is told so, now and from now on.
    pub(crate) fn close(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.closed = true;
        waiting.probes = Vec::new();
    }

    /// What the connection waits for now.
    pub(crate) fn set_hold(&self, hold: Hold) {
        self.hold.store(hold as u8, Ordering::Relaxed);
    }

    /// What the connection waits for now.
    pub(crate) fn hold(&self) -> Hold {
        match self.hold.load(Ordering::Relaxed) {
            hold if hold == Hold::Peer as u8 => Hold::Peer,
            hold if hold == Hold::Engines as u8 => Hold::Engines,
            _ => Hold::None,
        }
    }

    /// The commands that wait, in their order.
    pub(crate) fn take_commands(&self) -> VecDeque<(InstanceUid, Command)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.command_bytes = 0;
        std::mem::take(&mut waiting.commands)
    }

    /// Waits until there is something, then takes all of it but commands, what closes first.
    pub(crate) async fn take(&self) -> Vec<Order> {
        loop {
            let (waiting, has_commands) = {
                let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let (commands, command_bytes) = (std::mem::take(&mut all.commands), all.command_bytes);
                let has_commands = !commands.is_empty();
                let kept = Waiting { commands, command_bytes, closed: all.closed, ..Waiting::default() };
                (std::mem::replace(&mut *all, kept), has_commands)
            };
            let close =
                waiting.close.into_iter().map(|(uid, (session, reason))| Order::Close(uid, session, reason));
            let probes = waiting.probes.into_iter().map(Order::Probe);
            let full =
                waiting.full_state.into_iter().map(|(uid, session)| Order::RequestFullState(uid, session));
            let offers = waiting.offers.into_iter().map(|(uid, offer)| Order::Offer(uid, offer));
            let components =
                waiting.components.into_iter().map(|(uid, session)| Order::RequestComponents(uid, session));
            let reclaim = waiting.reclaim.into_iter();
            let reclaim = reclaim.map(|(uid, (session, above))| Order::Reclaim(uid, session, above));
            let orders: Vec<_> =
                close.chain(probes).chain(full).chain(offers).chain(components).chain(reclaim).collect();
            if !orders.is_empty() || has_commands {
                return orders;
            }
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn offer(session: u128, revision: u64) -> Order {
        let hash = ConfigHash::new(&[1]).unwrap();
        let session = SessionId(Uuid::from_u128(session));
        let offer = Offer {
            session,
            incarnation: Incarnation(Uuid::nil()),
            revision: IntentRevision(revision),
            assignments: Arc::default(),
            hash,
            remote_config: Bytes::new(),
        };
        Order::Offer(InstanceUid(Uuid::nil()), offer)
    }

    fn command(number: u128, length: usize) -> Command {
        let message = muster_proto::bus::AgentMessage { data: vec![0; length].into(), ..Default::default() };
        Command {
            session: SessionId(Uuid::nil()),
            id: CommandId(Uuid::from_u128(number)),
            expires_at: Timestamp(1),
            action: Action::Message(message),
        }
    }

    #[tokio::test]
    async fn commands_keep_their_order_and_are_bounded() {
        let mailbox = Mailbox::default();
        let uid = InstanceUid(Uuid::nil());
        let fill =
            |length| (0..).take_while(|n| mailbox.put_command(uid, command(*n, length)).is_ok()).count();
        assert_eq!(fill(0), MAX_COMMANDS.0);
        mailbox.put(offer(1, 5));
        assert_eq!(mailbox.take().await.len(), 1, "commands are taken apart");
        let taken: Vec<_> =
            mailbox.take_commands().iter().map(|(_, command)| command.id.0.as_u128()).collect();
        assert_eq!(taken, (0..MAX_COMMANDS.0 as u128).collect::<Vec<_>>());
        assert_eq!(fill(64 << 10), MAX_COMMANDS.1 / (64 << 10));
        assert_eq!(mailbox.take().await.len(), 0, "a command alone wakes as well");
        assert_eq!(mailbox.take_commands().len(), 64);
        assert_eq!(fill(0), MAX_COMMANDS.0, "what was taken makes room");
    }

    #[tokio::test]
    async fn the_offer_with_the_higher_revision_wins() {
        let mailbox = Mailbox::default();
        mailbox.put(offer(1, 5));
        mailbox.put(offer(1, 4));
        let orders = mailbox.take().await;
        assert!(matches!(&orders[..], [Order::Offer(_, offer)] if offer.revision.0 == 5), "{orders:?}");
        mailbox.put(offer(1, 5));
        mailbox.put(offer(2, 4));
        let orders = mailbox.take().await;
        assert!(matches!(&orders[..], [Order::Offer(_, offer)] if offer.revision.0 == 4), "{orders:?}");
    }
}
