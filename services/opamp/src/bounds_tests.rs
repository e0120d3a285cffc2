//! Bounds on what agents report.

use muster_proto::Message;
use muster_proto::opamp::any_value::Value as Any;
use muster_proto::opamp::{
    AgentConfigFile, AgentConfigMap, AgentDescription, AgentToServer, AnyValue, ArrayValue,
    AvailableComponents, ComponentDetails, ComponentHealth, CustomCapabilities, EffectiveConfig, KeyValue,
    KeyValueList, PackageStatus, PackageStatuses, RemoteConfigStatus,
};
use proptest::arbitrary::any as arbitrary;
use proptest::prelude::*;

use super::*;

fn any(value: Any) -> Option<AnyValue> {
    Some(AnyValue { value: Some(value) })
}

fn pair(key: &str, value: Any) -> KeyValue {
    KeyValue { key: key.to_owned(), value: any(value) }
}

fn text(text: &str) -> Any {
    Any::StringValue(text.to_owned())
}

fn described(pairs: Vec<KeyValue>) -> AgentToServer {
    let description = AgentDescription { identifying_attributes: pairs, ..AgentDescription::default() };
    AgentToServer { agent_description: Some(description), ..AgentToServer::default() }
}

fn files(files: Vec<(String, AgentConfigFile)>) -> AgentToServer {
    let config_map = Some(AgentConfigMap { config_map: files.into_iter().collect() });
    AgentToServer { effective_config: Some(EffectiveConfig { config_map }), ..AgentToServer::default() }
}

/// A list in a list in a list.
fn nested(depth: usize) -> Any {
    (0..depth).fold(text("x"), |inner, _| Any::ArrayValue(ArrayValue { values: vec![any(inner).unwrap()] }))
}

fn deep_health(depth: usize) -> AgentToServer {
    let health = (0..depth).fold(ComponentHealth::default(), |part, _| ComponentHealth {
        component_health_map: [("part".to_owned(), part)].into(),
        ..ComponentHealth::default()
    });
    AgentToServer { health: Some(health), ..AgentToServer::default() }
}

/// One of everything, at its largest where that is not too much at once.
fn everything() -> AgentToServer {
    let name = "n".repeat(MAX_NAME);
    let kinds = vec![
        pair(&name, text(&"v".repeat(MAX_TEXT))),
        pair("flag", Any::BoolValue(true)),
        pair("int", Any::IntValue(i64::MIN)),
        pair("double", Any::DoubleValue(f64::NAN)),
        pair("bytes", Any::BytesValue(vec![0; MAX_TEXT])),
        pair("list", nested(10)),
        pair("map", Any::KvlistValue(KeyValueList { values: vec![pair("", text("")); MAX_ENTRIES] })),
        KeyValue { key: "null".to_owned(), value: None },
    ];
    let details = ComponentDetails { metadata: kinds.clone(), ..ComponentDetails::default() };
    let status =
        PackageStatus { name: name.clone(), error_message: "e".repeat(MAX_TEXT), ..Default::default() };
    AgentToServer {
        instance_uid: vec![7; 16],
        remote_config_status: Some(RemoteConfigStatus {
            last_remote_config_hash: vec![1; MAX_HASH],
            status: 77,
            error_message: "e".repeat(MAX_TEXT),
        }),
        package_statuses: Some(PackageStatuses {
            packages: [("p".to_owned(), status)].into(),
            ..PackageStatuses::default()
        }),
        custom_capabilities: Some(CustomCapabilities { capabilities: vec![name.clone(); MAX_ENTRIES] }),
        available_components: Some(AvailableComponents {
            components: [(name.clone(), details)].into(),
            hash: vec![2; MAX_HASH],
        }),
        health: deep_health(15).health,
        effective_config: files(vec![(
            name,
            AgentConfigFile { body: vec![0; 5 << 20].into(), ..Default::default() },
        )])
        .effective_config,
        ..described(kinds)
    }
}

fn refusal(message: &AgentToServer) -> String {
    check(&message.encode_to_vec()).unwrap_err().to_string()
}

#[test]
fn what_is_within_the_bounds_passes() {
    assert_eq!(check(&everything().encode_to_vec()), Ok(false));
    assert_eq!(check(&[]), Ok(false));
}

#[test]
fn a_refusal_names_the_field_and_the_limit() {
    let file = |name: String| files(vec![(name, AgentConfigFile::default())]);
    let custom = |capabilities| AgentToServer {
        custom_capabilities: Some(CustomCapabilities { capabilities }),
        ..AgentToServer::default()
    };
    let too_long = "x".repeat(MAX_TEXT + 1);
    let components = (0..=MAX_ENTRIES).map(|at| (at.to_string(), ComponentDetails::default())).collect();
    let available = AvailableComponents { components, hash: Vec::new() };
    let failed = RemoteConfigStatus { error_message: too_long.clone(), ..Default::default() };
    let large = vec![pair("k", text(&"v".repeat(MAX_TEXT))); 5];
    let cases = [
        (described(large), "agent_description: has 327755 bytes, at most 262144 are taken"),
        (
            described(vec![pair("k", text(&too_long))]),
            "agent_description.identifying_attributes.value.string_value: has 65537 bytes, at most 65536 are taken",
        ),
        (
            described(vec![pair(&"k".repeat(513), text(""))]),
            "agent_description.identifying_attributes.key: has 513 bytes, at most 512 are taken",
        ),
        (
            described(vec![pair("", text("")); MAX_ENTRIES + 1]),
            "agent_description.identifying_attributes: has more than 2048 entries, the most that are taken",
        ),
        (described(vec![pair("k", nested(30))]), "is nested deeper than 40 messages"),
        (deep_health(25), "is nested deeper than 40 messages"),
        (file("f".repeat(513)), "effective_config.config_map.key: has 513 bytes, at most 512 are taken"),
        (
            files((0..=MAX_ENTRIES).map(|at| (at.to_string(), AgentConfigFile::default())).collect()),
            "effective_config.config_map: has more than 2048 entries, the most that are taken",
        ),
        (
            AgentToServer { remote_config_status: Some(failed), ..AgentToServer::default() },
            "remote_config_status.error_message: has 65537 bytes, at most 65536 are taken",
        ),
        (
            AgentToServer { available_components: Some(available), ..AgentToServer::default() },
            "available_components.components: has more than 2048 entries, the most that are taken",
        ),
        (
            custom(vec!["c".repeat(513)]),
            "custom_capabilities.capabilities: has 513 bytes, at most 512 are taken",
        ),
        (
            custom(vec![String::new(); MAX_ENTRIES + 1]),
            "custom_capabilities.capabilities: has more than 2048 entries, the most that are taken",
        ),
    ];
    for (message, expected) in cases {
        let refusal = refusal(&message);
        assert!(refusal.contains(expected), "{refusal}");
        assert!(refusal.len() < 300, "{refusal}");
    }
}

#[test]
fn a_field_in_parts_is_bounded_as_a_whole() {
    let half = AgentToServer {
        agent_description: described(vec![pair("k", text(&"v".repeat(MAX_TEXT))); 3]).agent_description,
        ..AgentToServer::default()
    }
    .encode_to_vec();
    assert_eq!(check(&half), Ok(false));
    assert!(check(&[half.clone(), half].concat()).is_err());
}

#[test]
fn nul_is_cleaned_and_all_else_stays() {
    let message = AgentToServer {
        instance_uid: vec![0; 16],
        health: Some(ComponentHealth {
            last_error: "\0\0".to_owned(),
            start_time_unix_nano: 256,
            component_health_map: [("a\0".to_owned(), ComponentHealth::default())].into(),
            ..ComponentHealth::default()
        }),
        ..described(vec![pair("k", text("v\0w")), pair("b", Any::BytesValue(vec![0]))])
    };
    // Unknown fields of every wire type, with zeros, outside and inside.
    let unknown = [0xfa, 0x3e, 2, 0, b'x', 0xf1, 0x3e, 0, 0, 0, 0, 0, 0, 0, 0, 0xf3, 0x3e, 0xf4, 0x3e];
    let mut bytes = message.encode_to_vec();
    bytes.extend(unknown);
    assert_eq!(check(&bytes), Ok(true));
    let cleaned = clean(&bytes);
    assert!(cleaned.ends_with(&unknown));
    assert_eq!(check(&cleaned), Ok(false));
    let decoded = AgentToServer::decode(cleaned).unwrap();
    let health = decoded.health.unwrap();
    assert_eq!(health.last_error, "\u{fffd}\u{fffd}");
    assert_eq!(health.start_time_unix_nano, 256);
    assert_eq!(health.component_health_map.keys().collect::<Vec<_>>(), ["a\u{fffd}"]);
    let expected = described(vec![pair("k", text("v\u{fffd}w")), pair("b", Any::BytesValue(vec![0]))]);
    assert_eq!(decoded.agent_description, expected.agent_description);
    assert_eq!(decoded.instance_uid, [0; 16]);
}

/// Bytes that are nearly a message: one with some bytes changed.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let mut message = everything();
    message.effective_config = files(vec![("f".to_owned(), AgentConfigFile::default())]).effective_config;
    message.custom_capabilities = Some(CustomCapabilities { capabilities: vec!["c".to_owned()] });
    message.remote_config_status = None;
    message.package_statuses = None;
    message.agent_description = described(vec![
        pair("a", text("b")),
        pair("c", nested(2)),
        pair("d", Any::KvlistValue(KeyValueList { values: vec![pair("e", Any::DoubleValue(1.0))] })),
    ])
    .agent_description;
    message.available_components = Some(AvailableComponents {
        components: [("r".to_owned(), ComponentDetails::default())].into(),
        hash: vec![1],
    });
    message.health = deep_health(2).health;
    let bytes = message.encode_to_vec();
    let change = (arbitrary::<prop::sample::Index>(), arbitrary::<u8>());
    proptest::collection::vec(change, 0..6).prop_map(move |changes| {
        let mut bytes = bytes.clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn what_passes_can_be_decoded_and_cleaned(bytes in prop_oneof![
        nearly(),
        proptest::collection::vec(arbitrary::<u8>(), 0..80),
    ]) {
        let decoded = AgentToServer::decode(&bytes[..]);
        match check(&bytes) {
            Err(_) => {}
            Ok(has_nul) => {
                prop_assert!(decoded.is_ok(), "{:?}", decoded);
                let cleaned = clean(&bytes);
                prop_assert_eq!(check(&cleaned), Ok(false));
                if !has_nul {
                    prop_assert_eq!(AgentToServer::decode(&cleaned[..]), decoded);
                }
            }
        }
    }
}
