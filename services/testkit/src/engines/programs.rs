//! Where the programs of the engines are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::skip::{path_directories, skip, target_directory};

const WORKSPACE_TARGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target");
/// Where Debian's packages put every version of Postgres, outside `PATH`.
const POSTGRES_VERSIONS: &str = "/usr/lib/postgresql";
const LEAST_NATS: (u32, u32) = (2, 10);

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// nats-server, 2.10 or later.
    Nats,
    /// redis-server.
    Redis,
    /// Postgres.
    Postgres,
}

/// Whether all of these are installed. If not, says on standard error that the running test is skipped;
/// under CI (`CI=true` or `1`) that is a panic.
#[must_use]
pub fn engines_or_skip(engines: &[Engine]) -> bool {
    let lacks: Vec<String> = engines.iter().filter_map(|engine| engine.directory().err()).collect();
    if !lacks.is_empty() {
        skip(&lacks.join(" and "));
    }
    lacks.is_empty()
}

impl Engine {
    /// The path of one of the engine's programs; panics if the engine is not installed.
    pub(super) fn program(self, name: &str) -> PathBuf {
        match self.directory() {
            Ok(directory) => directory.join(name),
            Err(lack) => panic!("{lack}: `cargo xtask setup` installs it or says how to"),
        }
    }

    /// The directory of the engine's programs, or what is lacking.
    fn directory(self) -> Result<PathBuf, String> {
        static FOUND: [OnceLock<Result<PathBuf, String>>; 3] = [const { OnceLock::new() }; 3];
        let [nats, redis, postgres] = &FOUND;
        let found = match self {
            Self::Nats => nats.get_or_init(nats_directory),
            Self::Redis => redis.get_or_init(|| with_all(path_directories(), &["redis-server"])),
            Self::Postgres => postgres.get_or_init(|| {
                with_all(
                    [path_directories(), postgres_directories()].concat(),
                    &["initdb", "postgres", "psql", "pg_isready"],
                )
            }),
        };
        found.clone()
    }
}

/// The first directory that holds all of the programs.
fn with_all(directories: Vec<PathBuf>, programs: &[&str]) -> Result<PathBuf, String> {
    let holds_all = |directory: &PathBuf| programs.iter().all(|program| directory.join(program).is_file());
    directories.into_iter().find(holds_all).ok_or_else(|| format!("{} is not installed", programs[0]))
}

/// The server that `cargo xtask setup` built goes before one of the system, which may be too old.
fn nats_directory() -> Result<PathBuf, String> {
    let targets = target_directory().into_iter().chain([PathBuf::from(WORKSPACE_TARGET)]);
    let directories = targets.map(|target| target.join("tools")).chain(path_directories());
    let mut lack = "nats-server is not installed".to_owned();
    for directory in directories {
        let program = directory.join("nats-server");
        match program.is_file().then(|| nats_version(&program)).flatten() {
            Some(version) if version >= LEAST_NATS => return Ok(directory),
            Some((major, minor)) => lack = format!("{} {major}.{minor} is too old", program.display()),
            None => {}
        }
    }
    Err(lack)
}

fn nats_version(program: &Path) -> Option<(u32, u32)> {
    let output = Command::new(program).arg("--version").output().ok()?;
    version_in(&String::from_utf8_lossy(&output.stdout))
}

/// The version in `nats-server: v2.15.2`.
fn version_in(text: &str) -> Option<(u32, u32)> {
    let (_, version) = text.trim().rsplit_once('v')?;
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The latest version first.
fn postgres_directories() -> Vec<PathBuf> {
    let entries = fs::read_dir(POSTGRES_VERSIONS).into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort();
    versions.into_iter().rev().map(|(_, directory)| directory).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_nats_is_understood() {
        assert_eq!(version_in("nats-server: v2.15.2\n"), Some((2, 15)));
        assert_eq!(version_in("nats-server: v2.9.10-beta\n"), Some((2, 9)));
        assert_eq!(version_in("something else"), None);
    }

    #[test]
    fn all_programs_of_an_engine_are_in_one_directory() {
        let (one, all) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for file in [one.path().join("a"), all.path().join("a"), all.path().join("b")] {
            fs::write(file, "").unwrap();
        }
        let directories = || vec![one.path().to_owned(), all.path().to_owned()];
        assert_eq!(with_all(directories(), &["a", "b"]), Ok(all.path().to_owned()));
        assert_eq!(with_all(directories(), &["a", "c"]), Err("a is not installed".to_owned()));
    }
}
