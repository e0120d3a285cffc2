//! Spans that begin here and go on in control, and the other way round.
//!
//! They are of level debug: without a collector there are none.

use muster_ports::trace::TraceContext;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// What tells another process of this span; empty if it is not recorded.
pub(crate) fn traceparent(span: &Span) -> String {
    if span.is_disabled() {
        return String::new();
    }
    let context = span.context();
    let span = context.span();
    let span = span.span_context();
    let (trace, id) = (span.trace_id().to_bytes(), span.span_id().to_bytes());
    let context = TraceContext::new(trace, id, span.is_sampled()).filter(TraceContext::sampled);
    context.map(|context| context.to_string()).unwrap_or_default()
}

/// The span, as a part of what another process recorded; no span if it recorded nothing.
pub(crate) fn following(traceparent: &str, span: impl FnOnce() -> Span) -> Span {
    let Ok(parent) = traceparent.parse::<TraceContext>() else { return Span::none() };
    let span = span();
    let flags = TraceFlags::default().with_sampled(parent.sampled());
    let (trace, id) = (TraceId::from_bytes(parent.trace()), SpanId::from_bytes(parent.span()));
    let parent = SpanContext::new(trace, id, flags, true, TraceState::NONE);
    // Without a collector there is nothing to be a part of.
    let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(parent));
    span
}
