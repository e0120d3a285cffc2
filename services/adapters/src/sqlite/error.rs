//! What SQLite's errors are to a caller of the store.

use std::fmt::Display;

use muster_ports::EngineError;

/// Name of the engine in errors.
const ENGINE: &str = "SQLite";

/// Primary result codes of SQLite after which the same call fails again: the file is damaged, it
/// is no database, or a constraint forbids the row.
const LASTING: [u32; 3] = [11, 26, 19];

/// Maps an error of the driver, that happened with this table or thing.
pub(super) fn failed(place: &str) -> impl FnOnce(sqlx::Error) -> EngineError {
    move |error| {
        let lasting = match &error {
            sqlx::Error::Database(error) => {
                let code = error.code().and_then(|code| code.parse::<u32>().ok());
                // The low byte of an extended result code is the primary one.
                code.is_some_and(|code| LASTING.contains(&(code & 0xff)))
            }
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::Encode(_)
            | sqlx::Error::TypeNotFound { .. } => true,
            _ => false,
        };
        let reason = match error {
            sqlx::Error::Database(error) => error.to_string(),
            other => other.to_string(),
        };
        if lasting { corrupt(place, reason) } else { unavailable(format_args!("{place}: {reason}")) }
    }
}

/// The engine did not do it, but may later.
pub(super) fn unavailable(reason: impl Display) -> EngineError {
    EngineError::Unavailable { engine: ENGINE, reason: reason.to_string() }
}

/// What is stored in `place` cannot be used.
pub(super) fn corrupt(place: impl Into<String>, reason: impl Display) -> EngineError {
    EngineError::Corrupt { engine: ENGINE, place: place.into(), reason: reason.to_string() }
}
