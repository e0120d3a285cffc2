//! API tokens: what is stored of one, and whether it still counts.

use std::time::Duration;

use crate::access::Role;
use crate::ids::{Digest, Tenant, Timestamp, TokenId};

/// What every token of the API begins with: so one is told from an agent's credential, and found where it
/// should not be.
pub const PREFIX: &str = "muster_";
/// Longest text that can be a token.
pub const MAX_LENGTH: usize = 128;
/// Shortest and longest life of a token, and what it is by default.
pub const LIFE: (Duration, Duration, Duration) =
    (Duration::from_secs(60), Duration::from_secs(5 * 366 * 86_400), Duration::from_secs(90 * 86_400));

/// A token as it is stored: without its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// The tenant whose it is.
    pub tenant: Tenant,
    /// Whose it is: a person, or a service account. An account may have several, so that one can replace
    /// another.
    pub account: String,
    /// What it allows.
    pub role: Role,
    /// Digest of its text.
    pub digest: Digest,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// From when on it does not count any more.
    pub expires_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// Whether a token counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It does.
    Live,
    /// It was revoked.
    Revoked,
    /// Its time is over.
    Expired,
}

impl State {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }
}

impl Token {
    /// Whether it counts at this time.
    pub fn state(&self, now: Timestamp) -> State {
        if self.revoked_at.is_some() {
            State::Revoked
        } else if self.expires_at <= now {
            State::Expired
        } else {
            State::Live
        }
    }
}

/// The text of a token, of these random bytes.
pub fn text(random: &[u8; 32]) -> String {
    format!("{PREFIX}{}", hex::encode(random))
}

/// What is stored of a token's text. The text has 256 random bits: a plain digest of it cannot be guessed
/// back.
pub fn digest(text: &str) -> Digest {
    Digest::of_parts([b"muster api token 1".as_slice(), text.as_bytes()])
}

/// Checks the name of an account: 1 to 128 characters without control characters, not beginning or ending
/// with a space.
///
/// # Errors
/// What is wrong, and the fix.
pub fn check_account(name: &str) -> Result<(), String> {
    let is_bad =
        name.is_empty() || name.len() > 128 || name.trim() != name || name.chars().any(char::is_control);
    match is_bad {
        true => Err("must be a name of 1 to 128 bytes, such as ana@example.com or ci".to_owned()),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_counts_until_it_expires_or_is_revoked() {
        let mut token = Token {
            id: TokenId(uuid::Uuid::nil()),
            tenant: "acme".parse().unwrap(),
            account: "ci".to_owned(),
            role: Role::Operator,
            digest: digest("x"),
            created_by: "ana".to_owned(),
            created_at: Timestamp(10),
            expires_at: Timestamp(20),
            revoked_at: None,
        };
        assert_eq!(token.state(Timestamp(19)), State::Live);
        assert_eq!(token.state(Timestamp(20)), State::Expired);
        token.revoked_at = Some(Timestamp(15));
        assert_eq!(token.state(Timestamp(11)), State::Revoked);
    }

    #[test]
    fn a_text_is_its_prefix_and_all_of_its_bits() {
        let text = text(&[0xa5; 32]);
        assert_eq!(text, format!("muster_{}", "a5".repeat(32)));
        assert!(text.len() <= MAX_LENGTH);
        assert_ne!(digest(&text), digest(&text[1..]));
    }

    #[test]
    fn an_account_has_a_name() {
        for good in ["ci", "ana@example.com", "Größe 7"] {
            assert_eq!(check_account(good), Ok(()));
        }
        for bad in ["", " a", "a\nb", &"x".repeat(129)] {
            assert!(check_account(bad).is_err(), "{bad:?}");
        }
    }
}
