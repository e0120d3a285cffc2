//! Differences of texts.

use std::fmt::Write as _;
use std::time::Duration;

use similar::TextDiff;

/// Longest time for the least difference; then a longer one is given.
const PATIENCE: Duration = Duration::from_millis(200);
/// Lines around a difference.
const CONTEXT: usize = 3;

/// A file of a config: its name and its text.
pub(crate) type File = (String, String);

/// The unified difference of two texts; empty where they are the same.
pub(crate) fn unified(old_name: &str, old: &str, new_name: &str, new: &str) -> String {
    if old == new {
        return String::new();
    }
    let diff = TextDiff::configure().timeout(PATIENCE).diff_lines(old, new);
    diff.unified_diff().context_radius(CONTEXT).header(old_name, new_name).to_string()
}

/// The unified difference of two sets of files, in order of their names.
pub(crate) fn files(old: &[File], new: &[File]) -> String {
    let find = |files: &'_ [File], name: &str| {
        files.iter().find(|(known, _)| known == name).map(|(_, text)| text.clone())
    };
    let mut names: Vec<&String> = old.iter().chain(new).map(|(name, _)| name).collect();
    names.sort_unstable();
    names.dedup();
    let mut text = String::new();
    for name in names {
        let (before, after) = (find(old, name), find(new, name));
        let header = |side: &str, there: bool| {
            if there { format!("{side}/{name}") } else { "/dev/null".to_owned() }
        };
        let one = unified(
            &header("a", before.is_some()),
            &before.unwrap_or_default(),
            &header("b", after.is_some()),
            &after.unwrap_or_default(),
        );
        // Writing to a string does not fail.
        let _ = write!(text, "{one}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_change_and_go() {
        let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let old = [file("gone", "x\n"), file("same", "s\n"), file("changed", "a\nb\n")];
        let new = [file("same", "s\n"), file("changed", "a\nc\n"), file("new", "n\n")];
        assert_eq!(
            files(&old, &new),
            "--- a/changed\n+++ b/changed\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n\
             --- a/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n\
             --- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+n\n"
        );
        assert_eq!(files(&old, &old), "");
    }
}
