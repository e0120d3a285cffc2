//! Files and variables in, configurations and messages out.

use std::path::Path;
use std::time::Duration;

use super::*;

const NO_ENVIRONMENT: [(String, String); 0] = [];

fn read(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Some(("muster.yaml", text)), NO_ENVIRONMENT)
}

fn mk_config(text: &str) -> Config {
    read(text).unwrap()
}

fn problems(text: &str) -> Vec<String> {
    read(text).unwrap_err().problems
}

fn with_variables(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let own = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::parse(Some(("muster.yaml", text)), own)
}

fn variable_problems(variables: &[(&str, &str)]) -> Vec<String> {
    with_variables("", variables).unwrap_err().problems
}

fn without_origin(config: Config) -> Config {
    Config { origin: Origin::default(), ..config }
}

fn refusals(config: &Config) -> Vec<String> {
    config.check_supported().map_or_else(|error| error.problems, |()| Vec::new())
}

#[test]
fn nothing_given_is_the_defaults() {
    let config = mk_config("");
    assert_eq!(config, Config::parse(None, NO_ENVIRONMENT).unwrap());
    assert_eq!(config, without_origin(mk_config("# only a comment\nserver:\n")));
    assert_eq!(config.server.websocket.endpoint, "127.0.0.1:4320".parse().unwrap());
    assert_eq!(config.server.websocket.max_connections, 10_000);
    assert_eq!(config.server.websocket.max_message_size, 64 << 20);
    assert_eq!(config.server.http.endpoint, "127.0.0.1:4321".parse().unwrap());
    assert_eq!(config.telemetry.metrics.endpoint, "127.0.0.1:8888".parse().unwrap());
    assert_eq!(config.telemetry.logs.level, LogLevel::Info);
    assert_eq!(config.server.drain, Duration::from_secs(30));
    assert_eq!(config.server.batching.max_batch_size, 100);
    assert_eq!(config.server.batching.timeout, Duration::from_secs(1));
    assert_eq!(config.database.kind, DatabaseType::Sqlite);
    assert_eq!(config.database.connection_string, None);
    assert_eq!(config.auth.kind, [AuthType::None]);
    assert_eq!(config.region, "default");
    assert_eq!(config.warnings, [""; 0]);
    config.check_supported().unwrap();
    config.check_exposure().unwrap();
}

#[test]
fn values_are_read() {
    let config = mk_config(
        "server:
  websocket: {endpoint: ':4330', max_connections: 5, max_message_size: 512KiB}
  http: {endpoint: 'localhost:0'}
  allow_insecure: true
  drain: 1m30s
region: eu-west-1
telemetry:
  metrics: {endpoint: '[::1]:8888'}
  logs: {level: debug, format: json}
auth: {type: [none]}
",
    );
    assert_eq!(config.server.websocket.endpoint, "0.0.0.0:4330".parse().unwrap());
    assert_eq!(config.server.websocket.max_connections, 5);
    assert_eq!(config.server.websocket.max_message_size, 512 << 10);
    assert_eq!(config.server.http.endpoint, "127.0.0.1:0".parse().unwrap());
    assert!(config.server.allow_insecure);
    assert_eq!(config.server.drain, Duration::from_secs(90));
    assert_eq!(config.region, "eu-west-1");
    assert_eq!(config.telemetry.metrics.endpoint, "[::1]:8888".parse().unwrap());
    assert_eq!(config.telemetry.logs.level, LogLevel::Debug);
    assert_eq!(config.telemetry.logs.format(), LogFormat::Json);
    assert_eq!(config.warnings, [""; 0]);
    config.check_supported().unwrap();
    config.check_exposure().unwrap();
}

#[test]
fn durations_are_go_s_with_days() {
    let good = [
        ("30s", 30_000),
        ("1h", 3_600_000),
        ("5m", 300_000),
        ("90d", 90 * 86_400_000),
        ("1h30m", 5_400_000),
        ("250ms", 250),
        ("1.5h", 5_400_000),
        (".5s", 500),
        ("0", 0),
        ("0s", 0),
    ];
    for (text, millis) in good {
        assert_eq!(kinds::parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
    }
    let huge = "9".repeat(60) + "d";
    let long_fraction = format!("0.{}s", "1".repeat(40));
    let bad = ["", "30", "s", "1x", "-1s", "1h 30m", "1.s.", "1e3s", "٣s", "200000d", &huge, &long_fraction];
    for text in bad {
        assert_eq!(kinds::parse_duration(text), None, "{text}");
    }
}

#[test]
fn a_bad_value_is_told_with_key_file_and_line() {
    let text = "# The first line is a comment.
server:
  websocket:
    endpoint: 0.0.0.0:4320
    # Unbounded, if it were possible.
    # Alas.
    max_connections: many
";
    let expected = "muster.yaml: line 7, column 22: server.websocket.max_connections: \
        must be a whole number of 1 or more, not \"many\"";
    assert_eq!(problems(text), [expected]);
}

#[test]
fn bad_values_say_what_would_be_good() {
    let cases = [
        (
            "server: {drain: 30}",
            "must be a duration such as 250ms, 30s, 1h30m or 90d, not \"30\": the unit is missing, as in 30s",
        ),
        ("server: {websocket: {max_connections: 0}}", "must be a whole number of 1 or more, not \"0\""),
        ("server: {websocket: {max_connections: -1}}", "must be a whole number of 1 or more, not \"-1\""),
        ("server: {websocket: {max_connections: 1.5}}", "must be a whole number of 1 or more, not \"1.5\""),
        (
            "server: {websocket: {max_connections: '5'}}",
            "must be a whole number of 1 or more, not \"5\": remove the quotes",
        ),
        ("server: {websocket: {max_connections: [5]}}", "must be a whole number of 1 or more, not a list"),
        (
            "server: {websocket: {max_connections: {a: 5}}}",
            "must be a whole number of 1 or more, not a mapping",
        ),
        (
            "server: {websocket: {max_connections: 99999999999999999999}}",
            "must be a whole number of 1 or more, not \"99999999999999999999\"",
        ),
        (
            "server: {websocket: {max_message_size: 12}}",
            "must be a number of bytes such as 65536, 512KiB or 64MiB, at least 1KiB, not \"12\"",
        ),
        (
            "server: {websocket: {max_message_size: 99999999999GiB}}",
            "must be a number of bytes such as 65536, 512KiB or 64MiB, at least 1KiB, not \"99999999999GiB\"",
        ),
        ("server: {allow_insecure: yes}", "must be true or false, not \"yes\""),
        ("server: {allow_insecure: 'true'}", "must be true or false, not \"true\": remove the quotes"),
        (
            "server: {http: {endpoint: 4321}}",
            "must be an address and a port such as 127.0.0.1:4320, localhost:4320 or :4320, not \"4321\": write :4321 for all addresses",
        ),
        (
            "server: {http: {endpoint: 'http://a:4321'}}",
            "must be an address and a port such as 127.0.0.1:4320, localhost:4320 or :4320, not \"http://a:4321\": the host is not a name or an address",
        ),
        (
            "server: {http: {endpoint: '127.0.0.1:66000'}}",
            "must be an address and a port such as 127.0.0.1:4320, localhost:4320 or :4320, not \"127.0.0.1:66000\"",
        ),
        ("server: {drain: }", "has no value: give it one, or remove the key"),
        ("server: many", "is a section: its keys go on lines of their own under it, indented"),
        ("server: [1]", "is a section: its keys go on lines of their own under it, indented"),
        ("database: {type: mysql}", "must be sqlite or postgres, not \"mysql\""),
        (
            "auth: {type: []}",
            "must be none, basic, jwt, api_key or mtls, or a list of these, not a list: the list is empty",
        ),
        (
            "auth: {type: [jwt, saml]}",
            "must be none, basic, jwt, api_key or mtls, or a list of these, not a list",
        ),
        (
            "policies: {package_update: {canary_percentage: 101}}",
            "must be a whole number from 0 to 100, not \"101\"",
        ),
        (
            "region: EU",
            "must be a name of lower-case letters, digits, `-` and `.`, 63 characters at most, beginning and ending with a letter or digit, not \"EU\"",
        ),
        ("telemetry: {logs: {level: INFO}}", "must be off, error, warn, info, debug or trace, not \"INFO\""),
    ];
    for (text, expected) in cases {
        let found = problems(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].ends_with(expected), "{text}: {}", found[0]);
        assert!(found[0].starts_with("muster.yaml: line 1, column "), "{text}: {}", found[0]);
    }
}

#[test]
fn all_problems_are_told_at_once_in_their_order() {
    let text = "bus: {type: kafka}\nserver:\n  drain: soon\n  tsl: {}\n";
    assert_eq!(
        problems(text),
        [
            "muster.yaml: line 1, column 13: bus.type: must be memory or nats, not \"kafka\"",
            "muster.yaml: line 3, column 10: server.drain: \
                must be a duration such as 250ms, 30s, 1h30m or 90d, not \"soon\"",
            "muster.yaml: line 4, column 3: server.tsl: unknown key, did you mean server.tls?",
        ]
    );
}

#[test]
fn an_unknown_key_is_told_with_the_known_one() {
    let cases = [
        ("sever: {http: {endpoint: x}}", "sever: unknown key, did you mean server?"),
        (
            "server: {websocket: {max_connection: 5}}",
            "server.websocket.max_connection: unknown key, did you mean server.websocket.max_connections?",
        ),
        (
            "max_connections: 5",
            "max_connections: unknown key, did you mean server.websocket.max_connections?",
        ),
        ("tls: {enabled: true}", "tls: unknown key, did you mean server.tls?"),
        (
            "server.drain: 5s",
            "server.drain: unknown key, write each part on a line of its own under the one before, indented",
        ),
        (
            "server: {tls: {something: true}}",
            "server.tls.something: unknown key, known here: cert_file, client_ca_file, enabled, key_file",
        ),
    ];
    for (text, expected) in cases {
        let found = problems(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        let found =
            found[0].strip_prefix("muster.yaml: line 1, column ").unwrap().split_once(": ").unwrap().1;
        assert!(found.starts_with(expected), "{text}: {found}");
    }
}

#[test]
fn a_file_that_is_no_configuration_is_told_where() {
    assert_eq!(
        problems("server: {}\n---\nserver: {}\n"),
        [
            "muster.yaml: line 3, column 1: a second document: the configuration is one, remove the `---` between them"
        ]
    );
    assert_eq!(
        problems("- server\n"),
        ["muster.yaml: line 1, column 1: must be a mapping of keys to values, not a list"]
    );
    assert!(problems("server: {drain: 1s\n")[0].starts_with("muster.yaml: line "));
    assert!(problems("a: 1\na: 2\n")[0].starts_with("muster.yaml: line 2, column 1: "));
    let missing = Config::load(Some(Path::new("no/such.yaml"))).unwrap_err();
    assert!(missing.to_string().starts_with("cannot read no/such.yaml: "), "{missing}");
}

#[test]
fn the_alias_is_the_key() {
    assert_eq!(mk_config("server: {max_connections: 7}").server.websocket.max_connections, 7);
    let both = "server:\n  websocket: {max_connections: 7}\n  max_connections: 8\n";
    assert_eq!(
        problems(both),
        ["muster.yaml: line 3, column 3: server.max_connections: is another name of \
            server.websocket.max_connections, given at muster.yaml: line 2, column 15: remove one"]
    );
    let variable = [("MUSTER_SERVER__MAX_CONNECTIONS", "9")];
    let config = with_variables("server: {websocket: {max_connections: 7}}", &variable).unwrap();
    assert_eq!(config.server.websocket.max_connections, 9);
}

#[test]
fn variables_go_before_the_file() {
    let file =
        "server: {websocket: {endpoint: ':1', max_connections: 7}, allow_insecure: false}\nregion: eu\n";
    let config = with_variables(
        file,
        &[
            ("MUSTER_SERVER__WEBSOCKET__MAX_CONNECTIONS", "5"),
            ("MUSTER_SERVER__ALLOW_INSECURE", "true"),
            ("MUSTER_REGION", "us"),
            ("MUSTER_TELEMETRY__LOGS", "{level: warn, format: json}"),
            ("MUSTER_TELEMETRY__LOGS__LEVEL", "error"),
            ("MUSTER_AUTH__TYPE", "[none]"),
            ("MUSTER_SERVER_URL", "http://example.com"),
            ("MUSTER_TOKEN", "t"),
            ("MUSTER_DATA_DIR", "/data"),
            ("MUSTER_CONFIG", "muster.yaml"),
            ("MUSTER_SERVER_PORT_4320_TCP_ADDR", "10.0.0.1"),
            ("OTHER__X", "1"),
        ],
    )
    .unwrap();
    assert_eq!(config.server.websocket.max_connections, 5);
    assert_eq!(config.server.websocket.endpoint, "0.0.0.0:1".parse().unwrap());
    assert!(config.server.allow_insecure);
    assert_eq!(config.region, "us");
    assert_eq!(config.telemetry.logs.level, LogLevel::Error);
    assert_eq!(config.telemetry.logs.format, Some(LogFormat::Json));
}

#[test]
fn a_bad_variable_is_told_by_its_name() {
    let cases = [
        (
            ("MUSTER_SERVER__WEBSOCKET__MAX_CONNECTIONS", "many"),
            "MUSTER_SERVER__WEBSOCKET__MAX_CONNECTIONS: server.websocket.max_connections: \
                must be a whole number of 1 or more, not \"many\"",
        ),
        (
            ("MUSTER_SERVER__WEBSOCKET__MAX_CONNECTION", "5"),
            "MUSTER_SERVER__WEBSOCKET__MAX_CONNECTION: server.websocket.max_connection: \
                unknown key, did you mean MUSTER_SERVER__WEBSOCKET__MAX_CONNECTIONS?",
        ),
        (
            ("MUSTER_AUTH_TYPE", "jwt"),
            "MUSTER_AUTH_TYPE: is not a variable of Muster: to set auth.type, write MUSTER_AUTH__TYPE \
                with two underscores between its parts",
        ),
        (
            ("MUSTER_SERVER__TLS", ""),
            "MUSTER_SERVER__TLS: server.tls: has no value: give it one, or unset the variable",
        ),
        (
            ("MUSTER_SERVER", "http://example.com"),
            "MUSTER_SERVER: server: is a section: its keys go on lines of their own under it, indented",
        ),
        (
            ("MUSTER_REGION__NAME", "eu"),
            "MUSTER_REGION__NAME: region: must be a name of lower-case letters, digits, `-` and `.`, \
                63 characters at most, beginning and ending with a letter or digit, not a mapping",
        ),
    ];
    for (variable, expected) in cases {
        assert_eq!(variable_problems(&[variable]), [expected]);
    }
}

#[test]
fn an_empty_variable_does_not_switch_off_what_the_file_protects() {
    let file = "server: {tls: {enabled: true}}\nauth: {type: jwt}\noidc: {audience: x}\n";
    for name in ["MUSTER_SERVER__TLS", "MUSTER_AUTH", "MUSTER_AUTH__TYPE", "MUSTER_OIDC"] {
        assert!(with_variables(file, &[(name, " ")]).is_err(), "{name}");
    }
    assert!(with_variables(file, &[("MUSTER_SERVER", "{tls: }")]).is_err());
    assert_eq!(refusals(&with_variables(file, &[("MUSTER_SERVER__TLS", "{}")]).unwrap()).len(), 2);
}

#[test]
fn a_variable_s_text_is_taken_as_it_is() {
    for password in ["*abc", "p #x", "a: b", "{", "@x", "'quoted", "[a]", "%p", "null and void"] {
        let config = with_variables("", &[("MUSTER_DATABASE__CONNECTION_STRING", password)]).unwrap();
        let secret = config.database.connection_string.unwrap();
        assert_eq!(secret.expose(), password);
    }
    let quoted = with_variables("", &[("MUSTER_REGION", "\"eu\"")]).unwrap();
    assert_eq!(quoted.region, "eu");
}

#[test]
fn secrets_are_not_shown() {
    const SECRET: &str = "hunter2";
    let file = "database: {connection_string: 'postgres://u:hunter2@db/x'}\nbus: {url: 'nats://hunter2@b'}\n";
    let config = mk_config(file);
    assert_eq!(config.database.connection_string.as_ref().unwrap().expose(), "postgres://u:hunter2@db/x");
    assert!(!format!("{config:?}").contains(SECRET));
    assert!(!config.warnings.iter().any(|warning| warning.contains(SECRET)));
    for bad in ["database: {connection_string: [hunter2]}", "database: hunter2", "bus: {url: {a: hunter2}}"] {
        let found = problems(bad);
        assert!(!found.iter().any(|problem| problem.contains(SECRET)), "{found:?}");
    }
}

#[test]
fn keys_without_effect_warn_once_with_their_line() {
    let text = "server:
  compression:
    enabled: true
    algorithm: gzip
policies:
  config_update:
    rollback_on_error: true
database:
  max_open_conns: 5
  indexes: [agent_id]
secrets:
  provider: {a: [1, 2]}
";
    assert_eq!(
        mk_config(text).warnings,
        [
            "muster.yaml: line 2, column 3: server.compression: has no effect yet",
            "muster.yaml: line 7, column 5: policies.config_update.rollback_on_error: has no effect yet",
            "muster.yaml: line 10, column 3: database.indexes: is ignored: Muster makes the indexes that it needs",
            "muster.yaml: line 11, column 1: secrets: has no effect yet",
        ]
    );
}

#[test]
fn what_protects_and_does_not_work_is_refused() {
    let cases: [(&str, &[&str]); 13] = [
        ("auth: {type: none}", &[]),
        ("auth: {type: [none]}", &[]),
        ("server: {tls: {enabled: false, cert_file: a}}", &[]),
        (
            "auth: {type: jwt}",
            &["line 1, column 14: auth.type: \"jwt\" does not work yet: \
                remove it, or run on loopback without authentication"],
        ),
        (
            "auth:\n  type: [api_key, mtls, jwt, basic]",
            &["line 2, column 9: auth.type: \"mtls\" and \"jwt\" do not work yet: \
                remove it, or run on loopback without authentication"],
        ),
        (
            "auth: {secret_key_file: k}",
            &["line 1, column 25: auth.secret_key_file: has no effect while auth.type is not set: \
                remove it, or set auth.type: none"],
        ),
        (
            "auth: {jwt: {issuer: k}}",
            &["line 1, column 8: auth.jwt: has no effect while auth.type is not set: \
                remove it, or set auth.type: none"],
        ),
        ("server: {tls: {enabled: true, client_ca_file: c}, http: {require_client_certificate: true}}", &[]),
        (
            "server: {tls: {enabled: true}, http: {require_client_certificate: true}}",
            &["line 1, column 67: server.http.require_client_certificate: needs server.tls.client_ca_file"],
        ),
        (
            "telemetry: {metrics: {tls: true}}",
            &["line 1, column 28: telemetry.metrics.tls: needs server.tls.enabled: true"],
        ),
        (
            "server: {tls: {cert_file: a}}",
            &["line 1, column 27: server.tls.cert_file: has no effect while server.tls.enabled is not set: \
                remove it, or set server.tls.enabled: false"],
        ),
        (
            "oidc: {issuer: x}",
            &[
                "line 1, column 16: oidc.issuer: set oidc.audience too: else tokens that are meant for others would count",
            ],
        ),
        (
            "policies: {package_update: {approval_required: true}}",
            &["line 1, column 48: policies.package_update.approval_required: approvals do not work yet, \
                changes would go out without one: remove it, or set it to false"],
        ),
    ];
    for (text, expected) in cases {
        let expected: Vec<String> = expected.iter().map(|line| format!("muster.yaml: {line}")).collect();
        assert_eq!(refusals(&mk_config(text)), expected, "{text}");
    }
    let config = with_variables("", &[("MUSTER_AUTH__TYPE", "mtls")]).unwrap();
    assert!(refusals(&config)[0].starts_with("MUSTER_AUTH__TYPE: auth.type: \"mtls\" does not work yet"));
}

#[test]
fn open_addresses_need_to_be_allowed() {
    let open =
        "server:\n  websocket: {endpoint: ':4320'}\ntelemetry: {metrics: {endpoint: '10.0.0.1:8888'}}\n";
    let config = mk_config(open);
    let error = config.check_exposure().unwrap_err();
    assert_eq!(
        error.problems,
        [
            "muster.yaml: line 2, column 25: server.websocket.endpoint: 0.0.0.0:4320 is open to other machines, and \
                nobody has to show who they are: use a loopback address such as 127.0.0.1:4320, or set \
                server.allow_insecure: true",
            "muster.yaml: line 3, column 33: telemetry.metrics.endpoint: 10.0.0.1:8888 is open to other machines, \
                and nobody has to show who they are: use a loopback address such as 127.0.0.1:8888, or set \
                server.allow_insecure: true",
        ]
    );
    assert_eq!(error.to_string(), error.problems.join("\n"));
    with_variables(open, &[("MUSTER_SERVER__ALLOW_INSECURE", "true")]).unwrap().check_exposure().unwrap();
    for local in ["127.0.0.2:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "localhost:1"] {
        mk_config(&format!("server: {{http: {{endpoint: '{local}'}}}}")).check_exposure().unwrap();
    }
}

#[test]
fn the_guide_s_configuration_loads_and_is_refused_for_what_does_not_work() {
    let guide = include_str!("fixtures/guide-3.1.1.yaml");
    let config = Config::parse(Some(("config.yaml", guide)), NO_ENVIRONMENT).unwrap();
    assert_eq!(config.server.websocket.endpoint, "0.0.0.0:4320".parse().unwrap());
    assert_eq!(config.database.kind, DatabaseType::Postgres);
    assert_eq!(config.storage.packages.bucket.as_deref(), Some("opamp-packages"));
    assert_eq!(config.auth.kind, [AuthType::Jwt]);
    assert_eq!(config.policies.package_update.canary_duration, Some(Duration::from_secs(3600)));
    assert_eq!(config.telemetry.traces.endpoint.as_deref(), Some("jaeger:4318"));
    let approvals =
        "approvals do not work yet, changes would go out without one: remove it, or set it to false";
    assert_eq!(
        refusals(&config),
        [
            "config.yaml: line 40, column 9: auth.type: \
                \"jwt\" does not work yet: remove it, or run on loopback without authentication",
            &format!(
                "config.yaml: line 47, column 24: policies.config_update.approval_required: {approvals}"
            ),
            &format!(
                "config.yaml: line 52, column 24: policies.package_update.approval_required: {approvals}"
            ),
        ]
    );
    assert_eq!(
        config.warnings,
        [
            "config.yaml: line 25, column 1: storage: has no effect yet",
            "config.yaml: line 41, column 3: auth.secret_key_file: has no effect yet",
            "config.yaml: line 48, column 5: policies.config_update.rollback_on_error: has no effect yet",
            "config.yaml: line 53, column 5: policies.package_update.canary_percentage: has no effect yet",
            "config.yaml: line 54, column 5: policies.package_update.canary_duration: has no effect yet",
        ]
    );
}

#[test]
fn the_guide_s_other_settings_load() {
    let rotation = mk_config(include_str!("fixtures/guide-5.1.2.yaml"));
    assert!(rotation.certificate_rotation.enabled && rotation.certificate_rotation.notifications.given);
    assert_eq!(
        rotation.certificate_rotation.strategy.rotation_before_expiry,
        Duration::from_secs(720 * 3600)
    );
    assert_eq!(rotation.certificate_rotation.provider.kind, Some(CertificateProvider::CertManager));
    assert_eq!(rotation.warnings, ["muster.yaml: line 2, column 1: certificate_rotation: has no effect yet"]);
    assert_eq!(refusals(&rotation), [""; 0]);

    let jwt = mk_config(include_str!("fixtures/guide-5.2.1.yaml"));
    assert_eq!(jwt.auth.jwt.audience.as_deref(), Some("opamp-agents"));
    assert_eq!(jwt.auth.jwt.required_claims, ["sub", "exp", "iat"]);
    assert_eq!(jwt.warnings, ["muster.yaml: line 4, column 3: auth.jwt: has no effect yet"]);
    assert_eq!(refusals(&jwt).len(), 1);

    let keys = mk_config(include_str!("fixtures/guide-5.2.2.yaml"));
    assert_eq!(keys.auth.api_key.redis.endpoint.as_deref(), Some("redis:6379"));
    assert_eq!(keys.auth.api_key.expiration, Duration::from_secs(90 * 86_400));
    assert_eq!(
        keys.warnings,
        [
            "muster.yaml: line 6, column 5: auth.api_key.storage: is ignored: keys are in the store, as digests, \
                and reach the gateways over the bus",
            "muster.yaml: line 7, column 5: auth.api_key.redis: has no effect yet",
        ]
    );
    assert_eq!(refusals(&keys), [""; 0]);

    let tuning = mk_config(include_str!("fixtures/guide-8.2.yaml"));
    assert_eq!(tuning.server.websocket.max_connections, 10_000);
    assert_eq!(tuning.server.caching.config_cache_ttl, Duration::from_secs(300));
    assert_eq!(tuning.database.indexes, ["agent_id", "config_version", "timestamp"]);
    assert_eq!(refusals(&tuning), [""; 0]);
}

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");

#[test]
fn the_reference_is_current() {
    const BEGIN: &str = "<!-- keys: begin -->\n";
    const END: &str = "<!-- keys: end -->\n";
    let path = format!("{DOCS}/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let current = format!("{before}{BEGIN}\n{}\n{END}{after}", reference_table());
    if std::env::var_os("MUSTER_UPDATE_DOCS").is_some() {
        std::fs::write(&path, current).unwrap();
    } else {
        assert!(page == current, "{path} is not current: run this test with MUSTER_UPDATE_DOCS=1");
    }
}

#[test]
fn the_example_is_the_defaults() {
    let text = std::fs::read_to_string(format!("{DOCS}/examples/muster.yaml")).unwrap();
    assert_eq!(without_origin(mk_config(&text)), mk_config(""));
}
