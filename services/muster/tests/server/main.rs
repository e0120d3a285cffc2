//! The real program, driven from outside: agents over WebSocket, people over REST and the command line.
#![expect(clippy::unwrap_used, reason = "tests end with their panics")]

mod access;
mod bad_input;
mod bad_polls;
mod commands;
mod configuration;
mod demo;
mod drift;
mod duplicates;
mod events;
mod fleet;
mod gateways;
mod interop;
mod keys;
mod large;
mod liveness;
mod oidc;
mod path;
mod polling;
mod quirks;
mod reports;
mod restart;
mod rollouts;
mod sequence;
mod shared;
mod tls;

use std::time::Duration;

use muster_proto::opamp::{AgentRemoteConfig, AgentToServer, RemoteConfigStatuses, ServerToAgent};
use muster_testkit::messages::{config_status, effective_config};
use muster_testkit::{Muster, RawAgent, eventually};
use serde_json::Value;
use uuid::Uuid;

/// Longest wait for something that should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// How long nothing may happen where nothing should.
pub(crate) const QUIET: Duration = Duration::from_millis(600);

/// A server with an empty store.
pub(crate) async fn server() -> Muster {
    Muster::builder(env!("CARGO_BIN_EXE_muster")).start().await
}

/// A template with one variable.
pub(crate) fn template(version: &str, interval: &str) -> String {
    format!(
        "apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata:
  name: base
  version: {version}
spec:
  variables:
    - name: endpoint
      type: string
      required: true
    - name: ratio
      type: float
      default: 0.5
      min: 0
      max: 1
  config:
    receivers:
      hostmetrics:
        collection_interval: {interval}
    processors:
      sampler:
        ratio: \"{{{{.ratio}}}}\"
    exporters:
      otlp:
        endpoint: \"{{{{.endpoint}}}}\"
"
    )
}

/// An assignment of [`template`] to the agents of `team=blue`.
pub(crate) fn assignment(endpoint: &str) -> String {
    format!(
        "apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata:
  name: blue
spec:
  template:
    name: base
  values:
    endpoint: {endpoint}
  selector:
    matchLabels:
      team: blue
"
    )
}

/// Applies manifests and returns the answer.
pub(crate) async fn apply(muster: &Muster, manifests: &[&str]) -> Value {
    let body = manifests.join("\n---\n");
    muster.api().post_text("/api/v1/apply", "application/yaml", &body).await.unwrap()
}

/// The API's view of an agent.
pub(crate) async fn agent(muster: &Muster, uid: Uuid) -> Value {
    muster.api().get(&format!("/api/v1/agents/{uid}")).await.unwrap()
}

/// Waits until the API's view of an agent has this value at a JSON pointer.
pub(crate) async fn agent_has(muster: &Muster, uid: Uuid, pointer: &str, value: impl Into<Value>) -> Value {
    let value = value.into();
    eventually(SOON, async || {
        let path = format!("/api/v1/agents/{uid}");
        let view = muster.api().get(&path).await.map_err(|error| error.to_string())?;
        if view.pointer(pointer) == Some(&value) {
            Ok(view)
        } else {
            Err(format!("{pointer} is not {value}: {view:#}"))
        }
    })
    .await
}

/// Receives until a remote config comes.
pub(crate) async fn offer(agent: &mut RawAgent) -> AgentRemoteConfig {
    let message = agent.recv_where(|message: &ServerToAgent| message.remote_config.is_some()).await;
    message.remote_config.unwrap()
}

/// Reports APPLYING, the effective config and APPLIED, as a supervisor does; three messages.
pub(crate) async fn run(agent: &mut RawAgent, uid: Uuid, sequence: u64, offer: &AgentRemoteConfig) {
    let text = body(offer);
    let hash = &offer.config_hash;
    let messages: [AgentToServer; 3] = [
        config_status(uid, sequence, hash, RemoteConfigStatuses::Applying, ""),
        effective_config(uid, sequence + 1, &[("base", &text)]),
        config_status(uid, sequence + 2, hash, RemoteConfigStatuses::Applied, ""),
    ];
    for message in messages {
        agent.exchange(&message).await;
    }
}

/// The text of the file `base` of an offer.
pub(crate) fn body(offer: &AgentRemoteConfig) -> String {
    let file = &offer.config.as_ref().unwrap().config_map["base"];
    String::from_utf8(file.body.to_vec()).unwrap()
}
