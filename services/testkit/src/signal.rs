//! Signals to processes.

use tokio::process::Command;

/// Sends a signal by its name, such as `TERM`.
pub(crate) async fn send(process: u32, signal: &str) {
    // The shell's own `kill`: there may be no such program.
    let mut kill = Command::new("sh");
    kill.args(["-c", "kill -s \"$0\" \"$1\"", signal, &process.to_string()]);
    let status = kill.status().await.expect("sh runs");
    assert!(status.success(), "the signal {signal} did not reach the process {process}");
}
