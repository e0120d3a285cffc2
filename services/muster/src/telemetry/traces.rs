//! Traces: sampled, sent in batches by OTLP. A collector that is away costs a warning a minute.

use std::env::VarError;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use axum::http::Uri;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};
use tokio::runtime;
use tracing::{Level, Metadata, Subscriber, debug, info, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::registry::LookupSpan;

/// Part of the traces that is recorded unless the environment says otherwise.
const RATIO: f64 = 0.1;
/// Longest time that one batch is tried to be sent.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// Longest time that stopping waits for what was not sent yet.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
/// Time between two warnings about one collector.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Traces while they are sent.
pub(super) struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts to send traces of a process to `endpoint`.
    pub(super) fn start(
        endpoint: &str,
        region: &str,
        roles: &str,
        runtime: &runtime::Handle,
    ) -> anyhow::Result<Self> {
        let endpoint = Endpoint::parse(endpoint)?;
        let sampler = sampler(|name| std::env::var(name))?;
        let resource = Resource::builder()
            .with_service_name("muster")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()))
            .with_attribute(KeyValue::new("muster.role", roles.to_owned()))
            .with_attribute(KeyValue::new("muster.region", region.to_owned()))
            .build();
        let exporter = Exporter::new(&endpoint, runtime)?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(sampler)
            .with_batch_exporter(exporter)
            .build();
        global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Self { provider })
    }

    /// What makes spans of the program spans of a trace.
    ///
    /// Only our own: the sender's spans would themselves have to be sent.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + 'static
    where
        S: Subscriber + for<'lookup> LookupSpan<'lookup> + Send + Sync,
    {
        let ours = filter_fn(is_traced).with_max_level_hint(LevelFilter::DEBUG);
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("muster"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(ours)
    }

    /// Sends what was not sent yet, and ends.
    pub(super) fn stop(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(STOP_DEADLINE) {
            debug!(%error, "the last traces were not sent");
        }
    }
}

/// Spans of our own and, as their events, what they log.
fn is_traced(metadata: &Metadata<'_>) -> bool {
    let least = if metadata.is_span() { Level::DEBUG } else { Level::INFO };
    metadata.target().starts_with("muster") && *metadata.level() <= least
}

/// Where traces are sent, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Endpoint {
    Grpc(String),
    Http(String),
}

impl Endpoint {
    /// Reads `host:4317` and `grpc://host:port` as gRPC, `host:4318` and URLs as HTTP.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let (scheme, rest) =
            text.split_once("://").map_or((None, text), |(scheme, rest)| (Some(scheme), rest));
        let base: Uri =
            format!("{}://{rest}", if scheme == Some("https") { "https" } else { "http" }).parse()?;
        let authority = base.authority().context("it names no host")?;
        match (scheme, authority.port_u16()) {
            (Some("http" | "https"), _) => {
                let path = base.path().trim_end_matches('/');
                let path = path.strip_suffix("/v1/traces").unwrap_or(path);
                let (scheme, query) = (base.scheme_str().unwrap_or_default(), base.query());
                let query = query.map(|query| format!("?{query}")).unwrap_or_default();
                Ok(Self::Http(format!("{scheme}://{authority}{path}/v1/traces{query}")))
            }
            (Some("grpc"), Some(_)) | (None, Some(4317)) => Ok(Self::Grpc(format!("http://{authority}"))),
            (None, Some(4318)) => Ok(Self::Http(format!("http://{authority}/v1/traces"))),
            (Some("grpc"), None) => bail!("it needs a port, such as 4317"),
            (None, _) => {
                bail!("port 4317 means gRPC and 4318 HTTP; otherwise write grpc:// or http:// before it")
            }
            (Some(_), _) => bail!("its scheme is none of http, https and grpc"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grpc(url) => write!(f, "{} (gRPC)", url.trim_start_matches("http://")),
            Self::Http(url) => f.write_str(url),
        }
    }
}

/// The sampler that the standard variables ask for.
fn sampler(variable: impl Fn(&str) -> Result<String, VarError>) -> anyhow::Result<Sampler> {
    let text = |name: &'static str| match variable(name) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(VarError::NotPresent) => Ok(None),
        Err(error) => Err(anyhow!(error).context(name)),
    };
    let ratio = || match text("OTEL_TRACES_SAMPLER_ARG")? {
        None => Ok(RATIO),
        Some(text) => match text.parse() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
            _ => Err(anyhow!("OTEL_TRACES_SAMPLER_ARG: must be a number from 0 to 1, not {text:?}")),
        },
    };
    let name = text("OTEL_TRACES_SAMPLER")?;
    let name = name.as_deref().unwrap_or("parentbased_traceidratio");
    let (parent_based, root) = match name.strip_prefix("parentbased_") {
        Some(root) => (true, root),
        None => (false, name),
    };
    let root = match root {
        "always_on" => Sampler::AlwaysOn,
        "always_off" => Sampler::AlwaysOff,
        "traceidratio" => Sampler::TraceIdRatioBased(ratio()?),
        _ => bail!(
            "OTEL_TRACES_SAMPLER: must be always_on, always_off or traceidratio, \
             or one of these after parentbased_, not {name:?}"
        ),
    };
    Ok(if parent_based { Sampler::ParentBased(Box::new(root)) } else { root })
}

/// Sends batches from telemetry's own runtime, and says when it cannot.
struct Exporter {
    otlp: Arc<opentelemetry_otlp::SpanExporter>,
    runtime: runtime::Handle,
    endpoint: String,
    outage: Mutex<Outage>,
}

/// What went wrong since it was last said.
#[derive(Default)]
struct Outage {
    warned: Option<Instant>,
    lost: usize,
}

impl Exporter {
    fn new(endpoint: &Endpoint, runtime: &runtime::Handle) -> anyhow::Result<Self> {
        // Channels are made where they are used.
        let _entered = runtime.enter();
        let otlp = opentelemetry_otlp::SpanExporter::builder();
        let otlp = match endpoint {
            Endpoint::Grpc(url) => otlp.with_tonic().with_endpoint(url).with_timeout(SEND_DEADLINE).build(),
            Endpoint::Http(url) => otlp.with_http().with_endpoint(url).with_timeout(SEND_DEADLINE).build(),
        };
        Ok(Self {
            otlp: Arc::new(otlp?),
            runtime: runtime.clone(),
            endpoint: endpoint.to_string(),
            outage: Mutex::default(),
        })
    }

    fn tell(&self, spans: usize, result: &OTelSdkResult) {
        let endpoint = &self.endpoint;
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) if outage.warned.take().is_some() => {
                info!(event = "traces_sent_again", endpoint, "traces are sent again");
            }
            Ok(()) => {}
            Err(error) => {
                outage.lost += spans;
                if outage.warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY) {
                    outage.warned = Some(Instant::now());
                    let spans = std::mem::take(&mut outage.lost);
                    warn!(event = "traces_not_sent", endpoint, spans, %error, "traces are lost: the collector does not take them");
                }
            }
        }
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let (otlp, spans) = (Arc::clone(&self.otlp), batch.len());
        let sending = self.runtime.spawn(async move {
            let sent = tokio::time::timeout(SEND_DEADLINE, otlp.export(batch)).await;
            sent.unwrap_or(Err(OTelSdkError::Timeout(SEND_DEADLINE)))
        });
        let result =
            sending.await.unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())));
        self.tell(spans, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(otlp) = Arc::get_mut(&mut self.otlp) {
            otlp.set_resource(resource);
        }
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_says_how_it_is_spoken_to() {
        let grpc = |url: &str| Endpoint::Grpc(url.to_owned());
        let http = |url: &str| Endpoint::Http(url.to_owned());
        for (text, expected) in [
            ("jaeger:4318", http("http://jaeger:4318/v1/traces")),
            ("tempo:4317", grpc("http://tempo:4317")),
            ("[::1]:4317", grpc("http://[::1]:4317")),
            ("grpc://tempo:9000", grpc("http://tempo:9000")),
            ("http://otel:80", http("http://otel:80/v1/traces")),
            ("https://otel.example/", http("https://otel.example/v1/traces")),
            ("https://otel.example/base", http("https://otel.example/base/v1/traces")),
            ("http://otel:4318/v1/traces?a=b", http("http://otel:4318/v1/traces?a=b")),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap(), expected, "{text}");
        }
        for text in ["", "jaeger", "jaeger:80", "grpc://tempo", "udp://jaeger:6831", "http://", "a b:4317"] {
            assert!(Endpoint::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_sampler_is_the_one_of_the_environment() {
        let mk_sampler = |name: &str, arg: &str| {
            let sampler = sampler(|variable| match variable {
                "OTEL_TRACES_SAMPLER" => Ok(name.to_owned()),
                _ => Ok(arg.to_owned()),
            });
            sampler.map(|sampler| format!("{sampler:?}")).map_err(|error| error.to_string())
        };
        let default = sampler(|_| Err(VarError::NotPresent)).unwrap();
        assert_eq!(format!("{default:?}"), "ParentBased(TraceIdRatioBased(0.1))");
        assert_eq!(mk_sampler("", "1").unwrap(), "ParentBased(TraceIdRatioBased(1.0))");
        assert_eq!(mk_sampler("always_on", "").unwrap(), "AlwaysOn");
        assert_eq!(mk_sampler("parentbased_always_off", "").unwrap(), "ParentBased(AlwaysOff)");
        assert_eq!(
            mk_sampler("", "7").unwrap_err(),
            "OTEL_TRACES_SAMPLER_ARG: must be a number from 0 to 1, not \"7\""
        );
        assert!(mk_sampler("jaeger_remote", "").is_err());
    }
}
