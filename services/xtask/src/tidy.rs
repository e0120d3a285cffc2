//! Checks of what compilers do not: each is a module that turns text into findings.

mod dependencies;
mod forbidden;
mod header;
mod length;
mod links;
mod lints;
mod named;
mod reached;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use cargo_metadata::MetadataCommand;

use crate::process;

/// One thing to mend.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    line: usize,
    what: String,
    mend: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Finding { path: path.to_owned(), line, what: what.into(), mend: mend.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.what, self.mend)
    }
}

/// A file of the repository; the path is relative to its root.
struct Text {
    path: String,
    text: String,
}

/// Prints every finding; whether there is none.
pub(crate) fn run(root: &Path) -> Result<bool> {
    let files = files(root)?;
    let sources = read(root, &files, ".rs")?;
    let pages = read(root, &files, ".md")?;
    // One platform, so that nothing is downloaded that a build does not need.
    let platform = ["--filter-platform".to_owned(), "x86_64-unknown-linux-gnu".to_owned()];
    let metadata = MetadataCommand::new().current_dir(root).other_options(platform).exec()?;
    let workspace = dependencies::Workspace::read(&metadata)?;

    let mut findings = workspace.check();
    findings.extend(workspace.manifests().filter_map(lints::check));
    findings.extend(reached::check(&sources, &roots(&workspace, &files)));
    findings.extend(pages.iter().flat_map(|page| links::check(page, &files)));
    findings.extend(pages.iter().flat_map(|page| named::check(page, &sources)));
    for source in &sources {
        findings.extend(header::check(source));
        findings.extend(length::check(source));
        findings.extend(forbidden::check(source));
    }
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => println!("tidy: no findings in {} files", sources.len() + pages.len()),
        count => println!("tidy: {count} findings"),
    }
    Ok(findings.is_empty())
}

/// The files where compilers start; those of cargo-fuzz are not of the workspace.
fn roots(workspace: &dependencies::Workspace, files: &BTreeSet<String>) -> Vec<String> {
    let targets = files.iter().filter(|path| path.starts_with("fuzz/targets/") && path.ends_with(".rs"));
    workspace.roots().into_iter().chain(targets.cloned()).collect()
}

/// Every file that is or would be committed.
fn files(root: &Path) -> Result<BTreeSet<String>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let listed = process::stdout(&mut git)?;
    // Git goes on listing a file that is deleted and not yet staged.
    Ok(listed.split('\0').filter(|path| root.join(path).is_file()).map(str::to_owned).collect())
}

fn read(root: &Path, files: &BTreeSet<String>, suffix: &str) -> Result<Vec<Text>> {
    let wanted = files.iter().filter(|path| path.ends_with(suffix));
    wanted
        .map(|path| {
            let bytes = std::fs::read(root.join(path)).with_context(|| format!("cannot read {path}"))?;
            Ok(Text { path: path.clone(), text: String::from_utf8_lossy(&bytes).into_owned() })
        })
        .collect()
}

#[cfg(test)]
fn text(path: &str, text: &str) -> Text {
    Text { path: path.to_owned(), text: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_the_place_and_the_remedy() {
        let finding = Finding::new("a/b.rs", 7, "something is wrong", "mend it");
        assert_eq!(finding.to_string(), "a/b.rs:7: something is wrong: mend it");
    }
}
