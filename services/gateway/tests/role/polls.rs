//! Agents that poll, while engines and control are not as they should be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use muster_adapters_memory::{MemoryLog, MemoryOwnership};
use muster_domain::ids::{
    AgentKey, Claim, CommandId, ConfigHash, InstanceUid, IntentRevision, MessageId, Partition, SessionId,
    Timestamp,
};
use muster_domain::poll::{Letter, Mail, Poll, PollEnd, Silence};
use muster_ports::EngineError;
use muster_ports::log::{Log, LogReader, Position, PublishError};
use muster_ports::polls::{PollOutcome, Polls};
use muster_proto::bus::delivery::Action;
use muster_proto::bus::{
    AgentMessage, Decided, GetCommand, GetOffer, RestartAgent, SendCommand, SessionRef, WantedCommand,
    WantedOffer, control_reply, send_command,
};
use muster_proto::opamp::{CommandType, ServerToAgent, ServerToAgentCommand};
use muster_testkit::messages::{first_report, full_state, health, heartbeat};
use muster_testkit::{Answer, Poller, eventually};
use uuid::Uuid;

use crate::{AGENT, Gateway, SOON, offer};

/// Engines that can be away.
pub(crate) struct Unsteady {
    log: Arc<MemoryLog>,
    pub(crate) ownership: Arc<MemoryOwnership>,
    log_is_away: AtomicBool,
    ownership_is_away: AtomicBool,
}

impl Unsteady {
    pub(crate) fn new(log: Arc<MemoryLog>) -> Self {
        Self {
            log,
            ownership: Arc::default(),
            log_is_away: AtomicBool::new(false),
            ownership_is_away: AtomicBool::new(false),
        }
    }

    fn there(&self) -> Result<&MemoryOwnership, EngineError> {
        match self.ownership_is_away.load(Ordering::SeqCst) {
            true => Err(EngineError::Unavailable { engine: "ownership", reason: "it is down".to_owned() }),
            false => Ok(&self.ownership),
        }
    }
}

#[async_trait]
impl Log for Unsteady {
    async fn publish(
        &self,
        partition: Partition,
        id: MessageId,
        payload: Bytes,
    ) -> Result<Position, PublishError> {
        if self.log_is_away.load(Ordering::SeqCst) {
            return Err(PublishError::Full);
        }
        self.log.publish(partition, id, payload).await
    }

    async fn read(&self, partition: Partition, after: Position) -> Result<Box<dyn LogReader>, EngineError> {
        self.log.read(partition, after).await
    }

    async fn id_at(&self, partition: Partition, at: Position) -> Result<Option<MessageId>, EngineError> {
        self.log.id_at(partition, at).await
    }

    fn max_payload(&self) -> usize {
        self.log.max_payload()
    }

    async fn last(&self, partition: Partition) -> Result<Position, EngineError> {
        self.log.last(partition).await
    }

    async fn purge(&self, partition: Partition, below: Position) -> Result<(), EngineError> {
        self.log.purge(partition, below).await
    }
}

#[async_trait]
impl Polls for Unsteady {
    async fn begin(&self, key: &AgentKey, poll: Poll) -> Result<PollOutcome, EngineError> {
        self.there()?.begin(key, poll).await
    }

    async fn end(&self, key: &AgentKey, end: PollEnd) -> Result<bool, EngineError> {
        self.there()?.end(key, end).await
    }

    async fn post(&self, letters: Vec<Letter>) -> Result<Vec<bool>, EngineError> {
        self.there()?.post(letters).await
    }

    async fn expire(
        &self,
        silent: Vec<(AgentKey, SessionId, Timestamp)>,
    ) -> Result<Vec<Silence>, EngineError> {
        self.there()?.expire(silent).await
    }
}

/// What control answers about an offer.
#[derive(Default)]
pub(crate) enum Wanted {
    /// Nothing at all.
    #[default]
    Silent,
    /// That the agent is to get none.
    None,
    /// The offer that was asked for.
    Yes,
}

impl Wanted {
    pub(crate) fn answer(&self, asked: &GetOffer) -> Option<control_reply::Reply> {
        let session = asked.session.clone().unwrap().session_id;
        let remote_config = match self {
            Self::Silent => return None,
            Self::None => None,
            Self::Yes => Some(offer(&session, asked.intent_revision)),
        };
        Some(control_reply::Reply::Offer(WantedOffer { remote_config }))
    }
}

/// The command with this number, of which 1 and 3 are restarts, the third one's time is over, and 4 is
/// none.
pub(crate) fn command(asked: &GetCommand) -> control_reply::Reply {
    let number = Uuid::from_slice(&asked.id).unwrap().as_u128();
    let action = match number {
        1 | 3 => send_command::Action::Restart(RestartAgent {}),
        _ => send_command::Action::Message(AgentMessage {
            capability: "com.example".to_owned(),
            r#type: number.to_string(),
            ..AgentMessage::default()
        }),
    };
    let command = SendCommand {
        session: asked.session.clone(),
        id: asked.id.clone(),
        expires_at_us: if number == 3 { 1 } else { u64::MAX },
        action: Some(action),
    };
    control_reply::Reply::Command(WantedCommand { command: (number != 4).then_some(command) })
}

const UID: Uuid = Uuid::from_u128(AGENT);

fn poller(gateway: &Gateway) -> Poller {
    Poller::new(gateway.url.replace("ws://", "http://"))
}

fn plain() -> ServerToAgent {
    ServerToAgent { instance_uid: UID.as_bytes().to_vec(), ..ServerToAgent::default() }
}

fn assert_not_now(answer: &Answer) {
    assert_eq!(answer.status, 503, "{answer:?}");
    let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((30..=60).contains(&seconds), "{answer:?}");
}

/// The revision of the offer in an answer.
fn offered(answer: &ServerToAgent) -> Option<u64> {
    let hash = answer.remote_config.as_ref()?.config_hash.clone();
    Some(u64::from_be_bytes(hash.try_into().unwrap()))
}

impl Gateway {
    fn say(&self, wanted: Wanted) {
        *self.wanted.lock().unwrap() = wanted;
    }

    /// Puts an offer of this revision before the agent.
    async fn post(&self, session: &Bytes, revision: u64) {
        let hash = ConfigHash::new(&revision.to_be_bytes()).unwrap();
        let letter = Letter {
            key: AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(UID) },
            session: session.as_ref().try_into().unwrap(),
            mail: Mail { offer: Some((hash, IntentRevision(revision))), ..Mail::default() },
            above: Claim::default(),
        };
        assert_eq!(self.unsteady.ownership.post(vec![letter]).await.unwrap(), [true]);
    }
}

#[tokio::test]
async fn without_the_log_a_report_is_refused_and_asked_for_again() {
    let gateway = Gateway::start().await;
    let agent = poller(&gateway);
    gateway.unsteady.log_is_away.store(true, Ordering::SeqCst);
    assert_not_now(&agent.send(&first_report(UID, &[])).await);
    assert_not_now(&agent.send(&first_report(UID, &[])).await);
    gateway.unsteady.log_is_away.store(false, Ordering::SeqCst);
    let answer = agent.exchange(&full_state(UID, 1, &[])).await;
    assert_eq!((answer.capabilities, answer.flags), (0x7, 1));
    assert_eq!(agent.exchange(&full_state(UID, 2, &[])).await, plain());

    gateway.unsteady.log_is_away.store(true, Ordering::SeqCst);
    assert_eq!(agent.exchange(&heartbeat(UID, 3)).await, plain(), "heartbeats need no log");
    assert_not_now(&agent.send(&health(UID, 4, false, "lost")).await);
    gateway.unsteady.log_is_away.store(false, Ordering::SeqCst);
    // The clock of these tests stands still: the ask was made a moment ago.
    assert_eq!(agent.exchange(&health(UID, 4, false, "again")).await, plain());
    gateway.stop().await;
}

#[tokio::test]
async fn without_ownership_requests_are_refused() {
    let gateway = Gateway::start().await;
    let agent = poller(&gateway);
    agent.exchange(&first_report(UID, &[])).await;
    gateway.unsteady.ownership_is_away.store(true, Ordering::SeqCst);
    assert_not_now(&agent.send(&heartbeat(UID, 1)).await);
    assert_not_now(&agent.send(&heartbeat(Uuid::now_v7(), 1)).await);
    gateway.unsteady.ownership_is_away.store(false, Ordering::SeqCst);
    assert_eq!(agent.exchange(&heartbeat(UID, 1)).await, plain());
    gateway.stop().await;
}

/// An agent whose every request is a heartbeat.
struct Quiet<'a> {
    gateway: &'a Gateway,
    poller: Poller,
    sequence: u64,
}

impl Quiet<'_> {
    async fn poll(&mut self) -> ServerToAgent {
        self.sequence += 1;
        self.poller.exchange(&heartbeat(UID, self.sequence)).await
    }

    /// Polls until something is offered, and returns its revision. A busy machine may need several requests.
    async fn offer(&mut self) -> u64 {
        eventually(SOON, async || offered(&self.poll().await).ok_or_else(|| "nothing is offered".to_owned()))
            .await
    }

    /// Polls until nothing waits; nothing must be offered.
    async fn nothing(&mut self) {
        let heartbeats = || {
            let families = self.gateway.registry.gather();
            let family = families.iter().find(|family| family.name() == "muster_gateway_http_requests_total");
            let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
            let is_it = |metric: &&prometheus::proto::Metric| metric.get_label()[0].value() == "heartbeat";
            metrics.iter().find(is_it).map_or(0.0, |metric| metric.get_counter().get_value())
        };
        let mut sequence = self.sequence;
        eventually(SOON, async || {
            let before = heartbeats();
            sequence += 1;
            assert_eq!(self.poller.exchange(&heartbeat(UID, sequence)).await, plain());
            if heartbeats() > before { Ok(()) } else { Err("something waits".to_owned()) }
        })
        .await;
        self.sequence = sequence;
    }
}

#[tokio::test]
async fn what_waits_is_fetched_from_control_and_sent_once() {
    let gateway = Gateway::start().await;
    gateway.raise_floor("another", 1).await;
    let poller = poller(&gateway);
    poller.exchange(&first_report(UID, &[])).await;
    let mut agent = Quiet { gateway: &gateway, poller, sequence: 0 };
    let session = gateway.session().await;
    gateway.post(&session, 5).await;
    // Control does not say: the offer waits, the agent does not.
    assert_eq!(agent.poll().await, plain());
    gateway.say(Wanted::Yes);
    assert_eq!(agent.offer().await, 5);
    agent.nothing().await;
    // Not wanted any more: it waits no longer.
    gateway.say(Wanted::None);
    gateway.post(&session, 6).await;
    agent.nothing().await;
    // Below the floor of its assignment it is not sent.
    gateway.say(Wanted::Yes);
    gateway.raise_floor("all", 8).await;
    gateway.post(&session, 7).await;
    eventually(SOON, async || {
        assert_eq!(agent.poll().await, plain());
        if gateway.had("below_floor") { Ok(()) } else { Err("control was not asked in time".to_owned()) }
    })
    .await;
    gateway.post(&session, 8).await;
    assert_eq!(agent.offer().await, 8);
    gateway.stop().await;
}

#[tokio::test]
async fn commands_are_sent_once_each_and_a_restart_alone() {
    let gateway = Gateway::start().await;
    let poller = poller(&gateway);
    poller.exchange(&first_report(UID, &[])).await;
    let mut agent = Quiet { gateway: &gateway, poller, sequence: 0 };
    let session = gateway.session().await;
    let commands = [4, 3, 1, 2].map(|number| CommandId(Uuid::from_u128(number))).to_vec();
    let letter = Letter {
        key: AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(UID) },
        session: session.as_ref().try_into().unwrap(),
        mail: Mail { full_state: true, commands, ..Mail::default() },
        above: Claim::default(),
    };
    assert_eq!(gateway.unsteady.ownership.post(vec![letter]).await.unwrap(), [true]);
    let mut said = Vec::new();
    // Control may be slower than a request waits for it: then the next one asks again.
    while said.len() < 2 {
        let answer = agent.poll().await;
        if answer.command.is_some() || answer.custom_message.is_some() {
            said.push(answer);
        }
    }
    let restart = ServerToAgentCommand { r#type: CommandType::Restart.into() };
    assert_eq!(said[0], ServerToAgent { capabilities: 0x7, command: Some(restart), ..plain() });
    assert_eq!(said[1].custom_message.as_ref().unwrap().r#type, "2");
    agent.poller.exchange(&full_state(UID, agent.sequence + 1, &[])).await;
    agent.sequence += 1;
    agent.nothing().await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_first_report_waits_for_what_control_makes_of_it() {
    let gateway = Gateway::start().await;
    gateway.raise_floor("another", 1).await;
    let agent = poller(&gateway);
    // Control may be slower than anybody should wait for: then the next one is.
    let mut sequence = 10_000;
    eventually(SOON, async || {
        sequence -= 10;
        let report = full_state(UID, sequence, &[]);
        let answer = async { agent.exchange(&report).await };
        let control = async {
            // As soon as the log has the session's start.
            let session = eventually(SOON, async || {
                let entries = gateway.published(UID).await;
                let start = entries.iter().find(|entry| entry.sequence_num == sequence);
                start.map(|entry| entry.session_id.clone()).ok_or_else(|| "no start yet".to_owned())
            })
            .await;
            gateway.offer(&session, 3).await;
            let sessions =
                vec![SessionRef { instance_uid: UID.as_bytes().to_vec().into(), session_id: session }];
            gateway.deliver(Action::Decided(Decided { sessions })).await;
        };
        let (answer, ()) = tokio::join!(answer, control);
        assert_eq!(answer.capabilities, 0x7);
        if offered(&answer) == Some(3) { Ok(()) } else { Err("it was not offered in time".to_owned()) }
    })
    .await;
    gateway.stop().await;
}
