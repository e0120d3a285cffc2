//! A server as a child process that never outlives its test.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::eventually::try_eventually;

/// How long a server may take to answer, on a machine that is busy.
pub(super) const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(30);
/// How often other ports are tried when somebody else was faster.
const PORT_ATTEMPTS: usize = 5;
/// Waits, in a process group of its own, until the test process has closed its end of the pipe,
/// perhaps by dying; then ends the server and removes its directory.
const LEASH: &str = r#"read -r _
kill -s "$1" "$2"; sleep 0.5; kill -s KILL -- "-$2"; rm -rf "$3""#;

/// How a server is started, asked and stopped.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: Vec<(&'static str, String)>,
    /// Runs as this user.
    pub(super) user: Option<User>,
    pub(super) probe: Probe,
    /// Stops it in order.
    pub(super) stop: &'static str,
    /// Stops it at once, and it cleans up what is outside its directory.
    pub(super) abort: &'static str,
}

/// What a server answers once it is ready.
#[derive(Clone, Debug)]
pub(super) enum Probe {
    /// HTTP with status 200.
    Http { port: u16, path: &'static str },
    /// A line of text that begins so.
    Line { port: u16, request: &'static str, reply: &'static str },
    /// A program's exit code 0.
    Program { program: PathBuf, arguments: Vec<OsString> },
}

/// An unprivileged user of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Why a server is not ready.
#[derive(Debug)]
pub(super) struct NotReady {
    port_taken: bool,
    reason: String,
}

/// A server in a process of its own, killed when this is dropped.
#[derive(Debug)]
pub struct Server {
    launch: Launch,
    child: Option<Child>,
    leash: Option<Child>,
    /// Goes away last, after the process.
    directory: TempDir,
}

/// Calls `start` until no port that it chose was taken by somebody else; panics with the reason if the
/// server does not start.
pub(super) async fn start<T>(mut start: impl AsyncFnMut() -> Result<T, NotReady>) -> T {
    let mut attempt = 1;
    loop {
        match start().await {
            Ok(server) => return server,
            Err(NotReady { port_taken: true, .. }) if attempt < PORT_ATTEMPTS => attempt += 1,
            Err(NotReady { reason, .. }) => panic!("{reason}"),
        }
    }
}

impl Server {
    /// Starts a server whose data is in this directory and waits until it is ready.
    pub(super) async fn start(directory: TempDir, launch: Launch) -> Result<Self, NotReady> {
        let mut server = Self { launch, child: None, leash: None, directory };
        server.launch().await?;
        Ok(server)
    }

    /// The process's id. Panics if the server is down.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    /// Where its data and its log are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Every line that it wrote to its log so far, those before a restart too.
    pub fn logs(&self) -> Vec<String> {
        let log = fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(&log).lines().map(str::to_owned).collect()
    }

    /// Ends it with all its processes at once, as a crash does. One that is down stays down.
    pub async fn kill9(&mut self) {
        self.kill();
    }

    /// Halts all its processes (SIGSTOP), as an overloaded machine or a lost network looks to clients.
    pub async fn stop(&self) {
        send("STOP", &tree(self.pid()));
    }

    /// Lets it go on after [`stop`](Self::stop).
    pub async fn cont(&self) {
        send("CONT", &tree(self.pid()));
    }

    /// Asks it to end in order, without waiting for its clients; panics if it does not in time or not
    /// with exit code 0.
    pub async fn terminate(&mut self) {
        send(self.launch.stop, &[self.pid()]);
        let child = self.child.as_mut().expect("the server runs");
        let ended = try_eventually(STOP, async || exited(child).ok_or_else(String::new)).await;
        let Ok(status) = ended else {
            panic!("{} does not end within {STOP:?}:\n{}", self.name(), self.tail())
        };
        self.child = None;
        self.unleash();
        assert!(status.success(), "{} ended with {status}:\n{}", self.name(), self.tail());
    }

    /// Starts it again after [`kill9`](Self::kill9) or [`terminate`](Self::terminate), with the same
    /// data and ports, and waits until it is ready.
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "the server runs: kill or terminate it first");
        if let Err(NotReady { reason, .. }) = self.launch().await {
            panic!("after a restart {reason}");
        }
    }

    /// Starts the process and waits until it is ready.
    async fn launch(&mut self) -> Result<(), NotReady> {
        let from = self.logs().len();
        self.spawn();
        let child = self.child.as_mut().expect("just started");
        let probe = &self.launch.probe;
        let ready = try_eventually(START, async || match exited(child) {
            Some(status) => Ok(Some(status)),
            None => probe.ask().await.map(|()| None),
        });
        let reason = match ready.await {
            Ok(None) => return Ok(()),
            Ok(Some(status)) => format!("ended with {status} before it was ready"),
            Err(reason) => format!("is not ready within {START:?}: {reason}"),
        };
        let log = self.logs().split_off(from).join("\n");
        let port_taken = log.to_lowercase().contains("address already in use");
        let reason = format!("{} {reason}\n{log}", self.name());
        self.kill();
        Err(NotReady { port_taken, reason })
    }

    fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(self.log_file()).expect("a log file");
        let Launch { program, arguments, environment, user, .. } = &self.launch;
        let mut command = Command::new(program);
        command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.directory.path()).process_group(0);
        if let Some(User { uid, gid }) = *user {
            command.uid(uid).gid(gid);
        }
        // To a file: a pipe's reader would end with the async runtime of one test.
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log file")).stderr(log);
        let spawned = command.spawn();
        let child = spawned.unwrap_or_else(|error| panic!("{} does not start: {error}", program.display()));

        let mut leash = Command::new("sh");
        leash.args(["-c", LEASH, "leash", self.launch.abort, &child.id().to_string()]);
        leash.arg(self.directory.path()).process_group(0);
        leash.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(child);
        self.leash = Some(leash.spawn().expect("sh runs"));
    }

    /// Kills every process of the server and waits until there is none.
    fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // Halted, it starts no further processes.
        send("STOP", &[child.id()]);
        let mut processes = tree(child.id());
        send("KILL", &processes);
        let _ = child.wait();
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            processes.retain(|process| parent(*process).is_some());
            if processes.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.unleash();
    }

    /// Ends the process that waits to end the server.
    fn unleash(&mut self) {
        if let Some(mut leash) = self.leash.take() {
            let _ = leash.kill();
            let _ = leash.wait();
        }
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    fn name(&self) -> String {
        self.launch.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The last lines of the log, to show why something failed.
    fn tail(&self) -> String {
        let lines = self.logs();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child
            && self.launch.abort != "KILL"
        {
            send(self.launch.abort, &[child.id()]);
            send("CONT", &tree(child.id()));
            let end = Instant::now() + Duration::from_secs(2);
            while Instant::now() < end && exited(child).is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.kill();
        if std::thread::panicking() {
            eprintln!("the last lines of the log of {}:\n{}", self.name(), self.tail());
        }
    }
}

impl Probe {
    async fn ask(&self) -> Result<(), String> {
        match self {
            Self::Http { port, path } => http(*port, path).await.map(drop),
            Self::Line { port, request, reply } => {
                let said = exchange(*port, request).await?;
                if said.starts_with(reply) { Ok(()) } else { Err(said) }
            }
            Self::Program { program, arguments } => {
                let mut command = tokio::process::Command::new(program);
                command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
                let output = command.output().await.map_err(|error| error.to_string())?;
                let said = || String::from_utf8_lossy(&output.stdout).trim().to_owned();
                if output.status.success() { Ok(()) } else { Err(said()) }
            }
        }
    }
}

/// The body of a response with status 200.
pub(super) async fn http(port: u16, path: &str) -> Result<String, String> {
    let response = exchange(port, &format!("GET {path} HTTP/1.0\r\n\r\n")).await?;
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
    let good = head.split(' ').nth(1) == Some("200");
    if good { Ok(body.to_owned()) } else { Err(format!("GET {path}: {response}")) }
}

/// Sends a text over a new connection and reads until the server closes it.
pub(super) async fn exchange(port: u16, request: &str) -> Result<String, String> {
    let talk = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    };
    talk.await.map_err(|error: std::io::Error| format!("127.0.0.1:{port}: {error}"))
}

/// How the process ended, if it did.
fn exited(child: &mut Child) -> Option<ExitStatus> {
    child.try_wait().expect("a child can be waited for")
}

/// Sends a signal by its name to those of the processes that are there.
fn send(signal: &str, processes: &[u32]) {
    // The shell's own `kill`: there may be no such program.
    let mut kill = Command::new("sh");
    kill.args(["-c", r#"for process; do kill -s "$0" "$process"; done"#, signal]);
    kill.args(processes.iter().map(u32::to_string)).stdin(Stdio::null()).stderr(Stdio::null());
    kill.status().expect("sh runs");
}

/// The process and all that descend from it. Process groups do not do: a Postgres backend leads its own.
fn tree(root: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for process in processes {
        if let Some(parent) = parent(process) {
            children.entry(parent).or_default().push(process);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(process) = found.get(next) {
        found.extend(children.remove(process).unwrap_or_default());
        next += 1;
    }
    found
}

/// The parent of a process that runs; those that have ended and are not waited for do not.
fn parent(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventually;
    use crate::ports::free_ports;

    /// A launch of a shell script instead of a server.
    fn script(script: &str) -> Launch {
        Launch {
            program: "sh".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: Vec::new(),
            user: None,
            probe: Probe::Program { program: "test".into(), arguments: vec!["1".into()] },
            stop: "TERM",
            abort: "KILL",
        }
    }

    #[tokio::test]
    async fn the_log_tells_why_a_server_ended() {
        let never = Probe::Http { port: free_ports(1)[0], path: "/" };
        let launch = Launch { probe: never, ..script("echo the disk is full; exit 3") };
        let error = Server::start(TempDir::new().unwrap(), launch).await.unwrap_err();
        assert!(!error.port_taken);
        assert_eq!(error.reason, "sh ended with exit status: 3 before it was ready\nthe disk is full");
    }

    #[tokio::test]
    async fn another_port_is_tried_when_one_is_taken() {
        let mut attempts = 0;
        let server = start(async || {
            attempts += 1;
            if attempts < 3 {
                let taken = script("echo bind: Address already in use; exit 1");
                let never = Probe::Http { port: free_ports(1)[0], path: "/" };
                return Server::start(TempDir::new().unwrap(), Launch { probe: never, ..taken }).await;
            }
            Server::start(TempDir::new().unwrap(), script("sleep 100")).await
        });
        assert!(server.await.pid() > 0);
        assert_eq!(attempts, 3);
    }

    #[tokio::test]
    async fn descendants_end_with_the_server() {
        let launch = script("setsid sh -c 'sleep 100; true' & sleep 100");
        let server = Server::start(TempDir::new().unwrap(), launch).await.unwrap();
        let processes = eventually(Duration::from_secs(10), async || {
            let found = tree(server.pid());
            if found.len() == 4 { Ok(found) } else { Err(format!("{found:?}")) }
        });
        let processes = processes.await;
        drop(server);
        assert!(processes.iter().all(|process| parent(*process).is_none()));
    }

    #[tokio::test]
    async fn the_server_ends_and_its_directory_goes_when_the_test_process_is_gone() {
        let mut server = Server::start(TempDir::new().unwrap(), script("sleep 100")).await.unwrap();
        // What the end of this process would do.
        drop(server.leash.as_mut().and_then(|leash| leash.stdin.take()));
        eventually(Duration::from_secs(10), async || {
            let alive = exited(server.child.as_mut().unwrap()).is_none() || server.directory().exists();
            if alive { Err("it is there".to_owned()) } else { Ok(()) }
        })
        .await;
    }
}
