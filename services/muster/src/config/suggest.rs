//! Unknown keys, and the known ones that may have been meant.

use std::collections::BTreeSet;

use super::reader::Declared;
use super::tree::{Finding, Place, Tree};
use super::variables;

/// What to tell of each key that nobody took.
pub(super) fn unknown(rest: &Tree, declared: &[Declared]) -> Vec<Finding> {
    let known: BTreeSet<&[String]> =
        declared.iter().flat_map(|key| (1..=key.path.len()).map(|end| &key.path[..end])).collect();
    let tell = |(path, place): (&Vec<String>, &Place)| {
        let written = |path: &[String]| match place {
            Place::File { .. } => path.join("."),
            Place::Variable(_) => variables::name_of(path),
        };
        let is_dotted = path.last().is_some_and(|name| name.contains('.'));
        let what = match meant(path, &known) {
            Some(meant) if is_dotted && meant.join(".") == path.join(".") => {
                "unknown key, write each part on a line of its own under the one before, indented".to_owned()
            }
            Some(meant) => format!("unknown key, did you mean {}?", written(meant)),
            None => format!("unknown key, {}", siblings(path, &known)),
        };
        Finding::new(place, path, what)
    };
    rest.rest().map(tell).collect()
}

/// The known key that is most like this one, if one is like it.
fn meant<'a>(path: &[String], known: &BTreeSet<&'a [String]>) -> Option<&'a [String]> {
    let (last, parent) = path.split_last()?;
    let best = |near: &dyn Fn(&[String]) -> Option<usize>| {
        let scored = known.iter().filter_map(|key| near(key).map(|distance| (distance, *key)));
        scored.min().map(|(_, key)| key)
    };
    let sibling = |key: &[String]| {
        let (name, above) = key.split_last()?;
        (above == parent).then(|| distance(name, last)).filter(|far| *far <= 1.max(last.len() / 3))
    };
    // What several sections have is meant of the server most often.
    let elsewhere = |key: &[String]| {
        let is_of_server = key.first().is_some_and(|first| first == "server");
        let far = || distance(&key.join("."), &path.join(".")) + if is_of_server { 0 } else { 100 };
        (key.last() == Some(last)).then(far)
    };
    let nested = |key: &[String]| (key.join(".") == path.join(".")).then_some(0);
    best(&nested).or_else(|| best(&sibling)).or_else(|| best(&elsewhere))
}

fn siblings(path: &[String], known: &BTreeSet<&[String]>) -> String {
    let parent = &path[..path.len() - 1];
    let is_sibling = |key: &&&[String]| key.len() == path.len() && key.starts_with(parent);
    let names: Vec<&str> =
        known.iter().filter(is_sibling).filter_map(|key| key.last().map(String::as_str)).collect();
    format!("known here: {}", names.join(", "))
}

/// How many characters to add, drop, change or swap with the next to make one text of the other.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut far = vec![vec![0; other.len() + 1]; one.len() + 1];
    for i in 0..=one.len() {
        for j in 0..=other.len() {
            far[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = far[i - 1][j - 1] + usize::from(one[i - 1] != other[j - 1]);
                let is_swap = i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1];
                let swap = if is_swap { far[i - 2][j - 2] + 1 } else { change };
                change.min(swap).min(far[i - 1][j] + 1).min(far[i][j - 1] + 1)
            };
        }
    }
    far[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
        assert_eq!(distance("tsl", "tls"), 1);
    }
}
