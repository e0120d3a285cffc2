//! Links between pages lead somewhere.

use std::collections::BTreeSet;

use super::{Finding, Text};

pub(super) fn check(page: &Text, files: &BTreeSet<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut fenced = false;
    for (number, line) in (1..).zip(page.text.lines()) {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        if fenced || fence {
            continue;
        }
        for target in targets(&without_code(line)) {
            if !resolve(&page.path, target).is_none_or(|path| exists(&path, files)) {
                let what = format!("the link to {target} leads nowhere");
                let mend = "name a file of the repository, relative to this page";
                findings.push(Finding::new(&page.path, number, what, mend));
            }
        }
    }
    findings
}

/// The line without what stands between backquotes.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// The targets of `[text](target)` and of a definition `[name]: target`.
fn targets(line: &str) -> Vec<&str> {
    let definition = line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")).map(|(_, target)| target);
    let inline = line.split("](").skip(1).map(|rest| rest.split(')').next().unwrap_or_default());
    let bare = |target: &'_ str| target.split_whitespace().next().map(str::len);
    let cut = |target| bare(target).map(|end| target.trim_start().split_at(end).0);
    inline.chain(definition).filter_map(cut).map(|target| target.trim_matches(['<', '>'])).collect()
}

/// The path that a relative link means, from the root of the repository; nothing for a link to elsewhere.
fn resolve(page: &str, target: &str) -> Option<String> {
    let target = target.split(['#', '?']).next().unwrap_or_default();
    if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    if target.starts_with('/') {
        parts.clear();
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Whether a file or a directory of the repository has this path.
fn exists(path: &str, files: &BTreeSet<String>) -> bool {
    let directory = format!("{path}/");
    path.is_empty()
        || files.contains(path)
        || files.range(directory.clone()..).next().is_some_and(|file| file.starts_with(&directory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::text;

    fn found(line: &str) -> Vec<String> {
        let files = ["README.md", "docs/a.md", "docs/decisions/0001.md"].map(str::to_owned).into();
        check(&text("docs/page.md", line), &files).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn a_link_to_nothing_is_found() {
        assert_eq!(found("See [b](b.md) and [a](a.md)."), ["the link to b.md leads nowhere"]);
        assert_eq!(
            found("![picture](../picture.svg \"A title\")"),
            ["the link to ../picture.svg leads nowhere"]
        );
        assert_eq!(found("[name]: <b.md>"), ["the link to b.md leads nowhere"]);
        assert_eq!(found("[up](../../README.md)"), ["the link to ../../README.md leads nowhere"]);
    }

    #[test]
    fn other_links_are_left_alone() {
        assert_eq!(found("[a](a.md#part) [b](../README.md) [c](decisions) [d](/docs/a.md) [e](..)"), [""; 0]);
        assert_eq!(found("[a](https://example.com/x) [b](#part) [c](mailto:a@example.com) []()"), [""; 0]);
        assert_eq!(found("`[a](b.md)`\n```\n[a](b.md)\n```"), [""; 0]);
    }
}
