//! The results as a table, as JSON, and in the documentation.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::BenchOptions;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const BEGIN: &str = "<!-- quick: begin -->\n";
const END: &str = "<!-- quick: end -->";

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it should be; empty where there is no goal.
    pub goal: String,
}

impl Row {
    pub(super) fn new(what: impl Into<String>, value: f64, unit: &'static str, goal: &str) -> Self {
        Self { what: what.into(), value, unit, goal: goal.to_owned() }
    }

    fn shown(&self) -> String {
        let digits = match self.value.abs() {
            value if value >= 100.0 => 0,
            value if value >= 1.0 => 2,
            _ => 4,
        };
        format!("{:.digits$} {}", self.value, self.unit).trim_end().to_owned()
    }
}

/// The rows as a table in Markdown.
pub(super) fn table(rows: &[Row]) -> String {
    let mut table = "| what | measured | goal |\n|---|---|---|\n".to_owned();
    for row in rows {
        // Into a String nothing fails.
        let _ = writeln!(table, "| {} | {} | {} |", row.what, row.shown(), row.goal);
    }
    table
}

/// Writes `loadtest/results/quick.json` and the table of `docs/performance.md`.
pub(super) fn write(options: &BenchOptions, rows: &[Row]) -> Result<()> {
    let command =
        format!("cargo xtask bench --quick --agents {} --seconds {}", options.agents, options.seconds);
    let rows_json: Vec<_> = rows
        .iter()
        .map(|row| json!({"what": row.what, "value": row.value, "unit": row.unit, "goal": row.goal}))
        .collect();
    let results = json!({
        "machine": options.machine, "date": options.date, "command": command, "agents": options.agents,
        "rows": rows_json,
    });
    let directory = Path::new(ROOT).join("loadtest/results");
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("quick.json"), serde_json::to_string_pretty(&results)? + "\n")?;

    let page = Path::new(ROOT).join("docs/performance.md");
    let text = std::fs::read_to_string(&page)?;
    let (before, rest) = text.split_once(BEGIN).context("docs/performance.md has no place for the table")?;
    let (_, after) =
        rest.split_once(END).context("docs/performance.md: the place for the table has no end")?;
    let head = format!("{}, {}: `{command}`", options.machine, options.date);
    std::fs::write(&page, format!("{before}{BEGIN}\n{head}\n\n{}\n{END}{after}", table(rows)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_with_some_digits() {
        let shown = |value| Row::new("x", value, "s", "").shown();
        assert_eq!([shown(1234.5), shown(2.345), shown(0.01234)], ["1234 s", "2.35 s", "0.0123 s"]);
        assert_eq!(table(&[Row::new("a", 1.0, "", "2")]).lines().last(), Some("| a | 1.00 | 2 |"));
    }
}
