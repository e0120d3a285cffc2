//! Effective configurations: what an agent starts with, and what an offer makes of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use muster_proto::opamp::AgentConfigFile;

use crate::kind::Kind;

/// The files of a configuration by name.
pub type ConfigFiles = BTreeMap<String, AgentConfigFile>;

const SUPERVISOR: &str = "\
# the supervisor's own part
extensions:
  opamp:
    server:
      ws:
        endpoint: ws://127.0.0.1:0/v1/opamp
service:
  extensions: [opamp]
";
const FLUENT_BIT: &str = "\
[SERVICE]
    flush        5
    log_level    info
";
const CUSTOM: &str = "\
collect_every = \"10s\"
";

/// What an agent of this kind runs with before any offer.
fn own_files(kind: Kind) -> ConfigFiles {
    let (name, body, content_type) = match kind {
        Kind::Collector | Kind::Unhealthy | Kind::Rejecting => ("supervisor.yaml", SUPERVISOR, "text/yaml"),
        Kind::FluentBit => ("fluent-bit.conf", FLUENT_BIT, "text/plain"),
        Kind::Custom => ("acme.toml", CUSTOM, "application/toml"),
    };
    let file =
        AgentConfigFile { body: Bytes::from_static(body.as_bytes()), content_type: content_type.to_owned() };
    ConfigFiles::from([(name.to_owned(), file)])
}

/// What became of an offer, by the agent's kind and the offer's hash.
type Merged = HashMap<(Kind, Vec<u8>), Weak<ConfigFiles>>;

/// Effective configurations, each kept once however many agents run with it: a fleet of thousands
/// would otherwise hold as many copies.
#[derive(Debug)]
pub(crate) struct Configs {
    own: BTreeMap<Kind, Arc<ConfigFiles>>,
    merged: Mutex<Merged>,
}

impl Configs {
    pub(crate) fn new() -> Self {
        let own = Kind::ALL.into_iter().map(|kind| (kind, Arc::new(own_files(kind)))).collect();
        Self { own, merged: Mutex::default() }
    }

    /// What an agent of this kind runs with before any offer.
    pub(crate) fn own(&self, kind: Kind) -> Arc<ConfigFiles> {
        self.own.get(&kind).cloned().unwrap_or_default()
    }

    /// What an agent of this kind runs with after an offer: its own files and the offered ones,
    /// which win. The hash only finds the copy of another agent; the content decides.
    pub(crate) fn merge(&self, kind: Kind, hash: &[u8], offered: ConfigFiles) -> Arc<ConfigFiles> {
        let mut files = ConfigFiles::clone(&self.own(kind));
        files.extend(offered);
        let mut merged = self.merged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = merged.get(&(kind, hash.to_vec())).and_then(Weak::upgrade)
            && *known == files
        {
            return known;
        }
        merged.retain(|_, files| files.strong_count() > 0);
        let files = Arc::new(files);
        merged.insert((kind, hash.to_vec()), Arc::downgrade(&files));
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(name: &str, body: &'static str) -> ConfigFiles {
        let file = AgentConfigFile { body: Bytes::from_static(body.as_bytes()), ..Default::default() };
        ConfigFiles::from([(name.to_owned(), file)])
    }

    #[test]
    fn offered_files_come_beside_the_agents_own() {
        let merged = Configs::new().merge(Kind::FluentBit, b"1", offer("edge", "a"));
        assert_eq!(merged.keys().collect::<Vec<_>>(), ["edge", "fluent-bit.conf"]);
    }

    #[test]
    fn an_offered_file_of_the_same_name_wins() {
        let merged = Configs::new().merge(Kind::FluentBit, b"1", offer("fluent-bit.conf", "a"));
        assert_eq!(merged["fluent-bit.conf"].body, "a");
    }

    #[test]
    fn equal_configurations_are_kept_once() {
        let configs = Configs::new();
        let first = configs.merge(Kind::Collector, b"1", offer("edge", "a"));
        let second = configs.merge(Kind::Collector, b"1", offer("edge", "a"));
        assert!(Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn the_same_hash_with_other_content_is_not_mixed_up() {
        let configs = Configs::new();
        let _first = configs.merge(Kind::Collector, b"1", offer("edge", "a"));
        let second = configs.merge(Kind::Collector, b"1", offer("edge", "b"));
        assert_eq!(second["edge"].body, "b");
    }
}
