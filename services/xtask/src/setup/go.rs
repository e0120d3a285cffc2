//! Programs that are built from Go modules, in pinned versions.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// Pins the versions.
pub(super) const MODULE: &str = "loadtest/engines";

/// Where they are: `tools` in Cargo's target directory.
pub(super) fn tools() -> Option<PathBuf> {
    tools_beside(&env::current_exe().ok()?)
}

/// The program is in `target/debug`, for example.
fn tools_beside(program: &Path) -> Option<PathBuf> {
    Some(program.ancestors().nth(2)?.join("tools"))
}

/// Builds a program with the Go in this directory.
pub(super) fn build(go: &Path, package: &str, program: &str) -> Result<bool> {
    let file = tools().context("the target directory is not known")?.join(program);
    let mut build = Command::new(go.join("go"));
    build.args(["build", "-trimpath", "-o"]).arg(file).arg(package).current_dir(MODULE);
    // A Go older than the module needs fetches a later one, also where Debian has switched that off.
    build.env("GOTOOLCHAIN", "auto").env("CGO_ENABLED", "0");
    Ok(process::status(&mut build)?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_in_the_target_directory() {
        assert_eq!(tools_beside(Path::new("/a/target/debug/xtask")), Some("/a/target/tools".into()));
        assert_eq!(tools_beside(Path::new("xtask")), None);
    }
}
