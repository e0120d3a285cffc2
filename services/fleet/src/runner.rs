//! The task of one agent: connects, talks, connects again.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use muster_proto::opamp::{AgentToServer, ServerToAgent};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::http::HeaderMap;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, Finished};
use crate::backoff;
use crate::config::Configs;
use crate::connect::{ConnectError, Socket, Target, connect};
use crate::options::FleetOptions;
use crate::stats::Stats;
use crate::wire;

/// Larger messages are sent in fragments, as opamp-go does; it also keeps send buffers small.
const FRAGMENT: usize = 4096;

/// The longest wait that an agent takes from a server.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// What all agents of a fleet share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) options: FleetOptions,
    pub(crate) target: Target,
    /// A client for each source address; none for agents on WebSockets.
    pub(crate) pollers: Vec<reqwest::Client>,
    pub(crate) headers: HeaderMap,
    pub(crate) configs: Configs,
    pub(crate) stats: watch::Sender<Stats>,
    pub(crate) cancel: CancellationToken,
    pub(crate) started: Instant,
}

/// Now, in nanoseconds since 1970.
pub(crate) fn unix_nanos() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}

/// The agent behind a lock that outlives a panic of whoever held it.
pub(crate) fn lock(agent: &Mutex<Agent>) -> MutexGuard<'_, Agent> {
    agent.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a session ended.
pub(crate) enum End {
    /// The fleet stops.
    Stopped,
    /// The connection is gone.
    Lost(String),
    /// The agent restarts.
    Restarted,
    /// The server is unavailable and may have said for how long.
    Unavailable(Option<Duration>),
}

/// What a session waits for.
enum Event {
    Stop,
    Timer,
    Message(Option<Result<Message, tungstenite::Error>>),
}

/// Counts the agent as connected for as long as this lives, also if its task is aborted.
pub(crate) struct Connected<'a>(&'a Context, &'a Mutex<Agent>);

impl<'a> Connected<'a> {
    pub(crate) fn new(context: &'a Context, agent: &'a Mutex<Agent>) -> Self {
        lock(agent).connected = true;
        context.stats.send_modify(|stats| {
            stats.connected += 1;
            stats.connections += 1;
        });
        Self(context, agent)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        lock(self.1).connected = false;
        self.0.stats.send_modify(|stats| stats.connected = stats.connected.saturating_sub(1));
    }
}

/// One agent and what its task needs.
pub(crate) struct Runner {
    pub(crate) context: Arc<Context>,
    pub(crate) agent: Arc<Mutex<Agent>>,
    pub(crate) random: StdRng,
    /// Place among the agents of this process.
    pub(crate) order: usize,
}

impl Runner {
    /// Runs until the fleet stops.
    pub(crate) async fn run(mut self) {
        let context = Arc::clone(&self.context);
        if !context.pollers.is_empty() {
            let client = &context.pollers[self.order % context.pollers.len()];
            return self.poll(client).await;
        }
        let agent = Arc::clone(&self.agent);
        let options = &context.options;
        let source: Option<IpAddr> = options.sources.get(self.order % options.sources.len().max(1)).copied();
        let mut elsewhere: Option<Target> = None;
        let mut failures = 0;
        let mut next = context.started + Duration::from_secs_f64(self.order as f64 / options.connect_rate);
        loop {
            tokio::select! {
                () = context.cancel.cancelled() => return,
                () = sleep_until(next) => {}
            }
            let target = elsewhere.as_ref().unwrap_or(&context.target);
            // Boxed: an idle agent shall not keep room for the handshake.
            let attempt = Box::pin(connect(
                target,
                &context.headers,
                source,
                options.connect_timeout,
                options.tls.as_ref(),
            ));
            let attempt = tokio::select! {
                () = context.cancel.cancelled() => return,
                attempt = attempt => attempt,
            };
            let wait = match attempt {
                Ok(socket) => {
                    failures = 0;
                    let connected = Connected::new(&context, &agent);
                    let end = self.session(socket).await;
                    drop(connected);
                    match end {
                        End::Stopped => return,
                        End::Lost(reason) => {
                            tracing::debug!(agent = self.order, reason, "connection lost");
                            context.stats.send_modify(|stats| {
                                stats.drops += 1;
                                stats.last_error = Some(reason);
                            });
                            Duration::ZERO
                        }
                        End::Restarted => {
                            tracing::debug!(agent = self.order, "restarted");
                            lock(&agent).restart(unix_nanos());
                            Duration::ZERO
                        }
                        End::Unavailable(Some(wait)) => {
                            wait.min(LONGEST_WAIT).mul_f64(1.0 + self.random.random::<f64>() / 2.0)
                        }
                        End::Unavailable(None) => backoff::delay(1, self.random.random()),
                    }
                }
                Err(error) => {
                    failures += 1;
                    tracing::debug!(agent = self.order, %error, "not connected");
                    context.stats.send_modify(|stats| {
                        stats.connect_failures += 1;
                        stats.last_error = Some(error.to_string());
                    });
                    let own = backoff::delay(failures, self.random.random());
                    match error {
                        ConnectError::Refused { retry_after, elsewhere: there, .. } => {
                            elsewhere = there.or(elsewhere);
                            own.max(retry_after.unwrap_or_default().min(LONGEST_WAIT))
                        }
                        _ => own,
                    }
                }
            };
            next = Instant::now() + wait;
        }
    }

    /// Talks over one connection until it ends.
    async fn session(&mut self, mut socket: Socket) -> End {
        let context = Arc::clone(&self.context);
        let interval = context.options.heartbeat;
        let mut heartbeat =
            (!interval.is_zero()).then(|| Instant::now() + interval.mul_f64(self.random.random::<f64>()));
        let mut news = true;
        loop {
            if news && let Err(end) = self.report(&mut socket).await {
                return end;
            }
            let due = lock(&self.agent).due();
            let event = next_event(&mut socket, &context.cancel, [heartbeat, due]).await;
            match event {
                Event::Stop => return self.leave(&mut socket).await,
                Event::Timer => {
                    let now = Instant::now();
                    self.finish(now);
                    if let Some(time) = heartbeat.filter(|time| *time <= now) {
                        heartbeat = Some((time + interval).max(now));
                        context.stats.send_modify(|stats| stats.heartbeats += 1);
                        if let Err(end) = self.report(&mut socket).await {
                            return end;
                        }
                    }
                }
                Event::Message(Some(Ok(Message::Binary(payload)))) => {
                    if let Some(end) = self.receive(payload) {
                        self.close(&mut socket).await;
                        return end;
                    }
                }
                Event::Message(Some(Ok(Message::Close(frame)))) => {
                    // The answer to the Close is ready to be sent.
                    let _ = timeout(context.options.write_timeout, socket.flush()).await;
                    return End::Lost(match frame {
                        Some(frame) => format!("closed by the server: {} {}", frame.code, frame.reason),
                        None => "closed by the server".to_owned(),
                    });
                }
                Event::Message(Some(Ok(Message::Text(_)))) => {
                    context.stats.send_modify(|stats| stats.error("a text message".to_owned()));
                }
                Event::Message(Some(Ok(_))) => {}
                Event::Message(Some(Err(error))) => return End::Lost(error.to_string()),
                Event::Message(None) => return End::Lost("the connection ended".to_owned()),
            }
            news = lock(&self.agent).has_news();
        }
    }

    /// Sends the next report.
    async fn report(&self, socket: &mut Socket) -> Result<(), End> {
        let message = lock(&self.agent).next_message(unix_nanos());
        let full = message.agent_description.is_some();
        self.send(socket, &message).await.map_err(End::Lost)?;
        self.context.stats.send_modify(|stats| {
            stats.sent += 1;
            stats.full_states += u64::from(full);
        });
        Ok(())
    }

    async fn send(&self, socket: &mut Socket, message: &AgentToServer) -> Result<(), String> {
        let limit = self.context.options.write_timeout;
        match timeout(limit, write(socket, wire::encode(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("a message was not sent within {limit:?}")),
        }
    }

    /// Takes a WebSocket message of the server; says so if it ends the session.
    fn receive(&mut self, payload: Bytes) -> Option<End> {
        match wire::decode(payload) {
            Ok(message) => self.take(message),
            Err(error) => {
                self.context.stats.send_modify(|stats| stats.error(error.to_string()));
                None
            }
        }
    }

    /// Takes a message of the server; says so if it ends the session.
    pub(crate) fn take(&mut self, message: ServerToAgent) -> Option<End> {
        let context = &self.context;
        let delay = match message.remote_config {
            Some(_) => self.random.random_range(context.options.apply_delay.clone()),
            None => Duration::ZERO,
        };
        if let Some(config) = message.remote_config.as_ref().and_then(|offer| offer.config.as_ref()) {
            context.options.observer.see(lock(&self.agent).identity().index, &config.config_map);
        }
        let rejects = &context.options.rejects;
        let received = lock(&self.agent).receive(message, &context.configs, rejects, Instant::now(), delay);
        let end = match received.unavailable {
            Some(wait) => Some(End::Unavailable(wait)),
            None => received.restart.then_some(End::Restarted),
        };
        context.stats.send_modify(|stats| {
            stats.received += 1;
            stats.full_states_asked += u64::from(received.full_state_asked);
            stats.new_uids += u64::from(received.new_uid);
            if let Some(hash) = received.offer {
                *stats.configs_received.entry(wire::hex(&hash)).or_default() += 1;
            }
            if let Some(reason) = received.refused {
                stats.error_responses += 1;
                stats.last_error = Some(reason);
            }
            if let Some(reason) = received.wrong {
                stats.error(reason);
            }
        });
        end
    }

    /// Ends applying a configuration if its time has come.
    pub(crate) fn finish(&self, now: Instant) {
        let Some(finished) = lock(&self.agent).finish(now) else { return };
        self.context.stats.send_modify(|stats| match finished {
            Finished::Applied { old, new } => {
                stats.applied += 1;
                stats.moved(old.map(|hash| wire::hex(&hash)), wire::hex(&new));
            }
            Finished::Failed { reason } => {
                stats.failed += 1;
                stats.last_error = Some(reason);
            }
        });
    }

    /// Says goodbye and closes.
    async fn leave(&self, socket: &mut Socket) -> End {
        let goodbye = lock(&self.agent).goodbye();
        if self.send(socket, &goodbye).await.is_ok() {
            self.context.stats.send_modify(|stats| stats.sent += 1);
            self.close(socket).await;
        }
        End::Stopped
    }

    /// Closes with 1000 and waits for the server's Close.
    async fn close(&self, socket: &mut Socket) {
        let close = async {
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            if socket.close(Some(frame)).await.is_ok() {
                while let Some(Ok(_)) = socket.next().await {}
            }
        };
        let _ = timeout(self.context.options.close_timeout, close).await;
    }
}

/// Waits for the first of: the fleet's end, one of the times, the server.
async fn next_event(socket: &mut Socket, cancel: &CancellationToken, times: [Option<Instant>; 2]) -> Event {
    let timer = async {
        match times.into_iter().flatten().min() {
            Some(time) => sleep_until(time).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => Event::Stop,
        item = socket.next() => Event::Message(item),
        () = timer => Event::Timer,
    }
}

async fn write(socket: &mut Socket, mut payload: Bytes) -> Result<(), tungstenite::Error> {
    if payload.len() <= FRAGMENT {
        return socket.send(Message::Binary(payload)).await;
    }
    let mut opcode = OpCode::Data(Data::Binary);
    while !payload.is_empty() {
        let part = payload.split_to(payload.len().min(FRAGMENT));
        socket.feed(Message::Frame(Frame::message(part, opcode, payload.is_empty()))).await?;
        opcode = OpCode::Data(Data::Continue);
    }
    socket.flush().await
}
