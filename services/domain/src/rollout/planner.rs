//! What happens to a rollout next, or why it waits.

use std::fmt;
use std::time::Duration;

use super::cohort::Population;
use super::strategy::{Criteria, OnFailure, Promotion, Share, Size, Stage};
use super::{Counts, Rollout, SYSTEM, Standing, State, Step};
use crate::ids::{InstanceUid, IntentRevision, Timestamp};

/// How long a request for approval stands.
pub const APPROVAL_EXPIRES: Duration = Duration::from_secs(7 * 86_400);

/// What is known when a rollout is planned.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Where its agents stand, in all partitions. Read after `read_through`.
    pub counts: &'a Counts,
    /// Everything that agents reported before this time is in the counts.
    pub read_through: Option<Timestamp>,
    /// The agents that it may reach, if they were looked up.
    pub population: Option<&'a Population>,
    /// The assignment is still there, and still has a strategy.
    pub is_assigned: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What to write, if anything.
    pub step: Option<Step>,
    /// What would be of use to go on.
    pub need: Option<Need>,
    /// What the rollout waits for, for people.
    pub waiting_on: Vec<Waiting>,
}

/// What the planner has to know to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The agents that the rollout may reach.
    Population,
    /// That everything is read that was reported before this time.
    ReadThrough(Timestamp),
}

/// Why a rollout waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// A person has to approve it before this time.
    Approval(Timestamp),
    /// A person has to go on.
    Person(String),
    /// No agent matches.
    NoAgents,
    /// No window is open.
    Window,
    /// Agents are applying the change.
    Applying(u64),
    /// As many agents apply the change as may at once.
    InFlight(u64),
    /// Control has not looked at all agents since the stage was opened.
    Looking,
    /// Too few agents have said how it went.
    Reports {
        /// How many have.
        have: u64,
        /// How many must.
        need: u64,
        /// How many are exposed and away.
        offline: u64,
    },
    /// The agents are watched for so much longer.
    Soak(Duration),
    /// Agents lost their connections by what our own parts did: the soak clock stands.
    Away(u64),
    /// The soak is over, and what agents said until then is still being read.
    Reading,
    /// No agent with the change reports its health.
    NoHealth,
    /// The agents that are not exposed are as unhealthy: that says nothing about the change.
    AllUnhealthy {
        /// Share of healthy agents with the change.
        exposed: Share,
        /// Share of healthy agents without it.
        others: Share,
    },
    /// No agent without the change reports its health, so there is nothing to compare with.
    NothingToCompare,
    /// The stage has passed; a person has to promote it.
    Promotion,
    /// Agents are given back what they had.
    Restoring(u64),
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Approval(_) => f.write_str("a person other than the author has to approve it"),
            Self::Person(why) => write!(f, "paused: {why}"),
            Self::NoAgents => f.write_str("no agent that the stage is for accepts remote config"),
            Self::Window => f.write_str("no window of the strategy is open: no more agents are exposed"),
            Self::Applying(count) => write!(f, "{count} agents have not said how it went"),
            Self::InFlight(count) => write!(f, "{count} agents apply it, which is max_in_flight"),
            Self::Looking => f.write_str("agents are being told of the stage"),
            Self::Reports { have, need, offline } => {
                write!(f, "{have} of at least {need} agents have said how it went; {offline} are offline")
            }
            Self::Soak(left) => write!(f, "soaking for {} s more", left.as_secs_f64().ceil()),
            Self::Away(count) => {
                write!(f, "{count} agents lost their connections by what Muster did: the soak clock stands")
            }
            Self::Reading => f.write_str("the soak is over; the last reports are being read"),
            Self::NoHealth => {
                f.write_str("no agent with the change reports its health: promote it, or end it")
            }
            Self::AllUnhealthy { exposed, others } => write!(
                f,
                "{exposed} of the agents with the change are healthy, and no more of the others ({others}): that says nothing about the change"
            ),
            Self::NothingToCompare => f.write_str(
                "no agent without the change reports its health: there is nothing to compare with",
            ),
            Self::Promotion => f.write_str("the stage has passed: a person has to promote it"),
            Self::Restoring(count) => write!(f, "{count} agents are given back what they had"),
        }
    }
}

impl Plan {
    fn wait(waiting: Waiting) -> Self {
        Self { step: None, need: None, waiting_on: vec![waiting] }
    }

    fn step(step: Step) -> Self {
        Self { step: Some(step), need: None, waiting_on: Vec::new() }
    }

    fn needs(need: Need, waiting: Waiting) -> Self {
        Self { step: None, need: Some(need), waiting_on: vec![waiting] }
    }
}

/// A stage's verdict at the end of its soak.
#[derive(Debug, Clone, PartialEq)]
enum Verdict {
    Passed(String),
    Failed(String),
    Inconclusive(Waiting),
}

/// Decides what happens to a rollout. Level-triggered: it may be called at any time, by any number of controls;
/// of the steps that they come to, the store takes one.
pub fn plan(rollout: &Rollout, facts: &Facts<'_>, now: Timestamp) -> Plan {
    if rollout.state.is_active() && !facts.is_assigned && rollout.state != State::RollingBack {
        let why = "the assignment is gone, or has no strategy any more";
        return Plan::step(ended(rollout, State::Aborted, why, now));
    }
    match rollout.state {
        State::PendingApproval => {
            let until = rollout.created_at.plus(APPROVAL_EXPIRES);
            match until <= now {
                true => Plan::step(ended(rollout, State::Aborted, "nobody approved it in time", now)),
                false => Plan::wait(Waiting::Approval(until)),
            }
        }
        State::Paused => {
            let why = rollout.history.last().map(|last| last.reason.clone()).unwrap_or_default();
            Plan::wait(Waiting::Person(why))
        }
        State::RollingBack => rolling_back(rollout, facts, now),
        State::Running | State::Soaking => match rollout.present_stage() {
            Some(stage) => stage_plan(rollout, stage, facts, now),
            None => Plan::step(ended(rollout, State::Completed, "it has no stage left", now)),
        },
        State::RolledBack | State::Completed | State::Aborted | State::Superseded => {
            Plan { step: None, need: None, waiting_on: Vec::new() }
        }
    }
}

fn is_looked_at(rollout: &Rollout, counts: &Counts) -> bool {
    counts.looked_at >= rollout.revision
}

fn rolling_back(rollout: &Rollout, facts: &Facts<'_>, now: Timestamp) -> Plan {
    let restoring = facts.counts.of(Standing::Restoring);
    if !is_looked_at(rollout, facts.counts) {
        return Plan::wait(Waiting::Looking);
    }
    if restoring > 0 {
        return Plan::wait(Waiting::Restoring(restoring));
    }
    let counts = facts.counts;
    let mut told = format!("{} agents have what they had before", counts.of(Standing::Restored));
    for (standing, what) in [
        (Standing::RestoredLater, "get it when they connect"),
        (Standing::Kept, "had nothing before and keep what they have"),
        (Standing::RestoreFailed, "could not apply what they had before"),
    ] {
        if counts.of(standing) > 0 {
            told += &format!(", {} {what}", counts.of(standing));
        }
    }
    let mut after = next(rollout);
    after.note(now, State::RolledBack, SYSTEM, told);
    Plan::step(Step { after, admitted: Vec::new(), moves_intent: true, raises_floor: false, audit: None })
}

fn stage_plan(rollout: &Rollout, stage: &Stage, facts: &Facts<'_>, now: Timestamp) -> Plan {
    let counts = facts.counts;
    if let Some(why) = error_verdict(rollout, &stage.criteria, counts) {
        return Plan::step(failed(rollout, &why, now));
    }
    if let Some(deadline) = stage.deadline
        && rollout.opened_at.plus(deadline) <= now
    {
        let why = format!("stage {:?} has not passed within {} s", stage.name, deadline.as_secs());
        return Plan::step(failed(rollout, &why, now));
    }
    if !is_full(rollout)
        && let Some(plan) = fill(rollout, stage, facts, now)
    {
        return plan;
    }
    if !is_looked_at(rollout, counts) {
        return Plan::wait(Waiting::Looking);
    }
    soak(rollout, stage, facts, now)
}

fn is_full(rollout: &Rollout) -> bool {
    match rollout.is_last_stage() {
        true => rollout.everyone,
        false => rollout.target.is_some_and(|target| rollout.exposed >= target),
    }
}

/// Admits agents; none if there is nothing to do but what comes after.
fn fill(rollout: &Rollout, stage: &Stage, facts: &Facts<'_>, now: Timestamp) -> Option<Plan> {
    let strategy = &rollout.strategy;
    if !strategy.is_open(now) {
        return Some(Plan::wait(Waiting::Window));
    }
    if rollout.is_last_stage() && strategy.max_in_flight.is_none() {
        return Some(Plan::step(everyone(rollout, stage, now)));
    }
    let counts = facts.counts;
    let most = match strategy.max_in_flight {
        // Who is admitted and not yet looked at is on its way, too.
        Some(_) if rollout.exposed > 0 && !is_looked_at(rollout, counts) => {
            return Some(Plan::wait(Waiting::Looking));
        }
        Some(most) => most.saturating_sub(counts.of(Standing::Waiting)),
        None => u64::MAX,
    };
    if most == 0 {
        return Some(Plan::wait(Waiting::InFlight(counts.of(Standing::Waiting))));
    }
    let Some(population) = facts.population else {
        return Some(Plan::needs(Need::Population, Waiting::Looking));
    };
    let target = match rollout.target {
        Some(target) if !rollout.is_last_stage() => target,
        _ => population.target(&stage.size),
    };
    let exposed = population.exposed.len() as u64;
    let admitted =
        population.next(&rollout.assignment, &stage.size, most.min(target.saturating_sub(exposed)));
    if !admitted.is_empty() {
        return Some(Plan::step(admit(rollout, stage, target, exposed, admitted, now)));
    }
    if rollout.is_last_stage() {
        return Some(Plan::step(everyone(rollout, stage, now)));
    }
    if exposed == 0 {
        return Some(Plan::needs(Need::Population, Waiting::NoAgents));
    }
    if rollout.target.is_none() {
        // Those of the stages before are as many as this one asks for.
        return Some(Plan::step(admit(rollout, stage, target, exposed, admitted, now)));
    }
    // There are fewer agents than the stage would take.
    None
}

fn admit(
    rollout: &Rollout,
    stage: &Stage,
    target: u64,
    exposed: u64,
    admitted: Vec<InstanceUid>,
    now: Timestamp,
) -> Step {
    let mut after = next(rollout);
    let is_first = rollout.target.is_none();
    after.exposed = exposed + admitted.len() as u64;
    after.target = Some(target);
    // The clock has not run, or agents that have yet to be watched were missing.
    after.soak = super::SoakClock::default();
    if is_first {
        let reason = format!("stage {:?} begins: {target} agents", stage.name);
        after.note(now, State::Running, SYSTEM, reason);
    } else {
        after.state = State::Running;
    }
    let moves_intent = !admitted.is_empty();
    Step { after, admitted, moves_intent, raises_floor: false, audit: None }
}

fn everyone(rollout: &Rollout, stage: &Stage, now: Timestamp) -> Step {
    let mut after = next(rollout);
    after.everyone = true;
    after.soak = super::SoakClock::default();
    after.note(now, State::Running, SYSTEM, format!("stage {:?} begins: every agent", stage.name));
    Step { after, admitted: Vec::new(), moves_intent: true, raises_floor: false, audit: None }
}

/// Why a rollout has failed by what agents said until now, if it has.
fn error_verdict(rollout: &Rollout, criteria: &Criteria, counts: &Counts) -> Option<String> {
    let limit = criteria.error_rate?;
    let (errors, reached) = (counts.errors(), counts.reached());
    if errors == 0 || !limit.is_exceeded_by(errors, reached) {
        return None;
    }
    // With all agents of the stage reached and none of the others failing it would be so, too.
    let is_certain = !rollout.everyone && limit.is_exceeded_by(errors, rollout.exposed);
    let is_judged = is_looked_at(rollout, counts) && errors + counts.applied() >= min_reports(criteria);
    (is_certain || is_judged).then(|| {
        format!(
            "{errors} of {reached} agents could not apply it or did not in time, and {limit} may: {} failed, {} late, {} lost",
            counts.of(Standing::Failed),
            counts.of(Standing::Late),
            counts.of(Standing::Lost)
        )
    })
}

fn min_reports(criteria: &Criteria) -> u64 {
    criteria.min_reports.max(1)
}

fn soak(rollout: &Rollout, stage: &Stage, facts: &Facts<'_>, now: Timestamp) -> Plan {
    let counts = facts.counts;
    let is_running = rollout.soak.running_since.is_some();
    let away = counts.of(Standing::Away);
    if away > 0 {
        return match is_running {
            true => Plan::step(clock(rollout, now, false)),
            false => Plan::wait(Waiting::Away(away)),
        };
    }
    if !is_running {
        let waiting = counts.of(Standing::Waiting);
        let has_soaked = rollout.state == State::Soaking;
        // Who comes later is judged with the others, and does not begin the soak anew.
        if waiting > 0 && !has_soaked {
            return Plan::wait(Waiting::Applying(waiting));
        }
        if let Some(waiting) = too_few(rollout, &stage.criteria, counts) {
            return Plan::wait(waiting);
        }
        return Plan::step(clock(rollout, now, true));
    }
    let left = stage.soak.saturating_sub(rollout.soak.elapsed(now));
    if !left.is_zero() {
        return Plan::wait(Waiting::Soak(left));
    }
    let end = rollout.soak.ends(stage.soak).unwrap_or(now);
    if facts.read_through.is_none_or(|through| through < end) {
        return Plan::needs(Need::ReadThrough(end), Waiting::Reading);
    }
    match too_few(rollout, &stage.criteria, counts)
        .map_or_else(|| judge(rollout, stage, counts), Verdict::Inconclusive)
    {
        Verdict::Failed(why) => Plan::step(failed(rollout, &why, now)),
        Verdict::Inconclusive(waiting) => Plan::wait(waiting),
        Verdict::Passed(_) if stage.promotion == Promotion::Manual => Plan::wait(Waiting::Promotion),
        Verdict::Passed(told) => {
            let told = format!("stage {:?} passed: {told}", stage.name);
            Plan::step(advance(rollout, SYSTEM, &told, now))
        }
    }
}

fn too_few(rollout: &Rollout, criteria: &Criteria, counts: &Counts) -> Option<Waiting> {
    let (have, need) = (counts.reported(), min_reports(criteria));
    // With nobody to give it to, the last stage has nothing to wait for.
    let is_empty = rollout.everyone && counts.by.is_empty();
    let offline = counts.of(Standing::Offline);
    (have < need && !is_empty).then_some(Waiting::Reports { have, need, offline })
}

/// The verdict at the end of the soak on the health of those that applied the change.
fn judge(rollout: &Rollout, stage: &Stage, counts: &Counts) -> Verdict {
    use Standing::{Gone, Healthy, UnexposedHealthy, UnexposedUnhealthy, Unhealthy, UnhealthyBefore};
    let criteria = &stage.criteria;
    let whole = counts.sum(&[Healthy, Unhealthy, UnhealthyBefore, Gone]);
    // There is nobody else to compare with in the last stage: each agent stands beside what it was.
    let good = match rollout.everyone {
        true => counts.sum(&[Healthy, UnhealthyBefore]),
        false => counts.of(Healthy),
    };
    let told = format!(
        "{} applied, {} failed, {} late, {good} of {whole} healthy",
        counts.applied(),
        counts.of(Standing::Failed),
        counts.sum(&[Standing::Late, Standing::Lost])
    );
    if whole == 0 && counts.applied() == 0 {
        return Verdict::Passed(told);
    }
    let compares = criteria.margin.filter(|_| !rollout.everyone);
    if whole == 0 && (criteria.pass_rate.is_some() || compares.is_some()) {
        return Verdict::Inconclusive(Waiting::NoHealth);
    }
    let misses = criteria.pass_rate.filter(|rate| rate.is_missed_by(good, whole));
    if let Some(margin) = compares {
        let others = counts.sum(&[UnexposedHealthy, UnexposedUnhealthy]);
        if others == 0 {
            return Verdict::Inconclusive(Waiting::NothingToCompare);
        }
        let share =
            |part: u64, whole: u64| Share::of_fraction(part as f64 / whole as f64).unwrap_or_default();
        let (exposed, others) = (share(good, whole), share(counts.of(UnexposedHealthy), others));
        if exposed.fraction() + margin.fraction() < others.fraction() {
            return Verdict::Failed(format!(
                "{exposed} of the agents with the change are healthy, {others} of those without it: {margin} less is allowed"
            ));
        }
        if misses.is_some() {
            return Verdict::Inconclusive(Waiting::AllUnhealthy { exposed, others });
        }
    }
    match misses {
        Some(rate) => Verdict::Failed(format!(
            "{good} of {whole} agents that applied it are healthy, {rate} must be: {} unhealthy, {} gone",
            counts.sum(&[Unhealthy, UnhealthyBefore]),
            counts.of(Gone)
        )),
        None => Verdict::Passed(told),
    }
}

/// The rollout with its next version.
pub(super) fn next(rollout: &Rollout) -> Rollout {
    Rollout { version: rollout.version + 1, ..rollout.clone() }
}

fn clock(rollout: &Rollout, now: Timestamp, runs: bool) -> Step {
    let mut after = next(rollout);
    if runs {
        after.soak.start(now);
        if rollout.state != State::Soaking {
            after.note(now, State::Soaking, SYSTEM, "every agent that is there has said how it went");
        }
    } else {
        after.soak.stop(now);
    }
    Step { after, admitted: Vec::new(), moves_intent: false, raises_floor: false, audit: None }
}

/// The stage has failed: halts the rollout, as the strategy says.
fn failed(rollout: &Rollout, why: &str, now: Timestamp) -> Step {
    let mut after = next(rollout);
    after.failure = Some(why.to_owned());
    after.soak.stop(now);
    match rollout.strategy.on_failure {
        OnFailure::Rollback => after.note(now, State::RollingBack, SYSTEM, why),
        OnFailure::Pause => after.note(now, State::Paused, SYSTEM, why),
    }
    Step { after, admitted: Vec::new(), moves_intent: true, raises_floor: true, audit: None }
}

/// The next stage begins, or the rollout is complete.
pub(super) fn advance(rollout: &Rollout, actor: &str, why: &str, now: Timestamp) -> Step {
    let mut after = next(rollout);
    after.soak = super::SoakClock::default();
    after.failure = None;
    let was_halted = rollout.state == State::Paused;
    if rollout.is_last_stage() {
        // Promoted before it was opened, it is for everyone all the same.
        after.everyone = true;
        after.note(now, State::Completed, actor, why);
        return Step { after, admitted: Vec::new(), moves_intent: true, raises_floor: false, audit: None };
    }
    after.stage += 1;
    after.target = None;
    after.opened_at = now;
    after.note(now, State::Running, actor, why);
    Step { after, admitted: Vec::new(), moves_intent: was_halted, raises_floor: false, audit: None }
}

pub(super) fn ended(rollout: &Rollout, state: State, why: &str, now: Timestamp) -> Step {
    let mut after = next(rollout);
    after.note(now, state, SYSTEM, why);
    let was_out = rollout.exposed > 0 || rollout.everyone;
    Step {
        after,
        admitted: Vec::new(),
        moves_intent: true,
        raises_floor: was_out && state != State::Completed,
        audit: None,
    }
}

/// Whether a rollout's agents get their part of it with this revision of the intent or an earlier one.
pub fn is_due(rollout: &Rollout, revision: IntentRevision) -> bool {
    rollout.revision <= revision
}

/// Whether a stage is for those that match something.
pub fn stage_selector(stage: &Stage) -> Option<&crate::selector::AgentSelector> {
    match &stage.size {
        Size::Matching(selector) => Some(selector),
        Size::Share(_) | Size::Count(_) => None,
    }
}
