//! Addresses without their secrets.

use redis::ConnectionInfo;

/// What stands for a secret.
const MASK: &str = "***";

/// An address that Redis cannot be reached with. It shows no password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is no address of a Redis such as redis://host:6379: {reason}")]
pub struct InvalidRedisUrl {
    /// The address without its user and password.
    url: String,
    /// What is wrong with it.
    reason: String,
}

impl InvalidRedisUrl {
    pub(super) fn new(address: &str, reason: impl ToString) -> Self {
        let (url, mut reason) = (url(address), reason.to_string());
        // It may quote the address or a part of it.
        if let Some(secrets) = credentials(address) {
            let password = secrets.split_once(':').map_or("", |(_, password)| password);
            for secret in [secrets, password].into_iter().filter(|secret| !secret.is_empty()) {
                reason = reason.replace(secret, MASK);
            }
        }
        Self { url, reason }
    }
}

/// The part of an address that may hold secrets. An address may be anything here: whatever stands before
/// the last `@` counts.
fn credentials(url: &str) -> Option<&str> {
    let (before, _) = url.rsplit_once('@')?;
    Some(before.split_once("://").map_or(before, |(_, credentials)| credentials))
}

/// The address without its user and password.
pub(super) fn url(url: &str) -> String {
    match credentials(url) {
        Some(credentials) if !credentials.is_empty() => url.replacen(credentials, MASK, 1),
        _ => url.to_owned(),
    }
}

/// Takes an address's password out of what was said about it: a server may quote the command that it does
/// not understand.
pub(super) fn text(text: &str, info: &ConnectionInfo) -> String {
    match info.redis_settings().password() {
        Some(password) if !password.is_empty() => text.replace(password, MASK),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_show_no_credentials() {
        for (address, shown) in [
            ("redis://host:6379/1", "redis://host:6379/1"),
            ("redis://user:secret@host:6379/1", "redis://***@host:6379/1"),
            ("redis://:se@cr:et@host", "redis://***@host"),
            ("redis://@host", "redis://@host"),
            ("user:secret@host", "***@host"),
            ("", ""),
        ] {
            assert_eq!(url(address), shown);
        }
        let error = InvalidRedisUrl::new("redis://user:secret@host:x", "no port in user:secret@host:x");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}
