//! Compares our OpAMP wire format with bytes and a schema made by the opamp-go protobufs.
//!
//! `loadtest/interop` says how to make `vectors/` anew.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed assumption of a test ends the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use muster_proto::opamp::{AgentToServer, ServerToAgent};
use muster_proto::{DecodeError, Message};
use protox::prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value,
};

/// Vectors with a map entry whose key or value is the type's default. opamp-go writes such halves
/// of an entry, prost leaves them out; both decode alike.
const DEFAULTS_IN_MAPS: [&str; 4] =
    ["agent_empty_config_file", "agent_first_report", "server_heartbeat_off", "server_packages"];

/// What the specification has and the opamp-go release in `loadtest/interop` does not have yet.
const NEWER_THAN_OPAMP_GO: [&str; 1] = ["ComponentHealth.attributes = 7 repeated KeyValue"];

struct Vector {
    name: String,
    message: String,
    bytes: Vec<u8>,
}

fn vectors_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn vectors() -> Vec<Vector> {
    let index = std::fs::read(vectors_dir().join("index.json")).unwrap();
    let index: Vec<BTreeMap<String, String>> = serde_json::from_slice(&index).unwrap();
    let vectors: Vec<Vector> = index
        .into_iter()
        .map(|entry| {
            let [message, name] = ["message", "name"].map(|key| entry[key].clone());
            let bytes = std::fs::read(vectors_dir().join(format!("{name}.bin"))).unwrap();
            Vector { name, message, bytes }
        })
        .collect();
    assert!(vectors.len() > 10, "the index is too short to be true");
    vectors
}

fn descriptors() -> DescriptorPool {
    let files = protox::compile(["opamp/v1/opamp.proto"], [env!("CARGO_MANIFEST_DIR")]).unwrap();
    DescriptorPool::from_file_descriptor_set(files).unwrap()
}

fn descriptor(pool: &DescriptorPool, message: &str) -> MessageDescriptor {
    pool.get_message_by_name(&format!("opamp.proto.{message}")).unwrap()
}

fn reencode<M: Message + Default + PartialEq>(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let decoded = M::decode(bytes)?;
    let encoded = decoded.encode_to_vec();
    assert!(M::decode(encoded.as_slice())? == decoded, "decode, encode, decode changes the message");
    Ok(encoded)
}

fn reencode_vector(vector: &Vector) -> Vec<u8> {
    match vector.message.as_str() {
        "AgentToServer" => reencode::<AgentToServer>(&vector.bytes),
        "ServerToAgent" => reencode::<ServerToAgent>(&vector.bytes),
        other => panic!("{}: no type for {other}", vector.name),
    }
    .unwrap_or_else(|error| panic!("{}: {error}", vector.name))
}

#[test]
fn messages_of_opamp_go_are_encoded_to_the_same_bytes() {
    for vector in vectors() {
        if DEFAULTS_IN_MAPS.contains(&vector.name.as_str()) {
            continue;
        }
        let encoded = reencode_vector(&vector);
        assert_eq!(hex(&encoded), hex(&vector.bytes), "{}", vector.name);
    }
}

#[test]
fn map_entries_with_defaults_differ_in_nothing_else() {
    let pool = descriptors();
    let vectors = vectors();
    for name in DEFAULTS_IN_MAPS {
        let vector = vectors.iter().find(|vector| vector.name == name).unwrap();
        let shape = descriptor(&pool, &vector.message);
        let encoded = reencode_vector(vector);
        assert_ne!(encoded, vector.bytes, "{name} needs no exception");
        assert_eq!(
            hex(&without_map_defaults(&encoded, &shape)),
            hex(&without_map_defaults(&vector.bytes, &shape)),
            "{name}",
        );
    }
}

#[test]
fn full_vectors_set_every_field() {
    let pool = descriptors();
    let (mut reachable, mut set) = (BTreeSet::new(), BTreeSet::new());
    for vector in vectors().iter().filter(|vector| vector.name.ends_with("_full")) {
        let shape = descriptor(&pool, &vector.message);
        collect_reachable(&shape, &mut reachable);
        let message = DynamicMessage::decode(shape, vector.bytes.as_slice()).unwrap();
        collect_set(&message, &mut set);
    }
    assert!(reachable.len() > 100, "only {} fields were found", reachable.len());
    let left_out: Vec<_> = reachable.difference(&set).collect();
    assert_eq!(left_out, Vec::<&String>::new());
}

#[test]
fn names_numbers_and_types_are_those_of_opamp_go() {
    let pool = descriptors();
    let mut ours = BTreeSet::new();
    for message in pool.all_messages().filter(|message| !message.is_map_entry()) {
        ours.insert(format!("message {}", message.name()));
        for field in message.fields() {
            ours.insert(format!(
                "{}.{} = {} {}",
                message.name(),
                field.name(),
                field.number(),
                shape_of(&field)
            ));
        }
    }
    for kind in pool.all_enums() {
        for value in kind.values() {
            ours.insert(format!("{}.{} = {}", kind.name(), value.name(), value.number()));
        }
    }
    let text = std::fs::read_to_string(vectors_dir().join("schema.txt")).unwrap();
    let theirs: BTreeSet<String> = text.lines().map(str::to_owned).collect();

    let missing: Vec<_> = theirs.difference(&ours).collect();
    let added: Vec<_> = ours.difference(&theirs).collect();
    assert_eq!(missing, Vec::<&String>::new());
    assert_eq!(added, NEWER_THAN_OPAMP_GO);
}

#[test]
fn fields_of_newer_clients_are_passed_over() {
    for vector in vectors().iter().filter(|vector| vector.message == "AgentToServer") {
        let known = AgentToServer::decode(vector.bytes.as_slice()).unwrap();
        let mut bytes = vector.bytes.clone();
        // Field 1000: a varint, eight bytes, a string, four bytes.
        bytes.extend([0xc0, 0x3e, 0x96, 0x01]);
        bytes.extend([0xc1, 0x3e, 1, 2, 3, 4, 5, 6, 7, 8]);
        bytes.extend([0xc2, 0x3e, 3, b'n', b'e', b'w']);
        bytes.extend([0xc5, 0x3e, 1, 2, 3, 4]);
        assert_eq!(AgentToServer::decode(bytes.as_slice()).unwrap(), known, "{}", vector.name);
    }
}

#[test]
fn cut_messages_are_errors_or_shorter_messages() {
    for vector in vectors() {
        for end in 0..vector.bytes.len() {
            // Whether it decodes depends on where the cut is; that it returns is what counts.
            let _ = AgentToServer::decode(&vector.bytes[..end]);
            let _ = ServerToAgent::decode(&vector.bytes[..end]);
        }
    }
}

/// The type of a field as `schema.txt` writes it.
fn shape_of(field: &FieldDescriptor) -> String {
    match field.kind() {
        Kind::Message(entry) if field.is_map() => {
            let (key, value) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
            format!("map<{}, {}>", type_name(&key), type_name(&value))
        }
        kind if field.is_list() => format!("repeated {}", type_name(&kind)),
        kind => match field.containing_oneof() {
            Some(oneof) => format!("oneof {} {}", oneof.name(), type_name(&kind)),
            None => type_name(&kind),
        },
    }
}

fn type_name(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.name().to_owned(),
        Kind::Enum(kind) => kind.name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

/// The full names of all fields of a message and of the messages inside it.
fn collect_reachable(message: &MessageDescriptor, found: &mut BTreeSet<String>) {
    for field in message.fields() {
        let new = found.insert(field.full_name().to_owned());
        if let (true, Kind::Message(inner)) = (new, field.kind()) {
            collect_reachable(&inner, found);
        }
    }
}

/// The full names of all fields that hold something other than their default.
fn collect_set(message: &DynamicMessage, found: &mut BTreeSet<String>) {
    assert_eq!(message.unknown_fields().count(), 0, "{} lacks fields", message.descriptor().full_name());
    for (field, value) in message.fields() {
        found.insert(field.full_name().to_owned());
        match value {
            Value::Message(inner) => collect_set(inner, found),
            Value::List(items) => {
                for item in items.iter().filter_map(Value::as_message) {
                    collect_set(item, found);
                }
            }
            Value::Map(entries) => {
                let Kind::Message(entry) = field.kind() else { unreachable!("a map has entries") };
                for (key, value) in entries {
                    let (key_field, value_field) =
                        (entry.map_entry_key_field(), entry.map_entry_value_field());
                    for (part, is_set) in [
                        (&key_field, !Value::from(key.clone()).is_default(&key_field.kind())),
                        (&value_field, !value.is_default(&value_field.kind())),
                    ] {
                        if is_set {
                            found.insert(part.full_name().to_owned());
                        }
                    }
                    if let Some(inner) = value.as_message() {
                        collect_set(inner, found);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The same message with the default keys and values of its map entries left out, and everything
/// else, known or not, as it is and where it is.
fn without_map_defaults(mut bytes: &[u8], shape: &MessageDescriptor) -> Vec<u8> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let tag = take_varint(&mut bytes);
        let (number, wire_type) = (u32::try_from(tag >> 3).unwrap(), tag & 7);
        let mut payload = match wire_type {
            0 => {
                let mut value = Vec::new();
                prost::encoding::encode_varint(take_varint(&mut bytes), &mut value);
                value
            }
            1 => take(&mut bytes, 8).to_vec(),
            2 => {
                let length = usize::try_from(take_varint(&mut bytes)).unwrap();
                take(&mut bytes, length).to_vec()
            }
            5 => take(&mut bytes, 4).to_vec(),
            other => panic!("wire type {other}"),
        };
        if let Some(Kind::Message(inner)) = shape.get_field(number).map(|field| field.kind()) {
            payload = without_map_defaults(&payload, &inner);
        }
        if shape.is_map_entry()
            && payload.iter().all(|byte| *byte == 0)
            && (wire_type != 2 || payload.is_empty())
        {
            continue;
        }
        prost::encoding::encode_varint(tag, &mut out);
        if wire_type == 2 {
            prost::encoding::encode_varint(payload.len() as u64, &mut out);
        }
        out.extend(payload);
    }
    out
}

fn take_varint(bytes: &mut &[u8]) -> u64 {
    prost::encoding::decode_varint(bytes).unwrap()
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (head, tail) = bytes.split_at(length);
    *bytes = tail;
    head
}

/// Hexadecimal, for messages of failed assertions that can be read.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
