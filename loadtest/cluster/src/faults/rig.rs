//! A cluster with its agents, and what is compared before and after a fault.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use muster_fleet::{Fleet, FleetOptions, Kind, Mix, Stats};
use muster_testkit::try_eventually;
use tokio_util::sync::CancellationToken;

use super::offers::Offers;
use super::watch::Watch;
use super::{Breaks, Case};
use crate::check::{self, Apis, Desired};
use crate::cluster::{Cluster, ClusterOptions};
use crate::manifests;
use crate::process::Role;
use crate::reporter::Reporters;

/// How long the agents may take to connect and to run their first config.
const FIRST: Duration = Duration::from_secs(120);
/// How long an apply may take, on any api.
const APPLY: Duration = Duration::from_secs(60);
/// How long what was reported may take until the API shows it.
const SHOWN: Duration = Duration::from_secs(20);
/// From the request that applies to the fault.
const UNDER_WAY: Duration = Duration::from_millis(30);
/// After everything is as it should be, nothing more may be sent for this long.
const CALM: Duration = Duration::from_secs(3);

/// A cluster with agents at work.
#[derive(Debug)]
pub struct Rig {
    pub(super) fleet: Fleet,
    pub(super) reporters: Reporters,
    pub(super) cluster: Cluster,
    pub(super) apis: Apis,
    /// Serial of the config that was applied last, and of the one that agents are to end with.
    pub(super) serial: u64,
    pub(super) wanted: u64,
    pub(super) desired: Desired,
    pub(super) offers: Offers,
    /// Agents that the store knows and that are neither of the fleet nor reporters.
    pub(super) strangers: usize,
    /// What a case has to say beside.
    pub(super) notes: Vec<String>,
    watch: Option<Watch>,
}

/// What became of a case.
#[derive(Debug, Default)]
pub struct Report {
    /// From the end of the fault until everything was as it should be.
    pub settled: Option<Duration>,
    /// Configs sent again to agents whose config did not change.
    pub resent: u64,
    /// Configs sent again to agents that had not applied them when the fault came.
    pub repeated: u64,
    /// What did not hold.
    pub problems: Vec<String>,
    /// Errors in the logs that the fault explains.
    pub explained: Vec<String>,
    /// What else happened.
    pub notes: String,
}

/// How things were before a fault.
struct Before {
    stats: Stats,
    /// Of the reporters together.
    answers: u64,
    drops: u64,
    unavailable: u64,
    asked: u64,
    /// Lengths of the logs.
    logged: Vec<usize>,
    on_first_gateway: f64,
}

impl Rig {
    /// Starts a cluster and agents, and waits until all of them run what they should.
    ///
    /// # Errors
    /// If that does not come about.
    pub async fn start(options: &ClusterOptions, agents: usize, reporters: usize) -> Result<Self> {
        let began = Instant::now();
        let cluster = Cluster::start(options).await?;
        println!("the cluster is up after {:.1} s", began.elapsed().as_secs_f64());
        let apis = cluster.apis();
        apis.apply(&manifests::both(1), APPLY).await.context("the first apply")?;
        let offers = Offers::default();
        let options = FleetOptions {
            observer: offers.observer(),
            count: agents,
            mix: Mix::only(Kind::Collector),
            heartbeat: Duration::from_secs(5),
            apply_delay: Duration::from_millis(20)..=Duration::from_millis(200),
            connect_rate: 500.0,
            ..FleetOptions::new(cluster.opamp_url())
        };
        let fleet = Fleet::start(options, CancellationToken::new())?;
        let reporters = Reporters::start(&cluster.opamp_url(), reporters);
        let mut rig = Self {
            fleet,
            reporters,
            cluster,
            apis,
            serial: 1,
            wanted: 1,
            desired: Desired::default(),
            offers,
            strangers: 0,
            notes: Vec::new(),
            watch: None,
        };
        let settled =
            rig.settle(FIRST).await.map_err(|reason| anyhow!("the agents do not settle: {reason}"))?;
        rig.desired.steady = Some(rig.steady().await?);
        println!("{agents} agents run their first config {:.1} s after their start", settled.as_secs_f64());
        Ok(rig)
    }

    /// The hash of the config that does not change.
    async fn steady(&self) -> Result<String> {
        let listed =
            self.apis.list("service.name=io.opentelemetry.collector,deployment.environment!=prod").await?;
        let agent = listed.values().find_map(|agent| agent.desired.clone());
        agent.context("no agent has the config that does not change: use more agents")
    }

    /// The cluster, to break by hand.
    pub fn cluster_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }

    /// Waits until every agent runs what it should; says how long that took.
    ///
    /// # Errors
    /// What is amiss at the end.
    pub async fn settle(&self, limit: Duration) -> Result<Duration, String> {
        let began = Instant::now();
        try_eventually(limit, async || {
            let said = self.reporters.said();
            check::converged(&self.fleet, &said, self.strangers, &self.apis, &self.desired).await?;
            self.offers.all_have(self.wanted)?;
            let away = said.iter().filter(|said| !said.connected).count();
            if away == 0 { Ok(()) } else { Err(format!("{away} reporting agents are not connected")) }
        })
        .await?;
        Ok(began.elapsed())
    }

    /// Does what the case says under load, and checks what must hold.
    pub async fn run(&mut self, case: &Case) -> Report {
        let mut report = Report::default();
        let before = self.before().await;
        // From now on whoever runs one of these and is to change is behind.
        let ran = before.stats.running.keys().filter(|hash| Some(*hash) != self.desired.steady.as_ref());
        self.desired.old = ran.cloned().collect();
        self.watch = Some(Watch::start(self.apis.clone()));
        self.reporters.take_waits();

        // The apply is under way when the fault comes.
        let (apis, manifest) = (self.apis.clone(), self.next_config());
        self.reporters.hold_half();
        let fault = async {
            tokio::time::sleep(UNDER_WAY).await;
            let outcome = (case.act)(self).await;
            (outcome, Instant::now())
        };
        let (applied, (outcome, ended)) = tokio::join!(apis.apply(&manifest, APPLY), fault);
        if let Err(error) = outcome {
            report.problems.push(format!("{error:#}"));
        }
        if let Err(error) = applied {
            report.problems.push(format!("the apply failed: {error:#}"));
        }
        match self.settle(case.bound).await {
            Ok(_) => report.settled = Some(ended.elapsed()),
            Err(reason) => {
                report.problems.push(format!("P3 P6: not settled within {:?}: {reason}", case.bound));
            }
        }
        self.reporters.hold_all();
        self.check_reports(&mut report).await;
        tokio::time::sleep(CALM).await;
        let looks = match self.watch.take() {
            Some(watch) => {
                let (looks, backward) = watch.end().await;
                report.problems.extend(backward.into_iter().take(5).map(|what| format!("P2: {what}")));
                looks
            }
            None => 0,
        };
        let backward = self.offers.take_backward();
        report.problems.extend(backward.into_iter().map(|what| format!("P3: {what}")));
        self.check_offers(case, &before, &mut report);
        self.check_connections(case, &before, &mut report);
        self.check_logs(case, &before, &mut report);
        report.notes = self.told(&before, looks);
        self.mend(case, &mut report).await;
        report
    }

    /// The manifest of a config that nobody has had yet, and that agents are to end with.
    fn next_config(&mut self) -> String {
        self.serial += 1;
        self.wanted = self.serial;
        manifests::changing(self.serial)
    }

    /// Applies one more config in the middle of a case.
    ///
    /// # Errors
    /// If no api does it.
    pub(super) async fn apply_next(&mut self) -> Result<()> {
        let manifest = self.next_config();
        self.apis.apply(&manifest, APPLY).await.map(drop)
    }

    /// The store was set back: what is shown may be older than what was shown before, once.
    pub(super) fn forget_shown(&self) {
        if let Some(watch) = &self.watch {
            watch.forget();
        }
    }

    /// Ownership loses what it alone knows, for the rest of the case.
    pub(super) fn forget_heartbeats(&self) {
        if let Some(watch) = &self.watch {
            watch.forget_heartbeats();
        }
    }

    /// How many agents are to be connected.
    pub(super) fn everybody(&self) -> usize {
        self.fleet.agents().len() + self.reporters.len()
    }

    /// Waits until so many agents are connected to a role's processes, the first one apart if it is told.
    pub(super) async fn connected(&self, without_first: bool, wanted: usize, limit: Duration) -> Result<()> {
        let outcome = try_eventually(limit, async || {
            let all = self.cluster.metrics(Role::Gateway).await;
            let counted = all.iter().skip(usize::from(without_first)).flatten();
            let found: f64 = counted.map(|metrics| metrics.sum("opamp_server_connected_agents")).sum();
            if found == wanted as f64 {
                Ok(())
            } else {
                Err(format!("{found} of {wanted} agents are connected"))
            }
        });
        outcome.await.map_err(|reason| anyhow!("not within {limit:?}: {reason}"))
    }

    async fn before(&self) -> Before {
        let said = self.reporters.said();
        let first = self.cluster.process(Role::Gateway, 0).metrics().await;
        Before {
            stats: self.fleet.stats(),
            answers: said.iter().map(|said| said.answers).sum(),
            drops: said.iter().map(|said| said.drops).sum(),
            unavailable: said.iter().map(|said| said.unavailable).sum(),
            asked: said.iter().map(|said| said.asked).sum(),
            logged: self.cluster.processes().iter().map(crate::process::Process::logged).collect(),
            on_first_gateway: first.map_or(0.0, |metrics| metrics.sum("muster_gateway_open_connections")),
        }
    }

    /// P1: what was answered is what the API shows.
    async fn check_reports(&self, report: &mut Report) {
        // Heartbeats go on: what was answered by now is what must be shown in time.
        let said = self.reporters.said();
        let outcome = try_eventually(SHOWN, async || {
            let lost = check::lost(&said, &self.apis).await.map_err(|error| format!("{error:#}"))?;
            if lost.is_empty() {
                return Ok(());
            }
            let first: Vec<_> = lost.iter().take(3).cloned().collect();
            Err(format!("{} differences between agents and API: {}", lost.len(), first.join("; ")))
        });
        if let Err(reason) = outcome.await {
            report.problems.push(format!("P1: {reason}"));
        }
    }

    /// P3 and P7: nobody gets a config again, or one that is not its own.
    fn check_offers(&self, case: &Case, before: &Before, report: &mut Report) {
        let stats = self.fleet.stats();
        let mut offers = stats.configs_received.clone();
        for (hash, count) in &before.stats.configs_received {
            let more = offers.remove(hash).unwrap_or_default() - count;
            report.resent += more;
        }
        // What is left are new configs, which each agent of the changing assignment gets once.
        let due: usize = stats
            .running
            .iter()
            .filter(|(hash, _)| offers.contains_key(*hash))
            .map(|(_, agents)| agents)
            .sum();
        report.repeated = offers.values().sum::<u64>().saturating_sub(due as u64);
        if report.resent > 0 {
            report.problems.push(format!(
                "P3: {} configs were sent again to agents whose config did not change",
                report.resent
            ));
        }
        if case.breaks == Breaks::Nobody && report.repeated > 0 {
            // Lost deliveries are repeated: that costs bytes and breaks no promise.
            report.explained.push(format!("{} offers under way were repeated", report.repeated));
        }
        let wrong = stats.errors - before.stats.errors;
        if wrong > 0 {
            report
                .problems
                .push(format!("P3 P7: agents saw {wrong} impossible messages: {:?}", stats.last_error));
        }
        if stats.new_uids > before.stats.new_uids {
            report.problems.push("P7: agents were given new identities".to_owned());
        }
        let offered: u64 = self.reporters.said().iter().map(|said| said.offers).sum();
        if offered > 0 {
            report.problems.push(format!("P3: {offered} offers to agents that no assignment is for"));
        }
    }

    /// P5: only those connections break that the fault takes away.
    fn check_connections(&self, case: &Case, before: &Before, report: &mut Report) {
        let drops: u64 = self.reporters.said().iter().map(|said| said.drops).sum();
        let lost = (self.fleet.stats().drops - before.stats.drops) + (drops - before.drops);
        let allowed = match case.breaks {
            Breaks::Nobody => 0,
            Breaks::FirstGateway => before.on_first_gateway as u64,
            Breaks::Everybody => u64::MAX,
        };
        if lost > allowed {
            let reason = self.fleet.stats().last_error.unwrap_or_default();
            report.problems.push(format!("P5: {lost} connections broke, {allowed} may: {reason}"));
        }
    }

    /// Nothing but what the fault explains is logged as an error.
    fn check_logs(&self, case: &Case, before: &Before, report: &mut Report) {
        let mut lines: BTreeMap<String, usize> = BTreeMap::new();
        for (process, logged) in self.cluster.processes().iter().zip(&before.logged) {
            for error in process.errors_since(*logged) {
                *lines.entry(format!("{}: {error}", process.name)).or_default() += 1;
            }
        }
        for (line, count) in lines {
            let line = format!("{line} ({count} times)");
            match case.explains.iter().any(|part| line.contains(part)) {
                true => report.explained.push(line),
                false => report.problems.push(format!("logged as an error: {line}")),
            }
        }
    }

    fn told(&mut self, before: &Before, looks: u64) -> String {
        let own: String = self.notes.drain(..).map(|note| note + "; ").collect();
        let (stats, said) = (self.fleet.stats(), self.reporters.said());
        let sum = |of: fn(&crate::reporter::Said) -> u64| said.iter().map(of).sum::<u64>();
        format!(
            "{own}{} reports answered, {} told to wait, {} asked for full state; fleet: {} connections, {} drops, {} asked \
             for full state, {} error responses; the API was looked at {looks} times",
            sum(|said| said.answers) - before.answers,
            sum(|said| said.unavailable) - before.unavailable,
            sum(|said| said.asked) - before.asked,
            stats.connections - before.stats.connections,
            stats.drops - before.stats.drops,
            stats.full_states_asked - before.stats.full_states_asked,
            stats.error_responses - before.stats.error_responses,
        )
    }

    /// Brings back what the fault took away, for the next case.
    async fn mend(&mut self, case: &Case, report: &mut Report) {
        if let Err(error) = (case.mend)(self).await {
            report.problems.push(format!("mending: {error:#}"));
        }
        self.cluster.restart_ended().await;
        self.reporters.report_all();
        if let Err(reason) = self.settle(case.bound).await {
            report.problems.push(format!("not settled after everything was back: {reason}"));
        }
    }

    /// Leaves the logs where they are, and ends everything at once.
    pub fn keep_logs(self) -> Option<PathBuf> {
        self.cluster.keep_logs()
    }

    /// Ends agents and cluster in order.
    pub async fn stop(self) {
        drop(self.reporters);
        self.fleet.stop().await;
        self.cluster.terminate().await;
    }
}
