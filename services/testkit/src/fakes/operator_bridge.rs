//! As the bridge of the Kubernetes operator.

use muster_proto::opamp::{
    AgentConfigFile, AgentConfigMap, AgentRemoteConfig, AgentToServer, EffectiveConfig, RemoteConfigStatuses,
};
use uuid::Uuid;

use super::config_status;
use super::opamp_go::OpampGo;
use crate::messages::CAPABILITIES;

/// Its config has a file for each custom resource, and so has its effective config; agents that stand
/// alone each have a connection through it.
#[derive(Debug)]
pub struct OperatorBridge {
    bridge: OpampGo,
    standalone: Vec<OpampGo>,
}

impl OperatorBridge {
    /// Connects, with a connection for each of these agents beside its own.
    pub async fn start(url: &str, uid: Uuid, attributes: &[(&str, &str)], standalone: &[Uuid]) -> Self {
        let bridge = OpampGo::start(url, uid, CAPABILITIES, attributes).await;
        let mut agents = Vec::new();
        for uid in standalone {
            agents.push(OpampGo::start(url, *uid, CAPABILITIES, &[("service.name", "standalone")]).await);
        }
        Self { bridge, standalone: agents }
    }

    /// The next offer to the bridge itself.
    pub async fn offer(&mut self) -> AgentRemoteConfig {
        loop {
            if let Some(offer) = self.bridge.hear().await.remote_config {
                return offer;
            }
        }
    }

    /// Makes a custom resource of each file of an offer, and reports them all.
    pub async fn apply(&mut self, offer: &AgentRemoteConfig) {
        let files = offer.config.clone().unwrap_or_default().config_map;
        let resources = files.into_iter().map(|(name, file)| (format!("opamp/{name}"), file));
        self.report(resources.collect::<Vec<_>>()).await;
        let status = config_status(&offer.config_hash, RemoteConfigStatuses::Applied, "");
        let message = AgentToServer { remote_config_status: Some(status), ..AgentToServer::default() };
        self.bridge.report(message).await;
    }

    /// Reports these resources.
    pub async fn report(&mut self, resources: Vec<(String, AgentConfigFile)>) {
        let config_map = Some(AgentConfigMap { config_map: resources.into_iter().collect() });
        let effective_config = Some(EffectiveConfig { config_map });
        self.bridge.report(AgentToServer { effective_config, ..AgentToServer::default() }).await;
    }

    /// One of its agents goes away.
    pub async fn stop_one(&mut self) -> Option<Uuid> {
        let agent = self.standalone.pop()?;
        let uid = agent.uid();
        agent.stop().await;
        Some(uid)
    }
}
