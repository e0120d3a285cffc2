//! Names, identifiers, hashes and times: every value that could be confused has a type of its own.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// A name or identifier that is not well formed: what was expected of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {problem}")]
pub struct InvalidId {
    what: &'static str,
    problem: String,
}

/// Longest tenant, cell, gateway and manifest name, in bytes.
pub const MAX_NAME: usize = 63;

/// Checks a name in the manner of a DNS label with dots: lower-case letters, digits, `-` and `.`,
/// beginning and ending with a letter or digit, 1 to [`MAX_NAME`] bytes.
pub fn check_name(what: &'static str, name: &str) -> Result<(), InvalidId> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if name.len() > MAX_NAME {
        return Err(InvalidId { what, problem: format!("is longer than {MAX_NAME} characters") });
    }
    if !edge(name.chars().next()) || !edge(name.chars().next_back()) || !name.chars().all(inner) {
        return Err(InvalidId {
            what,
            problem: format!(
                "{name:?} is not a name: use lower-case letters, digits, `-` and `.`, beginning and ending with a letter or digit"
            ),
        });
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                check_name($what, text)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A customer of the vendor that runs Muster. Every row, subject and key is a tenant's.
    Tenant,
    "tenant"
);
name_type!(
    /// A region: a part of the system that works alone.
    Cell,
    "cell"
);
name_type!(
    /// A gateway process, by the name it is addressed with on the bus.
    GatewayId,
    "gateway"
);

macro_rules! uuid_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The 16 bytes as they stand on the wire.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = InvalidId;

            fn try_from(bytes: &[u8]) -> Result<Self, InvalidId> {
                Uuid::from_slice(bytes).map(Self).map_err(|_| InvalidId {
                    what: $what,
                    problem: format!("must be 16 bytes, this one has {}", bytes.len()),
                })
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::try_parse(text).map(Self).map_err(|_| InvalidId {
                    what: $what,
                    problem: format!("{text:?} is not a UUID such as 01890a5d-ac96-774b-bcce-b302099a8057"),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }
    };
}

uuid_type!(
    /// An agent's `instance_uid` (OpAMP, AgentToServer.instance_uid): 16 bytes.
    InstanceUid,
    "instance_uid"
);
uuid_type!(
    /// A session: one `instance_uid` on one connection. A UUIDv7.
    SessionId,
    "session id"
);
uuid_type!(
    /// One life of a gateway process. A UUIDv7; a lapsed lease begins another.
    Incarnation,
    "incarnation"
);
uuid_type!(
    /// One entry of the log. A UUIDv7, made by the publisher, so that a repeated publish is seen.
    MessageId,
    "message id"
);
uuid_type!(
    /// An order of an operator to one agent. A UUIDv7: later ones come after earlier ones.
    CommandId,
    "command id"
);
uuid_type!(
    /// One request of an agent that polls over plain HTTP. A UUIDv7, made by the gateway it came to.
    PollId,
    "poll id"
);
uuid_type!(
    /// A change on its way to agents in stages. A UUIDv7: later ones come after earlier ones.
    RolloutId,
    "rollout id"
);

uuid_type!(
    /// A token of the API. A UUIDv7: later ones come after earlier ones.
    TokenId,
    "token id"
);

/// An agent of a tenant: what every key, lock and row of an agent is made from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AgentKey {
    /// The agent's tenant.
    pub tenant: Tenant,
    /// The agent's instance_uid.
    pub uid: InstanceUid,
}

impl fmt::Display for AgentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.tenant, self.uid)
    }
}

/// Number of a claim on an instance_uid. The higher claim wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Claim(pub u64);

/// Number of a state of a tenant's intent. Every change gets the next one; a rollback is a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IntentRevision(pub u64);

impl fmt::Display for IntentRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of partitions of a log, fixed for its life.
pub const PARTITIONS: u16 = 64;

/// A partition of the log, 0 to [`PARTITIONS`] - 1. All of an agent's reports are in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Partition(u16);

impl Partition {
    /// The partition of an agent: the first 8 bytes, big endian, of SHA-256 over the tenant's name,
    /// a zero byte and the 16 bytes of the instance_uid, modulo [`PARTITIONS`].
    pub fn of(key: &AgentKey) -> Self {
        let digest = Sha256::new()
            .chain_update(key.tenant.as_str())
            .chain_update([0])
            .chain_update(key.uid.as_bytes())
            .finalize();
        let head = digest.iter().take(8).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        // The remainder is below PARTITIONS, a u16.
        Self((head % u64::from(PARTITIONS)) as u16)
    }

    /// The partition with this number, if there is one.
    pub fn new(number: u16) -> Option<Self> {
        (number < PARTITIONS).then_some(Self(number))
    }

    /// Every partition, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..PARTITIONS).map(Self)
    }

    /// Its number.
    pub fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A SHA-256, shown as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of a content as it is: what `sha256sum` says of it.
    pub fn of(content: &[u8]) -> Self {
        let mut digesting = Digesting::default();
        digesting.update(content);
        digesting.finish()
    }

    /// The digest of these parts, each preceded by its length, so that no two lists collide.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }
}

impl FromStr for Digest {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let bytes = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Self)
            .ok_or_else(|| InvalidId { what: "digest", problem: "must be 64 hexadecimal digits".to_owned() })
    }
}

/// A [`Digest::of`] a content that comes in pieces, or that is worked through in pieces.
#[derive(Debug, Clone, Default)]
pub struct Digesting(Sha256);

impl Digesting {
    /// Adds the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest of all pieces, one after the other.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl TryFrom<&[u8]> for Digest {
    type Error = InvalidId;

    fn try_from(bytes: &[u8]) -> Result<Self, InvalidId> {
        bytes.try_into().map(Self).map_err(|_| InvalidId {
            what: "digest",
            problem: format!("must be 32 bytes, this one has {}", bytes.len()),
        })
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(&text, &mut bytes).map_err(|_| InvalidId {
            what: "digest",
            problem: format!("{text:?} is not 64 hexadecimal digits"),
        })?;
        Ok(Self(bytes))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        hex::encode(digest.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A remote config hash as it stands on the wire (AgentRemoteConfig.config_hash). Ours are 32
/// bytes; what an agent reports may have any length up to [`ConfigHash::MAX`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ConfigHash(Vec<u8>);

impl ConfigHash {
    /// Longest hash that is kept, in bytes.
    pub const MAX: usize = 256;

    /// The bytes as a hash; none if there are none or too many.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (!bytes.is_empty() && bytes.len() <= Self::MAX).then(|| Self(bytes.to_vec()))
    }

    /// The bytes on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Digest> for ConfigHash {
    fn from(digest: Digest) -> Self {
        Self(digest.0.to_vec())
    }
}

impl TryFrom<String> for ConfigHash {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        let bytes = hex::decode(&text).map_err(|_| InvalidId {
            what: "config hash",
            problem: format!("{text:?} is not hexadecimal"),
        })?;
        Self::new(&bytes)
            .ok_or_else(|| InvalidId { what: "config hash", problem: "must be 1 to 256 bytes".to_owned() })
    }
}

impl FromStr for ConfigHash {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.to_owned().try_into()
    }
}

impl From<ConfigHash> for String {
    fn from(hash: ConfigHash) -> Self {
        hex::encode(hash.0)
    }
}

impl fmt::Display for ConfigHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for ConfigHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A moment: microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The moment this much later.
    pub fn plus(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// How long it is since an earlier moment; zero if that one is later.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tenant: &str, uid: &str) -> AgentKey {
        AgentKey { tenant: tenant.parse().unwrap(), uid: uid.parse().unwrap() }
    }

    #[test]
    fn partitions_have_test_vectors() {
        let of = |tenant, uid| Partition::of(&key(tenant, uid)).number();
        assert_eq!(of("default", "00000000-0000-0000-0000-000000000000"), PARTITION_VECTORS[0]);
        assert_eq!(of("default", "01890a5d-ac96-774b-bcce-b302099a8057"), PARTITION_VECTORS[1]);
        assert_eq!(of("acme", "01890a5d-ac96-774b-bcce-b302099a8057"), PARTITION_VECTORS[2]);
    }

    // Computed apart, with `printf 'default\0...' | sha256sum`.
    const PARTITION_VECTORS: [u16; 3] = [54, 61, 4];

    #[test]
    fn names_are_bounded() {
        assert!("default".parse::<Tenant>().is_ok());
        assert!("a.b-c9".parse::<Tenant>().is_ok());
        for bad in ["", "-a", "a-", "A", "a b", "a:b", &"a".repeat(64)] {
            assert!(bad.parse::<Tenant>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn parts_do_not_run_together() {
        let digest = |parts: &[&str]| Digest::of_parts(parts.iter().map(|part| part.as_bytes()));
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
        assert_ne!(digest(&["a", ""]), digest(&["a"]));
    }

    #[test]
    fn a_content_has_the_digest_that_other_programs_know() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), abc);
        let mut digesting = Digesting::default();
        digesting.update(b"a");
        digesting.update(b"bc");
        assert_eq!(digesting.finish().to_string(), abc);
    }

    #[test]
    fn an_instance_uid_is_16_bytes() {
        let error = InstanceUid::try_from([1_u8; 26].as_slice()).unwrap_err();
        assert_eq!(error.to_string(), "instance_uid must be 16 bytes, this one has 26");
    }
}
