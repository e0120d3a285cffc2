//! One process of Muster, its log in a file.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use muster_testkit::{Api, Metrics, Muster, StartError};
use serde_json::Value;

use crate::usage::Usage;

/// How often other ports are tried when somebody else was faster.
const PORT_ATTEMPTS: usize = 5;
/// How long a process may take to be ready: its engines start at the same time.
const READY: Duration = Duration::from_secs(60);
/// Becomes the program: its log goes to a file, Ctrl-C of a terminal does not reach it, and it ends with
/// the process that started it, however that ends (the latter two where util-linux is to be had).
const INTO_FILE: &str = r#"log=$1; shift
if command -v setpriv setsid >/dev/null; then exec setsid setpriv --pdeathsig KILL "$@" 2>>"$log"; fi
exec "$@" 2>>"$log""#;

/// What a process of the cluster does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Terminates agent connections.
    Gateway,
    /// Folds reports, decides, sends offers.
    Control,
    /// REST for people and services.
    Api,
    /// Everything, on embedded engines.
    Embedded,
}

impl Role {
    /// The role's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Control => "control",
            Self::Api => "api",
            Self::Embedded => "embedded",
        }
    }
}

/// A process of Muster, killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    /// What it does.
    pub role: Role,
    /// Its name, such as `gateway-1`.
    pub name: String,
    muster: Muster,
    log: PathBuf,
    running: bool,
}

impl Process {
    /// Starts a process and waits until it is ready.
    ///
    /// # Errors
    /// If it does not become ready; the text has the end of its log.
    pub async fn start(program: &Path, role: Role, number: usize, config: &str, logs: &Path) -> Result<Self> {
        let name = format!("{}-{number}", role.name());
        let log = logs.join(format!("{name}.log"));
        let mut attempt = 1;
        loop {
            let from = text(&log).len();
            let wrapper =
                ["sh".into(), "-c".into(), INTO_FILE.into(), "sh".into(), log.clone().into_os_string()];
            let mut builder = Muster::builder(program).under::<std::ffi::OsString>(wrapper);
            builder = builder.config(config).ready_within(READY).stopped_within(Duration::from_secs(60));
            if role != Role::Embedded {
                builder = builder.arg("--roles").arg(role.name()).arg("--name").arg(&name);
            }
            let error = match builder.try_start().await {
                Ok(muster) => return Ok(Self { role, name, muster, log, running: true }),
                Err(error) => error,
            };
            let said = text(&log).split_off(from);
            let port_taken = said.to_lowercase().contains("address already in use");
            if matches!(error, StartError::Exited { .. }) && port_taken && attempt < PORT_ATTEMPTS {
                attempt += 1;
                continue;
            }
            let lines: Vec<&str> = said.lines().collect();
            let tail = lines[lines.len().saturating_sub(20)..].join("\n");
            bail!("{name} does not start: {error}\n{tail}");
        }
    }

    /// A client of its HTTP endpoint: the API, or health and metrics.
    pub fn api(&self) -> &Api {
        self.muster.api()
    }

    /// Where agents connect, if it is a gateway.
    pub fn agents(&self) -> Result<SocketAddr> {
        let url = self.muster.opamp_url();
        let port = url.rsplit(':').next().and_then(|rest| rest.split('/').next());
        let port = port.and_then(|port| port.parse().ok()).with_context(|| format!("no port in {url}"))?;
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    /// Where agents connect.
    pub fn opamp_url(&self) -> String {
        self.muster.opamp_url()
    }

    /// Its metrics; none while it does not answer.
    pub async fn metrics(&self) -> Option<Metrics> {
        if !self.running {
            return None;
        }
        tokio::time::timeout(Duration::from_secs(1), self.api().metrics()).await.ok()?.ok()
    }

    /// What the process has used.
    ///
    /// # Errors
    /// If it does not run.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(self.muster.pid())
    }

    /// Its id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.running.then(|| self.muster.pid())
    }

    /// Whether it was started and not ended.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Ends it as a crash does.
    pub async fn kill9(&mut self) {
        self.running = false;
        self.muster.kill9().await;
    }

    /// Ends it in order.
    pub async fn terminate(&mut self) {
        self.running = false;
        self.muster.terminate().await;
    }

    /// Starts it again and waits until it is ready.
    pub async fn restart(&mut self) {
        self.muster.restart().await;
        self.running = true;
    }

    /// Sets a variable of the environment for the next start, or takes it away.
    pub fn set_env(&mut self, name: &str, value: Option<&str>) {
        self.muster.set_env(name, value);
    }

    /// Limits the descriptors that it may have open, without touching those that are. Returns those.
    ///
    /// # Errors
    /// If there is no `prlimit`, or no such process.
    pub fn limit_descriptors(&self, more: Option<usize>) -> Result<usize> {
        let process = self.muster.pid();
        let open = fs::read_dir(format!("/proc/{process}/fd")).context("/proc")?.count();
        let soft = more.map_or("hard".to_owned(), |more| (open + more).to_string());
        let hard = fs::read_to_string(format!("/proc/{process}/limits")).context("/proc")?;
        let hard =
            hard.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().nth(1));
        let soft = if soft == "hard" { hard.context("no limit of open files")?.to_owned() } else { soft };
        let status = std::process::Command::new("prlimit")
            .args(["--pid", &process.to_string(), &format!("--nofile={soft}:")])
            .status()
            .context("prlimit")?;
        anyhow::ensure!(status.success(), "prlimit of {} failed", self.name);
        Ok(open)
    }

    /// Halts it.
    pub async fn stop(&self) {
        self.muster.signal("STOP").await;
    }

    /// Lets it go on.
    pub async fn cont(&self) {
        self.muster.signal("CONT").await;
    }

    /// The file of its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How long its log is, in bytes.
    pub fn logged(&self) -> usize {
        fs::metadata(&self.log).map_or(0, |file| usize::try_from(file.len()).unwrap_or(usize::MAX))
    }

    /// The errors and panics in its log after so many bytes: message and error, without times and ids.
    pub fn errors_since(&self, bytes: usize) -> Vec<String> {
        let log = fs::read(&self.log).unwrap_or_default();
        let rest = String::from_utf8_lossy(log.get(bytes..).unwrap_or_default()).into_owned();
        rest.lines().filter_map(error).collect()
    }
}

/// What a line of the log says, if it is an error or a panic.
fn error(line: &str) -> Option<String> {
    if line.contains("panicked at ") {
        return Some(line.to_owned());
    }
    let value: Value = serde_json::from_str(line).ok()?;
    let field = |name: &str| {
        let found = value.get(name).or_else(|| value.get("fields")?.get(name));
        found.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let is_error = field("level").eq_ignore_ascii_case("error");
    let (message, cause) = (field("message"), field("error"));
    is_error.then(|| if cause.is_empty() { message } else { format!("{message}: {cause}") })
}

fn text(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_found_in_the_log() {
        let flat = r#"{"timestamp":"t","level":"ERROR","message":"no","error":"why"}"#;
        let nested = r#"{"level":"error","fields":{"message":"no"}}"#;
        assert_eq!(error(flat).as_deref(), Some("no: why"));
        assert_eq!(error(nested).as_deref(), Some("no"));
        assert_eq!(error(r#"{"level":"WARN","message":"no"}"#), None);
        assert!(error("thread 'main' panicked at src/a.rs:1:1:").is_some());
    }
}
