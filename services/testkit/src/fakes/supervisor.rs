//! As the opampsupervisor, which runs an OpenTelemetry Collector.

use std::time::Duration;

use muster_proto::opamp::{
    AgentConfigFile, AgentConfigMap, AgentRemoteConfig, AgentToServer, ComponentHealth, EffectiveConfig,
    RemoteConfigStatuses, ServerToAgent,
};
use uuid::Uuid;

use super::config_status;
use super::opamp_go::{OpampGo, State};
use crate::messages::{CAPABILITIES, description};

/// How its collector takes a config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// It runs.
    Well,
    /// It fails, and the supervisor goes back to the config before, by itself.
    AndRollsBack,
}

/// Starts unhealthy, says APPLYING at once and APPLIED only later, has its effective config under the
/// empty name, and starts its collector anew for a new uid.
#[derive(Debug)]
pub struct Supervisor {
    client: OpampGo,
    /// The last config that worked.
    running: Option<AgentRemoteConfig>,
    /// How often its collector was started.
    pub collector_starts: u32,
    /// It was given an empty config map, and stopped its collector.
    pub collector_stopped: bool,
}

impl Supervisor {
    /// Connects with full state: not healthy yet.
    pub async fn start(url: &str, uid: Uuid, attributes: &[(&str, &str)]) -> Self {
        let state = State {
            description: description(attributes),
            health: Some(ComponentHealth::default()),
            effective_config: Some(effective("")),
            ..State::default()
        };
        let client = OpampGo::start_with(url, uid, CAPABILITIES, state).await;
        Self { client, running: None, collector_starts: 0, collector_stopped: false }
    }

    /// The client that it is built on.
    pub fn client(&mut self) -> &mut OpampGo {
        &mut self.client
    }

    /// The next offer; panics if there is none in time.
    pub async fn offer(&mut self) -> AgentRemoteConfig {
        loop {
            let message = self.hear().await;
            if let Some(offer) = message.remote_config {
                return offer;
            }
        }
    }

    async fn hear(&mut self) -> ServerToAgent {
        let message = self.client.hear().await;
        self.collector_starts += u32::from(message.agent_identification.is_some());
        message
    }

    /// Any offer within this time.
    pub async fn offer_within(&mut self, limit: Duration) -> Option<AgentRemoteConfig> {
        let end = tokio::time::Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            let message = self.client.hear_within(left).await?;
            self.collector_starts += u32::from(message.agent_identification.is_some());
            if message.remote_config.is_some() {
                return message.remote_config;
            }
        }
    }

    /// Takes an offer. Rolling back it says APPLYING and FAILED of the new config, then APPLIED of the one
    /// before.
    pub async fn apply(&mut self, offer: &AgentRemoteConfig, how: Applies) {
        self.report_status(&offer.config_hash, RemoteConfigStatuses::Applying, "").await;
        let files = offer.config.as_ref().map(|config| &config.config_map);
        if files.is_none_or(|files| files.is_empty()) {
            self.collector_stopped = true;
        } else {
            self.collector_starts += 1;
        }
        match how {
            Applies::Well => self.settle(offer.clone()).await,
            Applies::AndRollsBack => {
                let reason = "the collector did not become healthy";
                self.report_status(&offer.config_hash, RemoteConfigStatuses::Failed, reason).await;
                if let Some(before) = self.running.clone() {
                    self.collector_starts += 1;
                    self.settle(before).await;
                }
            }
        }
    }

    async fn settle(&mut self, config: AgentRemoteConfig) {
        let files = config.config.iter().flat_map(|config| config.config_map.values());
        let merged: Vec<_> = files.map(|file| String::from_utf8_lossy(&file.body).into_owned()).collect();
        let news = AgentToServer {
            health: Some(ComponentHealth { healthy: true, ..ComponentHealth::default() }),
            effective_config: Some(effective(&merged.join("\n"))),
            ..AgentToServer::default()
        };
        self.client.report(news).await;
        self.report_status(&config.config_hash, RemoteConfigStatuses::Applied, "").await;
        self.running = Some(config);
    }

    async fn report_status(&mut self, hash: &[u8], status: RemoteConfigStatuses, error: &str) {
        let status = Some(config_status(hash, status, error));
        self.client.report(AgentToServer { remote_config_status: status, ..AgentToServer::default() }).await;
    }
}

fn effective(text: &str) -> EffectiveConfig {
    let file = AgentConfigFile { body: text.as_bytes().to_vec().into(), ..AgentConfigFile::default() };
    EffectiveConfig { config_map: Some(AgentConfigMap { config_map: [(String::new(), file)].into() }) }
}
