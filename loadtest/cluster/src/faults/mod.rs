//! Breaks a part of a cluster under load, and compares what agents saw with what the store says.
//!
//! In every case agents report all the time, half of them fall silent just before the fault (so that no
//! later report makes up for a lost one), and a new config is applied to some agents at the moment of the
//! fault, while the config of the others stays as it is.

mod engines;
mod processes;
mod rig;
mod watch;

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use crate::cluster::{Cluster, ClusterOptions};
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
    /// Parts of error lines that the fault explains.
    pub explains: &'static [&'static str],
    /// Does it.
    pub act: Act,
    /// Brings back what the fault took away.
    pub mend: Act,
}

/// A step of a case.
pub type Act = for<'a> fn(&'a mut Cluster) -> LocalBoxFuture<'a, Result<()>>;

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

/// Every case.
pub const CASES: [Case; 8] = [
    processes::GATEWAY_KILL,
    processes::CONTROL_KILL,
    processes::API_KILL,
    processes::GATEWAY_ROLLING,
    processes::CONTROL_PAUSE,
    engines::NATS_ONE_DOWN,
    engines::POSTGRES_RESTART,
    engines::REDIS_EMPTY,
];

/// Those that `--quick` runs.
const QUICK: [&str; 4] = ["gateway-kill9", "control-kill9", "api-kill9", "redis-restart"];

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
}

/// Nothing to mend: what was ended is started again after every case.
fn nothing(_: &mut Cluster) -> LocalBoxFuture<'_, Result<()>> {
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
    let mut rows = Vec::new();
    for case in cases {
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
        rows.push(row(case, &report));
        // What a failure left behind is nobody else's trouble.
        if report.problems.is_empty() {
            rig = running.take();
        } else if let Some(logs) = running.take().and_then(Rig::keep_logs) {
            println!("  the logs are in {}", logs.display());
        }
    }
    if let Some(rig) = rig {
        rig.stop().await;
    }
    println!(
        "\n{:<18}{:<20}{:<9}{:>10}{:>9}{:>12}",
        "fault", "promises", "result", "settled", "resent", "in flight"
    );
    for (row, _) in &rows {
        println!("{row}");
    }
    println!(
        "\nsettled: from the end of the fault until every agent runs and reports what it should, and the API says so\n\
         resent: configs sent again to agents whose config did not change\n\
         in flight: configs sent again to agents that were about to apply them when the fault came"
    );
    Ok(rows.iter().all(|(_, good)| *good))
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

fn row(case: &Case, report: &Report) -> (String, bool) {
    let good = report.problems.is_empty();
    let settled = report.settled.map_or("-".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()));
    let result = if good { "held" } else { "FAILED" };
    let row = format!(
        "{:<18}{:<20}{:<9}{:>10}{:>9}{:>12}",
        case.name, case.promises, result, settled, report.resent, report.repeated
    );
    (row, good)
}
