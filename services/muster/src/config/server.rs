//! The sections of what Muster serves: its listeners, and what it tells of itself.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::time::Duration;

use muster_domain::budget::Rate;

use super::kinds::{boolean, bytes, choice, duration, endpoint, loopback, one_of, text, url_path, whole};
use super::reader::{key, nested, optional, section};

section! {
    /// The listeners and what they share.
    Server {
        /// The OpAMP listener.
        websocket: WebSocket = nested(WebSocket::read);
        /// Agents that poll over plain HTTP, on the same listener.
        polling: Polling = nested(Polling::read);
        /// The HTTP API's listener.
        http: Http = nested(Http::read);
        /// The gRPC listener.
        grpc: Grpc = nested(Grpc::read).without_effect();
        /// TLS of the listeners.
        tls: Tls = nested(Tls::read);
        /// Whether addresses other than loopback may be served without authentication.
        allow_insecure: bool = key(boolean(), false);
        /// What a gateway takes at once.
        limits: Limits = nested(Limits::read);
        /// How much agents may report.
        budgets: Budgets = nested(Budgets::read);
        /// Over how long the sessions of agents are closed when Muster stops.
        drain: Duration = key(duration(), Duration::from_secs(30));
        /// Compression of what agents are sent.
        compression: Compression = nested(Compression::read).without_effect();
        /// Bounds of one write of agents' reports to the store; it never waits to fill.
        batching: Batching = nested(Batching::read).without_effect();
        /// How long what was read from the store is used again.
        caching: Caching = nested(Caching::read).without_effect();
    }
}

section! {
    /// Section `server.websocket`.
    WebSocket {
        /// Where agents connect, over WebSocket and HTTP.
        endpoint: SocketAddr = key(endpoint(), loopback(4320));
        /// At which path.
        path: String = key(url_path(), "/v1/opamp".to_owned());
        /// Most connections of agents at a time. Another name: `server.max_connections`.
        max_connections: usize = key(whole(1), 10_000);
        /// Largest message that an agent may send, also over plain HTTP, and once decompressed; 128 MiB at most
        /// with `bus.type: nats`.
        max_message_size: usize = key(bytes(), 64 << 20);
        /// Largest message that an agent is sent, before compression; a larger one is not sent, and told of.
        max_sent_message_size: usize = key(bytes(), 64 << 20);
        /// Most agents on one connection; messages of further ones are refused.
        max_agents_per_connection: usize = key(whole(1), 10_000);
        /// An agent that reports heartbeats is unreachable after so long without a message of it, though its
        /// connection is open. One that is found to report more seldom gets three times its own interval.
        agent_silent_after: Duration = key(duration(), Duration::from_secs(90));
    }
}

section! {
    /// Section `server.limits`, of one gateway.
    Limits {
        /// Most connections of one tenant's agents at a time.
        max_connections_per_tenant: usize = key(whole(1), 1_000_000);
        /// Most new connections of agents a second, in the long run.
        connections_per_second: usize = key(whole(1), 5_000);
        /// Most new connections at once after a pause; half of them are for agents that are known.
        connections_burst: usize = key(whole(2), 10_000);
    }
}

impl Limits {
    /// The rate of new connections.
    pub fn connection_rate(&self) -> Rate {
        Rate { per_second: self.connections_per_second as u64, burst: self.connections_burst as u64 }
    }
}

section! {
    /// Section `server.polling`.
    Polling {
        /// How long after its last request an agent that polls counts as connected: three intervals of 30 s.
        deadline: Duration = key(duration(), Duration::from_secs(90));
        /// How long the body of a request may take to arrive.
        body_timeout: Duration = key(duration(), Duration::from_secs(10));
        /// Largest answer that an agent is sent; a remote config that would make it larger is not.
        max_answer_size: usize = key(bytes(), 64 << 20);
    }
}

section! {
    /// Section `server.http`.
    Http {
        /// Where the HTTP API, `/health`, `/ready` and `/metrics` are served.
        endpoint: SocketAddr = key(endpoint(), loopback(4321));
        /// Whether whoever uses it must show a certificate of `server.tls.client_ca_file`; health checks, too.
        require_client_certificate: bool = key(boolean(), false);
    }
}

section! {
    /// Section `server.budgets`: what each gateway publishes. Heartbeats count for nothing.
    Budgets {
        /// Of each agent.
        agent: AgentBudget = nested(AgentBudget::read);
        /// Of all agents of a tenant together.
        tenant: TenantBudget = nested(TenantBudget::read);
    }
}

section! {
    /// Section `server.budgets.agent`.
    AgentBudget {
        /// Reports a second of one agent, in the long run.
        messages_per_second: u64 = key(whole(1), 20);
        /// Reports of one agent at once, after a pause.
        messages_burst: u64 = key(whole(1), 100);
        /// Bytes of reports a second of one agent, in the long run.
        bytes_per_second: usize = key(bytes(), 4 << 20);
        /// Bytes of reports of one agent at once, after a pause. A larger report passes alone.
        bytes_burst: usize = key(bytes(), 64 << 20);
    }
}

section! {
    /// Section `server.budgets.tenant`.
    TenantBudget {
        /// Reports a second of a tenant's agents on one gateway, in the long run.
        messages_per_second: u64 = key(whole(1), 20_000);
        /// Reports of a tenant's agents on one gateway at once, after a pause.
        messages_burst: u64 = key(whole(1), 100_000);
        /// Bytes of reports a second of a tenant's agents on one gateway, in the long run.
        bytes_per_second: usize = key(bytes(), 256 << 20);
        /// Bytes of reports of a tenant's agents on one gateway at once, after a pause.
        bytes_burst: usize = key(bytes(), 1 << 30);
    }
}

section! {
    /// Section `server.grpc`.
    Grpc {
        /// Where the gRPC API is served.
        endpoint: SocketAddr = key(endpoint(), loopback(4322));
    }
}

section! {
    /// Section `server.tls`.
    Tls {
        /// Whether the listeners speak TLS.
        enabled: bool = key(boolean(), false);
        /// File of the server's certificate and its chain, PEM.
        cert_file: Option<String> = optional(text());
        /// File of the certificate's private key, PEM.
        key_file: Option<String> = optional(text());
        /// File of the authorities of agents' certificates, PEM. With it, agents must show one (mTLS).
        client_ca_file: Option<String> = optional(text());
    }
}

choice! {
    /// How data is compressed.
    Algorithm {
        /// gzip.
        Gzip = "gzip";
    }
}

section! {
    /// Section `server.compression`.
    Compression {
        /// Whether what is sent may be compressed.
        enabled: bool = key(boolean(), false);
        /// How it is compressed.
        algorithm: Algorithm = key(one_of(), Algorithm::Gzip);
    }
}

section! {
    /// Section `server.batching`.
    Batching {
        /// Whether several reports are written at once.
        enabled: bool = key(boolean(), true);
        /// Most reports in one write.
        max_batch_size: usize = key(whole(1), 100);
        /// Longest time that one write may gather.
        timeout: Duration = key(duration(), Duration::from_secs(1));
    }
}

section! {
    /// Section `server.caching`.
    Caching {
        /// How long configurations are kept in memory.
        config_cache_ttl: Duration = key(duration(), Duration::from_secs(300));
        /// How long the status of an agent is kept in memory.
        agent_status_cache_ttl: Duration = key(duration(), Duration::from_secs(30));
    }
}

section! {
    /// Section `telemetry`.
    Telemetry {
        /// Metrics of Muster.
        metrics: Metrics = nested(Metrics::read);
        /// Traces of Muster.
        traces: Traces = nested(Traces::read);
        /// The log of Muster.
        logs: Logs = nested(Logs::read);
    }
}

section! {
    /// Section `telemetry.metrics`.
    Metrics {
        /// Where Prometheus finds the metrics, at `/metrics`.
        endpoint: SocketAddr = key(endpoint(), loopback(8888));
        /// Whether they are served with the TLS of `server.tls`.
        tls: bool = key(boolean(), false);
    }
}

section! {
    /// Section `telemetry.traces`.
    Traces {
        /// Where traces are sent, OTLP: `host:4317` is gRPC, `host:4318` or a URL is HTTP.
        endpoint: Option<String> = optional(text());
    }
}

section! {
    /// Section `telemetry.logs`.
    Logs {
        /// The least level that is logged.
        level: LogLevel = key(one_of(), LogLevel::Info);
        /// How log lines are written.
        format: Option<LogFormat> = optional(one_of()).shown("text on a terminal, else json");
    }
}

choice! {
    /// A level of log lines.
    LogLevel {
        /// Nothing.
        Off = "off";
        /// What failed.
        Error = "error";
        /// And what may fail.
        Warn = "warn";
        /// And what happened.
        Info = "info";
        /// And why.
        Debug = "debug";
        /// And every step.
        Trace = "trace";
    }
}

choice! {
    /// A format of log lines.
    LogFormat {
        /// Lines for people.
        Text = "text";
        /// A JSON object a line.
        Json = "json";
    }
}

impl Logs {
    /// The format that was chosen, or the one that suits standard error.
    pub fn format(&self) -> LogFormat {
        let fitting = || if std::io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json };
        self.format.unwrap_or_else(fitting)
    }
}
