//! What agents were offered, beside a model of what they may be: no config that is older than one before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use muster_fleet::{ConfigFiles, Observer};

/// What stands before the serial in the config of the manifests.
const MARK: &[u8] = b"sampling_initial:";
/// Differences that are told.
const MOST: usize = 10;

/// The latest serial that each agent was offered.
#[derive(Clone, Debug, Default)]
pub(super) struct Offers(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    latest: BTreeMap<usize, u64>,
    backward: Vec<String>,
}

impl Offers {
    /// Has a fleet tell what it is offered.
    pub(super) fn observer(&self) -> Observer {
        let seen = Arc::clone(&self.0);
        Observer::new(move |index, files| {
            let Some(serial) = serial(files) else { return };
            seen.lock().unwrap_or_else(PoisonError::into_inner).offered(index, serial);
        })
    }

    /// An operator has gone back: any config may come now.
    pub(super) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).latest.clear();
    }

    /// Whether every agent that was ever offered one of the configs that change was offered this one last.
    ///
    /// # Errors
    /// Who was not.
    pub(super) fn all_have(&self, wanted: u64) -> Result<(), String> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Zero is the config that does not change.
        match seen.latest.iter().find(|(_, serial)| **serial > 0 && **serial != wanted) {
            None => Ok(()),
            Some((index, serial)) => {
                Err(format!("agent {index} was offered config {serial} last, not {wanted}"))
            }
        }
    }

    /// What was offered after something newer, since the last call.
    pub(super) fn take_backward(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).backward)
    }
}

impl Seen {
    fn offered(&mut self, index: usize, serial: u64) {
        let latest = self.latest.entry(index).or_insert(serial);
        if serial < *latest && self.backward.len() < MOST {
            self.backward.push(format!("agent {index} was offered config {serial} after {latest}"));
        }
        *latest = serial.max(*latest);
    }
}

/// The serial in offered files.
fn serial(files: &ConfigFiles) -> Option<u64> {
    let bodies = files.values().map(|file| &file.body[..]);
    let mut rests = bodies.filter_map(|body| {
        let at = body.windows(MARK.len()).position(|window| window == MARK)?;
        body.get(at + MARK.len()..)
    });
    let rest = String::from_utf8_lossy(rests.next()?).into_owned();
    let digits = rest.trim_start_matches([' ', '"']);
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use muster_proto::opamp::AgentConfigFile;

    use super::*;

    #[test]
    fn an_older_config_after_a_newer_one_is_noticed() {
        let mut seen = Seen::default();
        for (index, serial) in [(0, 1), (1, 2), (0, 2), (0, 2), (1, 3), (0, 1)] {
            seen.offered(index, serial);
        }
        assert_eq!(seen.backward, ["agent 0 was offered config 1 after 2"]);
    }

    #[test]
    fn the_serial_stands_in_the_config() {
        let file = |body: &'static str| AgentConfigFile { body: body.into(), ..Default::default() };
        let files = |body| ConfigFiles::from([("a".to_owned(), file("x: 1")), ("b".to_owned(), file(body))]);
        assert_eq!(serial(&files("debug: {sampling_initial: 17}\n")), Some(17));
        assert_eq!(serial(&files("debug:\n  sampling_initial: \"5\"")), Some(5));
        assert_eq!(serial(&files("nothing")), None);
    }
}
