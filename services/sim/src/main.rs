//! `cargo xtask sim`: runs seeds, and shows the first that breaks a rule.

use std::process::ExitCode;
use tokio::time::Instant;

use clap::{Parser, ValueEnum};
use muster_sim::{Broken, Options, Outcome, run};

#[derive(Parser)]
#[command(name = "cargo xtask sim", about = "Simulates clusters: one seed gives one history")]
struct Args {
    /// How many seeds are run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Only this seed, twice, to see that its history is the same.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Shows the whole history of `--seed`.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Goes on after a violation, and tells of each in a line.
    #[arg(long)]
    all: bool,
    /// Leaves a part of the design out, to see that it is missed.
    #[arg(long = "break")]
    broken: Option<Part>,
}

/// A part of the design that can be left out.
#[derive(Clone, Copy, ValueEnum)]
enum Part {
    NoFence,
    NoDirtyFlag,
    PerAgentOffset,
}

impl Part {
    fn broken(self) -> Broken {
        match self {
            Self::NoFence => Broken::NoFence,
            Self::NoDirtyFlag => Broken::NoDirtyFlag,
            Self::PerAgentOffset => Broken::PerAgentOffset,
        }
    }
}

fn main() -> ExitCode {
    match simulate(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn simulate(args: &Args) -> anyhow::Result<bool> {
    let broken = args.broken.map(Part::broken);
    if let Some(seed) = args.seed {
        return one(seed, broken, args.trace);
    }
    let began = Instant::now();
    let (mut steps, mut violated, mut slowest) = (0, 0, (0, 0));
    for seed in args.from..args.from.saturating_add(args.seeds) {
        match run(Options { seed, broken, print: false })? {
            Outcome::Held(report) => {
                steps += report.steps;
                slowest = slowest.max((report.settled_in.as_secs(), seed));
            }
            Outcome::Violated(violation) if args.all => {
                violated += 1;
                println!("seed {seed}: {}: {}", violation.invariant, violation.what);
            }
            Outcome::Violated(violation) => {
                println!("{violation}");
                return Ok(false);
            }
        }
    }
    println!(
        "{} seeds, {steps} steps, {} s; {violated} violations; at rest {} s after the last fault at the latest (seed {})",
        args.seeds,
        began.elapsed().as_secs(),
        slowest.0,
        slowest.1
    );
    Ok(violated == 0)
}

fn one(seed: u64, broken: Option<Broken>, print: bool) -> anyhow::Result<bool> {
    let first = run(Options { seed, broken, print })?;
    let again = run(Options { seed, broken, print: false })?;
    match (first, again) {
        (Outcome::Held(first), Outcome::Held(again)) => {
            println!("{}", first.scenario);
            println!(
                "seed {seed}: {} steps, hash {:016x}, at rest after {} s",
                first.steps,
                first.hash,
                first.settled_in.as_secs()
            );
            if first != again {
                println!("the second run differs: {} steps, hash {:016x}", again.steps, again.hash);
            }
            Ok(first == again)
        }
        (Outcome::Violated(first), Outcome::Violated(again)) if first.step == again.step => {
            println!("{first}");
            Ok(false)
        }
        (first, again) => anyhow::bail!("two runs of seed {seed} differ: {first:?} and {again:?}"),
    }
}
