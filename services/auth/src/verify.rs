//! What a token must be to count.

use std::time::Duration;

use jsonwebtoken::{Validation, decode, decode_header};
use muster_domain::ids::Timestamp;
use serde_json::{Map, Value};

use crate::keys::KeySet;

/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 8 << 10;

/// What a token says.
pub type Claims = Map<String, Value>;

/// What tokens must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Who must have issued them (`iss`); anybody who has the key, where it is not given.
    pub issuer: Option<String>,
    /// Whom they must be meant for (`aud`); a token that is meant for others only does not count. Where it is not
    /// given, a token that names anybody does not count either, but one that names nobody does.
    pub audience: Option<String>,
    /// Claims that they must have, beside `exp`.
    pub required: Vec<String>,
    /// How far clocks may differ.
    pub leeway: Duration,
}

/// Why a token does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is longer than any token.
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    /// It is not a signed token.
    #[error("the token is not a signed one")]
    Malformed,
    /// No key that it may be signed with is known.
    #[error("the token is signed with a key that the issuer does not have")]
    UnknownKey,
    /// Its algorithm is none that its key may be used with.
    #[error("the token is signed in a way that its key is not for")]
    Algorithm,
    /// It was changed, or somebody else signed it.
    #[error("the token's signature is wrong")]
    Signature,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYet,
    /// Somebody else issued it.
    #[error("the token is of another issuer")]
    Issuer,
    /// It is meant for somebody else.
    #[error("the token is meant for another audience")]
    Audience,
    /// It does not say what it must.
    #[error("the token lacks the claim {0}")]
    Missing(String),
}

/// Checks a token at this time and returns what it says.
///
/// # Errors
/// The first reason why it does not count. Nothing that it says can be believed then.
pub fn verify(token: &str, keys: &KeySet, rules: &Rules, now: Timestamp) -> Result<Claims, Refused> {
    if token.len() > MAX_TOKEN {
        return Err(Refused::TooLong);
    }
    // `none` and other unknown algorithms are no header at all.
    let header = decode_header(token).map_err(|_| Refused::Malformed)?;
    let mut refused = Refused::UnknownKey;
    for key in keys.candidates(header.kid.as_deref()) {
        if !key.algorithms.contains(&header.alg) {
            refused = Refused::Algorithm;
            continue;
        }
        match decode::<Claims>(token, &key.key, &signature_alone(header.alg)) {
            Ok(found) => return check(found.claims, rules, now),
            Err(_) => refused = Refused::Signature,
        }
    }
    Err(refused)
}

/// The times and names are checked here, by the clock that is given.
fn signature_alone(algorithm: jsonwebtoken::Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

fn check(claims: Claims, rules: &Rules, now: Timestamp) -> Result<Claims, Refused> {
    let seconds = |name: &str| claims.get(name).map(Value::as_f64);
    let (now, leeway) = (now.0 as f64 / 1e6, rules.leeway.as_secs_f64());
    let Some(Some(expires)) = seconds("exp") else { return Err(Refused::Missing("exp".to_owned())) };
    if expires + leeway <= now {
        return Err(Refused::Expired);
    }
    for name in ["nbf", "iat"] {
        match seconds(name) {
            None => {}
            Some(Some(from)) if from <= now + leeway => {}
            Some(_) => return Err(Refused::NotYet),
        }
    }
    if let Some(issuer) = &rules.issuer
        && claims.get("iss").and_then(Value::as_str) != Some(issuer)
    {
        return Err(Refused::Issuer);
    }
    let audience: Vec<&str> = match claims.get("aud") {
        None => Vec::new(),
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
        Some(one) => one.as_str().into_iter().collect(),
    };
    let is_meant = match &rules.audience {
        Some(own) => audience.contains(&own.as_str()),
        None => claims.get("aud").is_none(),
    };
    if !is_meant {
        return Err(Refused::Audience);
    }
    match rules.required.iter().find(|name| claims.get(*name).is_none_or(Value::is_null)) {
        Some(missing) => Err(Refused::Missing(missing.clone())),
        None => Ok(claims),
    }
}
