//! A program that behaves like Muster as far as the testkit looks.

use std::fmt::Write;
use std::io::Read;
use std::path::Path;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// Runs the command after `muster` in the arguments and ends the process.
pub(crate) async fn main(mode: &str) {
    let arguments: Vec<String> =
        std::env::args().skip_while(|argument| argument != "muster").skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", "--data-dir", data, ..] => serve(mode, Path::new(data), &words).await,
        ["say", word, "--server", url] => println!("{word} to {url}"),
        ["read", ..] => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).unwrap();
            println!("read {text}");
        }
        _ => {
            eprintln!("error: cannot {words:?}");
            std::process::exit(1);
        }
    }
    std::process::exit(0);
}

async fn serve(mode: &str, data: &Path, words: &[&str]) {
    std::fs::create_dir_all(data).unwrap();
    let starts = data.join("starts");
    let before = std::fs::read_to_string(&starts).unwrap_or_default();
    std::fs::write(&starts, format!("{before}.")).unwrap();
    match mode {
        "refuses" => {
            eprintln!("error: auth.type: no such thing");
            std::process::exit(3);
        }
        "taken-once" if before.is_empty() => {
            eprintln!("error: cannot listen: Address already in use (os error 98)");
            std::process::exit(1);
        }
        "logs-error" => eprintln!(r#"{{"level":"ERROR","message":"something broke"}}"#),
        _ => {}
    }
    let mut more = String::new();
    if let Some(at) = words.iter().position(|word| *word == "--config") {
        write!(more, " config={}", std::fs::read_to_string(words[at + 1]).unwrap().trim()).unwrap();
    }
    if let Ok(value) = std::env::var("MUSTER_X") {
        write!(more, " x={value}").unwrap();
    }
    let listen = async |name: &str| TcpListener::bind(std::env::var(name).unwrap()).await.unwrap();
    let _agents = listen("MUSTER_SERVER__WEBSOCKET__ENDPOINT").await;
    let _metrics = listen("MUSTER_TELEMETRY__METRICS__ENDPOINT").await;
    let http = listen("MUSTER_SERVER__HTTP__ENDPOINT").await;
    eprintln!(r#"{{"level":"INFO","message":"started {}{more}"}}"#, words.join(" "));

    let mut end = signal(SignalKind::terminate()).unwrap();
    let mut requests = 0;
    loop {
        tokio::select! {
            _ = end.recv() => std::process::exit(if mode == "ends-badly" { 7 } else { 0 }),
            accepted = http.accept() => answer(mode, accepted.unwrap().0, &mut requests).await,
        }
    }
}

/// Answers one request and closes.
async fn answer(mode: &str, stream: TcpStream, requests: &mut u32) {
    let mut stream = BufReader::new(stream);
    let mut head = Vec::new();
    let mut line = String::new();
    while stream.read_line(&mut line).await.is_ok_and(|length| length > 2) {
        head.push(std::mem::take(&mut line).to_lowercase());
    }
    let Some(path) = head.first().and_then(|first| first.split(' ').nth(1)) else { return };
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
    stream.read_exact(&mut body).await.unwrap();
    let (status, body) = match path {
        "/ready" if mode == "never-ready" => (503, "waiting".to_owned()),
        "/ready" => (200, "ready".to_owned()),
        "/metrics" => (200, format!("# TYPE stub_requests_total counter\nstub_requests_total {requests}\n")),
        "/echo" => (200, String::from_utf8(body).unwrap()),
        path => (404, format!(r#"{{"title":"Not Found","detail":"nothing at {path}"}}"#)),
    };
    *requests += u32::from(path != "/ready");
    let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.unwrap();
}
