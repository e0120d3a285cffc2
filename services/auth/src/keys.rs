//! Keys that tokens are checked with.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};

/// Most keys of an issuer.
const MAX_KEYS: usize = 100;
/// Shortest shared secret, in bytes: as long as the digest that it is used with.
const SHORTEST_SECRET: usize = 32;

/// Why keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is no set of keys.
    #[error("it is no JSON Web Key Set: {0}")]
    NotASet(String),
    /// None of the keys is of a kind that signs tokens here.
    #[error("none of its keys can be used: it needs an RSA, P-256, P-384 or Ed25519 key for signatures")]
    NoneUsable,
    /// There are too many.
    #[error("it has more than {MAX_KEYS} keys")]
    TooMany,
    /// A shared secret that can be guessed.
    #[error("the secret has less than {SHORTEST_SECRET} bytes: make one with `openssl rand -hex 32`")]
    ShortSecret,
}

/// A key, and the algorithms that it may be used with.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) id: Option<String>,
    pub(crate) key: DecodingKey,
    pub(crate) algorithms: Vec<Algorithm>,
}

/// Keys, by their ids where they have any.
#[derive(Clone, Default)]
pub struct KeySet {
    keys: Vec<Key>,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySet").field("keys", &self.keys.len()).finish()
    }
}

impl KeySet {
    /// The public keys of an issuer, as a JSON Web Key Set (RFC 7517). Those of other kinds or uses are passed
    /// over, and so are shared secrets, which have no place there.
    ///
    /// # Errors
    /// It is no such set, or none of its keys can be used.
    pub fn of_issuer(json: &[u8]) -> Result<Self, KeyError> {
        let set: serde_json::Value =
            serde_json::from_slice(json).map_err(|error| KeyError::NotASet(error.to_string()))?;
        let listed = set.get("keys").and_then(serde_json::Value::as_array);
        let listed = listed.ok_or_else(|| KeyError::NotASet("it has no list `keys`".to_owned()))?;
        if listed.len() > MAX_KEYS {
            return Err(KeyError::TooMany);
        }
        // One by one: a kind of key that is not known here does not spoil the others.
        let known = listed.iter().filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok());
        let keys: Vec<_> = JwkSet { keys: known.collect() }.keys.iter().filter_map(of_jwk).collect();
        if keys.is_empty() { Err(KeyError::NoneUsable) } else { Ok(Self { keys }) }
    }

    /// A shared secret, for HS256, HS384 and HS512.
    ///
    /// # Errors
    /// It is too short.
    pub fn of_secret(secret: &[u8]) -> Result<Self, KeyError> {
        if secret.len() < SHORTEST_SECRET {
            return Err(KeyError::ShortSecret);
        }
        let algorithms = vec![Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
        Ok(Self { keys: vec![Key { id: None, key: DecodingKey::from_secret(secret), algorithms }] })
    }

    /// Keys that may have signed a token which names this one: those of that name, or those without any.
    pub(crate) fn candidates<'a>(&'a self, id: Option<&'a str>) -> impl Iterator<Item = &'a Key> {
        let fits = move |key: &&Key| match (id, key.id.as_deref()) {
            (Some(wanted), Some(own)) => wanted == own,
            (None, _) | (_, None) => true,
        };
        self.keys.iter().filter(fits)
    }
}

fn of_jwk(jwk: &Jwk) -> Option<Key> {
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return None;
    }
    let algorithms = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => vec![
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        AlgorithmParameters::EllipticCurve(parameters) => match parameters.curve {
            EllipticCurve::P256 => vec![Algorithm::ES256],
            EllipticCurve::P384 => vec![Algorithm::ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(_) => vec![Algorithm::EdDSA],
        _ => return None,
    };
    // A key that names its algorithm is used with that one alone.
    let algorithms = match jwk.common.key_algorithm {
        None => algorithms,
        Some(own) => {
            let own = own.to_string();
            algorithms.into_iter().filter(|algorithm| format!("{algorithm:?}") == own).collect()
        }
    };
    let key = DecodingKey::from_jwk(jwk).ok().filter(|_| !algorithms.is_empty())?;
    Some(Key { id: jwk.common.key_id.clone(), key, algorithms })
}
