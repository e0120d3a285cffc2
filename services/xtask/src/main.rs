//! Developer commands: `cargo xtask setup | test | lint | tidy | cluster | faults | sim | fuzz | bench`.

mod cluster;
mod fuzz;
mod lint;
mod process;
mod setup;
mod tidy;

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Muster")]
enum Xtask {
    /// Find the tools that the tests need; install what is missing, or say how to.
    Setup,
    /// Check the tools, then run `cargo test --workspace --locked ARGS..`.
    Test {
        /// Handed to `cargo test` as they are, a `--` too.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Check formatting, clippy, tidy, the Go code and, where installed, cargo-deny.
    Lint,
    /// Check what compilers do not: the dependency table, module headers, file lengths, links.
    Tidy,
    /// Run a whole cluster as local processes until Ctrl-C (`--help` says with what).
    Cluster(cluster::Args),
    /// Break a cluster under load, and check that nothing is lost.
    Faults(cluster::Args),
    /// Simulate clusters: `sim --seeds 5000`, `sim --seed 7 --trace`, `sim --break no-fence`.
    Sim {
        /// Handed to the simulator as they are: `--help` tells which there are.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Try generated inputs on every way in, led by coverage (cargo-fuzz).
    Fuzz(fuzz::Args),
    /// Measure beside the goals: `bench --quick`.
    Bench(cluster::Args),
}

fn main() -> ExitCode {
    match run(Xtask::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Xtask) -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("no workspace root")?;
    std::env::set_current_dir(root).with_context(|| format!("cannot enter {}", root.display()))?;
    match command {
        Xtask::Setup => Ok(exit_code(setup::run(setup::Mode::Full)?.complete)),
        Xtask::Test { .. } => test(),
        Xtask::Lint => Ok(exit_code(lint::run()?)),
        Xtask::Tidy => Ok(exit_code(tidy::run(root)?)),
        Xtask::Cluster(args) => cluster::run("cluster", &args),
        Xtask::Faults(args) => cluster::run("faults", &args),
        Xtask::Sim { args } => sim(&args),
        Xtask::Fuzz(args) => fuzz::run(&args),
        Xtask::Bench(args) => cluster::run("bench", &args),
    }
}

fn test() -> Result<ExitCode> {
    let tools = setup::run(setup::Mode::Quiet)?;
    if !tools.complete {
        return Ok(ExitCode::FAILURE);
    }
    // From the process and not from clap, which swallows the first `--`: it is for the test harness.
    let args = std::env::args_os().skip(2);
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--workspace", "--locked"]).args(args).env("PATH", tools.path);
    forward(&mut cargo)
}

/// The profile is fast and still strict.
fn sim(args: &[OsString]) -> Result<ExitCode> {
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "--quiet", "--locked", "--profile", "sim", "-p", "muster-sim", "--"]).args(args);
    forward(&mut cargo)
}

/// Runs a command, whose exit code is this one's.
fn forward(command: &mut Command) -> Result<ExitCode> {
    let status = process::status(command)?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn exit_code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        super::Xtask::command().debug_assert();
    }
}
