//! As the Java client of opentelemetry-java-contrib.

use std::time::Duration;

use muster_proto::opamp::server_error_response::Details;
use muster_proto::opamp::{
    AgentDescription, AgentRemoteConfig, AgentToServer, RemoteConfigStatuses, ServerToAgent,
    ServerToAgentFlags,
};
use uuid::Uuid;

use super::{Link, config_status};
use crate::RawAgent;
use crate::messages::{CAPABILITIES, description};

/// Uses up numbers while its socket is down, and says what it could not say with the next message. Closes
/// its socket when told UNAVAILABLE. May report a config's status without a hash.
#[derive(Debug)]
pub struct Java {
    link: Link,
    description: AgentDescription,
    is_down: bool,
    /// Fields that could not be sent.
    unsent: AgentToServer,
}

impl Java {
    /// Connects with full state.
    pub async fn start(url: &str, uid: Uuid, attributes: &[(&str, &str)]) -> Self {
        let mut link = Link::open(url, uid, CAPABILITIES).await;
        let description = description(attributes);
        let full = AgentToServer { agent_description: Some(description.clone()), ..AgentToServer::default() };
        link.say(full).await;
        Self { link, description, is_down: false, unsent: AgentToServer::default() }
    }

    /// The socket breaks.
    pub fn lose_the_socket(&mut self) {
        self.is_down = true;
    }

    /// Sends this, or keeps it for later where the socket is down.
    pub async fn say(&mut self, news: AgentToServer) {
        let unsent = &mut self.unsent;
        unsent.health = news.health.or_else(|| unsent.health.take());
        unsent.effective_config = news.effective_config.or_else(|| unsent.effective_config.take());
        unsent.remote_config_status =
            news.remote_config_status.or_else(|| unsent.remote_config_status.take());
        if self.is_down {
            self.link.next += 1;
        } else {
            let all = std::mem::take(unsent);
            self.link.say(all).await;
        }
    }

    /// Connects again, and says what could not be said.
    pub async fn reconnect(&mut self) {
        self.link.socket = RawAgent::connect(&self.link.url).await;
        self.is_down = false;
        self.say(AgentToServer::default()).await;
    }

    /// The next message that says something, after sending full state if that is asked for. Told UNAVAILABLE it closes the socket; the time that it was
    /// told to wait is returned beside.
    pub async fn hear(&mut self) -> (ServerToAgent, Option<Duration>) {
        let message = self.link.hear().await;
        let details = message.error_response.as_ref().and_then(|error| error.details);
        let wait = details.map(|Details::RetryInfo(info)| Duration::from_nanos(info.retry_after_nanoseconds));
        if wait.is_some() {
            self.link.socket.close(1000).await;
            self.is_down = true;
        }
        if message.flags & ServerToAgentFlags::ReportFullState as u64 != 0 {
            let agent_description = Some(self.description.clone());
            self.link.say(AgentToServer { agent_description, ..AgentToServer::default() }).await;
        }
        (message, wait)
    }

    /// Reports that an offer was applied, without saying which.
    pub async fn apply_without_a_hash(&mut self, _offer: &AgentRemoteConfig) {
        let status = Some(config_status(&[], RemoteConfigStatuses::Applied, ""));
        self.say(AgentToServer { remote_config_status: status, ..AgentToServer::default() }).await;
    }
}
