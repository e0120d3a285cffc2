//! `muster watch`: what happens to agents, as it happens.

use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::agents::check_uid;
use super::client::{CliError, Client};
use super::output::{Format, Printer, clean, or_dash};

/// The server says something at least every 15 s.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest event, in bytes.
const MAX_EVENT: usize = 4 << 20;

/// Arguments of `muster watch`.
#[derive(Debug, Clone, Args)]
pub struct WatchArgs {
    /// Only these kinds of events: connected, disconnected, unreachable, reachable, health,
    /// config_applied, config_failed, config_not_sent, drifted, drift_ended, custom_message, rollout.
    #[arg(long, value_name = "KIND,...")]
    kinds: Option<String>,
    /// Only events of this agent.
    #[arg(long, value_name = "UID")]
    agent: Option<String>,
}

/// An event of the API.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Happened {
    instance_uid: String,
    at: String,
    remote_addr: String,
    reason: String,
    liveness: String,
    healthy: Option<bool>,
    config_hash: String,
    error_message: String,
    drift: String,
    expected: String,
    found: Option<String>,
    capability: String,
    #[serde(rename = "type")]
    kind: String,
    data: Option<String>,
    data_base64: Option<String>,
    data_left_out: bool,
    count: u64,
    size: u64,
    limit: u64,
    rollout: String,
    assignment: String,
    state: String,
    actor: String,
}

impl WatchArgs {
    pub(super) async fn run(self, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
        let agent = self.agent.as_deref().map(check_uid).transpose()?;
        let mut query = Vec::new();
        query.extend(self.kinds.as_deref().map(|kinds| ("kinds", kinds)));
        query.extend(agent.as_deref().map(|agent| ("agent", agent)));
        let mut response = client.stream(&["events"], &query).await?;
        let mut events = Events::default();
        loop {
            let bytes = client.next_bytes(&mut response, SILENCE).await?;
            let Some(bytes) = bytes else {
                return Err(CliError::Ended(client.server().to_owned()));
            };
            for (kind, data) in events.take(&bytes).map_err(|cause| client.not_muster(cause))? {
                let event: Value = serde_json::from_str(&data)
                    .map_err(|error| client.not_muster(&format!("an event is not JSON, {error}")))?;
                match printer.format() {
                    Format::Table => printer.line(&line(&kind, &client.read(event)?))?,
                    Format::Json => printer.line(&data)?,
                    Format::Yaml => {
                        printer.line("---")?;
                        printer.print(event, |_| Ok(String::new()))?;
                        printer.line("")?;
                    }
                }
            }
        }
    }
}

/// Takes server-sent events apart.
#[derive(Default)]
struct Events {
    /// What has come of a line.
    line: Vec<u8>,
    kind: String,
    data: String,
}

impl Events {
    /// The events that these bytes complete: kind and content of each.
    fn take(&mut self, bytes: &[u8]) -> Result<Vec<(String, String)>, &'static str> {
        let mut events = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                if self.line.len() + self.data.len() >= MAX_EVENT {
                    return Err("an event is too long");
                }
                self.line.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = String::from_utf8(line).map_err(|_| "an event is not UTF-8")?;
            let line = line.strip_suffix('\r').unwrap_or(&line);
            if line.is_empty() {
                let (kind, data) = (std::mem::take(&mut self.kind), std::mem::take(&mut self.data));
                if !data.is_empty() {
                    events.push((kind, data));
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => self.kind = value.to_owned(),
                "data" => self.data += value,
                _ => {}
            }
        }
        Ok(events)
    }
}

fn line(kind: &str, event: &Happened) -> String {
    if kind == "missed" {
        return format!("({} events were missed)", event.count);
    }
    let what = match kind {
        "connected" => format!("from {}", or_dash(&event.remote_addr)),
        "disconnected" if event.liveness.is_empty() => event.reason.clone(),
        "disconnected" => format!("{} ({})", event.liveness.replace('_', " "), event.reason),
        "health" => if event.healthy == Some(true) { "healthy" } else { "unhealthy" }.to_owned(),
        "config_applied" => event.config_hash.clone(),
        "config_failed" => format!("{} {}", or_dash(&event.config_hash), event.error_message),
        "config_not_sent" => {
            format!("{} has {} bytes, at most {} are sent", event.config_hash, event.size, event.limit)
        }
        "drifted" => {
            let found = event.found.as_deref().unwrap_or("nothing");
            format!("{}: {found} in the place of {}", event.drift, event.expected)
        }
        "drift_ended" => event.drift.clone(),
        "custom_message" => {
            let data = match (&event.data, &event.data_base64) {
                (Some(text), _) => text.clone(),
                (None, Some(base64)) => format!("base64:{base64}"),
                (None, None) if event.data_left_out => "(too long to be told)".to_owned(),
                (None, None) => String::new(),
            };
            format!("{} {} {data}", event.capability, event.kind)
        }
        "rollout" => {
            let id = or_dash(&event.rollout);
            return clean(&format!(
                "{}  {id}  rollout  {} {} by {}: {}",
                event.at, event.assignment, event.state, event.actor, event.reason
            ));
        }
        _ => String::new(),
    };
    clean(&format!("{}  {}  {kind}  {what}", event.at, event.instance_uid)).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_apart_wherever_the_bytes_are_cut() {
        let text = ": heartbeat\n\nevent: health\ndata: {\"a\":1}\n\nevent:x\r\ndata: {\r\ndata: }\r\n\r\n";
        let expected = [("health".to_owned(), "{\"a\":1}".to_owned()), ("x".to_owned(), "{}".to_owned())];
        for cut in 0..text.len() {
            let mut events = Events::default();
            let (one, other) = text.as_bytes().split_at(cut);
            let found = [events.take(one).unwrap(), events.take(other).unwrap()].concat();
            assert_eq!(found, expected, "cut at {cut}");
        }
        assert!(Events::default().take(&vec![b'x'; MAX_EVENT + 1]).is_err());
    }

    #[test]
    fn a_line_is_harmless() {
        let event = Happened {
            at: "T".to_owned(),
            instance_uid: "U".to_owned(),
            capability: "c".to_owned(),
            kind: "t".to_owned(),
            data: Some("\u{1b}[31m\n".to_owned()),
            ..Happened::default()
        };
        assert_eq!(line("custom_message", &event), "T  U  custom_message  c t \\u{1b}[31m\\n");
        assert_eq!(line("missed", &Happened { count: 3, ..Happened::default() }), "(3 events were missed)");
        assert_eq!(line("later version", &event), "T  U  later version");
    }
}
