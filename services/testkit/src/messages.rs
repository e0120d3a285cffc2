//! The usual messages of an agent, for [`RawAgent`](crate::RawAgent).

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use muster_proto::opamp::{
    AgentCapabilities, AgentConfigFile, AgentConfigMap, AgentDescription, AgentDisconnect, AgentToServer,
    AnyValue, ComponentHealth, EffectiveConfig, KeyValue, RemoteConfigStatus, RemoteConfigStatuses,
    any_value,
};
use uuid::Uuid;

/// The capabilities of an agent that takes remote configurations and reports about itself.
pub const CAPABILITIES: u64 = AgentCapabilities::ReportsStatus as u64
    | AgentCapabilities::AcceptsRemoteConfig as u64
    | AgentCapabilities::ReportsEffectiveConfig as u64
    | AgentCapabilities::ReportsHealth as u64
    | AgentCapabilities::ReportsRemoteConfig as u64
    | AgentCapabilities::ReportsHeartbeat as u64;

/// A new instance_uid.
pub fn new_uid() -> Uuid {
    Uuid::now_v7()
}

/// An agent's first report, with sequence number 0 and full state: healthy, with an empty effective
/// configuration. Attributes are identifying if their key begins with `service.`.
pub fn first_report(uid: Uuid, attributes: &[(&str, &str)]) -> AgentToServer {
    full_state(uid, 0, attributes)
}

/// As [`first_report`], with any sequence number.
pub fn full_state(uid: Uuid, sequence: u64, attributes: &[(&str, &str)]) -> AgentToServer {
    AgentToServer {
        agent_description: Some(description(attributes)),
        health: Some(component_health(true, "")),
        effective_config: Some(EffectiveConfig { config_map: Some(AgentConfigMap::default()) }),
        remote_config_status: Some(RemoteConfigStatus::default()),
        ..heartbeat(uid, sequence)
    }
}

/// A message that says nothing but that the agent is there.
pub fn heartbeat(uid: Uuid, sequence: u64) -> AgentToServer {
    AgentToServer {
        instance_uid: uid.as_bytes().to_vec(),
        sequence_num: sequence,
        capabilities: CAPABILITIES,
        ..Default::default()
    }
}

/// What became of an offered configuration.
pub fn config_status(
    uid: Uuid,
    sequence: u64,
    hash: &[u8],
    status: RemoteConfigStatuses,
    error: &str,
) -> AgentToServer {
    let status = RemoteConfigStatus {
        last_remote_config_hash: hash.to_vec(),
        status: status as i32,
        error_message: error.to_owned(),
    };
    AgentToServer { remote_config_status: Some(status), ..heartbeat(uid, sequence) }
}

/// The configuration that the agent runs with, as names and YAML texts.
pub fn effective_config(uid: Uuid, sequence: u64, files: &[(&str, &str)]) -> AgentToServer {
    let file = |body: &str| AgentConfigFile {
        body: Bytes::copy_from_slice(body.as_bytes()),
        content_type: "text/yaml".to_owned(),
    };
    let config_map = files.iter().map(|(name, body)| ((*name).to_owned(), file(body))).collect();
    let effective = EffectiveConfig { config_map: Some(AgentConfigMap { config_map }) };
    AgentToServer { effective_config: Some(effective), ..heartbeat(uid, sequence) }
}

/// How well the agent works.
pub fn health(uid: Uuid, sequence: u64, healthy: bool, last_error: &str) -> AgentToServer {
    AgentToServer { health: Some(component_health(healthy, last_error)), ..heartbeat(uid, sequence) }
}

/// An agent's last message.
pub fn goodbye(uid: Uuid, sequence: u64) -> AgentToServer {
    AgentToServer { agent_disconnect: Some(AgentDisconnect {}), ..heartbeat(uid, sequence) }
}

/// Text attributes; identifying if their key begins with `service.`.
pub fn description(attributes: &[(&str, &str)]) -> AgentDescription {
    let (identifying, others): (Vec<_>, Vec<_>) =
        attributes.iter().partition(|(key, _)| key.starts_with("service."));
    let texts = |pairs: Vec<&(&str, &str)>| pairs.into_iter().map(|(key, value)| text(key, value)).collect();
    AgentDescription { identifying_attributes: texts(identifying), non_identifying_attributes: texts(others) }
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value) }
}

fn component_health(healthy: bool, last_error: &str) -> ComponentHealth {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
    ComponentHealth {
        healthy,
        start_time_unix_nano: now,
        last_error: last_error.to_owned(),
        status: if healthy { "StatusOK" } else { "StatusRecoverableError" }.to_owned(),
        status_time_unix_nano: now,
        ..Default::default()
    }
}
