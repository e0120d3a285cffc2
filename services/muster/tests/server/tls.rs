//! TLS of the listeners and to the engines, with the certificates that the documentation tells how to make.

use std::net::SocketAddr;
use std::process::Stdio;

use muster_fleet::{Fleet, FleetOptions};
use muster_testkit::engines::{Nats, Postgres, Redis};
use muster_testkit::messages::{first_report, heartbeat, new_uid};
use muster_testkit::{Certificates, Muster, MusterBuilder, RawAgent, StartError, eventually, go_or_skip};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::{SOON, agent_has};

fn builder() -> MusterBuilder {
    Muster::builder(env!("CARGO_BIN_EXE_muster"))
}

fn address(muster: &Muster) -> String {
    let url = muster.opamp_url();
    url.trim_start_matches("wss://").trim_end_matches("/v1/opamp").to_owned()
}

/// A metric without labels.
async fn metric(muster: &Muster, name: &str) -> Option<f64> {
    muster.api().metrics().await.unwrap().get(name)
}

#[tokio::test]
async fn a_fleet_real_clients_and_people_are_served_with_the_documented_certificates() {
    let certificates = Certificates::make();
    let mut muster = builder().tls(&certificates).start().await;
    let options = FleetOptions {
        count: 40,
        tls: Some(certificates.client().await),
        ..FleetOptions::new(muster.opamp_url())
    };
    let fleet = Fleet::start(options, CancellationToken::new()).unwrap();
    fleet.wait(|stats| stats.connected == 40, SOON).await.unwrap();
    if let Some(go) = go_or_skip() {
        let agent = go.agent().await.ca_file(certificates.path("ca.crt"));
        // The certificate is also for this name.
        let mut agent = agent.start(&muster.opamp_url().replace("127.0.0.1", "localhost"));
        agent.wait("connected").await;
        agent_has(&muster, agent.uid(), "/connected", true).await;
        agent.disconnect().await;
    }
    eventually(SOON, async || {
        let listed = muster.cli(&["agents", "list", "--output", "json"]).await.expect_success();
        let connected = listed.matches("\"connected\": true").count();
        if connected >= 40 { Ok(()) } else { Err(format!("{connected} are connected: {listed}")) }
    })
    .await;
    fleet.stop().await;
    muster.terminate().await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn only_tls_of_1_2_and_later_is_spoken_and_sessions_are_resumed() {
    let certificates = Certificates::make();
    let muster = builder().tls(&certificates).start().await;
    let client = async |options: &[&str]| {
        let ca = certificates.path("ca.crt");
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &address(&muster), "-CAfile"]).arg(ca).args(options);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let (works, said) = client(&[version, "-verify_return_error"]).await;
        assert!(works && said.contains("Verify return code: 0"), "{version}: {said}");
    }
    for old in ["-tls1", "-tls1_1"] {
        assert!(!client(&[old, "-cipher", "ALL:@SECLEVEL=0"]).await.0, "{old}");
    }
    let (_, said) = client(&["-tls1_2", "-reconnect"]).await;
    assert!(said.contains("Reused, TLSv1.2"), "{said}");
    let resumed = "muster_tls_handshakes_total{listener=\"agents\",result=\"resumed\"}";
    assert!(metric(&muster, resumed).await.unwrap() >= 1.0);

    // Without TLS there is nothing.
    let mut plain = TcpStream::connect(address(&muster)).await.unwrap();
    plain.write_all(b"GET /v1/opamp HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said).await;
    assert!(!String::from_utf8_lossy(&said).contains("HTTP"), "{said:?}");
}

#[tokio::test]
async fn clients_that_do_not_finish_their_handshake_hold_up_nobody() {
    let certificates = Certificates::make();
    let muster = builder().tls(&certificates).start().await;
    let to: SocketAddr = address(&muster).parse().unwrap();
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(to).await.unwrap());
    }
    let tls = certificates.client().await;
    let mut agent = RawAgent::try_connect_tls(&muster.opamp_url(), &[], Some(tls)).await.unwrap();
    let uid = new_uid();
    agent.exchange(&first_report(uid, &[])).await;
    agent_has(&muster, uid, "/connected", true).await;
    // Somebody who says nothing is left before long.
    let mut gone = silent.pop().unwrap();
    let mut nothing = [0; 8];
    assert_eq!(tokio::time::timeout(2 * SOON, gone.read(&mut nothing)).await.unwrap().unwrap_or(0), 0);
}

#[tokio::test]
async fn new_files_are_taken_up_and_bad_ones_keep_the_old() {
    let certificates = Certificates::make();
    let muster = builder().tls(&certificates).start().await;
    let (url, tls) = (muster.opamp_url(), certificates.client().await);
    let mut open = RawAgent::try_connect_tls(&url, &[], Some(tls.clone())).await.unwrap();
    let uid = new_uid();
    open.exchange(&first_report(uid, &[])).await;

    // The key alone does not fit: the old pair is kept.
    certificates
        .run("cp server.key old.key; openssl ecparam -name prime256v1 -genkey -noout -out server.key");
    let line = muster.wait_for_log("tls_files_unusable", 2 * SOON).await;
    assert!(line.contains("is not the key of the first certificate"), "{line}");
    assert_eq!(metric(&muster, "muster_tls_files_usable").await, Some(0.0));
    RawAgent::try_connect_tls(&url, &[], Some(tls.clone())).await.unwrap();

    // A whole new pair is taken up.
    certificates.run(
        "openssl req -new -key server.key -out server.csr -subj /CN=new
         printf 'subjectAltName=DNS:new.example.com,IP:127.0.0.1\\n' > new.ext
         openssl x509 -req -days 30 -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile new.ext -out server.crt",
    );
    muster.wait_for_log("new.example.com", 2 * SOON).await;
    assert_eq!(metric(&muster, "muster_tls_files_usable").await, Some(1.0));
    RawAgent::try_connect_tls(&url, &[], Some(tls)).await.unwrap();
    // What was open goes on.
    open.exchange(&heartbeat(uid, 1)).await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn files_that_cannot_be_used_are_told_at_the_start() {
    // Version 1 is what `openssl x509` makes without an extension file.
    let sign = "openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt";
    let cases = [
        (format!("{sign} -days 365"), "server.tls.cert_file", "is an X.509 version 1 certificate"),
        (
            format!("{sign} -days -1 -extfile server.ext"),
            "server.tls.cert_file",
            "the certificate expired on 20",
        ),
        (
            "cp client.key server.key".to_owned(),
            "server.tls.key_file",
            "is not the key of the first certificate",
        ),
        ("cp server.crt server.key".to_owned(), "server.tls.key_file", "has no private key"),
        (
            "openssl pkey -in server.key -aes128 -passout pass:x -out e && mv e server.key".to_owned(),
            "server.tls.key_file",
            "the key is encrypted",
        ),
        ("cp server.key server.crt".to_owned(), "server.tls.cert_file", "has no certificate"),
        ("rm server.crt".to_owned(), "server.tls.cert_file", "cannot be read"),
    ];
    for (spoil, key, what) in cases {
        let certificates = Certificates::make();
        certificates.run(&spoil);
        let refused = builder().tls(&certificates).try_start().await.unwrap_err();
        let StartError::Exited { stderr, .. } = refused else { panic!("{spoil}: {refused}") };
        assert!(stderr.contains(key) && stderr.contains(what), "{spoil}: {stderr}");
    }
}

#[tokio::test]
async fn agents_show_a_certificate_where_their_authority_is_named() {
    let certificates = Certificates::make();
    let ca = certificates.path("ca.crt").display().to_string();
    let muster = builder().tls(&certificates).env("MUSTER_SERVER__TLS__CLIENT_CA_FILE", ca).start().await;
    let options = |tls| FleetOptions { count: 3, tls: Some(tls), ..FleetOptions::new(muster.opamp_url()) };
    let known =
        Fleet::start(options(certificates.client_as("client").await), CancellationToken::new()).unwrap();
    known.wait(|stats| stats.connected == 3, SOON).await.unwrap();
    // Without one, or with one of another authority or of version 1, there is no connection.
    certificates.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 9 -keyout other.key -out other.crt -subj /CN=agent-1
         cp client.key old.key
         openssl x509 -req -days 9 -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out old.crt",
    );
    let nobody = certificates.client().await;
    let unknown = certificates.client_as("other").await;
    for tls in [nobody, unknown] {
        let fleet = Fleet::start(options(tls), CancellationToken::new()).unwrap();
        fleet.wait(|stats| stats.connect_failures >= 3, SOON).await.unwrap();
        assert_eq!(fleet.stats().connected, 0);
        fleet.stop().await;
    }
    // The API does not ask for one.
    muster.cli(&["agents", "list"]).await.expect_success();
    known.stop().await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn engines_are_reached_with_tls_and_certificates() {
    let certificates = Certificates::make();
    let nats = Nats::start_with_tls(&certificates).await;
    let redis = Redis::builder().tls(&certificates).start().await;
    let postgres = Postgres::builder().without_fsync().tls(&certificates).start().await;
    let file = |name| certificates.path(name).display().to_string();
    let (ca, cert, key) = (file("ca.crt"), file("client.crt"), file("client.key"));
    let database = format!("{}?sslmode=verify-full&sslrootcert={ca}", postgres.database().await);
    let cluster = |ca: &str| {
        builder()
            .env("MUSTER_BUS__TYPE", "nats")
            .env("MUSTER_BUS__URL", nats.tls_url())
            .env("MUSTER_BUS__REPLICAS", "1")
            .env("MUSTER_BUS__MAX_BYTES", "64MiB")
            .env("MUSTER_BUS__MAX_BLOB_BYTES", "64MiB")
            .env("MUSTER_BUS__TLS__CA_FILE", ca)
            .env("MUSTER_BUS__TLS__CERT_FILE", &cert)
            .env("MUSTER_BUS__TLS__KEY_FILE", &key)
            .env("MUSTER_OWNERSHIP__TYPE", "redis")
            .env("MUSTER_OWNERSHIP__URL", redis.tls_url())
            .env("MUSTER_OWNERSHIP__TLS__CA_FILE", ca)
            .env("MUSTER_OWNERSHIP__TLS__CERT_FILE", &cert)
            .env("MUSTER_OWNERSHIP__TLS__KEY_FILE", &key)
            .env("MUSTER_DATABASE__TYPE", "postgres")
            .env("MUSTER_DATABASE__MAX_OPEN_CONNS", "8")
            .env("MUSTER_DATABASE__CONNECTION_STRING", &database)
    };
    let mut muster = cluster(&ca).start().await;
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    let uid = new_uid();
    agent.exchange(&first_report(uid, &[])).await;
    // Every partition of the log is taken by a worker first, with connections to all engines.
    let path = format!("/api/v1/agents/{uid}");
    eventually(6 * SOON, async || muster.api().get(&path).await.map_err(|error| error.to_string())).await;
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND usename = current_user";
    assert_ne!(Postgres::psql(&postgres.url(), encrypted).await, "0");
    muster.terminate().await;

    // An engine that shows another authority's certificate is not used.
    certificates
        .run("openssl req -x509 -newkey rsa:2048 -nodes -days 9 -keyout x.key -out x.crt -subj /CN=x");
    let stranger = cluster(&file("x.crt"));
    let started = stranger.ready_within(std::time::Duration::from_secs(4)).try_start().await;
    assert!(matches!(started, Err(StartError::NotReady { .. })), "{started:?}");
}
