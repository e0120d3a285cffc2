//! One run of the program to its end.

use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

const LONGEST_RUN: Duration = Duration::from_secs(60);

/// What one run of the program wrote and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliOutput {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Its exit code; nothing if a signal ended it.
    pub code: Option<i32>,
}

impl CliOutput {
    /// Whether the exit code is 0.
    pub fn is_success(&self) -> bool {
        self.code == Some(0)
    }

    /// Its standard output; panics if the exit code is not 0.
    #[track_caller]
    pub fn expect_success(self) -> String {
        assert!(self.is_success(), "the program failed: {self:#?}");
        self.stdout
    }

    /// Its standard error; panics if the exit code is 0, or if it says nothing there.
    #[track_caller]
    pub fn expect_failure(self) -> String {
        assert!(!self.is_success(), "the program succeeded: {self:#?}");
        assert!(!self.stderr.trim().is_empty(), "the program failed without a reason: {self:#?}");
        self.stderr
    }

    /// Its standard output as JSON; panics if the exit code is not 0.
    #[track_caller]
    pub fn expect_json(self) -> Value {
        let stdout = self.expect_success();
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("not JSON ({error}): {stdout}"))
    }
}

/// Runs a command to its end.
pub(crate) async fn run(mut command: Command, input: Option<&str>) -> CliOutput {
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let stdin = child.stdin.take();
    let feed = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A program that ends without reading it all is judged by its exit code.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let run = async { tokio::join!(feed, child.wait_with_output()).1 };
    let Output { status, stdout, stderr } = match timeout(LONGEST_RUN, run).await {
        Ok(output) => output.expect("the output of a child"),
        Err(_) => panic!("{command:?} does not end within {LONGEST_RUN:?}"),
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    CliOutput { stdout: text(stdout), stderr: text(stderr), code: status.code() }
}
