//! As the old Rust client otel-opamp-rs, of protocol version 0.7.

use muster_proto::opamp::{AgentToServer, ServerToAgent};

use crate::messages::{CAPABILITIES, description};
use crate::{DEADLINE, RawAgent};

/// Has a text of 26 bytes for its uid, and asks with HEAD whether a server is there.
#[derive(Debug)]
pub struct OldRust {
    socket: RawAgent,
}

impl OldRust {
    /// Its instance_uid, a ULID.
    pub const UID: &'static str = "01H5Y2V8WJ4T3K9Q7Z6X5C4B3A";

    /// Asks with HEAD; the HTTP status of the answer.
    pub async fn probe(http_url: &str) -> u16 {
        let client = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        let answer = client.head(http_url).timeout(DEADLINE).send().await;
        match answer {
            Ok(answer) => answer.status().as_u16(),
            Err(error) => panic!("no answer to HEAD {http_url}: {error}"),
        }
    }

    /// Connects.
    pub async fn start(url: &str) -> Self {
        Self { socket: RawAgent::connect(url).await }
    }

    /// Sends its full state, and returns the answer.
    pub async fn report(&mut self) -> ServerToAgent {
        let message = AgentToServer {
            instance_uid: Self::UID.as_bytes().to_vec(),
            capabilities: CAPABILITIES,
            agent_description: Some(description(&[("service.name", "old")])),
            ..AgentToServer::default()
        };
        self.socket.exchange(&message).await
    }
}
