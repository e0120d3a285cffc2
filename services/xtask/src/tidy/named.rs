//! Tests that pages name exist: `path/to/file.rs::name` between backquotes, and `::name` after it for
//! another one in the same file. In the tables of the conformance page every row names a test, or says that
//! it is not done.

use super::{Finding, Text};

/// The page whose rows are promises.
const CONFORMANCE: &str = "docs/conformance.md";
/// Where paths of crates begin, if not at the root.
const SERVICES: &str = "services/";

pub(super) fn check(page: &Text, sources: &[Text]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut fenced = false;
    for (number, line) in (1..).zip(page.text.lines()) {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        if fenced || fence {
            continue;
        }
        let mut file: Option<&Text> = None;
        for span in line.split('`').skip(1).step_by(2) {
            let (path, name) = match span.split_once("::") {
                Some(("", name)) => (None, name),
                Some((path, name)) if path.ends_with(".rs") => (Some(path), name),
                None if span.ends_with(".rs") && span.contains('/') => (Some(span), ""),
                _ => continue,
            };
            if let Some(path) = path {
                file = find(path, sources);
            }
            let mut tell = |what: String, mend: &str| {
                findings.push(Finding::new(&page.path, number, what, mend));
            };
            match file {
                None => tell(format!("`{span}`: there is no such file"), "name a file of the repository"),
                Some(file) if !name.is_empty() && !has_test(file, name, sources) => {
                    tell(format!("`{span}`: {} has no such test", file.path), "name a test that runs");
                }
                Some(_) => {}
            }
        }
        if page.path == CONFORMANCE && is_empty_promise(line) {
            let what = "the row names no test";
            findings.push(Finding::new(&page.path, number, what, "name one, or say that it is not done"));
        }
    }
    findings
}

fn find<'a>(path: &str, sources: &'a [Text]) -> Option<&'a Text> {
    sources.iter().find(|source| source.path == path || source.path.strip_prefix(SERVICES) == Some(path))
}

/// Whether the file, or the one that it has its tests in, has a test of this name; modules before the name
/// are not looked at.
fn has_test(file: &Text, name: &str, sources: &[Text]) -> bool {
    let name = name.rsplit("::").next().unwrap_or_default();
    let apart =
        file.text.lines().find_map(|line| line.trim().strip_prefix("#[path = \"")?.strip_suffix("\"]"));
    let directory = file.path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let apart = apart.and_then(|apart| find(&format!("{directory}/{apart}"), sources));
    [Some(file), apart].into_iter().flatten().any(|file| declares(&file.text, name))
}

/// Whether the text has `fn name` with an attribute of tests before it.
fn declares(text: &str, name: &str) -> bool {
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        let of_name = line
            .split_once("fn ")
            .is_some_and(|(_, rest)| rest.strip_prefix(name).is_some_and(|rest| rest.starts_with('(')));
        if of_name && is_test {
            return true;
        }
        is_test = match line {
            _ if line.starts_with("#[") => is_test || line.contains("test"),
            _ => is_test && (line.starts_with("//") || line.ends_with(']')),
        };
    }
    false
}

/// Whether the line is a row with an id that names no test and does not say why.
fn is_empty_promise(line: &str) -> bool {
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    let [_, id, _, shown, ..] = cells.as_slice() else { return false };
    let is_row =
        id.starts_with(|c: char| c.is_ascii_uppercase()) && id.ends_with(|c: char| c.is_ascii_digit());
    is_row && !shown.contains(".rs::") && !shown.starts_with("not ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::text;

    const CODE: &str = "#[tokio::test]\nasync fn one() {}\n/// Says.\n#[test]\n/// More.\nfn two(a: u8) {}\nfn helper() {}\n";

    fn found(line: &str) -> Vec<String> {
        let sources = [
            text("services/a/src/lib.rs", "#[cfg(test)]\n#[path = \"lib_tests.rs\"]\nmod tests;\n"),
            text("services/a/src/lib_tests.rs", CODE),
            text("proto/tests/b.rs", CODE),
        ];
        let page = text(CONFORMANCE, line);
        check(&page, &sources).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn a_test_that_does_not_exist_is_found() {
        assert_eq!(
            found("`proto/tests/b.rs::three`"),
            ["`proto/tests/b.rs::three`: proto/tests/b.rs has no such test"]
        );
        assert_eq!(found("`a/src/lib.rs::tests::helper`").len(), 1, "it is no test");
        assert_eq!(found("`proto/tests/c.rs::one`"), ["`proto/tests/c.rs::one`: there is no such file"]);
        assert_eq!(found("`proto/tests/b.rs::one`, `::tw`").len(), 1);
        assert_eq!(found("`a/src/none.rs`").len(), 1);
        assert_eq!(found("`::one`").len(), 1, "of no file");
    }

    #[test]
    fn tests_are_found_where_they_are() {
        assert_eq!(found("`a/src/lib.rs::tests::two` and `::one`, `services/a/src/lib.rs::one`"), [""; 0]);
        assert_eq!(found("`domain::agent::tests::x` `lib.rs` `a::b` `main.rs`"), [""; 0]);
        assert_eq!(found("```\n`proto/tests/b.rs::three`\n```"), [""; 0]);
    }

    #[test]
    fn a_row_of_the_conformance_page_promises_something() {
        assert_eq!(found("| T1 | what | |"), ["the row names no test"]);
        assert_eq!(found("| T1 | what | it works, really |").len(), 1);
        assert_eq!(
            found("| T1 | what | not yet |\n| T2 | x | `proto/tests/b.rs::one` |\n|---|---|---|"),
            [""; 0]
        );
        assert_eq!(found("| row | what | shown by |"), [""; 0]);
    }
}
