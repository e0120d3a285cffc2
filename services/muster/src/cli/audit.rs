//! `muster audit`: who changed what.

use clap::{Args, Subcommand};
use muster_domain::audit::{self, Entry, Head, Outcome, Record};
use muster_domain::ids::{Digest, Tenant, Timestamp};
use serde::Deserialize;
use serde_json::Value;

use super::client::{CliError, Client};
use super::output::{Printer, or_dash, table};

/// Records that are asked for at once.
const PAGE: &str = "1000";

/// Commands on the audit log.
#[derive(Debug, Clone, Subcommand)]
pub enum AuditCommand {
    /// List records, the latest first.
    List {
        /// Which records.
        #[command(flatten)]
        filter: FilterArgs,
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
    },
    /// Write all records, the oldest first, as lines of JSON.
    Export {
        /// Which records.
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// Check that the chain is whole: nothing was changed, left out or put in.
    Verify,
}

/// Which records.
#[derive(Debug, Clone, Args)]
pub struct FilterArgs {
    /// Only what this actor did.
    #[arg(long, value_name = "ACCOUNT")]
    pub actor: Option<String>,
    /// Only this operation, such as apply.
    #[arg(long, value_name = "OPERATION")]
    pub operation: Option<String>,
    /// Only with this outcome: done or denied.
    #[arg(long, value_name = "OUTCOME")]
    pub outcome: Option<String>,
    /// From this time on, such as 2026-11-21T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Before this time.
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

impl FilterArgs {
    fn query(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("actor", &self.actor),
            ("operation", &self.operation),
            ("outcome", &self.outcome),
            ("since", &self.since),
            ("until", &self.until),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))).collect()
    }
}

impl AuditCommand {
    pub(super) async fn run(self, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
        match self {
            Self::List { filter, limit } => {
                let most = usize::try_from(limit).unwrap_or(usize::MAX);
                let answer = client.list(&["audit"], &filter.query(), Some(most)).await?;
                printer.print(answer, |answer| Ok(records(client.read(answer)?)))
            }
            Self::Export { filter } => {
                let mut pages = Pages::new(client, filter.query());
                while let Some(page) = pages.next().await? {
                    for record in page.items {
                        printer.line(&record.to_string())?;
                    }
                }
                Ok(())
            }
            Self::Verify => verify(client, printer).await,
        }
    }
}

/// Pages of records, the oldest first.
struct Pages<'a> {
    client: &'a Client,
    query: Vec<(&'static str, &'a str)>,
    cursor: Option<String>,
    is_done: bool,
}

impl<'a> Pages<'a> {
    fn new(client: &'a Client, query: Vec<(&'static str, &'a str)>) -> Self {
        Self { client, query, cursor: None, is_done: false }
    }

    async fn next(&mut self) -> Result<Option<Answer>, CliError> {
        if self.is_done {
            return Ok(None);
        }
        let mut query = self.query.clone();
        query.extend([("first", "oldest"), ("limit", PAGE)]);
        query.extend(self.cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let page: Answer = self.client.read(self.client.get(&["audit"], &query).await?)?;
        self.is_done = page.next_cursor.is_none();
        if !self.is_done && page.next_cursor == self.cursor {
            return Err(self.client.not_muster("it repeats a page"));
        }
        self.cursor.clone_from(&page.next_cursor);
        Ok(Some(page))
    }
}

async fn verify(client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
    let mut pages = Pages::new(client, Vec::new());
    let (mut head, mut wanted) = (Head::EMPTY, None);
    let mut tenant = String::new();
    let broken = |tenant: &str, broken: audit::Broken| CliError::Audit(format!("tenant {tenant}: {broken}"));
    while let Some(page) = pages.next().await? {
        // What is written meanwhile may be there or not: the head of the first page is what must be.
        let wanted = *wanted.get_or_insert(Head {
            number: page.head.number,
            digest: page.head.digest.parse().map_err(|_| client.not_muster("a digest is not one"))?,
        });
        tenant = page.tenant;
        let of: Tenant = tenant.parse().map_err(|error| client.not_muster(&format!("{error}")))?;
        for item in page.items {
            let record: RecordJson = client.read(item)?;
            let record = record.read().ok_or_else(|| client.not_muster("a record is not understood"))?;
            head = audit::verify(&of, head, &[record]).map_err(|error| broken(&tenant, error))?;
            if head.number == wanted.number {
                audit::verify_head(head, wanted).map_err(|error| broken(&tenant, error))?;
            }
        }
    }
    if let Some(wanted) = wanted.filter(|wanted| head.number < wanted.number) {
        audit::verify_head(head, wanted).map_err(|error| broken(&tenant, error))?;
    }
    printer.line(&format!(
        "tenant {tenant}: {} records, the chain is whole; it ends with {}",
        head.number, head.digest
    ))
}

#[derive(Deserialize)]
struct Answer {
    items: Vec<Value>,
    next_cursor: Option<String>,
    head: HeadJson,
    tenant: String,
}

#[derive(Deserialize)]
struct HeadJson {
    number: u64,
    digest: String,
}

/// A record as the API gives it.
#[derive(Deserialize)]
struct RecordJson {
    number: u64,
    at: String,
    at_us: u64,
    actor: String,
    role: String,
    remote_addr: String,
    operation: String,
    target: String,
    before: String,
    after: String,
    outcome: String,
    previous: String,
    digest: String,
}

impl RecordJson {
    fn read(self) -> Option<Record> {
        let digest = |text: &str| text.parse::<Digest>().ok();
        Some(Record {
            number: self.number,
            previous: digest(&self.previous)?,
            digest: digest(&self.digest)?,
            entry: Entry {
                at: Timestamp(self.at_us),
                actor: self.actor,
                role: self.role.parse().ok()?,
                remote: self.remote_addr,
                operation: self.operation,
                target: self.target,
                before: self.before,
                after: self.after,
                outcome: Outcome::named(&self.outcome)?,
            },
        })
    }
}

#[derive(Deserialize)]
struct List {
    items: Vec<RecordJson>,
}

fn records(list: List) -> String {
    let row = |record: RecordJson| {
        vec![
            record.number.to_string(),
            record.at,
            record.actor,
            record.role,
            or_dash(&record.remote_addr),
            record.operation,
            or_dash(&record.target),
            record.outcome,
        ]
    };
    let headings = ["NUMBER", "AT", "ACTOR", "ROLE", "FROM", "OPERATION", "TARGET", "OUTCOME"];
    table(&headings, list.items.into_iter().map(row))
}
