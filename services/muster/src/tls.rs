//! TLS of a process's listeners, as configured.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use muster_tls::{ClientCertificates, Files, Listener, Metrics, Options, Tls};
use prometheus::Registry;
use tokio::net::TcpListener;

use crate::config::Config;

/// What listeners speak inside TLS. Agents do not get HTTP/2: a WebSocket cannot be opened in it.
const AGENTS: &[&str] = &["http/1.1"];
const PEOPLE: &[&str] = &["h2", "http/1.1"];

/// The listeners' TLS, or none.
pub(crate) struct Listeners {
    pub(crate) tls: Option<Arc<Tls>>,
    agents_show: ClientCertificates,
    people_show: ClientCertificates,
    metrics_too: bool,
}

impl Listeners {
    /// Reads the files.
    ///
    /// # Errors
    /// If one is missing or cannot be used.
    pub(crate) async fn load(config: &Config, registry: &Registry) -> anyhow::Result<Self> {
        let settings = &config.server.tls;
        let required = |wanted: bool| match wanted {
            true => ClientCertificates::Required,
            false => ClientCertificates::NotAsked,
        };
        let mut listeners = Self {
            tls: None,
            agents_show: required(settings.client_ca_file.is_some()),
            people_show: required(config.server.http.require_client_certificate),
            metrics_too: config.telemetry.metrics.tls,
        };
        if settings.enabled {
            let file = |key: &'static str, path: &Option<String>| match path {
                Some(path) => Ok((key, PathBuf::from(path))),
                None => Err(anyhow::anyhow!("{key} is missing: server.tls.enabled needs it")),
            };
            let files = Files {
                cert: file("server.tls.cert_file", &settings.cert_file)?,
                key: file("server.tls.key_file", &settings.key_file)?,
                client_cas: settings
                    .client_ca_file
                    .iter()
                    .map(|path| ("server.tls.client_ca_file", PathBuf::from(path)))
                    .collect(),
            };
            let metrics = Metrics::register(registry)?;
            listeners.tls = Some(Tls::load(files, metrics).await.context("TLS cannot be served")?);
        }
        Ok(listeners)
    }

    /// The listener of agents.
    pub(crate) fn agents(&self, listener: TcpListener) -> anyhow::Result<Listener> {
        self.listen(listener, Options { name: "agents", protocols: AGENTS, clients: self.agents_show })
    }

    /// The listener of the API.
    pub(crate) fn people(&self, listener: TcpListener) -> anyhow::Result<Listener> {
        self.listen(listener, Options { name: "api", protocols: PEOPLE, clients: self.people_show })
    }

    /// The listener of metrics, which Prometheus often reads without TLS.
    pub(crate) fn metrics(&self, listener: TcpListener) -> anyhow::Result<Listener> {
        if !self.metrics_too {
            return Ok(listener.into());
        }
        let clients = ClientCertificates::NotAsked;
        self.listen(listener, Options { name: "metrics", protocols: PEOPLE, clients })
    }

    fn listen(&self, listener: TcpListener, options: Options) -> anyhow::Result<Listener> {
        match &self.tls {
            Some(tls) => Ok(tls.listen(listener, options)?),
            None => Ok(listener.into()),
        }
    }
}
