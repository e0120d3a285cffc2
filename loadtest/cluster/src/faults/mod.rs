//! Breaks a part of a cluster under load, and compares what agents saw with what the store says.
//!
//! In every case agents report all the time, half of them fall silent just before the fault (so that no
//! later report makes up for a lost one), and a new config is applied to some agents at the moment of the
//! fault, while the config of the others stays as it is.

mod agents;
mod nats;
mod offers;
mod pauses;
mod processes;
mod report;
mod rig;
mod stores;
mod watch;

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use crate::cluster::ClusterOptions;
pub use rig::{Report, Rig};

/// A fault and what must hold in it.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name on the command line.
    pub name: &'static str,
    /// The promises that are checked.
    pub promises: &'static str,
    /// What happens, for people.
    pub what: &'static str,
    /// Longest time from the end of the fault until everything is as it should be.
    pub bound: Duration,
    /// Whose connections may break.
    pub breaks: Breaks,
    /// Why the case cannot be run with this cluster or on this machine, if so.
    pub needs: fn(&ClusterOptions) -> Option<String>,
    /// Parts of error lines that the fault explains.
    pub explains: &'static [&'static str],
    /// Does it.
    pub act: Act,
    /// Brings back what the fault took away.
    pub mend: Act,
}

/// A step of a case.
pub type Act = for<'a> fn(&'a mut Rig) -> LocalBoxFuture<'a, Result<()>>;

/// Whose connections a fault may break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaks {
    /// Nobody's.
    Nobody,
    /// Those of the first gateway.
    FirstGateway,
    /// Everybody's.
    Everybody,
}

/// What most cases have in common.
const CASE: Case = Case {
    name: "",
    promises: "P1 P2 P3 P5 P6 P7",
    what: "",
    bound: Duration::from_secs(60),
    breaks: Breaks::Nobody,
    needs: |_| None,
    explains: &[],
    act: nothing,
    mend: nothing,
};

/// Every case.
pub const CASES: [Case; 25] = [
    processes::GATEWAY_KILL,
    processes::CONTROL_KILL,
    processes::API_KILL,
    processes::GATEWAY_ROLLING,
    pauses::GATEWAY_ZOMBIE,
    pauses::CONTROL_PAUSE,
    pauses::CONTROL_ALTERNATING,
    pauses::CONTROL_STALE,
    nats::ONE_DOWN,
    nats::QUORUM,
    nats::ALL,
    nats::STREAM_LOST,
    stores::POSTGRES_RESTART,
    stores::POSTGRES_STALL,
    stores::POSTGRES_BACKUP,
    stores::REDIS_RESTART,
    stores::REDIS_FLUSH,
    stores::REDIS_OLD,
    stores::REDIS_CUT,
    pauses::CLOCK_GATEWAY,
    pauses::CLOCK_CONTROL,
    processes::DESCRIPTORS,
    agents::STALLED,
    agents::TWICE,
    agents::HOSTILE,
];

/// Those that `--quick` runs.
const QUICK: [&str; 6] =
    ["gateway-kill9", "control-kill9", "api-kill9", "redis-restart", "reports-twice", "postgres-backup"];

fn three_nats(options: &ClusterOptions) -> Option<String> {
    (options.nats < 3).then(|| "it needs three NATS servers".to_owned())
}

/// What to break.
#[derive(Clone, Debug)]
pub struct FaultOptions {
    /// The cluster.
    pub cluster: ClusterOptions,
    /// Simulated agents, beside those that report all the time.
    pub agents: usize,
    /// Agents that report all the time.
    pub reporters: usize,
    /// Only this case.
    pub only: Option<String>,
    /// Only some cases.
    pub quick: bool,
    /// Whether the results are written to loadtest/results, with what the machine is and the date.
    pub write: Option<(String, String)>,
}

/// Nothing to mend: what was ended is started again after every case.
fn nothing(_: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async { Ok(()) }.boxed_local()
}

/// Runs the cases and prints a row for each; whether all promises held.
///
/// # Errors
/// If the cluster does not start, or there is no such case.
pub async fn run(options: &FaultOptions) -> Result<bool> {
    let wanted = |case: &&Case| match &options.only {
        Some(name) => case.name == name,
        None => !options.quick || QUICK.contains(&case.name),
    };
    let cases: Vec<&Case> = CASES.iter().filter(wanted).collect();
    let names: Vec<_> = CASES.iter().map(|case| case.name).collect();
    ensure!(!cases.is_empty(), "there is no such case; there are {}", names.join(", "));
    let mut rig = None;
    let mut rows: Vec<(&Case, Outcome)> = Vec::new();
    for case in cases {
        if let Some(reason) = (case.needs)(&options.cluster) {
            println!("{}: left out: {reason}", case.name);
            rows.push((case, Outcome::LeftOut(reason)));
            continue;
        }
        let running = match rig.take() {
            Some(rig) => rig,
            None => Rig::start(&options.cluster, options.agents, options.reporters).await?,
        };
        println!("{}: {}", case.name, case.what);
        let (mut running, report) = attempt(running, case).await;
        for line in &report.explained {
            println!("  logged, as the fault explains: {line}");
        }
        for problem in &report.problems {
            println!("  FAILED: {problem}");
        }
        println!("  {}", report.notes);
        // What a failure left behind is nobody else's trouble.
        if report.problems.is_empty() {
            rig = running.take();
        } else if let Some(logs) = running.take().and_then(Rig::keep_logs) {
            println!("  the logs are in {}", logs.display());
        }
        rows.push((case, Outcome::Ran(report)));
    }
    if let Some(rig) = rig {
        rig.stop().await;
    }
    println!("\n{}", report::table(&rows));
    if let Some((machine, date)) = &options.write {
        report::write(options, machine, date, &rows)?;
    }
    Ok(rows.iter().all(|(_, outcome)| outcome.is_good()))
}

/// What became of a case, or why it was not run.
#[derive(Debug)]
enum Outcome {
    Ran(Report),
    LeftOut(String),
}

impl Outcome {
    fn is_good(&self) -> bool {
        match self {
            Self::Ran(report) => report.problems.is_empty(),
            Self::LeftOut(_) => true,
        }
    }
}

/// Runs a case; a panic of the test tools is a failure like any other.
async fn attempt(mut rig: Rig, case: &Case) -> (Option<Rig>, Report) {
    let outcome = std::panic::AssertUnwindSafe(rig.run(case)).catch_unwind().await;
    match outcome {
        Ok(report) => (Some(rig), report),
        Err(panic) => {
            let text =
                panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            let problem = text.unwrap_or("a panic").to_owned();
            (Some(rig), Report { problems: vec![problem], ..Report::default() })
        }
    }
}
