//! How agents show who they are: credentials, what each may do, and how keys look.
//!
//! Keys are random, so their SHA-256 is kept and not a slow hash: nobody can try all of them. Names in tokens
//! and certificates are not secret; a credential of that kind is kept only where something is said of it,
//! such as that it is revoked.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{Digest, InstanceUid, Tenant, Timestamp};

/// Most instance_uids that one credential may name.
pub const MAX_UIDS: usize = 1000;
/// Longest name of a credential, in bytes.
pub const MAX_NAME: usize = 200;
/// What random characters are drawn from.
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Random characters of a key that are shown in lists.
const SHOWN: usize = 4;

/// What shows a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A key that Muster made.
    ApiKey,
    /// A token that somebody else signed; its name is `sub`.
    Jwt,
    /// A client certificate; its name is in it.
    Mtls,
}

impl Kind {
    /// As the API and the store name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::Jwt => "jwt",
            Self::Mtls => "mtls",
        }
    }

    /// The kind with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::ApiKey, Self::Jwt, Self::Mtls].into_iter().find(|kind| kind.name() == name)
    }
}

/// A credential of agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The tenant of whoever shows it.
    pub tenant: Tenant,
    /// A UUIDv7.
    pub id: Uuid,
    /// What shows it.
    pub kind: Kind,
    /// The digest that it is found by: [`digest_of_key`] or [`digest_of_name`].
    pub digest: Digest,
    /// What people call it; of a token or certificate, the name in it.
    pub name: String,
    /// How a key begins, to recognise it by; empty for other kinds.
    pub hint: String,
    /// The instance_uids that it may be used for; any if there is no set.
    pub uids: Option<BTreeSet<InstanceUid>>,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// From when on it is not valid any more.
    pub expires_at: Option<Timestamp>,
    /// Since when it is revoked.
    pub revoked_at: Option<Timestamp>,
    /// Number of its last change among those of all credentials.
    pub revision: u64,
}

/// Why a credential does not let anybody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It was revoked.
    Revoked,
    /// Its time is over.
    Expired,
}

impl Refusal {
    /// As metrics and logs name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }
}

impl Credential {
    /// Whether it lets somebody in at this time.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, now: Timestamp) -> Result<(), Refusal> {
        if self.revoked_at.is_some() {
            return Err(Refusal::Revoked);
        }
        match self.expires_at {
            Some(end) if end <= now => Err(Refusal::Expired),
            _ => Ok(()),
        }
    }

    /// Whether an agent with this instance_uid may use it.
    pub fn may_use(&self, uid: InstanceUid) -> bool {
        self.uids.as_ref().is_none_or(|uids| uids.contains(&uid))
    }
}

/// A new key: the prefix and so many random characters. `draw` gives 64 random bits.
pub fn new_key(prefix: &str, length: usize, mut draw: impl FnMut() -> u64) -> String {
    let mut key = prefix.to_owned();
    let mut left = length;
    while left > 0 {
        for byte in draw().to_be_bytes() {
            // What does not fit the alphabet evenly is drawn again, so that all characters are as likely.
            let even = usize::from(byte) < 256 / ALPHABET.len() * ALPHABET.len();
            if even && left > 0 {
                key.push(char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
                left -= 1;
            }
        }
    }
    key
}

/// What lists show of a key.
pub fn hint_of(prefix: &str, key: &str) -> String {
    let shown = prefix.len() + SHOWN;
    format!("{}...", key.get(..shown).unwrap_or(prefix))
}

/// The digest that a key is found by.
pub fn digest_of_key(key: &str) -> Digest {
    Digest::of_parts([b"api_key".as_slice(), key.as_bytes()])
}

/// The digest that a tenant's token or certificate of this name is found by.
pub fn digest_of_name(kind: Kind, tenant: &Tenant, name: &str) -> Digest {
    Digest::of_parts([kind.name().as_bytes(), tenant.as_str().as_bytes(), name.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_credential() -> Credential {
        Credential {
            tenant: "a".parse().unwrap(),
            id: Uuid::from_u128(1),
            kind: Kind::ApiKey,
            digest: digest_of_key("x"),
            name: "one".to_owned(),
            hint: String::new(),
            uids: None,
            created_at: Timestamp(1),
            created_by: "me".to_owned(),
            expires_at: None,
            revoked_at: None,
            revision: 1,
        }
    }

    #[test]
    fn a_credential_ends_by_its_time_or_by_revocation() {
        let forever = mk_credential();
        assert_eq!(forever.check(Timestamp(u64::MAX)), Ok(()));
        let timed = Credential { expires_at: Some(Timestamp(10)), ..mk_credential() };
        assert_eq!(timed.check(Timestamp(9)), Ok(()));
        assert_eq!(timed.check(Timestamp(10)), Err(Refusal::Expired));
        let revoked = Credential { revoked_at: Some(Timestamp(5)), ..timed };
        assert_eq!(revoked.check(Timestamp(1)), Err(Refusal::Revoked));
    }

    #[test]
    fn a_credential_with_uids_is_for_these_alone() {
        let (own, other) = (InstanceUid(Uuid::from_u128(1)), InstanceUid(Uuid::from_u128(2)));
        assert!(mk_credential().may_use(own));
        let bound = Credential { uids: Some([own].into()), ..mk_credential() };
        assert!(bound.may_use(own) && !bound.may_use(other));
        let nobody = Credential { uids: Some(BTreeSet::new()), ..mk_credential() };
        assert!(!nobody.may_use(own));
    }

    #[test]
    fn keys_have_their_prefix_and_length_and_all_characters_are_as_likely() {
        let mut state = 7_u64;
        let draw = || {
            // Any source does here.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state ^ (state >> 29)
        };
        let key = new_key("opamp_", 62_000, draw);
        assert_eq!(key.len(), 6 + 62_000);
        for character in ALPHABET {
            let count = key[6..].bytes().filter(|byte| byte == character).count();
            assert!((800..1200).contains(&count), "{} comes {count} times", char::from(*character));
        }
        assert_eq!(hint_of("opamp_", "opamp_abcdefgh"), "opamp_abcd...");
        assert_eq!(new_key("", 0, || 0), "");
    }

    #[test]
    fn digests_tell_kinds_tenants_and_names_apart() {
        let (a, b): (Tenant, Tenant) = ("a".parse().unwrap(), "b".parse().unwrap());
        let all = BTreeSet::from([
            digest_of_key("x"),
            digest_of_name(Kind::Jwt, &a, "x"),
            digest_of_name(Kind::Mtls, &a, "x"),
            digest_of_name(Kind::Jwt, &b, "x"),
            digest_of_name(Kind::Jwt, &a, "y"),
        ]);
        assert_eq!(all.len(), 5);
        for kind in [Kind::ApiKey, Kind::Jwt, Kind::Mtls] {
            assert_eq!(Kind::named(kind.name()), Some(kind));
        }
    }
}
