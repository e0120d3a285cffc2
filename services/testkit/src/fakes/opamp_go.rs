//! As the opamp-go client, on which most agents are built.

use std::time::Duration;

use muster_proto::opamp::{
    AgentDescription, AgentDisconnect, AgentToServer, AvailableComponents, ComponentHealth, EffectiveConfig,
    RemoteConfigStatus, ServerToAgent, ServerToAgentFlags,
};
use uuid::Uuid;

use super::Link;
use crate::RawAgent;
use crate::messages::description;

/// What the client keeps to send it as full state.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Its description.
    pub description: AgentDescription,
    /// Its health, if it reports any.
    pub health: Option<ComponentHealth>,
    /// Its effective config, if it reports any.
    pub effective_config: Option<EffectiveConfig>,
    /// What became of an offer.
    pub remote_config_status: Option<RemoteConfigStatus>,
    /// Its components, if it reports any: they are told by hash until the list is asked for.
    pub components: Option<AvailableComponents>,
}

/// Sends full state only on the first connection of the process; after that what changed. Adopts a new
/// uid without a word, and answers what the server asks.
#[derive(Debug)]
pub struct OpampGo {
    pub(super) link: Link,
    state: State,
}

impl OpampGo {
    /// Connects and sends its full state, with number 0.
    pub async fn start(url: &str, uid: Uuid, capabilities: u64, attributes: &[(&str, &str)]) -> Self {
        let state = State { description: description(attributes), ..State::default() };
        Self::start_with(url, uid, capabilities, state).await
    }

    /// As [`start`](Self::start), with everything it may report.
    pub async fn start_with(url: &str, uid: Uuid, capabilities: u64, state: State) -> Self {
        let mut agent = Self { link: Link::open(url, uid, capabilities).await, state };
        agent.send_full().await;
        agent
    }

    /// The uid that it uses now.
    pub fn uid(&self) -> Uuid {
        self.link.uid
    }

    /// Number of its next message.
    pub fn next_number(&self) -> u64 {
        self.link.next
    }

    async fn send_full(&mut self) {
        let State { description, health, effective_config, remote_config_status, components } =
            self.state.clone();
        let by_hash = components
            .map(|whole| AvailableComponents { hash: whole.hash, ..AvailableComponents::default() });
        let full = AgentToServer {
            agent_description: Some(description),
            health,
            effective_config,
            remote_config_status,
            available_components: by_hash,
            ..AgentToServer::default()
        };
        self.link.say(full).await;
    }

    /// Sends what changed, and keeps it as a part of its state.
    pub async fn report(&mut self, news: AgentToServer) {
        let state = &mut self.state;
        state.description = news.agent_description.clone().unwrap_or_else(|| state.description.clone());
        state.health = news.health.clone().or_else(|| state.health.take());
        state.effective_config = news.effective_config.clone().or_else(|| state.effective_config.take());
        state.remote_config_status =
            news.remote_config_status.clone().or_else(|| state.remote_config_status.take());
        self.link.say(news).await;
    }

    /// Sends a heartbeat, as it does every 30 s, also without ReportsHeartbeat.
    pub async fn heartbeat(&mut self) {
        self.link.say(AgentToServer::default()).await;
    }

    /// Fails to send: the number is used up all the same.
    pub fn lose_a_message(&mut self) {
        self.link.next += 1;
    }

    /// The connection drops, and it comes back at once: uid, number and capabilities alone.
    pub async fn reconnect(&mut self) {
        self.link.socket = RawAgent::connect(&self.link.url).await;
        self.heartbeat().await;
    }

    /// The next message that says something, after doing what it asks.
    pub async fn hear(&mut self) -> ServerToAgent {
        let message = self.link.hear().await;
        self.obey(&message).await;
        message
    }

    /// As [`hear`](Self::hear), if there is one within this time.
    pub async fn hear_within(&mut self, limit: Duration) -> Option<ServerToAgent> {
        let message = self.link.hear_within(limit).await?;
        self.obey(&message).await;
        Some(message)
    }

    async fn obey(&mut self, message: &ServerToAgent) {
        // A command is all that it takes of a message.
        if message.command.is_some() {
            return;
        }
        if let Some(new) = &message.agent_identification
            && let Ok(uid) = Uuid::from_slice(&new.new_instance_uid)
        {
            self.link.uid = uid;
        }
        if message.flags & ServerToAgentFlags::ReportFullState as u64 != 0 {
            self.send_full().await;
        }
        if message.flags & ServerToAgentFlags::ReportAvailableComponents as u64 != 0 {
            let components = self.state.components.clone();
            self.link
                .say(AgentToServer { available_components: components, ..AgentToServer::default() })
                .await;
        }
    }

    /// Says goodbye and closes with 1000. Returns the code of the server's Close, for which it waits.
    pub async fn stop(mut self) -> u16 {
        let goodbye =
            AgentToServer { agent_disconnect: Some(AgentDisconnect {}), ..AgentToServer::default() };
        self.link.say(goodbye).await;
        self.link.socket.close(1000).await
    }
}
