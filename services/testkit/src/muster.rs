//! Muster as a process on ports of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::api::Api;
use crate::certificates::Certificates;
use crate::cli::{self, CliOutput};
use crate::eventually::try_eventually;
use crate::output::Output;
use crate::ports::free_ports;
use crate::signal;

/// How often other ports are tried when somebody else was faster.
const PORT_ATTEMPTS: usize = 5;

/// What a Muster process is started with.
#[derive(Clone, Debug)]
pub struct MusterBuilder {
    program: PathBuf,
    wrapper: Vec<OsString>,
    command: String,
    data_dir: Option<PathBuf>,
    config: Option<String>,
    environment: Vec<(String, String)>,
    /// The listeners speak TLS, and this is the authority of their certificate.
    ca_file: Option<PathBuf>,
    arguments: Vec<OsString>,
    ready_within: Duration,
    stopped_within: Duration,
}

/// Why a server did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no such program, or it cannot be run.
    #[error("{program} does not start")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It ended before it was ready.
    #[error("the server ended with {status} before it was ready:\n{stderr}")]
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// It runs but does not become ready.
    #[error("the server is not ready within {waited:?}: {reason}\n{stderr}")]
    NotReady {
        /// How long the wait was.
        waited: Duration,
        /// What `/ready` said last.
        reason: String,
        /// The last lines of its standard error.
        stderr: String,
    },
}

impl MusterBuilder {
    /// Keeps the data here, rather than in a directory that goes away with the [`Muster`].
    pub fn data_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(directory.into());
        self
    }

    /// Starts with this configuration file. The ports still come from the environment.
    pub fn config(mut self, yaml: impl Into<String>) -> Self {
        self.config = Some(yaml.into());
        self
    }

    /// Sets a variable of the environment, such as `MUSTER_AUTH__TYPE`. Those of the tests' own
    /// environment that begin with `MUSTER_` are not passed on.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Serves with TLS by these certificates.
    pub fn tls(mut self, certificates: &Certificates) -> Self {
        self.ca_file = Some(certificates.path("ca.crt"));
        let file = |name| certificates.path(name).display().to_string();
        self.env("MUSTER_SERVER__TLS__ENABLED", "true")
            .env("MUSTER_SERVER__TLS__CERT_FILE", file("server.crt"))
            .env("MUSTER_SERVER__TLS__KEY_FILE", file("server.key"))
    }

    fn api(&self, port: u16) -> Api {
        match &self.ca_file {
            None => Api::new(format!("http://127.0.0.1:{port}")),
            Some(file) => {
                let ca = std::fs::read(file).expect("the authority's file");
                Api::with_authority(format!("https://127.0.0.1:{port}"), &ca)
            }
        }
    }

    /// Adds an argument after `serve --data-dir DIR`.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Runs another command than `serve`, such as `demo`.
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.command = command.into();
        self
    }

    /// Runs the program as arguments of another one, such as `prlimit --nofile=100`, which must
    /// become the program and not start it as a child: signals go to it.
    pub fn under<S: Into<OsString>>(mut self, wrapper: impl IntoIterator<Item = S>) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    /// How long the server may take to be ready; 20 s by default.
    pub fn ready_within(mut self, limit: Duration) -> Self {
        self.ready_within = limit;
        self
    }

    /// How long the server may take to end after SIGTERM; 30 s by default.
    pub fn stopped_within(mut self, limit: Duration) -> Self {
        self.stopped_within = limit;
        self
    }

    /// Starts the server and waits until it is ready; panics with the reason if it is not.
    pub async fn start(self) -> Muster {
        match self.try_start().await {
            Ok(muster) => muster,
            Err(StartError::Spawn { program, source }) => {
                panic!("{} does not start: {source}", program.display())
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Starts the server and waits until it is ready, for tests of servers that shall not.
    pub async fn try_start(self) -> Result<Muster, StartError> {
        let temporary = TempDir::new().expect("a temporary directory");
        let data_dir = self.data_dir.clone().unwrap_or_else(|| temporary.path().join("data"));
        let config = self.config.as_ref().map(|yaml| {
            let file = temporary.path().join("muster.yaml");
            std::fs::write(&file, yaml).expect("the configuration file can be written");
            file
        });
        let mut attempt = 1;
        loop {
            let ports = Ports::free();
            let mut muster = Muster {
                api: self.api(ports.http),
                ports,
                data_dir: data_dir.clone(),
                config: config.clone(),
                child: None,
                stdout: Output::default(),
                stderr: Output::default(),
                builder: self.clone(),
                temporary: None,
            };
            match muster.launch().await {
                Ok(()) => {
                    muster.temporary = Some(temporary);
                    return Ok(muster);
                }
                Err(StartError::Exited { stderr, .. })
                    if is_port_taken(&stderr) && attempt < PORT_ATTEMPTS =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs the program with these arguments to its end, without a server.
    pub async fn run(&self, arguments: &[&str]) -> CliOutput {
        let mut command = self.base_command();
        command.args(arguments);
        cli::run(command, None).await
    }

    fn base_command(&self) -> Command {
        let mut words = self.wrapper.iter().cloned().chain([self.program.clone().into_os_string()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MUSTER_") {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// Whether a server gave up because another process has one of its ports.
fn is_port_taken(stderr: &str) -> bool {
    let stderr = stderr.to_lowercase();
    ["address already in use", "address in use", "os error 98"].iter().any(|text| stderr.contains(text))
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    opamp: u16,
    http: u16,
    metrics: u16,
}

impl Ports {
    fn free() -> Self {
        match free_ports(3)[..] {
            [opamp, http, metrics] => Self { opamp, http, metrics },
            _ => unreachable!("three ports were asked for"),
        }
    }
}

/// A Muster server in a process of its own, killed when this is dropped.
#[derive(Debug)]
pub struct Muster {
    builder: MusterBuilder,
    ports: Ports,
    api: Api,
    data_dir: PathBuf,
    config: Option<PathBuf>,
    child: Option<Child>,
    stdout: Output,
    stderr: Output,
    /// Goes away last, after the process.
    temporary: Option<TempDir>,
}

impl Muster {
    /// A server made by this program: `env!("CARGO_BIN_EXE_muster")` in tests of its package.
    pub fn builder(program: impl Into<PathBuf>) -> MusterBuilder {
        MusterBuilder {
            program: program.into(),
            wrapper: Vec::new(),
            command: "serve".to_owned(),
            data_dir: None,
            config: None,
            environment: Vec::new(),
            ca_file: None,
            arguments: Vec::new(),
            ready_within: Duration::from_secs(20),
            stopped_within: Duration::from_secs(30),
        }
    }

    /// Where agents connect over WebSocket.
    pub fn opamp_url(&self) -> String {
        let scheme = if self.builder.ca_file.is_some() { "wss" } else { "ws" };
        format!("{scheme}://127.0.0.1:{}/v1/opamp", self.ports.opamp)
    }

    /// Where agents poll over HTTP.
    pub fn opamp_http_url(&self) -> String {
        let scheme = if self.builder.ca_file.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}/v1/opamp", self.ports.opamp)
    }

    /// Where the API is, without a path.
    pub fn http_url(&self) -> String {
        self.api.base().to_owned()
    }

    /// Where the metrics listener is, without a path.
    pub fn metrics_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.metrics)
    }

    /// A client of the API.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Where the data is.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The process's id. Panics if the server is down.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).expect("the server runs")
    }

    /// Every line of standard error so far, those before a restart too. The lines of a process that
    /// ended are complete; those of one that runs come a moment later.
    pub fn logs(&self) -> Vec<String> {
        self.stderr.lines()
    }

    /// Every line of standard output so far, those before a restart too.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lines()
    }

    /// Waits for a line of standard error with this text and returns it.
    pub async fn wait_for_log(&self, text: &str, limit: Duration) -> String {
        let fits = |line: &str| line.contains(text).then(|| line.to_owned());
        match self.stderr.wait(0, limit, fits).await {
            Some((_, line)) => line,
            None => panic!("no log with {text:?} within {limit:?}:\n{}", self.stderr.tail()),
        }
    }

    /// Panics if the server logged an error, or panicked, so far.
    #[track_caller]
    pub fn assert_no_errors(&self) {
        let logs = self.logs();
        let errors: Vec<&String> = logs.iter().filter(|line| is_error(line)).collect();
        assert!(errors.is_empty(), "the server logged errors: {errors:#?}");
    }

    /// Runs a command of the same program against this server and waits for its end.
    pub async fn cli(&self, arguments: &[&str]) -> CliOutput {
        cli::run(self.cli_command(arguments), None).await
    }

    /// As [`cli`](Self::cli), with a text on standard input.
    pub async fn cli_with_input(&self, arguments: &[&str], input: &str) -> CliOutput {
        cli::run(self.cli_command(arguments), Some(input)).await
    }

    fn cli_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.builder.base_command();
        command.args(arguments).arg("--server").arg(self.http_url());
        if let Some(file) = &self.builder.ca_file {
            command.arg("--ca-file").arg(file);
        }
        command
    }

    /// Ends the process at once, as a crash does.
    pub async fn kill9(&mut self) {
        let mut child = self.child.take().expect("the server runs");
        child.kill().await.expect("a child can be killed");
        self.ended().await;
    }

    /// Asks the process to end; panics if it does not in time or not with exit code 0.
    pub async fn terminate(&mut self) {
        self.signal("TERM").await;
        let status = self.exited(self.builder.stopped_within).await;
        assert!(status.success(), "after SIGTERM the server ended with {status}:\n{}", self.stderr.tail());
    }

    /// Waits until the process ends by itself.
    pub async fn exited(&mut self, limit: Duration) -> ExitStatus {
        let child = self.child.as_mut().expect("the server runs");
        let Ok(status) = timeout(limit, child.wait()).await else {
            panic!("the server does not end within {limit:?}:\n{}", self.stderr.tail());
        };
        self.child = None;
        self.ended().await;
        status.expect("a child can be waited for")
    }

    /// Sends the process a signal by its name, such as `STOP` and `CONT`.
    pub async fn signal(&self, name: &str) {
        signal::send(self.pid(), name).await;
    }

    /// Sets a variable of the environment for the next [`restart`](Self::restart), or takes it away.
    pub fn set_env(&mut self, name: &str, value: Option<&str>) {
        self.builder.environment.retain(|(known, _)| known != name);
        self.builder.environment.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    /// Starts the server again after [`kill9`](Self::kill9) or [`terminate`](Self::terminate), with
    /// the same data and ports, and waits until it is ready.
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "the server runs: kill or terminate it first");
        if let Err(error) = self.launch().await {
            panic!("the server does not start again: {error}");
        }
    }

    /// Memory that the process has in use, in bytes; from `/proc`.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("/proc");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line VmRSS");
        let kilobytes: u64 = line.trim_end_matches("kB").trim().parse().expect("a number");
        kilobytes * 1024
    }

    async fn ended(&mut self) {
        self.stdout.ended().await;
        self.stderr.ended().await;
    }

    /// Starts the process and waits until it is ready.
    async fn launch(&mut self) -> Result<(), StartError> {
        let builder = &self.builder;
        let mut command = builder.base_command();
        command.arg(&builder.command).arg("--data-dir").arg(&self.data_dir);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command.args(&builder.arguments);
        let endpoints = [
            ("MUSTER_SERVER__WEBSOCKET__ENDPOINT", self.ports.opamp),
            ("MUSTER_SERVER__HTTP__ENDPOINT", self.ports.http),
            ("MUSTER_TELEMETRY__METRICS__ENDPOINT", self.ports.metrics),
        ];
        for (name, port) in endpoints {
            if !builder.environment.iter().any(|(given, _)| given == name) {
                command.env(name, format!("127.0.0.1:{port}"));
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let spawned = command.spawn();
        let mut child =
            spawned.map_err(|source| StartError::Spawn { program: builder.program.clone(), source })?;
        self.stdout.read(child.stdout.take().expect("a piped stream"));
        self.stderr.read(child.stderr.take().expect("a piped stream"));
        let child = self.child.insert(child);

        let waited = builder.ready_within;
        let ready = try_eventually(waited, async || {
            self.api.get_text("/ready").await.map_err(|error| error.to_string())
        });
        let outcome = tokio::select! {
            biased;
            status = child.wait() => Err(status.expect("a child can be waited for")),
            ready = ready => Ok(ready),
        };
        match outcome {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(reason)) => {
                self.kill9().await;
                Err(StartError::NotReady { waited, reason, stderr: self.stderr.tail() })
            }
            Err(status) => {
                self.child = None;
                self.ended().await;
                Err(StartError::Exited { status, stderr: self.stderr.tail() })
            }
        }
    }
}

/// Whether a line of the log, as JSON or as text, tells of an error or a panic.
fn is_error(line: &str) -> bool {
    let json = line.contains("\"level\":\"ERROR\"") || line.contains("\"level\":\"error\"");
    json || line.split_whitespace().take(3).any(|word| word == "ERROR") || line.contains("panicked at ")
}

impl Drop for Muster {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.start_kill();
            // The data goes away after this: nobody may be writing to it.
            for _ in 0..200 {
                if !matches!(child.try_wait(), Ok(None)) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if std::thread::panicking() {
            eprintln!("the last lines of the server's log:\n{}", self.stderr.tail());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_known_in_every_format() {
        assert!(is_error(r#"{"timestamp":"2026-07-01T00:00:00Z","level":"ERROR","event":"x"}"#));
        assert!(is_error("2026-07-01T00:00:00Z ERROR muster: no"));
        assert!(is_error("thread 'main' panicked at src/main.rs:1:1:"));
        assert!(!is_error(r#"{"level":"INFO","message":"ERROR is a word"}"#));
        assert!(!is_error("2026-07-01T00:00:00Z  INFO muster: an agent says ERROR"));
    }

    #[test]
    fn a_taken_port_is_known() {
        assert!(is_port_taken("error: cannot listen: Address already in use (os error 98)"));
        assert!(!is_port_taken("error: auth.type: unknown"));
    }

    #[tokio::test]
    async fn a_missing_program_is_an_error() {
        let error = Muster::builder("/nonexistent/muster").try_start().await.unwrap_err();
        assert!(matches!(error, StartError::Spawn { .. }));
    }
}
