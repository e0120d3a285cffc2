//! What an agent says of itself in one message, decoded and bounded, without any wire format.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::capabilities::AgentCapabilities;
use crate::ids::{ConfigHash, Digest, Tenant, Timestamp};

/// Attributes by key. A value of any AnyValue kind stands as plain JSON: bytes as base64 text, a
/// number that JSON does not have (NaN, infinities) as its name.
pub type Attributes = BTreeMap<String, serde_json::Value>;

/// What one AgentToServer says. A part that is absent is unchanged since the last report
/// (OpAMP, "Agent status compression").
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// AgentToServer.agent_description.
    pub description: Option<Description>,
    /// AgentToServer.capabilities; zero means unchanged.
    pub capabilities: AgentCapabilities,
    /// AgentToServer.health.
    pub health: Option<Health>,
    /// AgentToServer.effective_config.
    pub effective_config: Option<ConfigMap>,
    /// AgentToServer.remote_config_status.
    pub remote_config: Option<RemoteConfigStatus>,
    /// AgentToServer.custom_capabilities.
    pub custom_capabilities: Option<Vec<String>>,
    /// AgentToServer.available_components.
    pub available_components: Option<AvailableComponents>,
    /// AgentToServer.custom_message.
    pub custom_message: Option<CustomMessage>,
}

/// A message of a custom capability, in either direction (CustomMessage).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CustomMessage {
    /// The capability's name.
    pub capability: String,
    /// The kind of message within the capability.
    pub kind: String,
    /// The content, in the capability's own format.
    pub data: Vec<u8>,
}

/// What identifies an agent and what describes it (AgentDescription).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Description {
    /// identifying_attributes.
    #[serde(default)]
    pub identifying: Attributes,
    /// non_identifying_attributes.
    #[serde(default)]
    pub non_identifying: Attributes,
}

impl Description {
    /// The agent's type (specification, "AgentDescription"): the beginning of a long one, empty where
    /// it is not text.
    pub fn agent_type(&self) -> &str {
        let name = self.attribute("service.name").and_then(serde_json::Value::as_str).unwrap_or_default();
        &name[..name.floor_char_boundary(256)]
    }

    /// The attribute with this key; the identifying one where both have it.
    pub fn attribute(&self, key: &str) -> Option<&serde_json::Value> {
        self.identifying.get(key).or_else(|| self.non_identifying.get(key))
    }
}

/// Health of an agent or of one of its components (ComponentHealth).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Health {
    /// Whether it is up and works.
    pub healthy: bool,
    /// The agent's own word for its state, such as `StatusOK`; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// What went wrong last; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub last_error: String,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// When `status` was true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_time: Option<Timestamp>,
    /// Attributes of this component's health.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: Attributes,
    /// Health of the parts, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub components: BTreeMap<String, Health>,
}

/// Configuration files by name (AgentConfigMap).
pub type ConfigMap = BTreeMap<String, ConfigFile>;

/// One configuration file (AgentConfigFile).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigFile {
    /// MIME type; may be empty.
    pub content_type: String,
    /// The file's bytes, of any encoding.
    pub body: Vec<u8>,
}

/// Digest of a config map over names, content types and bodies, in name order.
pub fn config_map_digest(map: &ConfigMap) -> Digest {
    Digest::of_parts(
        map.iter()
            .flat_map(|(name, file)| [name.as_bytes(), file.content_type.as_bytes(), file.body.as_slice()]),
    )
}

/// What an agent says of the components it can be configured with (AvailableComponents).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AvailableComponents {
    /// The agent's own hash of the list; bytes in hexadecimal. Empty if it gives none.
    pub hash: String,
    /// The list; absent while only the hash is told.
    pub components: Option<Components>,
}

/// Components by name.
pub type Components = BTreeMap<String, Component>;

/// One component that an agent can be configured with (ComponentDetails).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Component {
    /// Facts about it, such as its version.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: Attributes,
    /// Components inside it, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub components: Components,
}

/// Which list of components is meant. The hash is chosen by agents, so it is believed only among agents
/// of one tenant and type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComponentsKey {
    /// Tenant of the agents.
    pub tenant: Tenant,
    /// Type of the agents: their `service.name`; may be empty.
    pub agent_type: String,
    /// The agents' hash of the list, bytes in hexadecimal.
    pub hash: String,
}

/// How far an agent is with a remote config (RemoteConfigStatuses).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ConfigStatus {
    /// Nothing was reported.
    #[default]
    Unset,
    /// The config is in use.
    Applied,
    /// The config was received and is being applied.
    Applying,
    /// The config could not be applied.
    Failed,
}

/// What an agent says of its remote config (RemoteConfigStatus).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RemoteConfigStatus {
    /// last_remote_config_hash; some clients leave it out.
    pub hash: Option<ConfigHash>,
    /// How far the agent is with it.
    pub status: ConfigStatus,
    /// error_message; empty unless something failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error_message: String,
}
