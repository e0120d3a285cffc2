//! What a fleet is told when it starts.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use muster_tls::ClientConfig;

use crate::config::ConfigFiles;
use crate::kind::{Kind, Mix};

/// What a fleet is told when it starts.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// The server's address, `ws://HOST:PORT/PATH`, or `wss://` with [`tls`](Self::tls), or
    /// `http://HOST:PORT/PATH` for agents that poll.
    pub url: String,
    /// How many agents.
    pub count: usize,
    /// The index of the first agent: several processes may each run a part of one fleet.
    pub first_index: usize,
    /// Everything random follows from this.
    pub seed: u64,
    /// Whether uids follow from the seed too, so that the next run shows the same agents.
    pub stable_uids: bool,
    /// How many agents of each kind.
    pub mix: Mix,
    /// Time between heartbeats, or polls; the first comes after a random part of it. Zero turns them off.
    pub heartbeat: Duration,
    /// Time from APPLYING to APPLIED or FAILED; drawn anew every time.
    pub apply_delay: RangeInclusive<Duration>,
    /// Which configurations are refused, beside all that [`Kind::Rejecting`] is offered.
    pub rejects: Rejects,
    /// Sees every offer of a configuration as it comes.
    pub observer: Observer,
    /// First connections a second; reconnecting is not slowed.
    pub connect_rate: f64,
    /// Local addresses to connect from, in turn; the system's choice if empty.
    pub sources: Vec<IpAddr>,
    /// Whom agents trust and what they show, for an address that begins with `wss://`.
    pub tls: Option<Arc<ClientConfig>>,
    /// Headers of the WebSocket's HTTP request beside the usual ones.
    pub headers: Vec<(String, String)>,
    /// Bounds an attempt to connect, with the WebSocket handshake.
    pub connect_timeout: Duration,
    /// Bounds sending one message.
    pub write_timeout: Duration,
    /// Bounds an agent's goodbye, with the wait for the server's Close.
    pub close_timeout: Duration,
    /// Bounds [`Fleet::stop`](crate::Fleet::stop); agents that need longer vanish without a goodbye.
    pub stop_timeout: Duration,
}

impl FleetOptions {
    /// A fleet of 25 agents of several kinds with the usual timing.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            count: 25,
            first_index: 0,
            seed: 1,
            stable_uids: false,
            mix: Mix::default(),
            heartbeat: Duration::from_secs(30),
            apply_delay: Duration::from_millis(200)..=Duration::from_secs(2),
            rejects: Rejects::nothing(),
            observer: Observer::nobody(),
            connect_rate: 750.0,
            sources: Vec::new(),
            tls: None,
            headers: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(5),
            stop_timeout: Duration::from_secs(15),
        }
    }

    pub(crate) fn check(&self) -> Result<(), FleetError> {
        let connect_rate = self.connect_rate.is_finite() && self.connect_rate > 0.0;
        let checks = [
            (self.tls.is_some() || !self.url.starts_with("wss:"), "tls: missing for an address with wss://"),
            (self.mix.is_valid(), "mix: weights are numbers from 0, one of them above 0"),
            (self.apply_delay.start() <= self.apply_delay.end(), "apply_delay: the range is empty"),
            (connect_rate, "connect_rate: must be a number above 0"),
            (self.count < 1 << 24 && self.first_index < 1 << 24, "count, first_index: too large"),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            Some((_, reason)) => Err(FleetError::Options(reason)),
            None => Ok(()),
        }
    }
}

type Predicate = dyn Fn(Kind, &ConfigFiles) -> Option<String> + Send + Sync;

/// Decides which offered configurations agents refuse.
#[derive(Clone)]
pub struct Rejects(Arc<Predicate>);

impl Rejects {
    /// Nothing is refused.
    pub fn nothing() -> Self {
        Self::when(|_, _| None)
    }

    /// Refuses a configuration if a file contains `text`.
    pub fn containing(text: impl Into<String>) -> Self {
        let text = text.into();
        Self::when(move |_, files| {
            let contains = |body: &[u8]| {
                !text.is_empty() && body.windows(text.len()).any(|window| window == text.as_bytes())
            };
            let (name, _) = files.iter().find(|(_, file)| contains(&file.body))?;
            Some(format!("{name}: {text:?} is not accepted"))
        })
    }

    /// Refuses a configuration for the reason that `predicate` gives; it sees the offered files.
    pub fn when(predicate: impl Fn(Kind, &ConfigFiles) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(predicate))
    }

    pub(crate) fn reason(&self, kind: Kind, files: &ConfigFiles) -> Option<String> {
        match kind {
            Kind::Rejecting => {
                Some("the collector does not start: 'exporters' unknown type: \"otlp\"".to_owned())
            }
            _ => (self.0)(kind, files),
        }
    }
}

impl fmt::Debug for Rejects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejects").finish_non_exhaustive()
    }
}

type Sees = dyn Fn(usize, &ConfigFiles) + Send + Sync;

/// Sees what agents are offered.
#[derive(Clone)]
pub struct Observer(Arc<Sees>);

impl Observer {
    /// Nobody looks.
    pub fn nobody() -> Self {
        Self::new(|_, _| ())
    }

    /// Calls this with the agent's index and the offered files, in the order in which an agent gets them.
    pub fn new(sees: impl Fn(usize, &ConfigFiles) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sees))
    }

    pub(crate) fn see(&self, index: usize, files: &ConfigFiles) {
        (self.0)(index, files);
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}

/// Why a fleet does not start.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The address is not one that agents can connect to.
    #[error("the server's address {url:?}: {reason}")]
    Url {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A header cannot be sent.
    #[error("the header {0:?} has a name or value that HTTP does not allow")]
    Header(String),
    /// An option has an impossible value.
    #[error("{0}")]
    Options(&'static str),
    /// There is no tokio runtime to run the agents on.
    #[error("a fleet needs a running tokio runtime")]
    NoRuntime,
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use muster_proto::opamp::AgentConfigFile;

    use super::*;

    #[test]
    fn a_text_in_any_file_is_refused_with_its_place() {
        let file = |body: &'static str| AgentConfigFile { body: Bytes::from(body), ..Default::default() };
        let files = ConfigFiles::from([("a".to_owned(), file("x: 1")), ("b".to_owned(), file("y: poison"))]);
        let reason = Rejects::containing("poison").reason(Kind::Collector, &files);
        assert_eq!(reason.as_deref(), Some("b: \"poison\" is not accepted"));
        assert_eq!(Rejects::containing("absent").reason(Kind::Collector, &files), None);
        assert_eq!(Rejects::containing("").reason(Kind::Collector, &files), None);
    }

    #[test]
    fn impossible_options_are_refused() {
        let usual = FleetOptions::new("ws://127.0.0.1:4320/v1/opamp");
        assert!(usual.check().is_ok());
        let late = Duration::from_secs(2)..=Duration::from_secs(1);
        assert!(FleetOptions { apply_delay: late, ..usual.clone() }.check().is_err());
        assert!(FleetOptions { connect_rate: 0.0, ..usual.clone() }.check().is_err());
        assert!(FleetOptions { connect_rate: f64::NAN, ..usual }.check().is_err());
    }
}
