//! The least level that is logged, which changes while the process runs.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing::{Level, enabled, info};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// A text that says nothing about what is logged.
#[derive(Debug, thiserror::Error)]
pub enum InvalidLevel {
    /// A word that is no level.
    #[error("{0:?} is not a level: off, error, warn, info, debug, trace, or a filter such as {EXAMPLE}")]
    Word(String),
    /// A filter that cannot be read.
    #[error("{0:?} is not a filter such as {EXAMPLE}")]
    Filter(String, #[source] ParseError),
    /// Nothing is logged any more.
    #[error("logging has ended")]
    Ended(#[source] reload::Error),
}

const EXAMPLE: &str = "info,muster_gateway=debug";
/// What operators switch to when they want to know more.
const VERBOSE: &str = "debug";

/// Reads a level or a filter. A level alone is of Muster's own code: libraries say what happened at
/// most, since their steps hide ours.
pub(super) fn filter(text: &str) -> Result<EnvFilter, InvalidLevel> {
    let words = text.split(',').map(str::trim).filter(|part| !part.contains(['=', '[']));
    for word in words {
        if word.is_empty() || word.parse::<LevelFilter>().is_err() {
            return Err(InvalidLevel::Word(word.to_owned()));
        }
    }
    let directives = match text.trim().parse::<LevelFilter>() {
        // These tell of each event what our adapters tell once a minute.
        Ok(level) if level >= LevelFilter::INFO => format!("info,async_nats=warn,sqlx=error,muster={level}"),
        _ => text.to_owned(),
    };
    EnvFilter::try_new(directives).map_err(|error| InvalidLevel::Filter(text.to_owned(), error))
}

/// Changes what is logged.
#[derive(Clone)]
pub struct Handle {
    filter: reload::Handle<EnvFilter, Registry>,
    configured: Arc<str>,
    current: Arc<Mutex<String>>,
}

impl Handle {
    pub(super) fn new(filter: reload::Handle<EnvFilter, Registry>, level: &str) -> Self {
        Self { filter, configured: level.into(), current: Arc::new(Mutex::new(level.to_owned())) }
    }

    /// The level or filter of now.
    pub fn level(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs from now on what this level or filter lets through.
    ///
    /// # Errors
    /// If it is not one.
    pub fn set_level(&self, level: &str) -> Result<(), InvalidLevel> {
        let filter = filter(level)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // Said while it can be heard, be that before or after.
        let heard = enabled!(Level::INFO);
        if heard {
            tell(&current, level);
        }
        self.filter.reload(filter).map_err(InvalidLevel::Ended)?;
        if !heard {
            tell(&current, level);
        }
        level.clone_into(&mut current);
        Ok(())
    }

    /// Switches from the level that the process was started with to debug, and back.
    ///
    /// # Errors
    /// If logging has ended.
    pub fn toggle(&self) -> Result<(), InvalidLevel> {
        let level = if self.level() == VERBOSE { &*self.configured } else { VERBOSE };
        self.set_level(level)
    }
}

fn tell(from: &str, to: &str) {
    info!(event = "log_level_changed", from, to, "the log's level changed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_of_our_own_code() {
        for (text, filter_text) in [
            ("off", "off"),
            ("warn", "warn"),
            ("info", "async_nats=warn,muster=info,sqlx=error,info"),
            ("debug", "async_nats=warn,muster=debug,sqlx=error,info"),
            (" TRACE", "async_nats=warn,muster=trace,sqlx=error,info"),
            ("debug,muster_api=off", "muster_api=off,debug"),
        ] {
            assert_eq!(filter(text).unwrap().to_string(), filter_text, "{text}");
        }
    }

    #[test]
    fn what_is_no_level_is_refused() {
        for text in ["", "loud", "info,", "info,loud"] {
            assert!(matches!(filter(text), Err(InvalidLevel::Word(_))), "{text:?}");
        }
        let error = filter("muster=loud").unwrap_err();
        assert_eq!(error.to_string(), "\"muster=loud\" is not a filter such as info,muster_gateway=debug");
    }
}
