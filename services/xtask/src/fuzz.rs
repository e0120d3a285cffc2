//! `cargo xtask fuzz`: generated inputs for every way in, led by coverage.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::process;

/// The targets, and what they are given to begin with.
const CORPORA: &str = "fuzz/corpus";
/// Where inputs are kept that were found: not among those that are committed.
const FOUND: &str = "target/fuzz-corpus";

/// How long, and what.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only this target, by the name of its corpus.
    target: Option<String>,
}

/// Runs the targets one after the other; a nightly compiler and cargo-fuzz are needed.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if process::stdout(Command::new("cargo").args(["+nightly", "fuzz", "--version"])).is_err() {
        println!(
            "cargo-fuzz is missing: rustup toolchain install nightly; cargo install --locked cargo-fuzz"
        );
        return Ok(ExitCode::FAILURE);
    }
    let mut targets = fs::read_dir(CORPORA)
        .with_context(|| format!("cannot read {CORPORA}"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    targets.sort();
    targets.retain(|target| args.target.as_ref().is_none_or(|only| only == target));
    let mut code = ExitCode::SUCCESS;
    for target in targets {
        let found = Path::new(FOUND).join(&target);
        fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
        let mut cargo = Command::new("cargo");
        cargo.args(["+nightly", "fuzz", "run", "--fuzz-dir", "fuzz", "--target-dir", "target/fuzz", &target]);
        cargo.arg(found).arg(Path::new(CORPORA).join(&target));
        cargo.arg("--").arg(format!("-max_total_time={}", args.seconds));
        cargo.args(["-max_len=4096", "-rss_limit_mb=2048", "-print_final_stats=1"]);
        if !process::status(&mut cargo)?.success() {
            println!("{target}: add the input to {CORPORA}/{target}, so that the tests keep it");
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
