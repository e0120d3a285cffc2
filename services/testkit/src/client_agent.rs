//! An agent made of a real client, as a process; `loadtest/interop` describes how it is driven.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;
use uuid::Uuid;

use crate::DEADLINE;
use crate::output::Output;
use crate::signal;

/// What an agent on a real client is started with. Not every client has everything.
#[derive(Clone, Debug)]
pub struct ClientAgentBuilder {
    program: PathBuf,
    environment: Vec<(&'static str, PathBuf)>,
    /// What the program runs, where it is an interpreter.
    script: Option<PathBuf>,
    uid: Uuid,
    arguments: Vec<String>,
}

impl ClientAgentBuilder {
    pub(crate) fn new(program: PathBuf) -> Self {
        Self { program, environment: Vec::new(), script: None, uid: Uuid::now_v7(), arguments: Vec::new() }
    }

    /// Runs this script with the program.
    pub(crate) fn script(self, script: PathBuf, environment: Vec<(&'static str, PathBuf)>) -> Self {
        Self { script: Some(script), environment, ..self }
    }

    /// Its instance_uid; a new one by default.
    pub fn uid(mut self, uid: Uuid) -> Self {
        self.uid = uid;
        self
    }

    /// An attribute; identifying if the key begins with `service.`.
    pub fn attr(self, key: &str, value: &str) -> Self {
        self.arg(format!("--attr={key}={value}"))
    }

    /// Trusts the authorities of this file, PEM, in place of the system's. Of Go's clients.
    pub fn ca_file(mut self, file: PathBuf) -> Self {
        self.environment.push(("SSL_CERT_FILE", file));
        self
    }

    /// A header of its HTTP requests.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.arg(format!("--header={name}={value}"))
    }

    /// A further capability by name, such as `AcceptsRestartCommand`.
    pub fn capability(self, name: &str) -> Self {
        self.arg(format!("--capability={name}"))
    }

    /// Refuses configurations with this text.
    pub fn reject(self, text: &str) -> Self {
        self.arg(format!("--reject={text}"))
    }

    /// Time from APPLYING to APPLIED or FAILED; none by default.
    pub fn apply_delay(self, delay: Duration) -> Self {
        self.arg(format!("--apply-delay={}ms", delay.as_millis()))
    }

    /// Its health at the start; healthy by default.
    pub fn healthy(self, healthy: bool) -> Self {
        self.arg(format!("--healthy={healthy}"))
    }

    /// Time between heartbeats, over HTTP between polls; 30 s by default.
    pub fn heartbeat(self, interval: Duration) -> Self {
        self.arg(format!("--heartbeat={}ms", interval.as_millis()))
    }

    /// Any other argument.
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Starts the agent. It connects by itself, over HTTP if the address begins with `http://`.
    pub fn start(self, server: &str) -> ClientAgent {
        let transport = if server.starts_with("http") { "http" } else { "ws" };
        let mut command = Command::new(&self.program);
        command.envs(self.environment).args(self.script);
        command.args(["--server", server, "--transport", transport, "--uid", &self.uid.to_string()]);
        command.args(&self.arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let (mut stdout, mut stderr) = (Output::default(), Output::default());
        stdout.read(child.stdout.take().expect("a piped stream"));
        stderr.read(child.stderr.take().expect("a piped stream"));
        let stdin = child.stdin.take();
        ClientAgent { uid: self.uid, child, stdin, stdout, stderr, seen: 0 }
    }
}

/// An agent on a real client in a process of its own, killed when this is dropped.
#[derive(Debug)]
pub struct ClientAgent {
    uid: Uuid,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Output,
    stderr: Output,
    /// Events before this one are waited for already.
    seen: usize,
}

impl ClientAgent {
    /// The instance_uid that it started with.
    pub fn uid(&self) -> Uuid {
        self.uid
    }

    /// Every event so far.
    pub fn events(&self) -> Vec<Value> {
        self.stdout.lines().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The next event of this name after the one that was waited for last; events between the two
    /// are passed over. Panics if it does not come within [`DEADLINE`].
    pub async fn wait(&mut self, event: &str) -> Value {
        match self.wait_within(event, DEADLINE).await {
            Some(event) => event,
            None => panic!("no event {event:?} within {DEADLINE:?}, but {}", self.history()),
        }
    }

    /// As [`wait`](Self::wait), but returns nothing if it does not come in time.
    pub async fn wait_within(&mut self, event: &str, limit: Duration) -> Option<Value> {
        let fits = |line: &str| {
            let value: Value = serde_json::from_str(line).ok()?;
            (value["event"] == event).then_some(value)
        };
        let (at, value) = self.stdout.wait(self.seen, limit, fits).await?;
        self.seen = at + 1;
        Some(value)
    }

    /// Writes a line to its standard input, such as `health false the disk is full`.
    pub async fn command(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("the agent was not stopped");
        let written = stdin.write_all(format!("{line}\n").as_bytes()).await;
        written.unwrap_or_else(|error| panic!("the agent takes no commands: {error}; {}", self.history()));
    }

    /// Lets it say goodbye; panics if it does not end in time or not with exit code 0.
    pub async fn disconnect(mut self) {
        self.command("disconnect").await;
        let Ok(status) = timeout(DEADLINE, self.child.wait()).await else {
            panic!("the agent does not end within {DEADLINE:?}: {}", self.history());
        };
        let status = status.expect("a child can be waited for");
        assert!(status.success(), "the agent ended with {status}: {}", self.history());
    }

    /// Ends it at once, without a goodbye.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("a child can be killed");
    }

    /// Sends the process a signal by its name, such as `STOP` and `CONT`.
    pub async fn signal(&self, name: &str) {
        signal::send(self.child.id().expect("the agent runs"), name).await;
    }

    fn history(&self) -> String {
        format!("it said:\n{}\n{}", self.stdout.tail(), self.stderr.tail())
    }
}
