//! Tests that need a program which is not installed.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Says on standard error that the running test is skipped because of `lack`; under CI (`CI=true` or
/// `1`) that is a panic.
pub(crate) fn skip(lack: &str) {
    let thread = std::thread::current();
    let reason = skipped(thread.name().unwrap_or("a test"), lack, &std::env::var("CI").unwrap_or_default());
    // Not `eprintln!`: what that prints is hidden for tests that pass.
    let _ = writeln!(std::io::stderr(), "{reason}");
}

fn skipped(test: &str, lack: &str, ci: &str) -> String {
    let because = format!("{lack} (`cargo xtask setup`)");
    assert!(matches!(ci, "" | "0" | "false"), "{test} cannot be skipped under CI: {because}");
    format!("skipped: {test}, because {because}")
}

/// The directories of `PATH`.
pub(crate) fn path_directories() -> Vec<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect()
}

/// Cargo's target directory, where this test's own program is, too.
pub(crate) fn target_directory() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let deps = program.ancestors().find(|path| path.ends_with("deps"))?;
    deps.ancestors().nth(2).map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn developers_may_skip() {
        for ci in ["", "0", "false"] {
            let reason = skipped("a::b", "Go is not installed", ci);
            assert!(reason.starts_with("skipped: a::b, because Go is not installed"));
        }
    }

    #[test]
    #[should_panic(expected = "a::b cannot be skipped under CI")]
    fn ci_may_not_skip() {
        skipped("a::b", "Go is not installed", "true");
    }
}
