//! One agent's state and what it says, without network.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use muster_domain::ids::{ConfigHash, InstanceUid};
use muster_proto::opamp::any_value::Value;
use muster_proto::opamp::server_error_response::Details;
use muster_proto::opamp::{
    AgentConfigFile, AgentConfigMap, AgentDescription, AgentDisconnect, AgentRemoteConfig, AgentToServer,
    AnyValue, ComponentHealth, EffectiveConfig, KeyValue, RemoteConfigStatus, RemoteConfigStatuses,
    ServerErrorResponseType, ServerToAgent, ServerToAgentFlags,
};
use tokio::time::Instant;
use uuid::Uuid;

use super::kind::Kind;
use crate::check::{AgentView, Reported};
use crate::rng::Rng;

/// Parts of a report that are to be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Parts {
    description: bool,
    health: bool,
    effective: bool,
    status: bool,
}

impl Parts {
    const ALL: Self = Self { description: true, health: true, effective: true, status: true };

    fn add(&mut self, other: Self) {
        self.description |= other.description;
        self.health |= other.health;
        self.effective |= other.effective;
        self.status |= other.status;
    }
}

/// What becomes of an offered config.
#[derive(Debug)]
struct Applying {
    hash: Vec<u8>,
    files: BTreeMap<String, AgentConfigFile>,
    fails: bool,
    due: Instant,
}

/// What the connection is to do after a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    Stay,
    /// Leave, and come back after this time.
    Leave(Duration),
}

/// One agent.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) kind: Kind,
    /// Its name in the trace.
    pub(crate) who: String,
    pub(crate) uid: InstanceUid,
    number: u64,
    team: &'static str,
    /// How often its description has changed.
    n: i64,
    sequence: u64,
    capabilities: u64,
    healthy: bool,
    status_text: String,
    effective: BTreeMap<String, AgentConfigFile>,
    remote: RemoteConfigStatus,
    /// Hash of the config that is in use.
    runs: Vec<u8>,
    /// What it was offered, by hash.
    seen: BTreeMap<Vec<u8>, BTreeMap<String, AgentConfigFile>>,
    /// The hash to be reported some time after a failure: the config before is in use again.
    falls_back: Option<(Instant, Vec<u8>)>,
    applying: Option<Applying>,
    pending: Parts,
    last: Parts,
    /// The first message of a connection is still to be sent.
    greets: bool,
    /// Capabilities were named since the agent started.
    introduced: bool,
    heartbeat_at: Instant,
    news_at: Instant,
    rng: Rng,
}

const TEAMS: [&str; 3] = ["blue", "red", "green"];

impl Machine {
    /// An agent that starts now.
    pub(crate) fn new(kind: Kind, number: u64, who: String, uid: Uuid, mut rng: Rng) -> Self {
        let now = Instant::now();
        Self {
            kind,
            who,
            uid: InstanceUid(uid),
            number,
            team: TEAMS[rng.below(3) as usize],
            n: 1,
            sequence: kind.first_sequence(),
            capabilities: kind.capabilities(),
            healthy: kind != Kind::Supervisor,
            status_text: "starting".to_owned(),
            effective: BTreeMap::new(),
            remote: RemoteConfigStatus::default(),
            runs: Vec::new(),
            seen: BTreeMap::new(),
            falls_back: None,
            applying: None,
            pending: Parts::ALL,
            last: Parts::default(),
            greets: true,
            introduced: false,
            heartbeat_at: now + kind.heartbeat(),
            news_at: now + rng.millis(1000, 20_000),
            rng,
        }
    }

    /// The process ends and starts again: it knows its uid, and its config unless `forgets`.
    pub(crate) fn restart(&mut self, forgets: bool) {
        let now = Instant::now();
        self.sequence = self.kind.first_sequence();
        self.capabilities = self.kind.capabilities();
        self.healthy = self.kind != Kind::Supervisor;
        "restarted".clone_into(&mut self.status_text);
        self.n += 1;
        self.applying = None;
        self.falls_back = None;
        if forgets {
            self.effective = BTreeMap::new();
            self.remote = RemoteConfigStatus::default();
            self.runs = Vec::new();
        }
        self.pending = Parts::ALL;
        self.introduced = false;
        self.heartbeat_at = now + self.kind.heartbeat();
    }

    /// A connection is open.
    pub(crate) fn connected(&mut self) {
        self.greets = true;
    }

    /// When [`Machine::tick`] is due.
    pub(crate) fn due(&self) -> Instant {
        let applied = self.applying.as_ref().map(|applying| applying.due);
        let falls_back = self.falls_back.as_ref().map(|(at, _)| *at);
        [Some(self.heartbeat_at), Some(self.news_at), applied, falls_back]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_else(Instant::now)
    }

    /// Does what is due. Without `news` nothing happens to the agent by itself.
    pub(crate) fn tick(&mut self, news: bool) {
        let now = Instant::now();
        if let Some(applying) = self.applying.take_if(|applying| applying.due <= now) {
            self.applied(applying);
        }
        if self.news_at <= now {
            self.news_at = now + self.rng.millis(2000, 40_000);
            if news {
                self.change();
            }
        }
        if let Some((_, hash)) = self.falls_back.take_if(|(at, _)| *at <= now) {
            self.set_status(hash, RemoteConfigStatuses::Applied, "");
        }
        if !self.healthy && self.kind == Kind::Supervisor {
            self.healthy = true;
            self.pending.health = true;
        }
    }

    fn change(&mut self) {
        match self.rng.below(10) {
            0..=4 => {
                self.n += 1;
                self.pending.effective = self.number.is_multiple_of(4);
                if self.rng.chance(200) {
                    self.team = TEAMS[self.rng.below(3) as usize];
                }
                self.pending.description = true;
            }
            5..=7 => {
                self.healthy = self.kind == Kind::Supervisor || !self.healthy;
                self.status_text = format!("status {}", self.rng.below(1000));
                self.pending.health = true;
            }
            8 if self.kind == Kind::Go => {
                // It stops taking configs, or takes them again.
                self.capabilities ^= 0x2;
                self.greets = true;
            }
            _ => {}
        }
    }

    /// Time goes by while there is no connection.
    pub(crate) fn idle(&mut self) {
        if self.kind == Kind::Java && self.heartbeat_at <= Instant::now() {
            self.sequence += 1;
            self.heartbeat_at = Instant::now() + self.kind.heartbeat();
        }
    }

    /// What is to be said now.
    pub(crate) fn next(&mut self) -> Option<AgentToServer> {
        let now = Instant::now();
        if self.pending == Parts::default() && !self.greets && now < self.heartbeat_at {
            return None;
        }
        let is_heartbeat = self.pending == Parts::default() && !self.greets;
        self.heartbeat_at = now + self.kind.heartbeat();
        if is_heartbeat && self.kind == Kind::Sparse {
            return Some(AgentToServer {
                instance_uid: self.uid.as_bytes().to_vec(),
                ..AgentToServer::default()
            });
        }
        self.greets = false;
        let parts = std::mem::take(&mut self.pending);
        self.last = parts;
        let mut message = self.full();
        message.sequence_num = self.number_it();
        message.agent_description = message.agent_description.filter(|_| parts.description);
        message.health = message.health.filter(|_| parts.health);
        message.effective_config = message.effective_config.filter(|_| parts.effective);
        message.remote_config_status = message.remote_config_status.filter(|_| parts.status);
        if self.kind == Kind::Sparse && self.introduced && !parts.description {
            message.capabilities = 0;
        }
        self.introduced = true;
        Some(message)
    }

    /// The last message of an agent that stops.
    pub(crate) fn goodbye(&mut self) -> AgentToServer {
        AgentToServer {
            instance_uid: self.uid.as_bytes().to_vec(),
            sequence_num: self.number_it(),
            agent_disconnect: Some(AgentDisconnect {}),
            ..AgentToServer::default()
        }
    }

    fn number_it(&mut self) -> u64 {
        if self.kind == Kind::Python {
            match self.rng.below(20) {
                0 => self.sequence += 1,
                1 => self.sequence = self.sequence.saturating_sub(1),
                _ => {}
            }
        }
        let number = self.sequence;
        self.sequence += 1;
        number
    }

    /// All that can be said, without a number.
    fn full(&self) -> AgentToServer {
        let text = |key: &str, value: &str| KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) }),
        };
        let n =
            KeyValue { key: "n".to_owned(), value: Some(AnyValue { value: Some(Value::IntValue(self.n)) }) };
        let host = format!("host-{}", self.number);
        AgentToServer {
            instance_uid: self.uid.as_bytes().to_vec(),
            capabilities: self.capabilities,
            agent_description: Some(AgentDescription {
                identifying_attributes: vec![text("service.name", self.kind.name())],
                non_identifying_attributes: vec![
                    text("who", &self.who),
                    text("team", self.team),
                    text("host.name", &host),
                    n,
                ],
            }),
            health: Some(ComponentHealth {
                healthy: self.healthy,
                status: self.status_text.clone(),
                ..ComponentHealth::default()
            }),
            effective_config: Some(EffectiveConfig { config_map: Some(self.effective_config()) }),
            remote_config_status: self.kind.reports_status().then(|| self.remote.clone()),
            ..AgentToServer::default()
        }
    }

    /// The hash that it applied, and of an agent that names none all that stand for the same files: nobody can
    /// tell them apart.
    fn runs_as(&self) -> BTreeSet<ConfigHash> {
        let same = |(_, files): &(&Vec<u8>, &BTreeMap<String, AgentConfigFile>)| {
            self.kind == Kind::Java && !self.runs.is_empty() && **files == self.effective
        };
        let same = self.seen.iter().filter(same).map(|(hash, _)| hash);
        same.chain([&self.runs]).filter_map(|hash| ConfigHash::new(hash)).collect()
    }

    /// What runs. With some agents it is too large for the log.
    fn effective_config(&self) -> AgentConfigMap {
        let mut config_map = self.effective.clone();
        if self.number.is_multiple_of(4) {
            let body = format!("{:04000}", self.n).into();
            let content_type = String::new();
            config_map.insert("padding".to_owned(), AgentConfigFile { body, content_type });
        }
        AgentConfigMap { config_map }
    }

    /// Takes a message of the server. With `deaf` it does not hear that full state is asked for.
    pub(crate) fn receive(&mut self, message: &ServerToAgent, deaf: bool) -> Reaction {
        if let Some(error) = &message.error_response {
            let is_unavailable = error.r#type() == ServerErrorResponseType::Unavailable;
            if !is_unavailable || self.kind != Kind::Java {
                return Reaction::Stay;
            }
            self.pending.add(self.last);
            let Some(Details::RetryInfo(retry)) = &error.details else { return Reaction::Stay };
            return Reaction::Leave(Duration::from_nanos(retry.retry_after_nanoseconds));
        }
        if let Some(identification) = &message.agent_identification
            && self.kind != Kind::Python
            && let Ok(uid) = Uuid::from_slice(&identification.new_instance_uid)
        {
            self.uid = InstanceUid(uid);
        }
        if message.flags & ServerToAgentFlags::ReportFullState as u64 != 0 && !deaf {
            self.pending.add(Parts::ALL);
        }
        if let Some(offer) = &message.remote_config {
            self.begin(offer);
        }
        Reaction::Stay
    }

    fn begin(&mut self, offer: &AgentRemoteConfig) {
        let files = offer.config.as_ref().map(|config| config.config_map.clone()).unwrap_or_default();
        let (from, to) = self.kind.applies_in();
        self.falls_back = None;
        let hash = offer.config_hash.clone();
        self.seen.insert(hash.clone(), files.clone());
        let fails = self.kind == Kind::Supervisor && refuses(self.number, &files);
        self.set_status(hash.clone(), RemoteConfigStatuses::Applying, "");
        let due = Instant::now() + self.rng.millis(from, to);
        self.applying = Some(Applying { hash, files, fails, due });
    }

    fn applied(&mut self, applying: Applying) {
        let Applying { hash, files, fails, .. } = applying;
        if fails {
            self.set_status(hash, RemoteConfigStatuses::Failed, "it is refused");
            let at = Instant::now() + self.rng.millis(100, 2000);
            self.falls_back = (!self.runs.is_empty()).then(|| (at, self.runs.clone()));
            return;
        }
        self.effective = files;
        self.pending.effective = true;
        self.runs.clone_from(&hash);
        self.set_status(hash, RemoteConfigStatuses::Applied, "");
    }

    fn set_status(&mut self, hash: Vec<u8>, status: RemoteConfigStatuses, error_message: &str) {
        let last_remote_config_hash = if self.kind == Kind::Java { Vec::new() } else { hash };
        self.remote = RemoteConfigStatus {
            last_remote_config_hash,
            status: status.into(),
            error_message: error_message.to_owned(),
        };
        self.pending.status = self.kind.reports_status();
    }

    /// The agent by its own account.
    pub(crate) fn view(&self, peer: Option<String>) -> AgentView {
        let mut reported = Reported::default();
        reported.take(&self.full(), None);
        AgentView {
            who: self.who.clone(),
            uid: self.uid,
            peer,
            reported,
            is_busy: self.pending != Parts::default()
                || self.greets
                || self.applying.is_some()
                || self.falls_back.is_some(),
            runs: self.runs_as(),
            names_no_hash: self.kind == Kind::Java,
            keeps_uid: self.kind == Kind::Python,
        }
    }
}

/// Whether this agent refuses a config: some values are wrong for some agents.
fn refuses(number: u64, files: &BTreeMap<String, AgentConfigFile>) -> bool {
    let value = |body: &Bytes| {
        let text = String::from_utf8_lossy(body).into_owned();
        let digits = text.split("v: ").nth(1)?.chars().take_while(char::is_ascii_digit);
        digits.collect::<String>().parse::<u64>().ok()
    };
    files.values().filter_map(|file| value(&file.body)).any(|value| (value + number).is_multiple_of(4))
}
