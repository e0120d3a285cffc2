//! Requests over plain HTTP that must be refused with a clear reason, and what HTTP asks beside messages.

use std::time::Duration;

use muster_proto::Message;
use muster_proto::opamp::{AgentToServer, ServerErrorResponseType};
use muster_testkit::messages::{first_report, full_state, heartbeat, new_uid};
use muster_testkit::{Answer, Muster, Poller, gzip};
use reqwest::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{SOON, agent_has, apply, assignment, server, template};

/// The server still takes a good report.
async fn goes_on(muster: &Muster) {
    let answer = Poller::new(muster.opamp_http_url()).exchange(&first_report(new_uid(), &[])).await;
    assert_eq!(answer.flags, 0);
    muster.assert_no_errors();
}

/// The reason of a BAD_REQUEST.
fn bad(answer: &Answer) -> String {
    let message = answer.message();
    let error = message.error_response.clone().unwrap();
    assert_eq!(error.r#type(), ServerErrorResponseType::BadRequest);
    let alone = muster_proto::opamp::ServerToAgent {
        instance_uid: message.instance_uid.clone(),
        error_response: message.error_response.clone(),
        ..Default::default()
    };
    assert_eq!(message, alone, "error_response is alone in its message");
    error.error_message
}

#[tokio::test]
async fn other_content_types_and_encodings_are_refused() {
    let muster = server().await;
    let poller = Poller::new(muster.opamp_http_url());
    let report = first_report(new_uid(), &[]);
    for content_type in [
        "",
        "application/json",
        "text/plain",
        "application/x-protobuf; charset=utf-8",
        "application/protobuf",
    ] {
        let answer = poller.clone().header("content-type", content_type).send(&report).await;
        assert_eq!(answer.status, 415, "{content_type}: {answer:?}");
        assert!(answer.text().contains("application/x-protobuf"), "{answer:?}");
    }
    for encoding in ["br", "deflate", "zstd", "gzip, gzip", "none"] {
        let answer = poller.clone().header("content-encoding", encoding).send(&report).await;
        assert_eq!(answer.status, 415, "{encoding}: {answer:?}");
        assert_eq!(answer.header("accept-encoding"), Some("gzip"), "{answer:?}");
    }
    for encoding in ["gzip", "GZIP", "x-gzip"] {
        let answer = poller.clone().compressing().header("content-encoding", encoding);
        assert_eq!(answer.exchange(&first_report(new_uid(), &[])).await.flags, 0, "{encoding}");
    }
    let answer = poller.clone().header("content-encoding", "identity").send(&report).await;
    assert_eq!(answer.status, 200);
    goes_on(&muster).await;
}

#[tokio::test]
async fn answers_are_compressed_for_those_who_ask() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let poller = Poller::new(muster.opamp_http_url());
    let asks = poller.clone().header("accept-encoding", "deflate, gzip;q=0.5");
    let uid = new_uid();
    let answer = asks.send(&full_state(uid, 1, &[("team", "blue")])).await;
    assert_eq!(answer.header("content-encoding"), Some("gzip"), "{answer:?}");
    assert_eq!((answer.status, answer.message().capabilities), (200, 0x7));
    let nothing = asks.send(&heartbeat(uid, 2)).await;
    assert_eq!(nothing.header("content-encoding"), None, "18 bytes would only grow");
    assert_eq!(nothing.message().instance_uid, uid.as_bytes());
    for others in ["gzip;q=0", "br", "identity"] {
        let answer =
            poller.clone().header("accept-encoding", others).send(&first_report(new_uid(), &[])).await;
        assert_eq!((answer.status, answer.header("content-encoding")), (200, None), "{others}");
        assert_eq!(answer.message().capabilities, 0x7);
    }
    goes_on(&muster).await;
}

#[tokio::test]
async fn malformed_messages_are_answered_with_the_reason() {
    let muster = server().await;
    let poller = Poller::new(muster.opamp_http_url());
    let text_uid = AgentToServer { instance_uid: vec![b'a'; 26], ..AgentToServer::default() };
    let cases: [(Vec<u8>, &str); 4] = [
        (vec![], "instance_uid must be 16 bytes, this one has 0"),
        (vec![0x1a, 0xff, 1], "the message is not an AgentToServer"),
        (b"<html>".to_vec(), "the message is not an AgentToServer"),
        (text_uid.encode_to_vec(), "instance_uid must be 16 bytes, this one has 26"),
    ];
    for (body, reason) in cases {
        let answer = poller.send_raw(body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(bad(&answer).starts_with(reason), "{}", bad(&answer));
    }
    // What is no gzip, and what ends early.
    let whole = gzip(&first_report(new_uid(), &[]).encode_to_vec());
    for body in [b"plain".to_vec(), whole[..whole.len() - 9].to_vec()] {
        let answer = poller.clone().header("content-encoding", "gzip").send_raw(body).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(bad(&answer).starts_with("the body cannot be read"), "{}", bad(&answer));
    }
    goes_on(&muster).await;
}

#[tokio::test]
async fn the_instance_uid_header_must_agree_with_the_message() {
    let muster = server().await;
    let poller = Poller::new(muster.opamp_http_url());
    let uid = new_uid();
    let report = first_report(uid, &[]);
    for header in [new_uid().to_string(), "agent-001".to_owned(), uid.simple().to_string() + "0"] {
        let answer = poller.clone().header("opamp-instance-uid", &header).send(&report).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(bad(&answer).contains("OpAMP-Instance-UID"), "{}", bad(&answer));
    }
    let answer = muster.api().get(&format!("/api/v1/agents/{uid}")).await.unwrap_err();
    assert_eq!(answer.status, 404, "nothing was taken");
    poller.clone().header("opamp-instance-uid", &uid.to_string()).exchange(&report).await;
    agent_has(&muster, uid, "/connected", true).await;
    goes_on(&muster).await;
}

#[tokio::test]
async fn large_bodies_and_bombs_are_refused_within_bounds() {
    let muster = Muster::builder(env!("CARGO_BIN_EXE_muster"))
        .env("MUSTER_SERVER__WEBSOCKET__MAX_MESSAGE_SIZE", "1MiB")
        .start()
        .await;
    let poller = Poller::new(muster.opamp_http_url());
    let answer = poller.send_raw(vec![0; (1 << 20) + 1]).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    assert_eq!(poller.send_raw(vec![0; 1 << 20]).await.status, 200, "as large as it may be");
    // Its length is not told beforehand.
    let answer = chunked(&muster, &[&[0; 100_000][..]; 11]).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");

    let bomb = gzip(&vec![0; 64 << 20]);
    assert!(bomb.len() < 100_000, "{} bytes", bomb.len());
    let before = muster.resident_bytes();
    let bombs = poller.clone().header("content-encoding", "gzip");
    let thrown: Vec<_> = (0..16)
        .map(|_| {
            let (bombs, bomb) = (bombs.clone(), bomb.clone());
            tokio::spawn(async move { bombs.send_raw(bomb).await.status })
        })
        .collect();
    for bomb in thrown {
        assert_eq!(bomb.await.unwrap(), 413);
    }
    // 16 MiB of bodies and what a debug build needs beside; unbounded, they would be 1 GiB.
    let grown = muster.resident_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "{} MiB", grown >> 20);
    goes_on(&muster).await;
}

/// Sends a body of these chunks, and returns the answer as it came.
async fn chunked(muster: &Muster, chunks: &[&[u8]]) -> String {
    let mut stream = connect(muster).await;
    stream.write_all(head("Transfer-Encoding: chunked").as_bytes()).await.unwrap();
    for chunk in chunks {
        let sent = async {
            stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
            stream.write_all(chunk).await?;
            stream.write_all(b"\r\n").await
        };
        // The server may have answered and closed by now.
        if sent.await.is_err() {
            break;
        }
    }
    let _ = stream.write_all(b"0\r\n\r\n").await;
    answer(&mut stream).await
}

async fn connect(muster: &Muster) -> TcpStream {
    let url = muster.opamp_http_url();
    let address = url.trim_start_matches("http://").split('/').next().unwrap();
    TcpStream::connect(address).await.unwrap()
}

fn head(length: &str) -> String {
    format!("POST /v1/opamp HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-protobuf\r\n{length}\r\n\r\n")
}

/// What the server says until it closes, or its first head.
async fn answer(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        while !said.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(length) => said.extend_from_slice(&buffer[..length]),
            }
        }
    };
    tokio::time::timeout(SOON, read).await.unwrap();
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn a_slow_body_is_not_waited_for() {
    let muster = Muster::builder(env!("CARGO_BIN_EXE_muster"))
        .env("MUSTER_SERVER__POLLING__BODY_TIMEOUT", "300ms")
        .start()
        .await;
    let mut slow = connect(&muster).await;
    slow.write_all(head("Content-Length: 100").as_bytes()).await.unwrap();
    // A byte now and then does not help.
    let dripping = async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if slow.write_all(b"\n").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(1), dripping).await.unwrap_err();
    let said = answer(&mut slow).await;
    assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("connection: close"), "{said}");
    goes_on(&muster).await;
}

#[tokio::test]
async fn requests_without_a_message_are_answered_sensibly() {
    let muster = server().await;
    let poller = Poller::new(muster.opamp_http_url());
    // The old Rust client asks this before it sends.
    let answer = poller.ask(Method::HEAD).await;
    assert_eq!((answer.status, answer.body.len()), (200, 0), "{answer:?}");
    let answer = poller.ask(Method::GET).await;
    assert_eq!((answer.status, answer.header("upgrade")), (426, Some("websocket")), "{answer:?}");
    assert!(answer.text().contains("POST application/x-protobuf"), "{answer:?}");
    assert_eq!(poller.ask(Method::PUT).await.status, 405);
    assert_eq!(poller.ask(Method::POST).await.status, 415);
    let elsewhere = poller.at(muster.opamp_http_url() + "/elsewhere");
    assert_eq!(elsewhere.send(&first_report(new_uid(), &[])).await.status, 404);
    goes_on(&muster).await;
}

#[tokio::test]
async fn the_path_may_be_another() {
    let muster = Muster::builder(env!("CARGO_BIN_EXE_muster"))
        .env("MUSTER_SERVER__WEBSOCKET__PATH", "/agents/opamp.v1")
        .start()
        .await;
    let elsewhere = |url: String| url.replace("/v1/opamp", "/agents/opamp.v1");
    let poller = Poller::new(elsewhere(muster.opamp_http_url()));
    assert_eq!(poller.exchange(&first_report(new_uid(), &[])).await.flags, 0);
    let mut socket = muster_testkit::RawAgent::connect(&elsewhere(muster.opamp_url())).await;
    assert_eq!(socket.exchange(&first_report(new_uid(), &[])).await.flags, 0);
    assert_eq!(poller.at(muster.opamp_http_url()).send(&first_report(new_uid(), &[])).await.status, 404);
    muster.assert_no_errors();
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let muster = server().await;
    let mut stream = connect(&muster).await;
    let uid = new_uid();
    for sequence in 0..3 {
        let body = full_state(uid, sequence, &[]).encode_to_vec();
        let length = format!("Content-Length: {}", body.len());
        stream.write_all(head(&length).as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        let said = answer(&mut stream).await;
        assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
        assert!(said.contains("content-type: application/x-protobuf\r\n"), "{said}");
    }
    goes_on(&muster).await;
}

#[tokio::test]
async fn an_answer_that_would_be_too_large_is_not_sent_and_that_is_recorded() {
    let muster = Muster::builder(env!("CARGO_BIN_EXE_muster"))
        .env("MUSTER_SERVER__POLLING__MAX_ANSWER_SIZE", "10KiB")
        .start()
        .await;
    let long = template("v1", &"9".repeat(20_000));
    apply(&muster, &[&long, &assignment("one:4317")]).await;
    let poller = Poller::new(muster.opamp_http_url());
    let uid = new_uid();
    let mut sequence = 0;
    let dropped = "muster_gateway_offers_total{result=\"too_large\"}";
    muster_testkit::eventually(SOON, async || {
        let answer = poller.exchange(&full_state(uid, sequence, &[("team", "blue")])).await;
        assert_eq!(answer.remote_config, None);
        sequence += 1;
        let count = muster.api().metrics().await.unwrap().get(dropped).unwrap_or_default();
        if count > 0.0 { Ok(()) } else { Err("nothing was too large".to_owned()) }
    })
    .await;
    let line = muster.wait_for_log("answer_too_large", SOON).await;
    assert!(line.contains(&uid.to_string()) && line.contains("max_answer_size"), "{line}");
    // One that fits is sent.
    apply(&muster, &[&template("v2", "10s")]).await;
    let (offered, _) = crate::polling::offer_from(&poller, uid, sequence).await;
    assert!(crate::body(&offered).contains("10s"));
}
