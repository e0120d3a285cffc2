//! `cargo xtask cluster | faults | bench`: builds Muster and `muster-cluster`, and becomes the latter.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use cargo_metadata::MetadataCommand;

use crate::{process, setup};

/// Handed on, but for `--debug`.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// As `muster-cluster` takes them; `--debug` builds without optimization.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Does not return once the program runs: Ctrl-C is for it alone.
pub(crate) fn run(command: &str, args: &Args) -> Result<ExitCode> {
    let tools = setup::run(setup::Mode::Quiet)?;
    if !tools.complete {
        return Ok(ExitCode::FAILURE);
    }
    let debug = args.args.iter().any(|arg| arg == "--debug");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--locked", "-p", "muster", "-p", "muster-cluster", "-p", "muster-swarm"]);
    cargo.args((!debug).then_some("--release")).env("PATH", &tools.path);
    if !process::status(&mut cargo)?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let metadata = MetadataCommand::new().no_deps().exec().context("cargo metadata")?;
    let directory = metadata.target_directory.join(if debug { "debug" } else { "release" });
    let program = PathBuf::from(directory.join("muster-cluster"));
    let handed_on = args.args.iter().filter(|arg| *arg != "--debug");
    let mut cluster = Command::new(&program);
    cluster.arg(command).args(handed_on).env("PATH", tools.path);
    Err(cluster.exec()).with_context(|| format!("cannot run {}", program.display()))
}
