//! The configuration: one YAML file, every key of which an environment variable overrides.
//!
//! The sections declare their keys with type, default, effect and a sentence of reference; that
//! declaration reads the key and makes the table in `docs/configuration.md`.

mod access;
mod backends;
mod kinds;
mod people;
mod reader;
mod reference;
mod server;
mod suggest;
#[cfg(test)]
mod tests;
mod tree;
mod variables;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

pub use access::{
    ApiKey, Auth, AuthType, CertManager, CertificateProvider, CertificateRotation, ConfigUpdate, Jwt,
    KeyRedis, PackageUpdate, Policies, Provider, RotationStrategy,
};
pub use backends::{
    Bus, BusType, Database, DatabaseType, ObjectStorage, Ownership, OwnershipType, Storage, StorageType,
};
pub use kinds::{Secret, parse_duration};
pub use people::{ApiAccess, Oidc, RoleName};
pub use reader::Reserved;
pub use reference::table as reference_table;
pub use server::{
    AgentBudget, Algorithm, Batching, Budgets, Caching, Compression, Grpc, Http, LogFormat, LogLevel, Logs,
    Metrics, Polling, Server, Telemetry, TenantBudget, Tls, Traces, WebSocket,
};
pub use variables::CLI_VARIABLES;

use kinds::region;
use reader::{Reader, Section, Unread, anything, key, nested, section};
use tree::{Finding, Place, Tree};

section! {
    /// The whole configuration.
    Config {
        /// The listeners and what they share.
        server: Server = nested(Server::read);
        /// The store.
        database: Database = nested(Database::read);
        /// The durable log.
        bus: Bus = nested(Bus::read);
        /// Who holds which connection.
        ownership: Ownership = nested(Ownership::read);
        /// The region that this process belongs to.
        region: String = key(region(), "default".to_owned());
        /// Objects.
        storage: Storage = nested(Storage::read).without_effect();
        /// Who may do what.
        auth: Auth = nested(Auth::read);
        /// What counts where a rollout strategy does not say.
        policies: Policies = nested(Policies::read);
        /// What Muster tells of itself.
        telemetry: Telemetry = nested(Telemetry::read);
        /// Renewal of certificates.
        certificate_rotation: CertificateRotation = nested(CertificateRotation::read).without_effect();
        /// Login of users by OpenID Connect.
        oidc: Oidc = nested(Oidc::read);
        /// Who is told of what.
        notifications: Reserved = anything();
        /// Where secrets are kept that templates refer to.
        secrets: Reserved = anything();
        /// What the operator should know: a line for each key that has no effect yet.
        warnings: Vec<String> = Unread;
        /// Where values come from, and what is refused.
        origin: Origin = Unread;
    }
}

/// Where the values of a configuration come from, and which of them are refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    places: BTreeMap<String, Place>,
    refusals: Vec<Finding>,
}

/// A configuration that cannot be used: all that is wrong, a line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.join("\n"))]
pub struct ConfigError {
    /// What is wrong, each with its place.
    pub problems: Vec<String>,
}

impl ConfigError {
    fn check(problems: Vec<Finding>) -> Result<(), Self> {
        if problems.is_empty() {
            return Ok(());
        }
        Err(Self { problems: problems.iter().map(Finding::to_string).collect() })
    }
}

impl Config {
    /// The configuration of the file, if there is one, and of the process's environment.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let environment = variables::of_process()?;
        let Some(file) = file else { return Self::parse(None, environment) };
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file)
            .map_err(|error| ConfigError { problems: vec![format!("cannot read {name}: {error}")] })?;
        Self::parse(Some((&name, &text)), environment)
    }

    /// The configuration of a file, given as its name and text, and of these environment variables.
    pub fn parse(
        file: Option<(&str, &str)>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let declared = reference::declared();
        let (variables, mut problems) = variables::read(environment, &declared);
        let mut sources = Vec::new();
        match file.map(|(name, text)| Tree::from_file(name, text)) {
            Some(Ok(tree)) => sources.push(tree),
            Some(Err(found)) => problems.push(found),
            None => {}
        }
        sources.push(variables);
        let mut reader = Reader::default();
        for mut source in sources {
            let own = |path: &str| path.split('.').map(str::to_owned).collect();
            for (from, to) in ALIASES {
                problems.extend(source.rename(&own(from), &own(to)).err());
            }
            reader.tree.overlay(source);
        }
        let mut config = Self::read(&mut Section::root(&mut reader));
        config.check_switches(&mut reader);
        problems.append(&mut reader.problems);
        problems.extend(suggest::unknown(&reader.tree, &declared));
        problems.sort();
        ConfigError::check(problems)?;
        reader.warnings.sort();
        reader.refusals.sort();
        config.warnings = reader.warnings.iter().map(Finding::to_string).collect();
        config.origin = Origin { places: reader.places, refusals: reader.refusals };
        Ok(config)
    }

    /// Refuses what protects the system, was asked for, and does not work yet. Nothing may be
    /// served with such a configuration.
    pub fn check_supported(&self) -> Result<(), ConfigError> {
        ConfigError::check(self.origin.refusals.clone())
    }

    /// Refuses listeners that other machines can reach while nobody has to show who they are.
    pub fn check_exposure(&self) -> Result<(), ConfigError> {
        if self.server.allow_insecure {
            return Ok(());
        }
        let is_required = self.auth.is_required();
        let listeners = [
            ("server.websocket.endpoint", self.server.websocket.endpoint, is_required),
            ("server.http.endpoint", self.server.http.endpoint, self.auth.is_required_of_api()),
            ("telemetry.metrics.endpoint", self.telemetry.metrics.endpoint, is_required),
        ];
        let is_loopback = |address: SocketAddr| address.ip().to_canonical().is_loopback();
        let open = listeners.into_iter().filter(|(_, address, is_safe)| !is_safe && !is_loopback(*address));
        let findings = open.map(|(path, address, _)| Finding {
            place: self.origin.places.get(path).cloned(),
            path: path.to_owned(),
            what: format!(
                "{address} is open to other machines, and nobody has to show who they are: use a loopback address \
                 such as 127.0.0.1:{}, or set server.allow_insecure: true",
                address.port()
            ),
        });
        ConfigError::check(findings.collect())
    }

    /// Refuses settings of a protection whose switch was not set: nobody writes them to run open.
    fn check_switches(&self, reader: &mut Reader) {
        let place = |path: &str| reader.places.get(path).cloned();
        let mut refuse = |path: &str, what: &str| {
            if let Some(place) = place(path) {
                reader.refusals.push(Finding {
                    place: Some(place),
                    path: path.to_owned(),
                    what: what.to_owned(),
                });
            }
        };
        if place("auth.type").is_none() {
            let what = "has no effect while auth.type is not set: remove it, or set auth.type: none";
            ["auth.secret_key_file", "auth.jwt", "auth.api_key"].iter().for_each(|path| refuse(path, what));
        }
        if self.oidc.issuer.is_some() && self.oidc.audience.is_none() {
            let what = "set oidc.audience too: else tokens that are meant for others would count";
            refuse("oidc.issuer", what);
        }
        if self.oidc.issuer.is_none() {
            let what = "has no effect while oidc.issuer is not set: remove it, or set oidc.issuer";
            [
                "oidc.audience",
                "oidc.jwks",
                "oidc.tenant",
                "oidc.account_claim",
                "oidc.tenant_claim",
                "oidc.role_claim",
                "oidc.most_role",
            ]
            .iter()
            .for_each(|path| refuse(path, what));
        }
        if place("server.tls.enabled").is_none() {
            let what = "has no effect while server.tls.enabled is not set: remove it, or set server.tls.enabled: false";
            ["server.tls.cert_file", "server.tls.key_file", "server.tls.client_ca_file"]
                .iter()
                .for_each(|path| refuse(path, what));
        }
        for (section, tls) in [("bus.tls", &self.bus.tls), ("ownership.tls", &self.ownership.tls)] {
            let (given, missing) = match (&tls.cert_file, &tls.key_file) {
                (Some(_), None) => ("cert_file", "key_file"),
                (None, Some(_)) => ("key_file", "cert_file"),
                _ => continue,
            };
            refuse(&format!("{section}.{given}"), &format!("needs {section}.{missing}"));
        }
        if !self.server.tls.enabled {
            let what = "needs server.tls.enabled: true";
            if self.server.http.require_client_certificate {
                refuse("server.http.require_client_certificate", what);
            }
            if self.telemetry.metrics.tls {
                refuse("telemetry.metrics.tls", what);
            }
        } else if self.server.http.require_client_certificate && self.server.tls.client_ca_file.is_none() {
            refuse("server.http.require_client_certificate", "needs server.tls.client_ca_file");
        }
    }
}

/// Other names of keys.
const ALIASES: [(&str, &str); 1] = [("server.max_connections", "server.websocket.max_connections")];
