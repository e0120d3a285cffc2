//! Postgres.

use std::ffi::OsString;
use std::fs;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;
use tokio::process::Command;

use super::programs::Engine;
use super::server::{self, Launch, Probe, Server, User};
use crate::certificates::Certificates;
use crate::ports::free_ports;

/// The owner of the databases: no superuser, as in production.
const OWNER: &str = "muster";
const SUPERUSER: &str = "postgres";

/// What a Postgres server is started with.
#[derive(Clone, Debug, Default)]
pub struct PostgresBuilder {
    settings: Vec<String>,
    /// Certificate and key of a server with TLS.
    tls: Option<[PathBuf; 2]>,
}

impl PostgresBuilder {
    /// Is faster, and loses data when the machine goes down; what it committed outlives
    /// [`kill9`](Server::kill9) all the same.
    pub fn without_fsync(mut self) -> Self {
        // Not synchronous_commit=off, which leaves commits in the memory of the server.
        self.settings.extend(["fsync=off", "full_page_writes=off"].map(str::to_owned));
        self
    }

    /// A setting of the server, such as `max_connections=10`.
    pub fn setting(mut self, setting: impl Into<String>) -> Self {
        self.settings.push(setting.into());
        self
    }

    /// Serves with TLS, too.
    pub fn tls(mut self, certificates: &Certificates) -> Self {
        self.tls = Some(["server.crt", "server.key"].map(|name| certificates.path(name)));
        self
    }

    /// Makes an empty server, starts it and waits until it is ready; panics if Postgres is not installed.
    pub async fn start(self) -> Postgres {
        let postgres = server::start(async || {
            let directory = TempDir::new().expect("a temporary directory");
            let user = ordinary_user(directory.path());
            if let Some(User { uid, gid }) = user {
                chown(directory.path(), Some(uid), Some(gid)).expect("the directory can be given away");
            }
            let data = directory.path().join("data");
            init(&data, user).await;
            let port = free_ports(1)[0];
            let own = [
                "listen_addresses=127.0.0.1".to_owned(),
                format!("port={port}"),
                format!("unix_socket_directories={}", directory.path().display()),
                // In the data directory, and not where it would stay behind.
                "dynamic_shared_memory_type=mmap".to_owned(),
                "max_connections=200".to_owned(),
            ];
            let mut settings = self.settings.clone();
            if let Some(files) = &self.tls {
                settings.push("ssl=on".to_owned());
                for (file, setting) in files.iter().zip(["ssl_cert_file", "ssl_key_file"]) {
                    // Postgres wants a key that is its own user's alone.
                    let own = directory.path().join(setting);
                    fs::copy(file, &own).expect("a file of TLS");
                    fs::set_permissions(&own, fs::Permissions::from_mode(0o600)).expect("a file's mode");
                    if let Some(User { uid, gid }) = user {
                        chown(&own, Some(uid), Some(gid)).expect("the file can be given away");
                    }
                    settings.push(format!("{setting}={}", own.display()));
                }
            }
            let mut arguments: Vec<OsString> = vec!["-D".into(), data.into()];
            arguments.extend(own.iter().chain(&settings).flat_map(|setting| ["-c".into(), setting.into()]));
            let launch = Launch {
                program: Engine::Postgres.program("postgres"),
                arguments,
                environment: Vec::new(),
                user,
                probe: Probe::Program {
                    program: Engine::Postgres.program("pg_isready"),
                    arguments: ["-h", "127.0.0.1", "-p", &port.to_string()].map(Into::into).to_vec(),
                },
                // Without waiting for clients.
                stop: "INT",
                // Frees its shared memory, other than SIGKILL.
                abort: "QUIT",
            };
            Ok(Postgres {
                server: Server::start(directory, launch).await?,
                port,
                databases: AtomicU64::new(0),
            })
        })
        .await;
        postgres.sql(&format!("CREATE ROLE {OWNER} LOGIN PASSWORD '{OWNER}'")).await;
        postgres.sql(&format!("CREATE DATABASE {OWNER} OWNER {OWNER}")).await;
        postgres
    }
}

/// A Postgres server. See [`Server`] for what can be done to it.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    port: u16,
    databases: AtomicU64,
}

impl Postgres {
    /// Starts an empty server; panics if Postgres is not installed.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A server with other settings.
    pub fn builder() -> PostgresBuilder {
        PostgresBuilder::default()
    }

    /// The address of a database, `muster`, which all callers share.
    pub fn url(&self) -> String {
        self.url_of(OWNER)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes an empty database and returns its address,
    /// `postgres://muster:muster@127.0.0.1:PORT/muster_N`.
    pub async fn database(&self) -> String {
        let name = format!("{OWNER}_{}", self.databases.fetch_add(1, Ordering::Relaxed) + 1);
        self.sql(&format!("CREATE DATABASE {name} OWNER {OWNER}")).await;
        self.url_of(&name)
    }

    /// Runs SQL in the database at `url` by psql and returns the rows, columns separated by `|`; panics
    /// with psql's message if it fails.
    pub async fn psql(url: &str, sql: &str) -> String {
        let mut command = command("psql");
        command.args([url, "-w"]);
        run_sql(command, sql).await
    }

    /// Writes a backup of the database `muster` with pg_dump, and returns it.
    pub async fn dump(&self) -> String {
        let mut dump = command("pg_dump");
        dump.arg("-h").arg(self.directory()).args(["-p", &self.port.to_string()]);
        dump.args(["-U", SUPERUSER, "-d", OWNER, "-w"]);
        run(dump).await
    }

    /// Replaces the database `muster` by what is in a backup; ends all its connections.
    pub async fn restore(&self, dump: &str) {
        self.sql(&format!("DROP DATABASE {OWNER} WITH (FORCE)")).await;
        self.sql(&format!("CREATE DATABASE {OWNER} OWNER {OWNER}")).await;
        let file = self.directory().join("restore.sql");
        fs::write(&file, dump).expect("the backup can be written");
        let mut psql = command("psql");
        psql.arg("-h").arg(self.directory()).args(["-p", &self.port.to_string()]);
        psql.args(["-U", SUPERUSER, "-d", OWNER, "-w", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(file);
        run(psql).await;
    }

    /// Runs SQL as the superuser, by the local socket, which needs no password.
    async fn sql(&self, sql: &str) -> String {
        let mut command = command("psql");
        command.arg("-h").arg(self.directory()).args(["-p", &self.port.to_string()]);
        command.args(["-U", SUPERUSER, "-d", "postgres", "-w"]);
        run_sql(command, sql).await
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://{OWNER}:{OWNER}@127.0.0.1:{}/{database}", self.port)
    }
}

impl Deref for Postgres {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Postgres {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// Makes an empty data directory. What it writes is not synced: no test takes the machine down.
async fn init(data: &Path, user: Option<User>) {
    let mut initdb = command("initdb");
    initdb.arg("-D").arg(data).args(["-U", SUPERUSER, "--no-sync", "--no-instructions"]);
    initdb.args(["--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256"]);
    initdb.current_dir(data.parent().unwrap_or(data));
    if let Some(User { uid, gid }) = user {
        initdb.uid(uid).gid(gid);
    }
    run(initdb).await;
}

async fn run_sql(mut psql: Command, sql: &str) -> String {
    psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]);
    run(psql).await
}

async fn run(mut command: Command) -> String {
    let output = command.output().await.expect("a program of Postgres runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?} failed with {}:\n{errors}", command.as_std(), output.status);
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// A program of Postgres, without the variables that would tell it of another server.
fn command(program: &str) -> Command {
    let mut command = Command::new(Engine::Postgres.program(program));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Whom the server runs as if this process is root, which Postgres refuses.
fn ordinary_user(own_directory: &Path) -> Option<User> {
    let me = fs::metadata(own_directory).expect("the directory is there").uid();
    let users = || fs::read_to_string("/etc/passwd").expect("the system's users");
    let found = |users: &str| user(users, SUPERUSER).or_else(|| user(users, "nobody"));
    (me == 0).then(|| found(&users()).expect("a user postgres or nobody"))
}

fn user(users: &str, name: &str) -> Option<User> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_it = fields.next() == Some(name);
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        is_it.then_some(User { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name() {
        let users =
            "root:x:0:0:root:/root:/bin/bash\n+\nnobody:x:65534:65533:nobody:/nonexistent:/sbin/nologin\n";
        assert_eq!(user(users, "nobody"), Some(User { uid: 65534, gid: 65533 }));
        assert_eq!(user(users, "postgres"), None);
    }
}
