//! Log lines for machines: one flat JSON object each.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::io::Write as _;

use opentelemetry::trace::TraceContextExt;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Names that no field of an event or span takes.
const OURS: [&str; 5] = ["timestamp", "level", "component", "trace_id", "span_id"];

/// Writes events as JSON lines: when, how grave, whose, what, then the event's fields and those of
/// the spans around it, the nearest first.
pub(super) struct JsonLines<W> {
    writer: W,
}

impl<W> JsonLines<W> {
    pub(super) fn new(writer: W) -> Self {
        Self { writer }
    }
}

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    W: for<'writer> MakeWriter<'writer> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = begin(event, &fields);
        add(&mut line, &fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<Fields>() {
                add(&mut line, fields);
            }
        }
        add_trace(&mut line);
        let mut bytes = Value::Object(line).to_string().into_bytes();
        bytes.push(b'\n');
        // Where the log cannot be written, nobody can be told.
        let _ = self.writer.make_writer_for(event.metadata()).write_all(&bytes);
    }
}

/// What every line begins with.
fn begin(event: &Event<'_>, fields: &Fields) -> Map<String, Value> {
    let metadata = event.metadata();
    // Lines of the `log` crate bring their target as a field.
    let target = fields.0.get("log.target").and_then(Value::as_str).unwrap_or(metadata.target());
    let mut line = Map::new();
    line.insert("timestamp".to_owned(), timestamp(OffsetDateTime::now_utc()).into());
    line.insert("level".to_owned(), metadata.level().as_str().into());
    line.insert("component".to_owned(), component(target).into());
    for first in ["event", "message"] {
        if let Some(value) = fields.0.get(first) {
            line.insert(first.to_owned(), value.clone());
        }
    }
    line
}

/// The part of Muster that code with this target belongs to, or its crate.
fn component(target: &str) -> &str {
    let name = target.split("::").next().unwrap_or(target);
    match name.strip_prefix("muster_") {
        Some(role @ ("gateway" | "control" | "api")) => role,
        _ => name,
    }
}

/// RFC 3339 in UTC, of a fixed width.
fn timestamp(time: OffsetDateTime) -> String {
    let (date, micros) = (time.date(), time.microsecond());
    let (month, (hour, minute, second)) = (u8::from(date.month()), time.to_hms());
    let (year, day) = (date.year(), date.day());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Adds the fields whose names are not taken.
fn add(line: &mut Map<String, Value>, fields: &Fields) {
    for (name, value) in &fields.0 {
        // What these say is for the tracer and for `begin`.
        if name.starts_with("otel.") || name.starts_with("log.") {
            continue;
        }
        let ours = OURS.contains(&name.as_str());
        let name = if ours { format!("{name}_") } else { name.clone() };
        line.entry(name).or_insert_with(|| value.clone());
    }
}

/// Adds where the line belongs in a trace, if that is recorded.
fn add_trace(line: &mut Map<String, Value>) {
    opentelemetry::Context::map_current(|context| {
        let span = context.span();
        let span = span.span_context();
        if span.is_valid() && span.is_sampled() {
            line.insert("trace_id".to_owned(), span.trace_id().to_string().into());
            line.insert("span_id".to_owned(), span.span_id().to_string().into());
        }
    });
}

/// The fields of an event or a span.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        match i64::try_from(value) {
            Ok(value) => self.put(field, value),
            Err(_) => self.put(field, value.to_string()),
        }
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        match u64::try_from(value) {
            Ok(value) => self.put(field, value),
            Err(_) => self.put(field, value.to_string()),
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.put(field, value);
        } else {
            self.put(field, value.to_string());
        }
    }

    /// An error and what caused it.
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(error) = source {
            // Writing to a text does not fail.
            let _ = write!(text, ": {error}");
            source = error.source();
        }
        self.put(field, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_rfc_3339_in_microseconds() {
        let time = OffsetDateTime::from_unix_timestamp(1_760_695_205).unwrap();
        assert_eq!(timestamp(time), "2025-10-17T10:00:05.000000Z");
        let later = time + time::Duration::microseconds(120);
        assert_eq!(timestamp(later), "2025-10-17T10:00:05.000120Z");
    }

    #[test]
    fn a_component_is_a_role_or_a_crate() {
        for (target, expected) in [
            ("muster_gateway::connection", "gateway"),
            ("muster_control", "control"),
            ("muster_api::routes", "api"),
            ("muster::serve", "muster"),
            ("muster_adapters::sqlite", "muster_adapters"),
            ("hyper_util::client", "hyper_util"),
        ] {
            assert_eq!(component(target), expected);
        }
    }
}
