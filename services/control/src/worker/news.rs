//! What a worker waits for: entries of the log, and news of intent, neither starving the other.

use muster_ports::EngineError;
use muster_ports::log::{LogEntry, LogReader};

use crate::changes::Watcher;

/// What a worker waits for.
pub(super) enum News {
    Entries(Result<Vec<LogEntry>, EngineError>),
    Intent,
}

pub(super) async fn next_news(
    reader: &mut dyn LogReader,
    changed: &mut Watcher,
    intent_first: bool,
    max: usize,
) -> News {
    if intent_first {
        tokio::select! {
            biased;
            () = changed.changed() => News::Intent,
            entries = reader.next(max) => News::Entries(entries),
        }
    } else {
        tokio::select! {
            biased;
            entries = reader.next(max) => News::Entries(entries),
            () = changed.changed() => News::Intent,
        }
    }
}
