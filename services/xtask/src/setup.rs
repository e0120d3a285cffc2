//! The programs outside Cargo that the tests need: found, installed, or named with the way to get them.

mod apt;
mod clients;
mod go;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use apt::Apt;
use clients::CLIENTS;

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
    source: Source,
    advice: &'static str,
    /// Without it a developer's tests fail; other tools are optional, except under CI.
    always_needed: bool,
}

type Version = (u32, u32);

/// Where setup gets a tool from.
enum Source {
    Apt {
        /// Debian packages that hold it, the best first.
        packages: &'static [&'static str],
        /// What such a package would run from then on.
        service: Option<&'static str>,
    },
    /// A package of Go that is a tool of the module [`go::MODULE`], which says in which version.
    Go { package: &'static str },
}

const C_COMPILER: Tool = Tool {
    name: "C compiler",
    purpose: "SQLite is compiled from source",
    program: "cc",
    version_flag: "--version",
    least: (0, 0),
    places: &[],
    source: Source::Apt { packages: &["build-essential"], service: None },
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
    source: Source::Apt {
        packages: &["golang-1.26-go", "golang-1.25-go", "golang-1.24-go", "golang-go"],
        service: None,
    },
    advice: "install Go 1.24 or later from https://go.dev/dl/ into /usr/local/go, or put it on PATH",
    always_needed: false,
};

/// Debian 12 has 2.9, which loses settings in silence.
const NATS: Tool = Tool {
    name: "nats-server",
    purpose: "without it the tests with NATS, and those of clusters, are skipped",
    program: "nats-server",
    version_flag: "--version",
    least: (2, 10),
    places: &[],
    source: Source::Go { package: "github.com/nats-io/nats-server/v2" },
    advice: "install Go, from which it is built, or put nats-server 2.10 or later on PATH",
    always_needed: false,
};

const REDIS: Tool = Tool {
    name: "redis-server",
    purpose: "without it the tests with Redis, and those of clusters, are skipped",
    program: "redis-server",
    version_flag: "--version",
    least: (7, 0),
    places: &[],
    source: Source::Apt { packages: &["redis-server"], service: Some("redis-server") },
    advice: "install Redis 7 or later so that `redis-server` is on PATH; it need not run",
    always_needed: false,
};

const POSTGRES: Tool = Tool {
    name: "Postgres",
    purpose: "without it the tests with Postgres, and those of clusters, are skipped",
    program: "initdb",
    version_flag: "--version",
    least: (15, 0),
    places: &[
        "/usr/lib/postgresql/19/bin",
        "/usr/lib/postgresql/18/bin",
        "/usr/lib/postgresql/17/bin",
        "/usr/lib/postgresql/16/bin",
        "/usr/lib/postgresql/15/bin",
    ],
    source: Source::Apt { packages: &["postgresql"], service: Some("postgresql") },
    advice: "install PostgreSQL 15 or later, so that `initdb` is on PATH or in /usr/lib/postgresql; it need not run",
    always_needed: false,
};

// Go before what is built with it.
const TOOLS: &[Tool] = &[C_COMPILER, GO, NATS, REDIS, POSTGRES];

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
        let wanted = required || mode == Mode::Full;
        if wanted && !matches!(search, Search::Found { .. }) && install(tool, &search, &mut apt)? {
            word = "installed";
            search = find(tool);
        }
        match search {
            Search::Found { file, version: (major, minor), on_path } => {
                if mode == Mode::Full || word == "installed" {
                    println!("{:<14}{word:<11}{major}.{minor}  {}", tool.name, file.display());
                }
                extra.extend(file.parent().filter(|_| !on_path).map(Path::to_path_buf));
            }
            lacking => {
                complete &= !required;
                let what = if required { "missing" } else { "missing (optional)" };
                println!("{:<14}{what}{}: {}", tool.name, lacking.remark(), tool.purpose);
                println!("{:<14}to mend it: {}", "", tool.advice);
            }
        }
    }
    for client in CLIENTS {
        let mut word = "found";
        let mut found = client.is_installed();
        if !found && (ci || mode == Mode::Full) {
            word = "installed";
            found = client.install(&mut apt)?;
        }
        if !found {
            complete &= !ci;
            let what = if ci { "missing" } else { "missing (optional)" };
            println!("{:<14}{what}: without it the tests with that client are skipped", client.name);
            println!("{:<14}to mend it: {}", "", client.advice);
        } else if mode == Mode::Full || word == "installed" {
            println!("{:<14}{word}", client.name);
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

fn install(tool: &Tool, search: &Search, apt: &mut Apt) -> Result<bool> {
    match tool.source {
        Source::Go { package } => match go_directory() {
            Some(directory) => go::build(&directory, package, tool.program),
            None => Ok(false),
        },
        Source::Apt { packages, service } => {
            let installed = apt.install(packages, tool.least)?;
            // One that was there, in an old version, is for its owner to stop.
            if let (true, Search::Absent, Some(service)) = (installed, search, service) {
                apt::stop(service);
            }
            Ok(installed)
        }
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
    let built = matches!(tool.source, Source::Go { .. }).then(go::tools).flatten();
    let elsewhere = tool.places.iter().map(PathBuf::from).chain(built).map(|directory| (directory, false));
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
