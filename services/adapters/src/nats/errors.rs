//! What goes wrong, in words that name no secret.

use std::error::Error;
use std::fmt::Display;
use std::time::Duration;

use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::{self, ErrorCode};
use muster_ports::EngineError;

/// How errors end that say that there is no stream.
const STREAM_NOT_FOUND: &str = "error code 10059)";

/// Name of the engine in errors.
pub(super) const ENGINE: &str = "NATS";

/// Why a role cannot work with the NATS that it was given.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// The settings contradict themselves.
    #[error("the settings for NATS cannot be used: {0}")]
    Settings(String),
    /// It did not answer, or what is needed was not there, until the deadline.
    #[error("NATS at {servers} was not ready within {waited:?}: {reason}")]
    NotReady {
        /// The addresses, without passwords.
        servers: String,
        /// How long was waited.
        waited: Duration,
        /// What it said last.
        reason: String,
    },
    /// It answers, but cannot be used as it is.
    #[error("NATS at {servers} cannot be used: {reason}; {fix}")]
    Refused {
        /// The addresses, without passwords.
        servers: String,
        /// What is wrong.
        reason: String,
        /// What to do about it.
        fix: String,
    },
}

pub(super) fn unavailable(reason: impl Display) -> EngineError {
    EngineError::Unavailable { engine: ENGINE, reason: reason.to_string() }
}

pub(super) fn corrupt(place: impl Display, reason: impl Display) -> EngineError {
    EngineError::Corrupt { engine: ENGINE, place: place.to_string(), reason: reason.to_string() }
}

/// What JetStream said in this error, if it was JetStream.
pub(super) fn answer<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a jetstream::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(answer) = error.downcast_ref() {
            return Some(answer);
        }
        next = error.source();
    }
    None
}

/// Words for an error of a stream, with what to do when the stream itself is gone.
pub(super) fn of_stream(name: &str, error: &impl Display) -> EngineError {
    // The driver has as many types for it as operations; the words of all end in the code.
    let error = error.to_string();
    if error.contains(STREAM_NOT_FOUND) {
        return unavailable(format_args!("the stream {name} is gone; a control creates it when it starts"));
    }
    unavailable(error)
}

/// Whether a stream did not take a message because there is no room for it.
pub(super) fn is_full(error: &PublishError) -> bool {
    answer(error).is_some_and(|answer| match answer.error_code() {
        // The error of any failed write: the words tell which.
        ErrorCode::STREAM_STORE_FAILED => answer.to_string().starts_with("maximum "),
        code => [
            ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
            ErrorCode::STORAGE_RESOURCES_EXCEEDED,
            ErrorCode::INSUFFICIENT_RESOURCES,
        ]
        .contains(&code),
    })
}

/// A list of addresses without what stands before `@` in them.
pub(super) fn masked(urls: &str) -> String {
    let mask = |url: &str| match url.trim().rsplit_once('@') {
        Some((before, host)) => {
            let scheme = before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
            format!("{scheme}***@{host}")
        }
        None => url.trim().to_owned(),
    };
    urls.split(',').map(mask).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_masked() {
        assert_eq!(
            masked("nats://a:b@h:1, tls://token@i,nats://u:p@ss@j"),
            "nats://***@h:1,tls://***@i,nats://***@j"
        );
        assert_eq!(masked("u:p@h"), "***@h");
        assert_eq!(masked("nats://h:4222"), "nats://h:4222");
    }
}
