//! `muster rollouts`: changes on their way to agents.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::client::{Body, CliError, Client};
use super::output::{Format, Page, Printer, age, clean, moment, or_dash, plain, table};

/// Time between two looks of `watch`.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Width of a bar.
const BAR: usize = 30;
/// Clears the terminal from the top.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// Commands on rollouts.
#[derive(Debug, Clone, Subcommand)]
pub enum RolloutsCommand {
    /// List rollouts, the last one first.
    List {
        /// How many.
        #[arg(long, default_value_t = 20, value_name = "NUMBER")]
        limit: usize,
    },
    /// Show a rollout: its stages, its agents, what it waits for, what happened.
    Get {
        /// The rollout's id, or the name of its assignment for the latest one.
        #[arg(value_name = "ROLLOUT")]
        rollout: String,
    },
    /// List the agents that a rollout has admitted, with what each goes back to.
    Agents {
        /// The rollout's id, or the name of its assignment for the latest one.
        #[arg(value_name = "ROLLOUT")]
        rollout: String,
    },
    /// Show a rollout as it goes, until its end; fails if that is not its completion.
    Watch {
        /// The rollout's id, or the name of its assignment for the latest one.
        #[arg(value_name = "ROLLOUT")]
        rollout: String,
    },
    /// Let a rollout begin that waits for approval.
    Approve(Asked),
    /// Send nothing more, and stop the soak clock.
    Pause(Asked),
    /// Go on with a rollout that is paused.
    Resume(Asked),
    /// Go to the next stage now, whatever the present one says.
    Promote(Asked),
    /// End a rollout where it stands: who has the change keeps it.
    Abort(Asked),
    /// Give agents back what they had before.
    Rollback(Asked),
}

/// A command of a person.
#[derive(Debug, Clone, Args)]
pub struct Asked {
    /// The rollout's id, or the name of its assignment for the latest one.
    #[arg(value_name = "ROLLOUT")]
    rollout: String,
    /// Why, for the history.
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
}

impl RolloutsCommand {
    pub(super) async fn run(self, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
        let now = OffsetDateTime::now_utc();
        match self {
            Self::List { limit } => {
                let answer = client.list(&["rollouts"], &[], Some(limit)).await?;
                printer.print(answer, |answer| Ok(list(client.read(answer)?, now)))
            }
            Self::Get { rollout } => {
                let answer = client.get(&["rollouts", &find(client, &rollout).await?], &[]).await?;
                printer.print(answer, |answer| Ok(page(&client.read(answer)?, now)))
            }
            Self::Agents { rollout } => {
                let id = find(client, &rollout).await?;
                let answer = client.list(&["rollouts", &id, "agents"], &[], None).await?;
                printer.print(answer, |answer| Ok(agents(client.read(answer)?)))
            }
            Self::Watch { rollout } => watch(&find(client, &rollout).await?, client, printer).await,
            Self::Approve(asked) => asked.run("approve", client, printer).await,
            Self::Pause(asked) => asked.run("pause", client, printer).await,
            Self::Resume(asked) => asked.run("resume", client, printer).await,
            Self::Promote(asked) => asked.run("promote", client, printer).await,
            Self::Abort(asked) => asked.run("abort", client, printer).await,
            Self::Rollback(asked) => asked.run("rollback", client, printer).await,
        }
    }
}

impl Asked {
    async fn run(self, command: &str, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
        let id = find(client, &self.rollout).await?;
        let body = Body::Json(json!({"reason": self.reason}));
        let answer = client.call(Method::POST, &["rollouts", &id, command], &[], body).await?;
        printer.print(answer, |answer| {
            let rollout: Rollout = client.read(answer)?;
            Ok(format!("rollout {} of {} is {}\n", rollout.id, rollout.assignment, rollout.state))
        })
    }
}

/// The id of a rollout that is given by its id or its assignment.
async fn find(client: &Client, name: &str) -> Result<String, CliError> {
    let is_id = name.len() == 36 && uuid::Uuid::try_parse(name).is_ok();
    if is_id {
        return Ok(name.to_ascii_lowercase());
    }
    let answer = client.list(&["rollouts"], &[], None).await?;
    let rollouts: List<Rollout> = client.read(answer)?;
    let latest = rollouts.items.into_iter().find(|rollout| rollout.assignment == name && rollout.is_latest);
    latest.map(|rollout| rollout.id).ok_or_else(|| {
        CliError::Usage(format!("{} is no id of a rollout, and no assignment with one", clean(name)))
    })
}

#[derive(Deserialize)]
struct List<T> {
    items: Vec<T>,
}

/// A rollout of the API.
#[derive(Debug, Clone, Deserialize, Default, PartialEq)]
#[serde(default)]
struct Rollout {
    id: String,
    assignment: String,
    strategy: String,
    strategy_spec: Spec,
    candidate: Release,
    state: String,
    stage: usize,
    stage_name: String,
    stages: usize,
    everyone: bool,
    exposed: u64,
    target: Option<u64>,
    soaked_seconds: f64,
    soak_seconds: f64,
    soak_running: bool,
    counts: BTreeMap<String, u64>,
    waiting_on: Vec<String>,
    failure: Option<String>,
    author: String,
    created_at: Option<String>,
    is_latest: bool,
    history: Vec<Transition>,
}

#[derive(Debug, Clone, Deserialize, Default, PartialEq)]
#[serde(default)]
struct Spec {
    stages: Vec<Stage>,
}

#[derive(Debug, Clone, Deserialize, Default, PartialEq)]
#[serde(default)]
struct Stage {
    name: String,
    percentage: Option<f64>,
    count: Option<u64>,
    selector: Option<Value>,
    duration_seconds: f64,
}

#[derive(Debug, Clone, Deserialize, Default, PartialEq)]
#[serde(default)]
struct Release {
    template: String,
    version: String,
    values: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, Deserialize, Default, PartialEq)]
#[serde(default)]
struct Transition {
    at: String,
    state: String,
    stage: usize,
    actor: String,
    reason: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Agent {
    instance_uid: String,
    standing: Option<String>,
    previous: Option<Release>,
    error_message: Option<String>,
}

impl Rollout {
    fn count(&self, names: &[&str]) -> u64 {
        names.iter().filter_map(|name| self.counts.get(*name)).sum()
    }

    fn has_ended(&self) -> bool {
        matches!(self.state.as_str(), "completed" | "rolled_back" | "aborted" | "superseded")
    }
}

fn list(rollouts: List<Rollout>, now: OffsetDateTime) -> String {
    let row = |rollout: Rollout| {
        vec![
            rollout.id,
            rollout.assignment,
            rollout.state,
            format!("{}/{} {}", rollout.stage, rollout.stages, rollout.stage_name),
            format!("{} {}", rollout.candidate.template, rollout.candidate.version),
            age(rollout.created_at.as_deref(), now),
        ]
    };
    table(&["ID", "ASSIGNMENT", "STATE", "STAGE", "RELEASE", "AGE"], rollouts.items.into_iter().map(row))
}

fn agents(agents: List<Agent>) -> String {
    let row = |agent: Agent| {
        let previous = agent.previous.map(|release| format!("{} {}", release.template, release.version));
        vec![
            agent.instance_uid,
            or_dash(&agent.standing.unwrap_or_default()),
            previous.unwrap_or_else(|| "(nothing: it keeps what it has)".to_owned()),
            or_dash(&agent.error_message.unwrap_or_default()),
        ]
    };
    table(&["INSTANCE UID", "STANDING", "PREVIOUS", "ERROR"], agents.items.into_iter().map(row))
}

/// A rollout for people: what does not change from look to look is left to [`page`].
fn picture(rollout: &Rollout) -> String {
    let mut text = format!(
        "{}  {} {}  {}\n\n",
        rollout.assignment,
        rollout.candidate.template,
        rollout.candidate.version,
        rollout.state.replace('_', " ")
    );
    let widest =
        rollout.strategy_spec.stages.iter().map(|stage| stage.name.chars().count()).max().unwrap_or(0);
    for (n, stage) in rollout.strategy_spec.stages.iter().enumerate() {
        let is_present = n + 1 == rollout.stage && !rollout.has_ended();
        let done = n + 1 < rollout.stage || rollout.state == "completed";
        let mark = match (is_present, done) {
            (true, _) => ">",
            (false, true) => "+",
            (false, false) => " ",
        };
        let size = match (stage.percentage, stage.count) {
            (Some(percentage), _) => format!("{percentage} %"),
            (None, Some(count)) => format!("{count} agents"),
            (None, None) => "selected".to_owned(),
        };
        let bar = match (is_present, done) {
            (true, _) => format!("  {}", stage_bar(rollout)),
            (false, true) => format!("  {}", "#".repeat(BAR)),
            (false, false) => String::new(),
        };
        text += &format!("{mark} {:widest$}  {size:>10}{bar}\n", clean(&stage.name));
    }
    text += "\n";
    let counts: Vec<_> =
        rollout.counts.iter().map(|(name, count)| format!("{count} {}", name.replace('_', " "))).collect();
    if !counts.is_empty() {
        text += &format!("agents   {}\n", clean(&counts.join(", ")));
    }
    if rollout.soak_seconds > 0.0 && matches!(rollout.state.as_str(), "soaking" | "paused") {
        let clock = if rollout.soak_running { "runs" } else { "stands" };
        let soaked = bar(rollout.soaked_seconds / rollout.soak_seconds);
        text += &format!(
            "soak     {soaked} {:.0} of {:.0} s, the clock {clock}\n",
            rollout.soaked_seconds, rollout.soak_seconds
        );
    }
    for waiting in &rollout.waiting_on {
        text += &format!("waits    {}\n", clean(waiting));
    }
    if let Some(failure) = &rollout.failure {
        text += &format!("halted   {}\n", clean(failure));
    }
    text
}

/// Agents of the present stage: those that applied the change as `#`, failures as `x`, others as dots.
fn stage_bar(rollout: &Rollout) -> String {
    let good = rollout.count(&["healthy", "unhealthy_before", "unknown_health", "silent", "away"]);
    let bad = rollout.count(&["failed", "late", "lost", "unhealthy", "gone"]);
    let open = rollout.count(&["waiting", "offline"]);
    let whole = match rollout.everyone {
        true => good + bad + open,
        false => rollout.target.unwrap_or(rollout.exposed).max(good + bad + open),
    };
    if whole == 0 {
        return ".".repeat(BAR);
    }
    let part = |count: u64| usize::try_from(count * BAR as u64 / whole).unwrap_or(BAR).min(BAR);
    let bad = if bad > 0 { part(bad).max(1) } else { 0 };
    let good = part(good).min(BAR - bad);
    format!("{}{}{}", "#".repeat(good), "x".repeat(bad), ".".repeat(BAR - good - bad))
}

fn bar(share: f64) -> String {
    // In this range the cast is exact.
    let full = ((share * BAR as f64) as usize).min(BAR);
    format!("{}{}", "#".repeat(full), ".".repeat(BAR - full))
}

fn page(rollout: &Rollout, now: OffsetDateTime) -> String {
    let row = |transition: &Transition| {
        vec![
            transition.at.clone(),
            transition.state.clone(),
            transition.stage.to_string(),
            transition.actor.clone(),
            transition.reason.clone(),
        ]
    };
    let values = rollout.candidate.values.iter().map(|(name, value)| (name.clone(), plain(value)));
    Page::default()
        .pairs(
            "Rollout",
            [
                ("id", rollout.id.clone()),
                ("assignment", rollout.assignment.clone()),
                ("strategy", rollout.strategy.clone()),
                ("author", rollout.author.clone()),
                ("began", moment(rollout.created_at.as_deref(), now)),
            ],
        )
        .pairs("Values", values)
        .part("Progress", &picture(rollout))
        .part(
            "History",
            &table(&["AT", "STATE", "STAGE", "ACTOR", "REASON"], rollout.history.iter().map(row)),
        )
        .finish()
}

/// Shows a rollout until its end.
async fn watch(id: &str, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
    let redraws = printer.format() == Format::Table && std::io::stdout().is_terminal();
    let mut shown = String::new();
    loop {
        let answer = client.get(&["rollouts", id], &[]).await?;
        let rollout: Rollout = client.read(answer.clone())?;
        let mut text = picture(&rollout);
        if let Some(last) = rollout.history.last() {
            text +=
                &format!("last     {} {}: {}\n", clean(&last.at), clean(&last.actor), clean(&last.reason));
        }
        match printer.format() {
            Format::Table if redraws => printer.line(&format!("{CLEAR}{text}"))?,
            // Clocks move at every look; who reads a file wants to know what happened.
            Format::Table if text != shown && !is_clock_only(&shown, &text) => printer.line(&text)?,
            Format::Table => {}
            Format::Json => printer.line(&answer.to_string())?,
            Format::Yaml => {
                printer.line("---")?;
                printer.print(answer, |_| Ok(String::new()))?;
                printer.line("")?;
            }
        }
        shown = text;
        if rollout.has_ended() {
            return match rollout.state.as_str() {
                "completed" => Ok(()),
                state => Err(CliError::Rollout { state: state.replace('_', " ") }),
            };
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether two pictures differ in nothing but how far the soak is.
fn is_clock_only(before: &str, after: &str) -> bool {
    let without = |text: &str| {
        let lines =
            text.lines().filter(|line| !line.starts_with("soak ") && !line.starts_with("waits    soaking"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    without(before) == without(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout() -> Rollout {
        let stage = |name: &str, percentage| Stage {
            name: name.to_owned(),
            percentage: Some(percentage),
            ..Stage::default()
        };
        Rollout {
            assignment: "blue".to_owned(),
            candidate: Release {
                template: "base".to_owned(),
                version: "v2".to_owned(),
                ..Release::default()
            },
            state: "soaking".to_owned(),
            stage: 2,
            strategy_spec: Spec {
                stages: vec![stage("canary", 5.0), stage("pilot", 20.0), stage("all", 100.0)],
            },
            target: Some(20),
            exposed: 20,
            counts: [("healthy".to_owned(), 15), ("failed".to_owned(), 1), ("offline".to_owned(), 4)].into(),
            soak_seconds: 60.0,
            soaked_seconds: 20.0,
            soak_running: true,
            waiting_on: vec!["soaking for 40 s more".to_owned()],
            ..Rollout::default()
        }
    }

    #[test]
    fn a_picture_shows_stages_agents_clock_and_reason() {
        let expected = "blue  base v2  soaking

+ canary         5 %  ##############################
> pilot         20 %  ######################x.......
  all          100 %

agents   1 failed, 15 healthy, 4 offline
soak     ##########.................... 20 of 60 s, the clock runs
waits    soaking for 40 s more
";
        assert_eq!(picture(&rollout()), expected);
        let later = Rollout { soaked_seconds: 30.0, ..rollout() };
        assert!(is_clock_only(&picture(&rollout()), &picture(&later)));
        let halted = Rollout { failure: Some("x".to_owned()), ..rollout() };
        assert!(!is_clock_only(&picture(&rollout()), &picture(&halted)));
    }

    #[test]
    fn one_failure_of_many_is_seen() {
        let counts = [("healthy".to_owned(), 9_999), ("failed".to_owned(), 1)].into();
        let many = Rollout { everyone: true, counts, ..rollout() };
        assert_eq!(stage_bar(&many).matches('x').count(), 1);
        assert_eq!(
            stage_bar(&Rollout { everyone: true, counts: BTreeMap::new(), ..rollout() }),
            ".".repeat(BAR)
        );
    }
}
