//! How cells, gateways and keys are written in names of streams, subjects and buckets.
//!
//! A token of a subject cannot hold `.`, and a stream's name cannot either; names of cells and gateways
//! may hold it, but never `_`, which stands for it.

use async_nats::Subject as NatsSubject;
use muster_domain::ids::{Cell, Digest, Partition, Tenant};
use muster_ports::bus::Subject;

/// A name of ours as one token.
pub(super) fn token(name: &str) -> String {
    name.replace('.', "_")
}

/// Name of the stream of a cell's log.
pub(super) fn log_stream(cell: &Cell) -> String {
    format!("muster-{}", token(cell.as_str()))
}

/// Every partition's subject.
pub(super) fn log_subjects(cell: &Cell) -> String {
    format!("muster.{}.log.*", token(cell.as_str()))
}

/// The subject of a partition's entries.
pub(super) fn log_subject(cell: &Cell, partition: Partition) -> String {
    format!("muster.{}.log.{}", token(cell.as_str()), partition.number())
}

/// Name of the stream of a cell's blobs. It begins as no stream of a log does, whatever cells are called.
pub(super) fn blob_stream(cell: &Cell) -> String {
    format!("BLOBS_muster-{}", token(cell.as_str()))
}

/// Every piece of every blob.
pub(super) fn blob_subjects(cell: &Cell) -> String {
    format!("muster.{}.blob.*.*.*", token(cell.as_str()))
}

/// The subject of a piece of a blob.
pub(super) fn blob_subject(cell: &Cell, tenant: &Tenant, digest: &Digest, piece: usize) -> String {
    format!("muster.{}.blob.{}.{digest}.{piece}", token(cell.as_str()), token(tenant.as_str()))
}

/// Name of a bucket of a cell.
pub(super) fn bucket(cell: &Cell, what: &str) -> String {
    format!("muster-{}-{what}", token(cell.as_str()))
}

/// Name of the stream under a bucket.
pub(super) fn bucket_stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// Every key's subject.
pub(super) fn bucket_subjects(bucket: &str) -> String {
    format!("$KV.{bucket}.>")
}

/// The subject of a key.
pub(super) fn key_subject(bucket: &str, key: &str) -> String {
    format!("$KV.{bucket}.{}", encode_key(key))
}

/// The key whose subject this is.
pub(super) fn key_of(bucket: &str, subject: &str) -> Option<String> {
    decode_key(subject.strip_prefix("$KV.")?.strip_prefix(bucket)?.strip_prefix('.')?)
}

/// The subject of a message on the bus.
pub(super) fn bus_subject(subject: &Subject) -> NatsSubject {
    let text = match subject {
        Subject::Deliveries(cell, gateway) => {
            format!("muster.{}.deliver.{}", token(cell.as_str()), token(gateway.as_str()))
        }
        Subject::Gateway(cell, gateway) => {
            format!("muster.{}.gateway.{}", token(cell.as_str()), token(gateway.as_str()))
        }
        Subject::Control(cell) => format!("muster.{}.control", token(cell.as_str())),
        Subject::Wake(cell) => format!("muster.{}.wake", token(cell.as_str())),
        Subject::Floors(cell) => format!("muster.{}.floors", token(cell.as_str())),
        Subject::Credentials(cell) => format!("muster.{}.credentials", token(cell.as_str())),
        Subject::Keeper(cell) => format!("muster.{}.keeper", token(cell.as_str())),
        Subject::Events(cell, tenant) => {
            format!("muster.{}.events.{}", token(cell.as_str()), token(tenant.as_str()))
        }
    };
    text.into()
}

/// A subject that nobody listens on.
pub(super) fn nowhere(cell: &Cell) -> String {
    format!("muster.{}.nowhere", token(cell.as_str()))
}

/// A key as a bucket takes it: letters, digits, `-`, `_`, `/`, and `.` between two of these stand for
/// themselves; every other byte is `=` and two hexadecimal digits; the empty key is `=`.
fn encode_key(key: &str) -> String {
    if key.is_empty() {
        return "=".to_owned();
    }
    let mut encoded = String::with_capacity(key.len());
    let mut bytes = key.bytes().peekable();
    let mut after_dot = true;
    while let Some(byte) = bytes.next() {
        let between = !after_dot && bytes.peek().is_some_and(|next| *next != b'.');
        after_dot = false;
        match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'/' => encoded.push(char::from(byte)),
            b'.' if between => {
                encoded.push('.');
                after_dot = true;
            }
            other => encoded.push_str(&format!("={other:02X}")),
        }
    }
    encoded
}

fn decode_key(encoded: &str) -> Option<String> {
    if encoded == "=" {
        return Some(String::new());
    }
    let mut key = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'=' {
            let (digits, after) = rest.split_at_checked(2)?;
            key.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            key.push(*byte);
        }
    }
    String::from_utf8(key).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cell(name: &str) -> Cell {
        name.parse().unwrap()
    }

    #[test]
    fn names_are_kept_apart() {
        assert_eq!(log_stream(&cell("eu.west-1")), "muster-eu_west-1");
        assert_eq!(log_subject(&cell("eu.1"), Partition::new(7).unwrap()), "muster.eu_1.log.7");
        assert_eq!(blob_stream(&cell("eu.west-1")), "BLOBS_muster-eu_west-1");
        let digest = Digest([0xab; 32]);
        let blob = |tenant: &str| blob_subject(&cell("eu.1"), &tenant.parse().unwrap(), &digest, 7);
        assert_eq!(blob("a.b"), format!("muster.eu_1.blob.a_b.{digest}.7"));
        assert_ne!(blob("a.b"), blob("a-b"));
        let gateway = |name: &str| bus_subject(&Subject::Gateway(cell("eu"), name.parse().unwrap()));
        assert_eq!(gateway("g.1").as_str(), "muster.eu.gateway.g_1");
        assert_ne!(gateway("g.1"), gateway("g-1"));
    }

    #[test]
    fn usual_keys_are_readable() {
        for key in ["gateway/g1", "lease.a.c", "lease_a", "Lease-", "a/b/c"] {
            assert_eq!(encode_key(key), key);
        }
        for (key, encoded) in
            [("", "="), (".", "=2E"), ("a.", "a=2E"), ("a..b", "a=2E.b"), ("a b", "a=20b"), ("=", "=3D")]
        {
            assert_eq!(encode_key(key), encoded);
        }
        assert_eq!(key_of("b", &key_subject("b", "x.y")).as_deref(), Some("x.y"));
        assert_eq!(key_of("b", "$KV.other.x"), None);
    }

    proptest! {
        #[test]
        fn every_key_comes_back_from_a_valid_token(key in "\\PC{0,12}|[.=a/ *>]{0,8}") {
            let encoded = encode_key(&key);
            prop_assert_eq!(decode_key(&encoded), Some(key));
            prop_assert!(encoded.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_/=.".contains(&b)));
            prop_assert!(encoded.split('.').all(|token| !token.is_empty()), "{}", encoded);
        }
    }
}
