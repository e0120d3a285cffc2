//! Spans of reports that their gateways record: from the log to the fold and the offer.
//!
//! They are of level debug: without a collector there are none.

use std::collections::BTreeMap;

use muster_domain::ids::{AgentKey, Partition};
use muster_ports::trace::TraceContext;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use tracing::{Span, debug_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Most agents of a batch that are traced.
const MOST: usize = 64;

/// The span of each agent whose reports of a batch are traced. They end with this.
#[derive(Default)]
pub(crate) struct Folding(BTreeMap<AgentKey, Span>);

impl Folding {
    /// Adds a traced report. It is a part of its own trace; a further one of the same agent is a link.
    pub(crate) fn add(
        &mut self,
        key: &AgentKey,
        report: &TraceContext,
        partition: Partition,
        entries: usize,
    ) {
        let flags = TraceFlags::default().with_sampled(report.sampled());
        let (trace, id) = (TraceId::from_bytes(report.trace()), SpanId::from_bytes(report.span()));
        let report = SpanContext::new(trace, id, flags, true, TraceState::NONE);
        if let Some(span) = self.0.get(key) {
            span.add_link(report);
        } else if self.0.len() < MOST {
            let span = debug_span!("fold", tenant = %key.tenant, agent_id = %key.uid, %partition, entries, otel.kind = "consumer");
            // Without a collector there is nothing to be a part of.
            let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(report));
            self.0.insert(key.clone(), span);
        }
    }

    /// Does what is about an agent within its span, if there is one.
    pub(crate) fn within<T>(&self, key: &AgentKey, work: impl FnOnce() -> T) -> T {
        self.0.get(key).unwrap_or(&Span::none()).in_scope(work)
    }

    /// What tells a gateway of the first of these agents that is traced; empty if none is.
    pub(crate) fn traceparent<'a>(&self, mut keys: impl Iterator<Item = &'a AgentKey>) -> String {
        let Some(span) = keys.find_map(|key| self.0.get(key)) else { return String::new() };
        let context = span.context();
        let span = context.span();
        let span = span.span_context();
        let (trace, id) = (span.trace_id().to_bytes(), span.span_id().to_bytes());
        let context = TraceContext::new(trace, id, span.is_sampled()).filter(TraceContext::sampled);
        context.map(|context| context.to_string()).unwrap_or_default()
    }
}
