//! `cargo xtask sim`: runs seeds, and shows the first that breaks a rule.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use muster_sim::{Broken, Options, Outcome, run};
use tokio::time::Instant;

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
    /// How many seeds run at once: as many as there are cores, if it is not said.
    #[arg(long)]
    jobs: Option<usize>,
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

/// What many runs were, in all.
#[derive(Default)]
struct Total {
    steps: u64,
    simulated: Duration,
    violated: u64,
    slowest: (u64, u64),
    counts: BTreeMap<String, u64>,
    /// Why no more seeds are begun.
    stopped: Option<anyhow::Error>,
}

impl Total {
    fn add(&mut self, seed: u64, outcome: anyhow::Result<Outcome>, goes_on: bool) -> bool {
        match outcome {
            Ok(Outcome::Held(report)) => {
                self.steps += report.steps;
                self.simulated += report.simulated;
                self.slowest = self.slowest.max((report.settled_in.as_secs(), seed));
                for (what, count) in report.counts {
                    *self.counts.entry(what).or_default() += count;
                }
                return true;
            }
            Ok(Outcome::Violated(violation)) if goes_on => {
                println!("seed {seed}: {}: {}", violation.invariant, violation.what);
            }
            Ok(Outcome::Violated(violation)) => println!("{violation}"),
            Err(error) => {
                self.stopped = Some(error);
                return false;
            }
        }
        self.violated += 1;
        goes_on
    }
}

fn simulate(args: &Args) -> anyhow::Result<bool> {
    let broken = args.broken.map(Part::broken);
    if let Some(seed) = args.seed {
        return one(seed, broken, args.trace);
    }
    let began = Instant::now();
    let (next, end) = (AtomicU64::new(args.from), args.from.saturating_add(args.seeds));
    let total = Mutex::new(Total::default());
    // A run has a thread for itself, and shares nothing with others.
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let outcome = run(Options { seed, broken, print: false });
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            if !total.add(seed, outcome, args.all) {
                next.store(end, Ordering::Relaxed);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.unwrap_or(cores).max(1) {
            scope.spawn(work);
        }
    });
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = total.stopped {
        return Err(error);
    }
    for (what, count) in &total.counts {
        println!("{count:>12} {what}");
    }
    println!(
        "{} seeds from {} on, {} steps, {} h simulated in {} s; {} violations; at rest {} s after the last fault at the latest (seed {})",
        args.seeds,
        args.from,
        total.steps,
        total.simulated.as_secs() / 3600,
        began.elapsed().as_secs(),
        total.violated,
        total.slowest.0,
        total.slowest.1
    );
    Ok(total.violated == 0)
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
