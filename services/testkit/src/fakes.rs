//! Agents that behave as real clients do, each named after one: what they leave out, repeat and do in
//! their own order is what a server has to cope with.
//!
//! They do nothing by themselves: a test calls, and what happened is returned.

mod extension;
mod java;
mod old_rust;
mod opamp_go;
mod operator_bridge;
mod supervisor;

use std::time::Duration;

use muster_proto::opamp::{AgentToServer, RemoteConfigStatus, RemoteConfigStatuses, ServerToAgent};
use uuid::Uuid;

use crate::RawAgent;

pub use extension::Extension;
pub use java::Java;
pub use old_rust::OldRust;
pub use opamp_go::{OpampGo, State};
pub use operator_bridge::OperatorBridge;
pub use supervisor::{Applies, Supervisor};

/// A WebSocket and the agent's part of the session on it.
#[derive(Debug)]
struct Link {
    url: String,
    socket: RawAgent,
    uid: Uuid,
    /// Number of the next message.
    next: u64,
    capabilities: u64,
}

impl Link {
    async fn open(url: &str, uid: Uuid, capabilities: u64) -> Self {
        Self { url: url.to_owned(), socket: RawAgent::connect(url).await, uid, next: 0, capabilities }
    }

    /// A message with nothing but uid, number and capabilities; the number is used up.
    fn message(&mut self) -> AgentToServer {
        let sequence_num = self.next;
        self.next += 1;
        let (instance_uid, capabilities) = (self.uid.as_bytes().to_vec(), self.capabilities);
        AgentToServer { instance_uid, sequence_num, capabilities, ..AgentToServer::default() }
    }

    async fn say(&mut self, rest: AgentToServer) {
        let message = self.message();
        let full = AgentToServer {
            instance_uid: message.instance_uid,
            sequence_num: message.sequence_num,
            capabilities: message.capabilities,
            ..rest
        };
        self.socket.send(&full).await;
    }

    /// The next message of the server that says something; panics if there is none in time.
    async fn hear(&mut self) -> ServerToAgent {
        self.socket.recv_where(|message| !is_plain(message)).await
    }

    /// What the server says that is more than an answer, within this time.
    async fn hear_within(&mut self, limit: Duration) -> Option<ServerToAgent> {
        let end = tokio::time::Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            match self.socket.next_within(left).await {
                Some(message) if is_plain(&message) => {}
                other => return other,
            }
        }
    }
}

/// Whether a message says nothing but that the server is there.
fn is_plain(message: &ServerToAgent) -> bool {
    let ServerToAgent { instance_uid, capabilities, .. } = message;
    let plain = ServerToAgent {
        instance_uid: instance_uid.clone(),
        capabilities: *capabilities,
        ..ServerToAgent::default()
    };
    *message == plain
}

fn config_status(hash: &[u8], status: RemoteConfigStatuses, error: &str) -> RemoteConfigStatus {
    RemoteConfigStatus {
        last_remote_config_hash: hash.to_vec(),
        status: status.into(),
        error_message: error.to_owned(),
    }
}
