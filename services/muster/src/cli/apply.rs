//! `muster apply`: manifests, all of them or none.

use std::path::PathBuf;

use clap::Args;
use reqwest::Method;
use serde::Deserialize;

use super::client::{Body, CliError, Client};
use super::output::{Printer, clean};
use super::sources::Sources;

/// Arguments of `muster apply`.
#[derive(Debug, Clone, Args)]
pub struct ApplyArgs {
    /// Manifest file of one or more documents; `-` is standard input. May be repeated: all files
    /// are applied together.
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Applied {
    results: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    kind: String,
    name: String,
    version: Option<String>,
    action: String,
}

impl ApplyArgs {
    pub(super) async fn run(self, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
        let mut sources = Sources::read(&self.files)?;
        let stream = Body::Manifests(std::mem::take(&mut sources.stream));
        let answer =
            client.call(Method::POST, &["apply"], &[], stream).await.map_err(|error| match error {
                CliError::Problem(refusal) if !refusal.errors.is_empty() => CliError::Manifests {
                    lines: refusal.errors.iter().map(|error| sources.place(error)).collect(),
                    why: refusal.to_string(),
                },
                error => error,
            })?;
        printer.print(answer, |answer| Ok(lines(&client.read(answer)?)))
    }
}

fn lines(applied: &Applied) -> String {
    let line = |outcome: &Outcome| {
        let version = outcome.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
        let object = format!("{}/{}{version}", outcome.kind.to_lowercase(), outcome.name);
        clean(&format!("{object} {}", outcome.action)) + "\n"
    };
    applied.results.iter().map(line).collect()
}
