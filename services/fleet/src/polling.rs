//! An agent that polls over plain HTTP: one request at a time, as the opamp-go client does.

use std::sync::Arc;
use std::time::Duration;

use muster_proto::Message;
use muster_proto::opamp::{AgentToServer, ServerToAgent};
use rand::Rng;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, StatusCode};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::backoff;
use crate::options::{FleetError, FleetOptions};
use crate::runner::{Connected, End, LONGEST_WAIT, Runner, lock, unix_nanos};

/// Idle connections to the server that one client keeps.
const IDLE: usize = 256;

/// The clients of agents that poll, one for each source address; none where agents are on WebSockets.
pub(crate) fn clients(options: &FleetOptions) -> Result<Vec<Client>, FleetError> {
    if !options.url.starts_with("http://") {
        return Ok(Vec::new());
    }
    let make = |source| {
        // A proxy of the environment would be asked for 127.0.0.1 too.
        let client = Client::builder()
            .no_proxy()
            .local_address(source)
            .pool_max_idle_per_host(IDLE)
            .connect_timeout(options.connect_timeout)
            .timeout(options.connect_timeout + options.write_timeout);
        let wrong =
            |error: reqwest::Error| FleetError::Url { url: options.url.clone(), reason: error.to_string() };
        client.build().map_err(wrong)
    };
    match options.sources.as_slice() {
        [] => Ok(vec![make(None)?]),
        sources => sources.iter().map(|source| make(Some(*source))).collect(),
    }
}

/// What became of one request.
enum Outcome {
    Answered(Box<ServerToAgent>),
    /// The same again, after this time at the earliest.
    Again(String, Duration),
    /// The server does not want this message.
    Dropped(String),
}

impl Runner {
    /// Polls until the fleet stops.
    pub(crate) async fn poll(mut self, client: &Client) {
        let (context, agent) = (Arc::clone(&self.context), Arc::clone(&self.agent));
        let options = &context.options;
        let mut connected = None;
        let mut next = context.started + Duration::from_secs_f64(self.order as f64 / options.connect_rate);
        let mut is_first = true;
        loop {
            tokio::select! {
                () = context.cancel.cancelled() => break,
                () = sleep_until(next) => {}
            }
            let message = lock(&agent).next_message(unix_nanos());
            context.stats.send_modify(|stats| {
                stats.full_states += u64::from(message.agent_description.is_some());
                stats.heartbeats += u64::from(message == plain(&message));
            });
            let asked = self.exchange(client, &message, &mut connected);
            let answered = tokio::select! {
                () = context.cancel.cancelled() => break,
                answered = asked => answered,
            };
            if connected.is_none() && answered.is_some() {
                connected = Some(Connected::new(&context, &agent));
            }
            let wait = match answered.and_then(|message| self.take(*message)) {
                Some(End::Unavailable(wait)) => wait.unwrap_or_default(),
                Some(End::Restarted) => {
                    lock(&agent).restart(unix_nanos());
                    Duration::ZERO
                }
                _ => Duration::ZERO,
            };
            // Agents that started together do not poll together.
            let part = if is_first { self.random.random::<f64>() } else { 1.0 };
            is_first = false;
            next = self.after(wait.min(LONGEST_WAIT), part).await;
        }
        if connected.is_some() {
            let goodbye = lock(&agent).goodbye();
            let _ = tokio::time::timeout(options.close_timeout, self.request(client, &goodbye)).await;
        }
    }

    /// When the next request is due: at once where there is news, and after an interval otherwise.
    async fn after(&self, wait: Duration, part: f64) -> Instant {
        let began = Instant::now();
        let interval = self.context.options.heartbeat;
        let end = began + if interval.is_zero() { LONGEST_WAIT } else { interval.mul_f64(part) };
        loop {
            self.finish(Instant::now());
            if lock(&self.agent).has_news() {
                return began + wait;
            }
            let due = lock(&self.agent).due().map_or(end, |due| due.min(end));
            tokio::select! {
                () = self.context.cancel.cancelled() => return began,
                () = sleep_until(due) => {}
            }
            if due == end {
                return end.max(began + wait);
            }
        }
    }

    /// Sends a message until it is answered, with its number and body unchanged.
    async fn exchange(
        &mut self,
        client: &Client,
        message: &AgentToServer,
        connected: &mut Option<Connected<'_>>,
    ) -> Option<Box<ServerToAgent>> {
        let mut failures = 0;
        loop {
            match self.request(client, message).await {
                Outcome::Answered(answer) => return Some(answer),
                Outcome::Dropped(reason) => {
                    self.context.stats.send_modify(|stats| stats.error(reason));
                    return None;
                }
                Outcome::Again(reason, wait) => {
                    failures += 1;
                    *connected = None;
                    self.context.stats.send_modify(|stats| {
                        stats.connect_failures += 1;
                        stats.last_error = Some(reason);
                    });
                    let own = backoff::delay(failures, self.random.random());
                    sleep_until(Instant::now() + own.max(wait.min(LONGEST_WAIT))).await;
                }
            }
        }
    }

    async fn request(&self, client: &Client, message: &AgentToServer) -> Outcome {
        let options = &self.context.options;
        let mut request = client.post(&options.url).headers(self.context.headers.clone());
        request = request.header(CONTENT_TYPE, "application/x-protobuf").body(message.encode_to_vec());
        if let Ok(uid) = Uuid::from_slice(&message.instance_uid) {
            request = request.header("OpAMP-Instance-UID", uid.to_string());
        }
        self.context.stats.send_modify(|stats| stats.sent += 1);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Outcome::Again(error.to_string(), Duration::ZERO),
        };
        let status = response.status();
        if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
            let seconds =
                response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            return Outcome::Again(
                format!("the server answered {status}"),
                Duration::from_secs(seconds.unwrap_or(0)),
            );
        }
        if status != StatusCode::OK {
            return Outcome::Dropped(format!("the server answered {status}"));
        }
        match response.bytes().await {
            Err(error) => Outcome::Again(error.to_string(), Duration::ZERO),
            Ok(body) => match ServerToAgent::decode(body) {
                Ok(answer) => Outcome::Answered(Box::new(answer)),
                Err(error) => Outcome::Dropped(format!("the answer is no message: {error}")),
            },
        }
    }
}

/// What a heartbeat with this number would be.
fn plain(message: &AgentToServer) -> AgentToServer {
    AgentToServer {
        instance_uid: message.instance_uid.clone(),
        sequence_num: message.sequence_num,
        capabilities: message.capabilities,
        ..AgentToServer::default()
    }
}
