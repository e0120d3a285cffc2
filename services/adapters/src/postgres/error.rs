//! What Postgres's errors are to a caller of the store.

use std::fmt::Display;

use muster_ports::EngineError;
use muster_ports::store::CommitError;

/// Name of the engine in errors.
const ENGINE: &str = "Postgres";

/// What an error says of trying again.
enum Kind {
    /// The same data is refused again.
    Data,
    /// What is stored, or the schema, is not what this program expects.
    Lasting,
    /// It may go well later.
    Passing,
}

fn kind(error: &sqlx::Error) -> Kind {
    match error {
        sqlx::Error::Database(error) => match error.code().as_deref().and_then(|code| code.get(..2)) {
            // Data exceptions, constraints, limits of the program.
            Some("22" | "23" | "54") => Kind::Data,
            // Unknown tables and missing rights.
            Some("42") => Kind::Lasting,
            // Damaged data; XX000 is any internal error.
            Some("XX") if error.code().as_deref() != Some("XX000") => Kind::Lasting,
            _ => Kind::Passing,
        },
        sqlx::Error::Encode(_) => Kind::Data,
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::Decode(_)
        | sqlx::Error::TypeNotFound { .. } => Kind::Lasting,
        _ => Kind::Passing,
    }
}

fn reason(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => match error.code() {
            Some(code) => format!("{} (SQLSTATE {code})", error.message()),
            None => error.message().to_owned(),
        },
        sqlx::Error::PoolTimedOut => {
            "no connection could be had in time: the server does not answer, or all connections are busy"
                .to_owned()
        }
        other => other.to_string(),
    }
}

/// Maps an error of the driver, that happened with this table or thing.
pub(super) fn failed(place: &str) -> impl FnOnce(sqlx::Error) -> EngineError {
    move |error| match kind(&error) {
        Kind::Data | Kind::Lasting => corrupt(place, reason(&error)),
        Kind::Passing => unavailable(format_args!("{place}: {}", reason(&error))),
    }
}

/// Maps an error of the driver while a commit writes to this table.
pub(super) fn refused(place: &str) -> impl FnOnce(sqlx::Error) -> CommitError {
    move |error| match kind(&error) {
        Kind::Data => CommitError::Rejected { reason: format!("{place}: {}", reason(&error)) },
        Kind::Lasting | Kind::Passing => failed(place)(error).into(),
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
