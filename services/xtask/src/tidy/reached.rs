//! Every Rust file is compiled: a root of a target, or named by a `mod` line on the way from one.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Text};

/// `roots` are the paths of the files where Cargo starts to compile.
pub(super) fn check(sources: &[Text], roots: &[String]) -> Vec<Finding> {
    let texts: BTreeMap<&str, &str> =
        sources.iter().map(|source| (source.path.as_str(), source.text.as_str())).collect();
    let mut reached = BTreeSet::new();
    let mut waiting: Vec<(String, bool)> = roots.iter().map(|root| (root.clone(), true)).collect();
    while let Some((path, is_root)) = waiting.pop() {
        let Some(text) = texts.get(path.as_str()) else { continue };
        if reached.insert(path.clone()) {
            waiting.extend(children(&path, is_root, text).into_iter().map(|child| (child, false)));
        }
    }
    let lost = texts.keys().filter(|path| !reached.contains(**path));
    let mend = "declare it with `mod` in its parent module, or delete it";
    lost.map(|path| Finding::new(path, 1, "nothing includes this file", mend)).collect()
}

/// The paths where the modules that `text` declares may be.
fn children(path: &str, is_root: bool, text: &str) -> Vec<String> {
    let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
    let home = if is_root || file == "mod.rs" { directory } else { path.trim_end_matches(".rs") };
    let mut found = Vec::new();
    let mut named_path = None;
    for line in text.lines().map(str::trim) {
        if let Some(target) = between(line, "#[path = \"", "\"]").or(between(line, "include!(\"", "\")")) {
            named_path = Some(target);
            found.push(format!("{directory}/{target}"));
        } else if let Some(name) = declared_module(line) {
            if named_path.take().is_none() {
                found.extend([format!("{home}/{name}.rs"), format!("{home}/{name}/mod.rs")]);
            }
        } else if !line.starts_with("#[") {
            named_path = None;
        }
    }
    found
}

/// The name in `mod name;`, whatever its visibility.
fn declared_module(line: &str) -> Option<&str> {
    let (before, rest) = line.split_once("mod ")?;
    let is_visibility = before.is_empty() || before == "pub " || before.starts_with("pub(");
    let name = rest.split_once(';')?.0;
    (is_visibility && name.chars().all(|c| c.is_alphanumeric() || c == '_')).then_some(name)
}

fn between<'a>(line: &'a str, start: &str, end: &str) -> Option<&'a str> {
    line.split_once(start)?.1.split_once(end).map(|(inside, _)| inside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::text;

    fn lost(sources: &[(&str, &str)], roots: &[&str]) -> Vec<String> {
        let sources: Vec<Text> = sources.iter().map(|(path, source)| text(path, source)).collect();
        let roots: Vec<String> = roots.iter().map(|root| (*root).to_owned()).collect();
        check(&sources, &roots).into_iter().map(|finding| finding.path).collect()
    }

    #[test]
    fn a_file_that_no_module_names_is_found() {
        let sources = [("a/src/lib.rs", "mod b;\n// mod c;\n"), ("a/src/b.rs", ""), ("a/src/c.rs", "")];
        assert_eq!(lost(&sources, &["a/src/lib.rs"]), ["a/src/c.rs"]);
        assert_eq!(lost(&[("a/tests/x/y.rs", "")], &["a/tests/x.rs"]), ["a/tests/x/y.rs"]);
    }

    #[test]
    fn a_file_that_only_a_lost_file_names_is_found() {
        let sources = [("a/src/lib.rs", ""), ("a/src/b.rs", "mod c;\n"), ("a/src/b/c.rs", "")];
        assert_eq!(lost(&sources, &["a/src/lib.rs"]), ["a/src/b.rs", "a/src/b/c.rs"]);
    }

    #[test]
    fn modules_are_followed_the_ways_the_compiler_does() {
        let sources = [
            ("a/src/lib.rs", "pub mod b;\npub(crate) mod e;\n#[cfg(test)]\nmod tests;\n"),
            ("a/src/b.rs", "mod c;\n"),
            ("a/src/b/c.rs", ""),
            ("a/src/e/mod.rs", "mod f; // why\n#[path = \"odd.rs\"]\nmod g;\n"),
            ("a/src/e/f.rs", ""),
            ("a/src/e/odd.rs", ""),
            ("a/src/tests.rs", ""),
            ("a/tests/it.rs", "mod common;\n"),
            ("a/tests/common/mod.rs", ""),
        ];
        assert_eq!(lost(&sources, &["a/src/lib.rs", "a/tests/it.rs"]), [""; 0]);
    }
}
