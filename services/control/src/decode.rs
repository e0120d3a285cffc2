//! From the log's bytes to the domain's words: envelopes, reports, attribute values.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use muster_domain::agent::{EndReason, Entry, Transport, Unsent};
use muster_domain::capabilities::AgentCapabilities;
use muster_domain::ids::{AgentKey, Claim, ConfigHash, Digest, InstanceUid, Timestamp};
use muster_domain::report::{
    Attributes, AvailableComponents, Component, Components, ConfigFile, ConfigMap, ConfigStatus,
    CustomMessage, Description, Health, RemoteConfigStatus, Report,
};
use muster_ports::blobs::BlobRef;
use muster_ports::trace::TraceContext;
use muster_proto::Message;
use muster_proto::bus::{self, Envelope};
use muster_proto::opamp::any_value::Value as Any;
use muster_proto::opamp::{self, AgentToServer, AnyValue, KeyValue, RemoteConfigStatuses};
use serde_json::Value;

use crate::blobs;

/// Why an entry of the log cannot be folded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("it is not an envelope")]
    Envelope(#[source] muster_proto::DecodeError),
    #[error("its report is not an AgentToServer")]
    Report(#[source] muster_proto::DecodeError),
    #[error(transparent)]
    Id(#[from] muster_domain::ids::InvalidId),
}

/// One entry of the log.
#[derive(Debug)]
pub(crate) struct Read {
    /// Whose it is.
    pub(crate) key: AgentKey,
    /// What it says; without its report if that is apart.
    pub(crate) entry: Entry,
    /// Where it belongs in a trace, if it is traced.
    pub(crate) trace: Option<TraceContext>,
    /// Where the report is, if it is apart.
    pub(crate) blob: Option<BlobRef>,
}

/// Reads one entry of the log.
pub(crate) fn envelope(payload: Bytes) -> Result<Read, Unusable> {
    let envelope = Envelope::decode(payload).map_err(Unusable::Envelope)?;
    let key = AgentKey {
        tenant: envelope.tenant.parse()?,
        uid: InstanceUid::try_from(envelope.instance_uid.as_ref())?,
    };
    let started = match (&envelope.started, envelope.transport()) {
        (Some(started), _) => Some((transport(started.transport()), text(started.remote_addr.clone()))),
        // Its start may be lost, and who polls must not be taken for somebody on a WebSocket.
        (None, bus::Transport::Http) => Some((Transport::Http, String::new())),
        (None, _) => None,
    };
    let report = match envelope.agent_to_server {
        Some(bytes) => Some(report_of(bytes)?),
        None => None,
    };
    let blob = envelope.agent_to_server_blob.as_ref().map(blobs::from_wire).transpose()?;
    let entry = Entry {
        session: envelope.session_id.as_ref().try_into()?,
        claim: Claim(envelope.claim),
        gateway: envelope.gateway.parse()?,
        incarnation: envelope.incarnation.as_ref().try_into()?,
        received_at: Timestamp(envelope.received_at_us),
        sequence_num: envelope.sequence_num,
        started,
        report,
        sent: envelope.sent_config_hash.map(|hash| ConfigHash::new(&hash)),
        ended: envelope.ended.map(|ended| end_reason(ended.reason())),
        silent: envelope.silent,
        unsent: envelope.unsent.and_then(|unsent| {
            let (size, limit) = (unsent.size, unsent.limit);
            Some(Unsent { hash: ConfigHash::new(&unsent.config_hash)?, size, limit })
        }),
    };
    Ok(Read { key, entry, trace: envelope.traceparent.parse().ok(), blob })
}

/// What the agent's own bytes report.
pub(crate) fn report_of(bytes: Bytes) -> Result<Report, Unusable> {
    Ok(report(AgentToServer::decode(bytes).map_err(Unusable::Report)?))
}

fn transport(transport: bus::Transport) -> Transport {
    match transport {
        bus::Transport::Http => Transport::Http,
        bus::Transport::Websocket | bus::Transport::Unspecified => Transport::WebSocket,
    }
}

fn end_reason(reason: bus::EndReason) -> EndReason {
    match reason {
        bus::EndReason::AgentDisconnect => EndReason::AgentDisconnect,
        bus::EndReason::Closed => EndReason::Closed,
        bus::EndReason::Operator => EndReason::Operator,
        bus::EndReason::GatewayStopped => EndReason::GatewayStopped,
        bus::EndReason::Superseded => EndReason::Superseded,
        bus::EndReason::Silent => EndReason::Silent,
        bus::EndReason::ProtocolError => EndReason::ProtocolError,
        bus::EndReason::ConnectionLost | bus::EndReason::Unspecified => EndReason::ConnectionLost,
    }
}

/// What an AgentToServer reports.
fn report(message: AgentToServer) -> Report {
    Report {
        description: message.agent_description.map(|description| Description {
            identifying: attributes(description.identifying_attributes),
            non_identifying: attributes(description.non_identifying_attributes),
        }),
        capabilities: AgentCapabilities(message.capabilities),
        health: message.health.map(health),
        effective_config: message
            .effective_config
            .map(|effective| effective.config_map.map(|map| config_map(map.config_map)).unwrap_or_default()),
        remote_config: message.remote_config_status.map(|status| RemoteConfigStatus {
            hash: ConfigHash::new(&status.last_remote_config_hash),
            status: match status.status() {
                RemoteConfigStatuses::Unset => ConfigStatus::Unset,
                RemoteConfigStatuses::Applied => ConfigStatus::Applied,
                RemoteConfigStatuses::Applying => ConfigStatus::Applying,
                RemoteConfigStatuses::Failed => ConfigStatus::Failed,
            },
            error_message: text(status.error_message),
        }),
        custom_capabilities: message
            .custom_capabilities
            .map(|custom| custom.capabilities.into_iter().map(text).collect()),
        available_components: message.available_components.and_then(available_components),
        custom_message: message.custom_message.map(|custom| CustomMessage {
            capability: text(custom.capability),
            kind: text(custom.r#type),
            data: custom.data,
        }),
    }
}

/// Text as every store can hold it: NUL becomes U+FFFD.
fn text(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

fn health(health: opamp::ComponentHealth) -> Health {
    let time = |nanoseconds: u64| (nanoseconds != 0).then_some(Timestamp(nanoseconds / 1000));
    Health {
        healthy: health.healthy,
        status: text(health.status),
        last_error: text(health.last_error),
        start_time: time(health.start_time_unix_nano),
        status_time: time(health.status_time_unix_nano),
        attributes: attributes(health.attributes),
        components: health
            .component_health_map
            .into_iter()
            .map(|(name, component)| (text(name), self::health(component)))
            .collect(),
    }
}

/// `None` where nothing is said. A list without a hash gets one.
fn available_components(available: opamp::AvailableComponents) -> Option<AvailableComponents> {
    let components = components(available.components);
    let hash = match (available.hash.is_empty(), components.is_empty()) {
        (false, _) => hex::encode(available.hash),
        (true, true) => return None,
        (true, false) => {
            let text = serde_json::to_string(&components).unwrap_or_default();
            Digest::of_parts([text.as_bytes()]).to_string()
        }
    };
    Some(AvailableComponents { hash, components: (!components.is_empty()).then_some(components) })
}

fn components(map: impl IntoIterator<Item = (String, opamp::ComponentDetails)>) -> Components {
    let component = |details: opamp::ComponentDetails| Component {
        metadata: attributes(details.metadata),
        components: components(details.sub_component_map),
    };
    map.into_iter().map(|(name, details)| (text(name), component(details))).collect()
}

fn config_map(files: impl IntoIterator<Item = (String, opamp::AgentConfigFile)>) -> ConfigMap {
    let file = |file: opamp::AgentConfigFile| ConfigFile {
        content_type: text(file.content_type),
        body: file.body.to_vec(),
    };
    files.into_iter().map(|(name, content)| (text(name), file(content))).collect()
}

fn attributes(pairs: Vec<KeyValue>) -> Attributes {
    pairs.into_iter().map(|pair| (text(pair.key), pair.value.map_or(Value::Null, any_value))).collect()
}

fn any_value(value: AnyValue) -> Value {
    match value.value {
        None => Value::Null,
        Some(Any::StringValue(string)) => Value::String(text(string)),
        Some(Any::BoolValue(flag)) => Value::Bool(flag),
        Some(Any::IntValue(number)) => Value::from(number),
        Some(Any::DoubleValue(number)) => {
            serde_json::Number::from_f64(number).map_or_else(|| number.to_string().into(), Value::Number)
        }
        Some(Any::BytesValue(bytes)) => Value::String(STANDARD.encode(bytes)),
        Some(Any::ArrayValue(array)) => array.values.into_iter().map(any_value).collect(),
        Some(Any::KvlistValue(list)) => attributes(list.values).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::opamp::{AgentDescription, ArrayValue, KeyValueList};
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_of_value_becomes_json() {
        let pair = |key: &str, value| KeyValue { key: key.to_owned(), value: Some(AnyValue { value }) };
        let inner = AnyValue { value: Some(Any::IntValue(1)) };
        let description = AgentDescription {
            identifying_attributes: vec![
                pair("s", Some(Any::StringValue("a\0b".to_owned()))),
                pair("b", Some(Any::BoolValue(true))),
                pair("i", Some(Any::IntValue(-7))),
                pair("d", Some(Any::DoubleValue(0.5))),
                pair("nan", Some(Any::DoubleValue(f64::NAN))),
                pair("x", Some(Any::BytesValue(vec![0, 255]))),
                pair("a", Some(Any::ArrayValue(ArrayValue { values: vec![inner.clone()] }))),
                pair(
                    "m",
                    Some(Any::KvlistValue(KeyValueList {
                        values: vec![KeyValue { key: "k".to_owned(), value: Some(inner) }],
                    })),
                ),
                pair("n", None),
            ],
            ..AgentDescription::default()
        };
        let message = AgentToServer { agent_description: Some(description), ..AgentToServer::default() };
        let identifying = report(message).description.unwrap().identifying;
        assert_eq!(
            json!(identifying),
            json!({
                "s": "a\u{fffd}b", "b": true, "i": -7, "d": 0.5, "nan": "NaN", "x": "AP8=",
                "a": [1], "m": {"k": 1}, "n": null,
            })
        );
    }

    #[test]
    fn components_are_told_by_hash_or_whole() {
        let read = |hash: &[u8], components: &[&str]| {
            let details = opamp::ComponentDetails {
                metadata: vec![KeyValue { key: "v".to_owned(), value: None }],
                sub_component_map: [("in\0side".to_owned(), opamp::ComponentDetails::default())].into(),
            };
            let components = components.iter().map(|name| ((*name).to_owned(), details.clone()));
            let available =
                opamp::AvailableComponents { components: components.collect(), hash: hash.to_vec() };
            let message = AgentToServer { available_components: Some(available), ..AgentToServer::default() };
            report(message).available_components
        };
        assert_eq!(read(&[], &[]), None);
        let by_hash = AvailableComponents { hash: "00ff".to_owned(), components: None };
        assert_eq!(read(&[0, 255], &[]), Some(by_hash));
        let whole = read(&[1], &["receivers"]).unwrap();
        let list = whole.components.unwrap();
        assert_eq!(list["receivers"].metadata["v"], Value::Null);
        assert!(list["receivers"].components.contains_key("in\u{fffd}side"));
        let without_hash = read(&[], &["receivers"]).unwrap();
        assert_eq!((without_hash.hash.len(), without_hash.components), (64, Some(list)));
    }

    #[test]
    fn an_entry_that_cannot_be_read_says_why() {
        assert!(matches!(envelope(Bytes::from_static(&[0xff])), Err(Unusable::Envelope(_))));
        let empty = Envelope { tenant: "default".to_owned(), ..Envelope::default() };
        let error = envelope(empty.encode_to_vec().into()).unwrap_err();
        assert_eq!(error.to_string(), "instance_uid must be 16 bytes, this one has 0");
        let id = Bytes::from_static(&[1; 16]);
        let blob = bus::BlobRef { digest: Bytes::from_static(&[1; 31]), size: 7 };
        let bad_blob = Envelope {
            instance_uid: id.clone(),
            session_id: id.clone(),
            incarnation: id,
            gateway: "gw".to_owned(),
            agent_to_server_blob: Some(blob),
            ..empty
        };
        let error = envelope(bad_blob.encode_to_vec().into()).unwrap_err();
        assert_eq!(error.to_string(), "digest must be 32 bytes, this one has 31");
    }
}
