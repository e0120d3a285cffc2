//! The results as a table and as JSON.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Case, FaultOptions, Outcome};

/// Beside the other results.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../results/faults.json");

/// A row for each case.
pub(super) fn table(rows: &[(&Case, Outcome)]) -> String {
    let mut table = format!(
        "{:<22}{:<20}{:<10}{:>10}{:>8}{:>8}{:>11}\n",
        "fault", "promises", "result", "settled", "bound", "resent", "in flight"
    );
    for (case, outcome) in rows {
        let Case { name, promises, bound, .. } = case;
        // Into a String nothing fails.
        let _ = match outcome {
            Outcome::LeftOut(reason) => writeln!(table, "{name:<22}{promises:<20}left out: {reason}"),
            Outcome::Ran(report) => {
                let settled =
                    report.settled.map_or("-".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()));
                let (result, bound) = (result(outcome), format!("{} s", bound.as_secs()));
                let (resent, repeated) = (report.resent, report.repeated);
                writeln!(
                    table,
                    "{name:<22}{promises:<20}{result:<10}{settled:>10}{bound:>8}{resent:>8}{repeated:>11}"
                )
            }
        };
    }
    table.push_str(
        "
settled: from the end of the fault until every agent runs and reports what it should, and the API says so
resent: configs sent again to agents whose config did not change
in flight: configs sent again to agents that were about to apply them when the fault came",
    );
    table
}

fn result(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::LeftOut(_) => "left out",
        Outcome::Ran(_) if outcome.is_good() => "held",
        Outcome::Ran(_) => "FAILED",
    }
}

/// Writes the rows into the file of results; those of cases that were not run stay as they are.
pub(super) fn write(
    options: &FaultOptions,
    machine: &str,
    date: &str,
    rows: &[(&Case, Outcome)],
) -> Result<()> {
    let before = std::fs::read_to_string(FILE).ok().and_then(|text| serde_json::from_str(&text).ok());
    let before: Vec<Value> =
        before.and_then(|all: Value| all["rows"].as_array().cloned()).unwrap_or_default();
    let new: Vec<Value> = rows.iter().map(|(case, outcome)| row(case, outcome, date)).collect();
    let mut all = Vec::new();
    for case in super::CASES {
        let of_case = |row: &&Value| row["fault"] == case.name;
        all.extend(new.iter().find(of_case).or_else(|| before.iter().find(of_case)).cloned());
    }
    let cluster = &options.cluster;
    let whole = json!({
        "machine": machine,
        "command": "cargo xtask faults",
        "agents": options.agents,
        "reporters": options.reporters,
        "processes": {"gateways": cluster.gateways, "controls": cluster.controls, "apis": cluster.apis, "nats": cluster.nats},
        "rows": all,
    });
    let text = serde_json::to_string_pretty(&whole).context("the results")?;
    std::fs::write(Path::new(FILE), text + "\n").context(FILE)
}

fn row(case: &Case, outcome: &Outcome, date: &str) -> Value {
    let mut row = json!({
        "fault": case.name,
        "what": case.what,
        "promises": case.promises,
        "result": result(outcome),
        "date": date,
    });
    match outcome {
        Outcome::LeftOut(reason) => row["reason"] = json!(reason),
        Outcome::Ran(report) => {
            row["settled_seconds"] =
                json!(report.settled.map(|time| (time.as_secs_f64() * 10.0).round() / 10.0));
            row["bound_seconds"] = json!(case.bound.as_secs());
            row["resent"] = json!(report.resent);
            row["repeated_in_flight"] = json!(report.repeated);
            row["problems"] = json!(report.problems);
            row["notes"] = json!(report.notes);
        }
    }
    row
}
