//! Running other programs, visibly.

use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, ensure};

/// Prints the command and runs it on this terminal.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    let line = line(command);
    println!("$ {line}");
    command.status().with_context(|| format!("cannot run {line}"))
}

/// Runs the command and returns what it prints on standard output; an unsuccessful exit is an error.
pub(crate) fn stdout(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command.output().with_context(|| format!("cannot run {line}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {}: {}", output.status, complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy()));
    words.join(" ")
}
