//! Deterministic simulation of a Muster cluster: one seed gives one history.
//!
//! The real roles run on one thread, on a clock that jumps to the next thing to do, over the memory
//! adapters behind a network of their own ([`engines`]). A nemesis breaks what can break, agents behave as
//! real clients do, and a checker looks at every step. When the nemesis stops, everything must come to
//! rest as it should be.

mod agent;
mod check;
mod cluster;
mod engines;
mod logs;
mod nemesis;
mod operator;
mod process;
mod rng;
mod scenario;
mod socket;
mod trace;
mod weather;
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Builder;

pub use world::Violation;

use crate::logs::Logs;
use crate::nemesis::Nemesis;
use crate::scenario::Scenario;
use crate::world::World;

/// A part of the design that is left out on purpose, to see that the simulation notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The store takes commits whatever the generation of the partition row.
    NoFence,
    /// Nobody is ever asked for full state.
    NoDirtyFlag,
    /// A partition's worker begins where an agent was folded last, not at the partition's row.
    PerAgentOffset,
}

/// How to run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// All that happens follows from it.
    pub seed: u64,
    /// What is broken on purpose.
    pub broken: Option<Broken>,
    /// Write the whole history to standard output.
    pub print: bool,
}

/// A run in which every rule held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The run's seed.
    pub seed: u64,
    /// Steps of its history.
    pub steps: u64,
    /// A hash over its history.
    pub hash: u64,
    /// Simulated time in all.
    pub simulated: Duration,
    /// Simulated time from the last fault until everything was at rest.
    pub settled_in: Duration,
    /// What was simulated, for people.
    pub scenario: String,
    /// How often which faults and events happened, and which rules were checked.
    pub counts: BTreeMap<String, u64>,
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// Every rule held.
    Held(Report),
    /// A rule did not hold.
    Violated(Box<Violation>),
}

/// Runs one simulation.
///
/// # Errors
/// If it cannot be run; the rules of the cluster have no part in it.
pub fn run(options: Options) -> anyhow::Result<Outcome> {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .context("the runtime cannot be made")?;
    runtime.block_on(async {
        let world = World::new(options.seed, options.broken, options.print)?;
        let _logs = tracing::subscriber::set_default(Logs(world.clone()));
        let scenario = Scenario::draw(options.seed);
        let told = scenario.to_string();
        world.trace.note("scenario", format_args!("{told}"));
        let nemesis = Nemesis::new(&world, scenario);
        let settled_in = tokio::select! {
            biased;
            violation = world.violated() => return Ok(Outcome::Violated(Box::new(violation))),
            settled = nemesis.run() => settled?,
        };
        let Some(settled_in) = settled_in else {
            return Ok(Outcome::Violated(Box::new(world.violated().await)));
        };
        let (steps, hash) = world.trace.summary();
        let simulated = world.elapsed();
        let (scenario, counts) = (told, world.trace.counts());
        Ok(Outcome::Held(Report { seed: options.seed, steps, hash, simulated, settled_in, scenario, counts }))
    })
}
