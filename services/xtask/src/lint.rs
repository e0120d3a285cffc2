//! Every static check; all of them run, and all failures are told at the end.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::{process, setup, tidy};

const INTEROP: &str = "loadtest/interop";

/// Whether every check passed.
pub(crate) fn run() -> Result<bool> {
    let mut failed = Vec::new();
    let mut step = |name: &'static str, outcome: Result<bool>| match outcome {
        Ok(true) => {}
        Ok(false) => failed.push(name.to_owned()),
        Err(error) => failed.push(format!("{name}: {error:#}")),
    };
    step("fmt", succeeds("cargo", &["fmt", "--all", "--check"]));
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    step("clippy", succeeds("cargo", &clippy));
    step("tidy", tidy::run(Path::new(".")));
    match setup::go_directory() {
        _ if !Path::new(INTEROP).join("go.mod").exists() => {}
        None => println!("skipped: gofmt and go vet, because Go is not installed (`cargo xtask setup`)"),
        Some(directory) => {
            step("gofmt", gofmt(&directory));
            let mut vet = Command::new(directory.join("go"));
            let vet = vet.args(["vet", "./..."]).current_dir(INTEROP);
            step("go vet", process::status(vet).map(|status| status.success()));
        }
    }
    if process::stdout(Command::new("cargo").args(["deny", "--version"])).is_ok() {
        step("cargo deny", succeeds("cargo", &["deny", "check"]));
    } else {
        println!("skipped: cargo deny, because it is not installed (`cargo install --locked cargo-deny`)");
    }
    match failed.as_slice() {
        [] => println!("lint: no findings"),
        failed => println!("lint failed: {}", failed.join("; ")),
    }
    Ok(failed.is_empty())
}

fn succeeds(program: &str, args: &[&str]) -> Result<bool> {
    Ok(process::status(Command::new(program).args(args))?.success())
}

fn gofmt(directory: &Path) -> Result<bool> {
    let files = process::stdout(Command::new(directory.join("gofmt")).args(["-l", INTEROP]))?;
    ensure!(files.is_empty(), "not formatted, run gofmt -w: {}", files.trim().replace('\n', ", "));
    Ok(true)
}
