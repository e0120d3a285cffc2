//! One agent's side of the protocol, without sockets and clocks.

use std::sync::Arc;
use std::time::Duration;

use muster_proto::opamp::{
    AgentConfigMap, AgentDisconnect, AgentRemoteConfig, AgentToServer, CustomCapabilities, CustomMessage,
    EffectiveConfig, RemoteConfigStatus, RemoteConfigStatuses, ServerErrorResponse, ServerErrorResponseType,
    ServerToAgent, ServerToAgentFlags, server_error_response::Details,
};
use tokio::time::Instant;
use uuid::Uuid;

use crate::config::{ConfigFiles, Configs};
use crate::health;
use crate::identity::Identity;
use crate::kind::Kind;
use crate::options::Rejects;

/// The custom capability by which agents pause and resume (specification, "Pause/Resume Example").
const PAUSE: &str = "io.opentelemetry.pause";

/// The sub-messages that the next report carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) description: bool,
    pub(crate) health: bool,
    pub(crate) effective_config: bool,
    pub(crate) config_status: bool,
    pub(crate) custom_capabilities: bool,
    /// Whether it is paused, by a custom message.
    pub(crate) paused: bool,
}

impl Parts {
    const ALL: Self = Self {
        description: true,
        health: true,
        effective_config: true,
        config_status: true,
        custom_capabilities: true,
        paused: false,
    };

    fn add(&mut self, other: Self) {
        self.description |= other.description;
        self.health |= other.health;
        self.effective_config |= other.effective_config;
        self.config_status |= other.config_status;
        self.custom_capabilities |= other.custom_capabilities;
        self.paused |= other.paused;
    }
}

/// What a message from the server brought, for counting and for the connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    /// The hash of an offered configuration.
    pub(crate) offer: Option<Vec<u8>>,
    pub(crate) full_state_asked: bool,
    pub(crate) new_uid: bool,
    /// The agent is to restart.
    pub(crate) restart: bool,
    /// The server's error, for people.
    pub(crate) refused: Option<String>,
    /// The server is unavailable: close, and come back after this time if it said one.
    pub(crate) unavailable: Option<Option<Duration>>,
    /// Something that a correct server never does.
    pub(crate) wrong: Option<String>,
}

/// How applying a configuration ended; hashes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finished {
    Applied { old: Option<Vec<u8>>, new: Vec<u8> },
    Failed { reason: String },
}

/// A configuration between APPLYING and its end.
#[derive(Debug)]
struct Applying {
    hash: Vec<u8>,
    outcome: Result<Arc<ConfigFiles>, String>,
    due: Instant,
}

/// The state of one agent.
#[derive(Debug)]
pub(crate) struct Agent {
    identity: Identity,
    previous_uid: Option<Uuid>,
    started: u64,
    sequence: u64,
    pending: Parts,
    last_sent: Parts,
    effective: Arc<ConfigFiles>,
    applied_hash: Option<Vec<u8>>,
    status: RemoteConfigStatus,
    applying: Option<Applying>,
    paused: bool,
    pub(crate) connected: bool,
}

impl Agent {
    /// An agent that just started, at `started` in nanoseconds since 1970.
    pub(crate) fn new(identity: Identity, configs: &Configs, started: u64) -> Self {
        Self {
            effective: configs.own(identity.kind),
            identity,
            previous_uid: None,
            started,
            sequence: 0,
            pending: Parts::ALL,
            last_sent: Parts::default(),
            applied_hash: None,
            status: RemoteConfigStatus::default(),
            applying: None,
            paused: false,
            connected: false,
        }
    }

    /// Whether there is something to say before the next heartbeat.
    pub(crate) fn has_news(&self) -> bool {
        self.pending != Parts::default()
    }

    /// When [`finish`](Self::finish) is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.applying.as_ref().map(|applying| applying.due)
    }

    /// The next report: what is pending, or else a heartbeat. `now` is in nanoseconds since 1970.
    pub(crate) fn next_message(&mut self, now: u64) -> AgentToServer {
        let parts = std::mem::take(&mut self.pending);
        self.last_sent = parts;
        let kind = self.identity.kind;
        let mut message = self.empty_message();
        message.capabilities = kind.capabilities();
        message.agent_description = parts.description.then(|| self.identity.description());
        message.health = parts.health.then(|| health::report(kind, self.started, now));
        message.effective_config = parts.effective_config.then(|| {
            let config_map = ConfigFiles::clone(&self.effective);
            EffectiveConfig { config_map: Some(AgentConfigMap { config_map }) }
        });
        message.remote_config_status =
            (parts.config_status && kind.accepts_remote_config()).then(|| self.status.clone());
        message.custom_capabilities = (parts.custom_capabilities && kind.pauses())
            .then(|| CustomCapabilities { capabilities: vec![PAUSE.to_owned()] });
        message.custom_message = parts.paused.then(|| CustomMessage {
            capability: PAUSE.to_owned(),
            r#type: "status".to_owned(),
            data: format!("{{\"paused\": {}}}", self.paused).into_bytes(),
        });
        message
    }

    /// Starts anew at `now`, in nanoseconds since 1970, with the configuration that it has.
    pub(crate) fn restart(&mut self, now: u64) {
        self.started = now;
        self.sequence = 0;
        self.pending = Parts::ALL;
        self.applying = None;
        self.paused = false;
    }

    /// The last message before the agent stops.
    pub(crate) fn goodbye(&mut self) -> AgentToServer {
        AgentToServer { agent_disconnect: Some(AgentDisconnect {}), ..self.empty_message() }
    }

    fn empty_message(&mut self) -> AgentToServer {
        let sequence_num = self.sequence;
        self.sequence += 1;
        AgentToServer {
            instance_uid: self.identity.uid.as_bytes().to_vec(),
            sequence_num,
            ..Default::default()
        }
    }

    /// Takes a message of the server. `delay` says how long applying an offer takes.
    pub(crate) fn receive(
        &mut self,
        message: ServerToAgent,
        configs: &Configs,
        rejects: &Rejects,
        now: Instant,
        delay: Duration,
    ) -> Received {
        let mut received = Received::default();
        if !self.is_for_me(&message.instance_uid) {
            received.wrong = Some("a message for another instance_uid".to_owned());
            return received;
        }
        if let Some(error) = message.error_response {
            self.refused(&error, &mut received);
            return received;
        }
        if message.command.is_some() {
            match self.identity.kind.restarts() {
                true => received.restart = true,
                false => {
                    received.wrong = Some("a command that the agent has no capability for".to_owned());
                }
            }
            return received;
        }
        if let Some(custom) = message.custom_message {
            match (self.identity.kind.pauses(), custom.capability.as_str(), custom.r#type.as_str()) {
                (true, PAUSE, kind @ ("pause" | "resume")) => {
                    self.paused = kind == "pause";
                    self.pending.paused = true;
                }
                (true, PAUSE, _) => {}
                _ => {
                    received.wrong = Some("a custom message that the agent has no capability for".to_owned());
                }
            }
        }
        if let Some(identification) = message.agent_identification {
            match Uuid::from_slice(&identification.new_instance_uid) {
                // Messages that were under way are answered with it once more.
                Ok(uid) if uid == self.identity.uid => {}
                Ok(uid) => {
                    self.previous_uid = Some(std::mem::replace(&mut self.identity.uid, uid));
                    received.new_uid = true;
                }
                Err(_) => received.wrong = Some("a new instance_uid that is not 16 bytes".to_owned()),
            }
        }
        if message.flags & ServerToAgentFlags::ReportFullState as u64 != 0 {
            self.pending.add(Parts::ALL);
            received.full_state_asked = true;
        }
        if let Some(offer) = message.remote_config {
            match self.identity.kind.accepts_remote_config() {
                true => {
                    received.offer = Some(offer.config_hash.clone());
                    self.begin(offer, configs, rejects, now + delay);
                }
                false => received.wrong = Some("a configuration for an agent that takes none".to_owned()),
            }
        }
        received
    }

    /// A reply may still carry the uid that the agent had when it asked.
    fn is_for_me(&self, uid: &[u8]) -> bool {
        uid == self.identity.uid.as_bytes()
            || self.previous_uid.is_some_and(|previous| uid == previous.as_bytes())
    }

    fn refused(&mut self, error: &ServerErrorResponse, received: &mut Received) {
        received.refused = Some(format!("{}: {}", error.r#type().as_str_name(), error.error_message));
        if error.r#type() == ServerErrorResponseType::Unavailable {
            self.pending.add(self.last_sent);
            received.unavailable = Some(
                error
                    .details
                    .as_ref()
                    .map(|Details::RetryInfo(retry)| Duration::from_nanos(retry.retry_after_nanoseconds)),
            );
        }
    }

    /// Starts to apply an offer, in place of one that may be under way.
    fn begin(&mut self, offer: AgentRemoteConfig, configs: &Configs, rejects: &Rejects, due: Instant) {
        let kind = self.identity.kind;
        let hash = offer.config_hash;
        let files = offer.config.unwrap_or_default().config_map;
        let outcome = match rejects.reason(kind, &files) {
            Some(reason) => Err(reason),
            None => Ok(configs.merge(kind, &hash, files)),
        };
        self.report_status(hash.clone(), RemoteConfigStatuses::Applying, String::new());
        self.applying = Some(Applying { hash, outcome, due });
    }

    /// Ends applying if its time has come.
    pub(crate) fn finish(&mut self, now: Instant) -> Option<Finished> {
        let Applying { hash, outcome, .. } = self.applying.take_if(|applying| applying.due <= now)?;
        match outcome {
            Ok(effective) => {
                self.effective = effective;
                self.pending.effective_config = true;
                self.report_status(hash.clone(), RemoteConfigStatuses::Applied, String::new());
                let old = self.applied_hash.replace(hash.clone());
                Some(Finished::Applied { old, new: hash })
            }
            Err(reason) => {
                self.report_status(hash, RemoteConfigStatuses::Failed, reason.clone());
                Some(Finished::Failed { reason })
            }
        }
    }

    fn report_status(&mut self, hash: Vec<u8>, status: RemoteConfigStatuses, error_message: String) {
        self.status =
            RemoteConfigStatus { last_remote_config_hash: hash, status: status as i32, error_message };
        self.pending.config_status = true;
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn kind(&self) -> Kind {
        self.identity.kind
    }

    pub(crate) fn effective(&self) -> Arc<ConfigFiles> {
        Arc::clone(&self.effective)
    }

    pub(crate) fn applied_hash(&self) -> Option<&[u8]> {
        self.applied_hash.as_deref()
    }

    pub(crate) fn status(&self) -> &RemoteConfigStatus {
        &self.status
    }
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
