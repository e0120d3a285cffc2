//! The programs outside Cargo that the tests need: found, installed, or named with the way to get them.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// One program, as a row of the table below.
struct Tool {
    name: &'static str,
    /// Why it is needed.
    purpose: &'static str,
    program: &'static str,
    version_flag: &'static str,
    least: Version,
    /// Where packages put it, apart from `PATH`.
    places: &'static [&'static str],
    /// Debian packages that hold it, the best first.
    packages: &'static [&'static str],
    advice: &'static str,
    /// Without it a developer's tests fail; other tools are optional, except under CI.
    always_needed: bool,
}

type Version = (u32, u32);

const C_COMPILER: Tool = Tool {
    name: "C compiler",
    purpose: "SQLite is compiled from source",
    program: "cc",
    version_flag: "--version",
    least: (0, 0),
    places: &[],
    packages: &["build-essential"],
    advice: "install gcc or clang so that `cc` is on PATH, for example `apt-get install build-essential`",
    always_needed: true,
};

const GO: Tool = Tool {
    name: "Go",
    purpose: "the tests with a real opamp-go client need it",
    program: "go",
    version_flag: "version",
    least: (1, 24),
    places: &["/usr/local/go/bin", "/usr/lib/go-1.26/bin", "/usr/lib/go-1.25/bin", "/usr/lib/go-1.24/bin"],
    packages: &["golang-1.26-go", "golang-1.25-go", "golang-1.24-go", "golang-go"],
    advice: "install Go 1.24 or later from https://go.dev/dl/ into /usr/local/go, or put it on PATH",
    always_needed: false,
};

const TOOLS: &[Tool] = &[C_COMPILER, GO];

/// How much `run` says and does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A line for every tool; installs what is missing.
    Full,
    /// Speaks only of what is missing; installs only what is required.
    Quiet,
}

/// The outcome of `run`.
pub(crate) struct Setup {
    /// Nothing required is missing.
    pub(crate) complete: bool,
    /// `PATH` with the places where tools were found in front.
    pub(crate) path: OsString,
}

/// Finds or installs every tool of the table.
pub(crate) fn run(mode: Mode) -> Result<Setup> {
    let (ci, mut apt) = (under_ci(env::var("CI").ok().as_deref()), Apt::default());
    let (mut complete, mut extra) = (true, Vec::new());
    for tool in TOOLS {
        let required = tool.always_needed || ci;
        let mut word = "found";
        let mut search = find(tool);
        if !matches!(search, Search::Found { .. }) && (required || mode == Mode::Full) && apt.install(tool)? {
            word = "installed";
            search = find(tool);
        }
        match search {
            Search::Found { file, version: (major, minor), on_path } => {
                if mode == Mode::Full || word == "installed" {
                    println!("{:<12}{word:<11}{major}.{minor}  {}", tool.name, file.display());
                }
                extra.extend(file.parent().filter(|_| !on_path).map(Path::to_path_buf));
            }
            lacking => {
                complete &= !required;
                let what = if required { "missing" } else { "missing (optional)" };
                println!("{:<12}{what}{}: {}", tool.name, lacking.remark(), tool.purpose);
                println!("{:<12}to mend it: {}", "", tool.advice);
            }
        }
    }
    extra.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    Ok(Setup { complete, path: env::join_paths(extra).context("PATH cannot be extended")? })
}

/// The directory of a usable Go toolchain.
pub(crate) fn go_directory() -> Option<PathBuf> {
    match find(&GO) {
        Search::Found { file, .. } => file.parent().map(Path::to_path_buf),
        Search::TooOld { .. } | Search::Absent => None,
    }
}

/// CI services set `CI` to `true` or `1`.
fn under_ci(value: Option<&str>) -> bool {
    !matches!(value, None | Some("" | "0" | "false"))
}

enum Search {
    Found { file: PathBuf, version: Version, on_path: bool },
    TooOld { file: PathBuf, version: Version },
    Absent,
}

impl Search {
    fn remark(&self) -> String {
        match self {
            Search::TooOld { file, version: (major, minor) } => {
                format!(" ({} is {major}.{minor}, too old)", file.display())
            }
            Search::Found { .. } | Search::Absent => String::new(),
        }
    }
}

fn find(tool: &Tool) -> Search {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|directory| (directory, true));
    let elsewhere = tool.places.iter().map(|place| (PathBuf::from(place), false));
    let mut nearest = Search::Absent;
    for (directory, on_path) in on_path.chain(elsewhere) {
        let file = directory.join(tool.program);
        if !file.is_file() {
            continue;
        }
        let said = process::stdout(Command::new(&file).arg(tool.version_flag)).unwrap_or_default();
        match version_in(&said) {
            // A later directory of PATH is hidden by this one, so it counts as elsewhere.
            Some(version) if version >= tool.least => {
                let hidden = matches!(nearest, Search::TooOld { .. });
                return Search::Found { file, version, on_path: on_path && !hidden };
            }
            Some(version) if matches!(nearest, Search::Absent) => nearest = Search::TooOld { file, version },
            _ => {}
        }
    }
    nearest
}

/// The first number in a version message, with its second part where it has one.
fn version_in(text: &str) -> Option<Version> {
    let number = &text[text.find(|c: char| c.is_ascii_digit())?..];
    let mut parts = number.split(|c: char| !c.is_ascii_digit() && c != '.').next()?.split('.');
    let major = parts.next()?.parse().ok()?;
    Some((major, parts.next().and_then(|minor| minor.parse().ok()).unwrap_or(0)))
}

/// apt-get, where it exists and this process is root. Its lists are fetched once, at the first need.
#[derive(Default)]
struct Apt {
    usable: Option<bool>,
}

impl Apt {
    fn install(&mut self, tool: &Tool) -> Result<bool> {
        let usable = match self.usable {
            Some(usable) => usable,
            None => *self.usable.insert(Apt::prepare()),
        };
        let candidate = tool.packages.iter().find(|package| {
            let policy = process::stdout(Command::new("apt-cache").args(["policy", package]));
            usable && candidate_in(&policy.unwrap_or_default()).is_some_and(|version| version >= tool.least)
        });
        let Some(package) = candidate else { return Ok(false) };
        let mut install = Command::new("apt-get");
        install.args(["install", "--yes", "--no-install-recommends", package]);
        Ok(process::status(install.env("DEBIAN_FRONTEND", "noninteractive"))?.success())
    }

    fn prepare() -> bool {
        let root = process::stdout(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
        root && process::status(Command::new("apt-get").arg("update")).is_ok_and(|status| status.success())
    }
}

/// The version that `apt-cache policy` would install, without its epoch.
fn candidate_in(policy: &str) -> Option<Version> {
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    version_in(candidate.split_once(':').map_or(candidate, |(_epoch, version)| version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_programs_say() {
        assert_eq!(version_in("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(version_in("cc (Debian 12.2.0-14+deb12u1) 12.2.0"), Some((12, 2)));
        assert_eq!(version_in("nats-server: v2.12.1"), Some((2, 12)));
        assert_eq!(version_in("version 15"), Some((15, 0)));
        assert_eq!(version_in("no such thing"), None);
    }

    #[test]
    fn the_package_that_apt_would_install_counts() {
        assert_eq!(candidate_in("golang-go:\n  Installed: (none)\n  Candidate: 2:1.19~1\n"), Some((1, 19)));
        assert_eq!(candidate_in("golang-go:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_in(""), None);
    }

    #[test]
    fn ci_is_what_ci_services_set() {
        assert!(under_ci(Some("true")) && under_ci(Some("1")));
        assert!(!under_ci(None) && !under_ci(Some("")) && !under_ci(Some("false")));
    }

    #[test]
    fn a_tool_that_is_too_old_is_not_found() {
        let tool = Tool { least: (9999, 0), ..C_COMPILER };
        assert!(matches!(find(&tool), Search::TooOld { .. }));
        assert!(matches!(find(&Tool { program: "no-such-program", ..C_COMPILER }), Search::Absent));
    }
}
