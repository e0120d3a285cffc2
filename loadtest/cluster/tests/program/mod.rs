//! The program that the tests run.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The program: `MUSTER_BIN`, or else built as a developer would. Cargo gives a test only the programs of
/// its own package.
pub(crate) fn muster() -> PathBuf {
    if let Some(program) = std::env::var_os("MUSTER_BIN") {
        return program.into();
    }
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "-p", "muster", "--message-format=json"]);
    build.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = build.output().expect("cargo runs");
    assert!(output.status.success(), "cargo build -p muster failed");
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == "muster";
        message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
    };
    messages.lines().find_map(executable).expect("cargo says where the program is")
}
