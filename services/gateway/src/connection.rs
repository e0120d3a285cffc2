//! One WebSocket connection: frames into the session machine, its outputs to the engines and back.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use muster_domain::agent::{EndReason, Unsent};
use muster_domain::duplicates::Client;
use muster_domain::ids::{AgentKey, Claim, InstanceUid, Partition, SessionId, Tenant, Timestamp};
use muster_opamp::connection::{Connection, Limits, Output};
use muster_ports::ownership::Settled;
use muster_proto::bus::send_command::Action;
use muster_proto::encoding::{WireType, encode_key, encode_varint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::access::{self, Pass};
use crate::claims::{Claims, Made, What};
use crate::mailbox::{Command, Hold, Mailbox, Offer, Order};
use crate::probes::{Probe, Probes};
use crate::registry::Place;
use crate::socket::{Received, Socket, SocketError, code};
use crate::upstream::ClaimError;
use crate::{Shared, commands, settler, upstream};

/// How long a peer may take to answer a Close.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// Nothing more is read from a peer while this many bytes of its messages wait for claims and for the log.
const MAX_WAITING: usize = 1 << 20;

/// Why a connection ends, as its close code, its text and what becomes of its sessions.
struct End {
    /// `None` where no Close frame can or need be sent.
    close: Option<(u16, &'static str)>,
    reason: EndReason,
}

impl End {
    const LOST: Self = Self { close: None, reason: EndReason::ConnectionLost };

    fn close(code: u16, text: &'static str, reason: EndReason) -> Self {
        Self { close: Some((code, text)), reason }
    }
}

/// One connection while it is open.
struct Serving<S> {
    shared: Arc<Shared>,
    socket: Socket<S>,
    machine: Connection,
    mailbox: Arc<Mailbox>,
    tenant: Tenant,
    pass: Pass,
    peer: SocketAddr,
    /// When the last frame came.
    heard: Instant,
    /// When the last ping was sent.
    pinged: Instant,
    probes: Probes,
    claims: Claims,
    /// Agents that spoke with a claim below the stored one: they are asked for full state when they are claimed
    /// anew.
    unfolded: BTreeSet<InstanceUid>,
    /// The partition of the agent that spoke last.
    partition: Option<(InstanceUid, Partition)>,
    /// When the connection is closed because the gateway is stopping.
    close_at: Option<Instant>,
    /// Whether anything may still be written.
    open: bool,
}

/// Serves a connection until it ends.
pub(crate) async fn serve<S>(shared: Arc<Shared>, socket: Socket<S>, peer: SocketAddr, pass: Pass)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let tenant = pass.tenant.clone();
    shared.metrics.websocket_connections.inc();
    shared.metrics.open_connections.inc();
    let mut serving = Serving {
        machine: Connection::new(Limits {
            max_sessions: shared.settings.max_agents_per_connection,
            silent_after: shared.settings.agent_silent_after,
        }),
        mailbox: Arc::new(Mailbox::default()),
        heard: Instant::now(),
        pinged: Instant::now(),
        probes: Probes::default(),
        claims: Claims::default(),
        unfolded: BTreeSet::new(),
        partition: None,
        close_at: None,
        open: true,
        shared,
        socket,
        tenant,
        pass,
        peer,
    };
    let end = serving.run().await;
    serving.finish(end).await;
}

impl<S: AsyncRead + AsyncWrite + Unpin> Serving<S> {
    async fn run(&mut self) -> End {
        loop {
            if let Err(end) = self.work().await {
                return end;
            }
            let deadline = self.next_deadline();
            let reads = self.machine.waiting_bytes() < MAX_WAITING;
            self.mailbox.set_hold(if reads { Hold::None } else { Hold::Engines });
            // None starves: the stop comes once, a deadline that was met moves on by 10 ms or more, a session
            // claims once before it goes on, and the mailbox holds one order of a kind for each session, so
            // an agent that never stops sending is the one that comes last.
            let step = tokio::select! {
                biased;
                () = self.shared.closing.cancelled(), if self.close_at.is_none() => {
                    let over = self.shared.closing_over.get().copied().unwrap_or_default();
                    let delay = self.shared.engines.random.between(Duration::ZERO, over);
                    self.close_at = Some(Instant::now() + delay);
                    Ok(())
                }
                () = self.pass.revoked() => {
                    Err(End::close(code::POLICY, "the credential is revoked", EndReason::ConnectionLost))
                }
                () = tokio::time::sleep_until(deadline) => self.on_time().await,
                made = self.claims.next() => {
                    self.claimed(made);
                    Ok(())
                }
                orders = self.mailbox.take() => self.orders(orders).await,
                received = self.socket.recv(), if reads => self.received(received).await,
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Does what the machine wants done.
    async fn work(&mut self) -> Result<(), End> {
        while let Some(output) = self.machine.poll() {
            match output {
                Output::Claim(uid) => self.claim(uid, What::Agent),
                Output::Issue(uid) => self.claim(uid, What::NewUid),
                Output::Publish(publish) => {
                    self.mailbox.set_hold(Hold::Engines);
                    let (key, session) = (self.key(publish.uid), publish.session);
                    let remote_addr = self.peer.to_string();
                    // The machine forgets a session with its end, so that the log is owed it.
                    let end = publish.message.is_none().then(|| publish.clone());
                    let result = upstream::publish(&self.shared, &key, publish, &remote_addr).await;
                    if let Some(end) = end.filter(|end| end.ended.is_some() && result.is_err()) {
                        self.shared.owed.keep(key.clone(), end);
                    }
                    self.machine.published(key.uid, session, result, self.now());
                }
                Output::Send(reply) => self.send(reply.frame()).await?,
                Output::Settled { uid, session, sequence_num } => {
                    let (key, seen, partition) = (self.key(uid), self.now(), self.partition(uid));
                    let epoch = self.shared.lives.of(partition);
                    self.shared.settler.note(Settled { key, session, sequence_num, epoch, seen });
                }
                Output::Ended { uid, session } => self.release(uid, session).await,
                Output::Taken { uid, .. } => {
                    self.count_new_uid("taken");
                    self.shared.given().taken(&self.client(uid));
                }
                Output::NotTaken(uid) => {
                    self.count_new_uid("not_taken");
                    self.shared.given().not_taken(self.client(uid), self.now());
                }
            }
        }
        Ok(())
    }

    fn claim(&mut self, uid: InstanceUid, what: What) {
        self.claims.begin(Arc::clone(&self.shared), self.client(uid), self.pass.clone(), what);
    }

    fn claimed(&mut self, made: Made) {
        let Made { uid, what, incarnation, result } = made;
        match (result, what) {
            (Ok((held, claimed)), _) => {
                let mailbox = Arc::clone(&self.mailbox);
                let place = Place { session: claimed.session, incarnation, mailbox };
                match self.shared.registry.insert(self.key(held), place) {
                    None => self.shared.metrics.connected_agents.inc(),
                    Some(before) if Arc::ptr_eq(&before.mailbox, &self.mailbox) => {}
                    // Ownership has granted the agent to this session: the other one speaks for nobody.
                    Some(before) => {
                        before.mailbox.put(Order::Close(held, before.session, EndReason::Superseded));
                    }
                }
                if incarnation != self.shared.incarnation() {
                    // Another life has begun meanwhile, and looks no longer for sessions of this one.
                    self.mailbox.put(Order::Reclaim(held, claimed.session, Claim::default()));
                }
                match what {
                    What::Agent => self.machine.claimed(uid, claimed, self.now()),
                    What::Anew(..) => {
                        self.machine.reclaimed(uid, claimed);
                        // What it said under a lower claim was not folded.
                        if self.unfolded.remove(&uid) {
                            self.machine.request_full_state(uid, claimed.session, self.now());
                        }
                    }
                    What::NewUid => {
                        if self.machine.issued(uid, held, claimed, self.now()) {
                            self.count_new_uid("issued");
                            info!(event = "agent_rekeyed", tenant = %self.tenant, agent_id = %uid, new_agent_id = %held, remote_addr = %self.peer, "an agent asked for an instance_uid and is given one");
                        }
                    }
                }
            }
            (Err(_), _) if !self.open => {}
            (Err(ClaimError::Forbidden), What::Agent | What::NewUid) => {
                warn!(event = "agent_refused", tenant = %self.tenant, agent_id = %uid, remote_addr = %self.peer, "an agent's credential may not be used for its instance_uid");
                self.machine.forbidden(uid, &access::not_for(uid));
            }
            // It reconnects, and is a newcomer then.
            (
                Err(ClaimError::Duplicate { .. } | ClaimError::Refused | ClaimError::Forbidden),
                What::Anew(session, _),
            ) => {
                self.mailbox.put(Order::Close(uid, session, EndReason::Superseded));
            }
            // Settling fails again at the next message, and a session of another life of the gateway is
            // found again: both bring the session back here.
            (Err(ClaimError::Unknown(not_now)), What::Anew(..)) => {
                debug!(tenant = %self.tenant, agent_id = %uid, reason = not_now.reason, "an agent could not be claimed anew");
            }
            (Err(ClaimError::Duplicate { new_uid }), _) => {
                match self.machine.duplicate(uid, Some(new_uid), self.now()) {
                    Some(new_uid) => {
                        self.count_new_uid("given");
                        info!(event = "agent_rekeyed", tenant = %self.tenant, agent_id = %uid, new_agent_id = %new_uid, remote_addr = %self.peer, "another live agent uses the instance_uid: this one was given a new one");
                    }
                    None => self.refused(uid),
                }
            }
            (Err(ClaimError::Refused), _) => {
                self.machine.duplicate(uid, None, self.now());
                self.refused(uid);
            }
            (Err(ClaimError::Unknown(not_now)), _) => self.machine.claim_failed(uid, &not_now),
        }
    }

    fn refused(&self, uid: InstanceUid) {
        self.count_new_uid("refused");
        warn!(event = "agent_refused", tenant = %self.tenant, agent_id = %uid, remote_addr = %self.peer, "an agent is refused: its instance_uid is another live agent's, and it does not take the new one that it is given; configure one of its own");
    }

    fn count_new_uid(&self, result: &str) {
        self.shared.metrics.new_uids.with_label_values(&[result]).inc();
    }

    async fn release(&mut self, uid: InstanceUid, session: SessionId) {
        let key = self.key(uid);
        self.unfolded.remove(&uid);
        self.probes.ended(session);
        self.mailbox.set_hold(Hold::Engines);
        if self.shared.registry.remove(&key, session) {
            self.shared.metrics.connected_agents.dec();
        }
        settler::release(&self.shared, &key, session).await;
    }

    async fn received(&mut self, received: Result<Received, SocketError>) -> Result<(), End> {
        self.heard = Instant::now();
        match received {
            Ok(Received::Binary(bytes)) => {
                self.shared.metrics.received.inc();
                let of = self.machine.frame(&bytes, self.now());
                self.probes.heard(of);
                Ok(())
            }
            Ok(Received::Ping(payload)) => {
                self.probes.heard(None);
                self.write(Write::Pong(&payload)).await
            }
            Ok(Received::Pong) => {
                self.probes.heard(None);
                Ok(())
            }
            Ok(Received::Close(given)) => {
                Err(End::close(given.unwrap_or(code::NORMAL), "", EndReason::Closed))
            }
            Err(error) => Err(self.broken(&error)),
        }
    }

    /// What the failure of a read means.
    fn broken(&self, error: &SocketError) -> End {
        let (code, text) = match error {
            SocketError::Gone(source) => {
                debug!(remote_addr = %self.peer, tenant = %self.tenant, error = %source, "a connection was lost");
                return End::LOST;
            }
            SocketError::TooLarge(_) => (code::SIZE, "the message is too large"),
            SocketError::Text => (code::UNSUPPORTED, "OpAMP messages are binary"),
            SocketError::Protocol(_) => (code::PROTOCOL, "the WebSocket frame is malformed"),
        };
        warn!(remote_addr = %self.peer, tenant = %self.tenant, %error, "a connection is closed");
        End::close(code, text, EndReason::ProtocolError)
    }

    async fn orders(&mut self, orders: Vec<Order>) -> Result<(), End> {
        for order in orders {
            match order {
                Order::Offer(uid, offer) => self.offer(uid, offer).await?,
                Order::RequestFullState(uid, session) => {
                    self.machine.request_full_state(uid, session, self.now());
                }
                Order::RequestComponents(uid, session) => self.machine.request_components(uid, session),
                // In the place of the connection's own session before.
                Order::Reclaim(uid, session, above) => {
                    if self.machine.session(uid) == Some(session) {
                        if above > Claim::default() {
                            self.unfolded.insert(uid);
                        }
                        self.claim(uid, What::Anew(session, above));
                    }
                }
                Order::Close(uid, session, reason) => {
                    if self.machine.session(uid) == Some(session) && self.machine.sessions() == 1 {
                        let text = "another connection of this agent has taken over";
                        return Err(End::close(code::POLICY, text, reason));
                    }
                    self.machine.close_session(uid, Some(session), reason);
                }
                Order::Probe(probe) => self.probe(probe).await?,
            }
        }
        for (uid, command) in self.mailbox.take_commands() {
            self.command(uid, command).await?;
        }
        Ok(())
    }

    /// Does what an operator ordered, if the session and its time are still there. It is done once, or
    /// never.
    async fn command(&mut self, uid: InstanceUid, command: Command) -> Result<(), End> {
        let refusal = match self.machine.session(uid) == Some(command.session) {
            false => Some("session_gone"),
            true => (command.expires_at <= self.now()).then_some("expired"),
        };
        commands::tell(&self.shared, &self.tenant, uid, &command, refusal.unwrap_or("sent"));
        if refusal.is_some() {
            return Ok(());
        }
        match command.action {
            Action::Restart(_) => self.send(commands::restart(uid)).await,
            Action::Message(message) => self.send(commands::message(uid, message)).await,
            Action::ReportFullState(_) => {
                self.machine.request_full_state(uid, command.session, self.now());
                Ok(())
            }
            Action::Disconnect(_) if self.machine.sessions() == 1 => {
                Err(End::close(code::NORMAL, "an operator disconnects the agent", EndReason::Operator))
            }
            Action::Disconnect(_) => {
                self.machine.close_session(uid, Some(command.session), EndReason::Operator);
                Ok(())
            }
        }
    }

    /// Asks the agent whether it is there. What answers a ping is the connection, which says nothing about
    /// one of several agents. A session that is gone is told by dropping the probe.
    async fn probe(&mut self, probe: Probe) -> Result<(), End> {
        let (uid, session) = (probe.uid, probe.session);
        if self.machine.session(uid) != Some(session) {
            return Ok(());
        }
        let by_ping = self.machine.sessions() == 1;
        if by_ping {
            self.ping().await?;
        } else if !self.probes.is_asked(session) {
            self.machine.request_full_state(uid, session, self.now());
        }
        self.probes.asked(probe, by_ping);
        Ok(())
    }

    async fn offer(&mut self, uid: InstanceUid, offer: Offer) -> Result<(), End> {
        if let Some(refusal) = self.shared.fence.refusal(&self.shared, &self.tenant, &offer) {
            debug!(tenant = %self.tenant, agent_id = %uid, config_hash = %offer.hash, ?refusal, "an offer is not sent");
            self.shared.metrics.offers.with_label_values(&[refusal.name()]).inc();
            return Ok(());
        }
        let head = offer_head(uid, offer.remote_config.len());
        // Without the header byte (specification, "WebSocket Message Format").
        let (size, limit) =
            (head.len() - 1 + offer.remote_config.len(), self.shared.settings.max_sent_message_size);
        if size > limit {
            warn!(event = "message_too_large", tenant = %self.tenant, agent_id = %uid, config_hash = %offer.hash, size, limit, "an offer is not sent: it is larger than server.websocket.max_sent_message_size");
            self.shared.metrics.offers.with_label_values(&["too_large"]).inc();
            let unsent = Unsent { hash: offer.hash, size: size as u64, limit: limit as u64 };
            self.machine.unsent(uid, offer.session, unsent);
            return Ok(());
        }
        if let Err(why) = self.machine.offer(uid, offer.session, offer.revision, offer.hash.clone()) {
            self.shared.metrics.offers.with_label_values(&[why.name()]).inc();
            return Ok(());
        }
        self.shared.metrics.sent.inc();
        self.write(Write::Message([&head, &offer.remote_config])).await?;
        self.shared.metrics.offers.with_label_values(&["sent"]).inc();
        info!(event = "config_offered", tenant = %self.tenant, agent_id = %uid, config_hash = %offer.hash, "offered a remote config");
        Ok(())
    }

    fn next_deadline(&self) -> Instant {
        let settings = &self.shared.settings;
        let mut quiet = (self.pinged + settings.ping_every).min(self.heard + settings.silent_after);
        if let Some(close_at) = self.close_at {
            quiet = quiet.min(close_at);
        }
        if let Some(end) = self.pass.expires_at() {
            quiet = quiet.min(Instant::now() + end.since(self.now()));
        }
        match self.machine.poll_timeout() {
            None => quiet,
            Some(due) => quiet.min(Instant::now() + due.since(self.now()).max(Duration::from_millis(10))),
        }
    }

    async fn on_time(&mut self) -> Result<(), End> {
        let settings = &self.shared.settings;
        if self.close_at.is_some_and(|at| at <= Instant::now()) {
            let text = "the gateway is stopping";
            return Err(End::close(code::SERVICE_RESTART, text, EndReason::GatewayStopped));
        }
        if self.heard.elapsed() >= settings.silent_after {
            return Err(End::close(code::POLICY, "nothing was heard for too long", EndReason::Silent));
        }
        if self.pass.expires_at().is_some_and(|end| end <= self.now()) {
            return Err(End::close(code::POLICY, "the credential has expired", EndReason::ConnectionLost));
        }
        self.machine.timeout(self.now());
        if self.pinged.elapsed() >= settings.ping_every {
            self.ping().await?;
        }
        Ok(())
    }

    async fn ping(&mut self) -> Result<(), End> {
        self.pinged = Instant::now();
        self.write(Write::Ping).await
    }

    async fn send(&mut self, bytes: Bytes) -> Result<(), End> {
        self.shared.metrics.sent.inc();
        self.write(Write::Message([&bytes, &[]])).await
    }

    async fn write(&mut self, write: Write<'_>) -> Result<(), End> {
        if !self.open {
            return Err(End::LOST);
        }
        let socket = &mut self.socket;
        let work = async {
            match write {
                Write::Message(parts) => socket.send(parts).await,
                Write::Ping => socket.ping().await,
                Write::Pong(payload) => socket.pong(payload).await,
                Write::Close(code, text) => socket.close(code, text).await,
            }
        };
        self.mailbox.set_hold(Hold::Peer);
        let written = tokio::time::timeout(self.shared.settings.write_deadline, work).await;
        self.mailbox.set_hold(Hold::None);
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                debug!(remote_addr = %self.peer, tenant = %self.tenant, %error, "a connection was lost");
                Err(End::LOST)
            }
            Err(_) => {
                warn!(remote_addr = %self.peer, tenant = %self.tenant, "the peer reads nothing: the connection is dropped");
                Err(End { close: None, reason: EndReason::Silent })
            }
        }
    }

    /// Says Close where that can be said, then ends the sessions.
    async fn finish(mut self, end: End) {
        // From here on the agents are elsewhere, or nowhere.
        self.mailbox.close();
        self.probes = Probes::default();
        if let Some((code, text)) = end.close
            && self.write(Write::Close(code, text)).await.is_ok()
        {
            // Until the peer ends as well: a stream dropped with bytes unread may take the Close with it.
            let _ = tokio::time::timeout(CLOSE_DEADLINE, self.socket.linger()).await;
        }
        self.open = false;
        self.machine.close(end.reason);
        loop {
            // Replies that are still to be sent fail, one after the other, until only the rest is left.
            while let Err(_lost) = self.work().await {}
            if self.claims.is_empty() {
                break;
            }
            // What is claimed too late is given back.
            let made = self.claims.next().await;
            self.claimed(made);
        }
        self.shared.metrics.open_connections.dec();
    }

    fn client(&self, uid: InstanceUid) -> Client {
        (self.key(uid), self.peer.ip())
    }

    fn key(&self, uid: InstanceUid) -> AgentKey {
        AgentKey { tenant: self.tenant.clone(), uid }
    }

    /// The agent's partition. Most connections have one agent, whose every heartbeat asks for it.
    fn partition(&mut self, uid: InstanceUid) -> Partition {
        match self.partition {
            Some((known, partition)) if known == uid => partition,
            _ => {
                let partition = Partition::of(&self.key(uid));
                self.partition = Some((uid, partition));
                partition
            }
        }
    }

    fn now(&self) -> Timestamp {
        (self.shared.engines.clock)()
    }
}

/// Something to be written.
enum Write<'a> {
    /// A message that is these parts, one after the other.
    Message([&'a [u8]; 2]),
    Ping,
    Pong(&'a [u8]),
    Close(u16, &'static str),
}

/// What stands before the bytes of an AgentRemoteConfig to make them a ServerToAgent: header,
/// instance_uid (field 1), and the tag and length of remote_config (field 3).
fn offer_head(uid: InstanceUid, length: usize) -> Bytes {
    let mut head = BytesMut::with_capacity(32);
    head.put_u8(0);
    encode_key(1, WireType::LengthDelimited, &mut head);
    encode_varint(16, &mut head);
    head.put_slice(uid.as_bytes());
    encode_key(3, WireType::LengthDelimited, &mut head);
    encode_varint(length as u64, &mut head);
    head.freeze()
}

#[cfg(test)]
mod tests {
    use muster_proto::Message;
    use muster_proto::opamp::{AgentConfigMap, AgentRemoteConfig, ServerToAgent};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_offer_is_a_server_to_agent() {
        let uid = InstanceUid(Uuid::from_u128(7));
        let remote_config =
            AgentRemoteConfig { config: Some(AgentConfigMap::default()), config_hash: vec![1, 2] };
        let body = remote_config.encode_to_vec();
        let frame = [offer_head(uid, body.len()).as_ref(), &body].concat();
        assert_eq!(frame[0], 0);
        let expected = ServerToAgent {
            instance_uid: uid.as_bytes().to_vec(),
            remote_config: Some(remote_config),
            ..ServerToAgent::default()
        };
        assert_eq!(ServerToAgent::decode(&frame[1..]), Ok(expected));
    }
}
