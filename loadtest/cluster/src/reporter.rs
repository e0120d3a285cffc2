//! Agents that report all the time, and know what the server has answered: what was answered must be
//! what the API shows, whatever happened in between.
//!
//! A report has a number. Health and effective config are reported in turn, so that the later report
//! does not repeat what the earlier one said.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use muster_fleet::wire;
use muster_proto::opamp::server_error_response::Details;
use muster_proto::opamp::{AgentToServer, RemoteConfigStatuses, ServerToAgent, ServerToAgentFlags};
use muster_testkit::messages;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};
use uuid::Uuid;

/// The `service.name` of reporters; no assignment is for it.
pub const SERVICE: &str = "reporter";
/// Time between two reports of one agent.
const PACE: Duration = Duration::from_millis(500);
/// How long an answer may take before the connection is given up.
const ANSWER: Duration = Duration::from_secs(15);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Time between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(500);
/// The longest wait that a server may ask for; tests do not wait longer.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// After an ask for full state: an answer on its way is not taken for that to the full state.
const QUIET: Duration = Duration::from_millis(300);

/// The number of a report, as it stands in the reported texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(pub u64);

impl Number {
    /// The number in a text such as `report: 7`; 0 if there is none.
    pub fn read(text: &str) -> Self {
        Self(text.trim().rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default())
    }

    fn text(self) -> String {
        format!("report: {}", self.0)
    }
}

/// The latest report of each part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Of the health.
    pub health: Number,
    /// Of the effective config.
    pub config: Number,
}

/// What one agent has said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said {
    /// The agent.
    pub uid: Uuid,
    /// What it sent.
    pub sent: Parts,
    /// What it got an answer for.
    pub acknowledged: Parts,
    /// The sequence number of the last message that it got an answer for.
    pub acknowledged_sequence: u64,
    /// Whether it is connected.
    pub connected: bool,
    /// Offers that it received, which is nobody's right.
    pub offers: u64,
    /// Connections that ended without its doing.
    pub drops: u64,
    /// Answers to reports.
    pub answers: u64,
    /// Reports that the server could not take.
    pub unavailable: u64,
    /// Times that it was asked for full state.
    pub asked: u64,
}

impl Said {
    /// The server has answered a message: what it says is kept.
    fn answered(&mut self, message: &AgentToServer) {
        if message.health.is_some() {
            self.acknowledged.health = self.sent.health;
        }
        if message.effective_config.is_some() {
            self.acknowledged.config = self.sent.config;
        }
        self.acknowledged_sequence = message.sequence_num;
        self.answers += 1;
    }
}

/// What reporters do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// All report.
    All,
    /// Every other one only says that it is there.
    Half,
    /// None has news.
    None,
}

/// Reporting agents. They vanish when this is dropped.
#[derive(Debug)]
pub struct Reporters {
    url: String,
    said: Vec<Arc<Mutex<Said>>>,
    mode: watch::Sender<Mode>,
    /// How long answers took.
    waits: Waits,
    tasks: JoinSet<()>,
}

type Waits = Arc<Mutex<Vec<Duration>>>;
/// Answers whose time is kept until it is asked for.
const MOST_WAITS: usize = 200_000;

impl Reporters {
    /// Starts so many.
    pub fn start(url: &str, count: usize) -> Self {
        let (mode, _) = watch::channel(Mode::All);
        let (said, waits, tasks) = (Vec::new(), Waits::default(), JoinSet::new());
        let mut reporters = Self { url: url.to_owned(), said, mode, waits, tasks };
        reporters.add(count);
        reporters
    }

    /// Starts so many more.
    pub fn add(&mut self, count: usize) {
        for index in 0..count {
            let one = Arc::new(Mutex::new(Said { uid: messages::new_uid(), ..Said::default() }));
            let reporter = Reporter {
                url: self.url.clone(),
                index: self.said.len(),
                begin: PACE.mul_f64(index as f64 / count.max(1) as f64),
                said: Arc::clone(&one),
                mode: self.mode.subscribe(),
                waits: Arc::clone(&self.waits),
                sequence: 0,
                next: 1,
                introduced: false,
            };
            self.said.push(one);
            self.tasks.spawn(reporter.run());
        }
    }

    /// How long the answers took that have come since the last call, in order of length.
    pub fn take_waits(&self) -> Vec<Duration> {
        let mut waits = std::mem::take(&mut *self.waits.lock().unwrap_or_else(PoisonError::into_inner));
        waits.sort_unstable();
        waits
    }

    /// What each of them has said.
    pub fn said(&self) -> Vec<Said> {
        self.said.iter().map(|said| *lock(said)).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.said.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.said.is_empty()
    }

    /// All report.
    pub fn report_all(&self) {
        self.mode.send_replace(Mode::All);
    }

    /// Every other one stays at what it reported last, so that nothing later makes up for a loss.
    pub fn hold_half(&self) {
        self.mode.send_replace(Mode::Half);
    }

    /// None reports anything new.
    pub fn hold_all(&self) {
        self.mode.send_replace(Mode::None);
    }
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

type Socket = WebSocketStream<TcpStream>;

/// One agent.
struct Reporter {
    url: String,
    index: usize,
    begin: Duration,
    said: Arc<Mutex<Said>>,
    mode: watch::Receiver<Mode>,
    waits: Waits,
    sequence: u64,
    next: u64,
    introduced: bool,
}

/// What an answer says.
enum Answer {
    Taken,
    FullState,
    NotNow(Duration),
}

impl Reporter {
    async fn run(mut self) {
        sleep(self.begin).await;
        loop {
            if let Ok(Ok(socket)) = timeout(CONNECT, connect(&self.url)).await {
                lock(&self.said).connected = true;
                // It ends in one way only: the connection is lost.
                let _ = self.session(socket).await;
                let mut said = lock(&self.said);
                said.connected = false;
                said.drops += 1;
            }
            sleep(AGAIN).await;
        }
    }

    fn holds(&self) -> bool {
        match *self.mode.borrow() {
            Mode::All => false,
            Mode::Half => self.index.is_multiple_of(2),
            Mode::None => true,
        }
    }

    async fn session(&mut self, mut socket: Socket) -> ControlFlow<()> {
        let mut full = !self.introduced;
        loop {
            let message = if full { self.full_state() } else { self.news() };
            let began = Instant::now();
            let sent = timeout(ANSWER, socket.send(Message::Binary(wire::encode(&message)))).await;
            let Ok(Ok(())) = sent else { return ControlFlow::Break(()) };
            let mut pause = PACE;
            let was_full = full;
            full = false;
            match self.answer(&mut socket).await? {
                Answer::Taken => {
                    let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
                    if waits.len() < MOST_WAITS {
                        waits.push(began.elapsed());
                    }
                    drop(waits);
                    self.introduced = true;
                    let mut said = lock(&self.said);
                    said.answered(&message);
                }
                Answer::FullState => {
                    lock(&self.said).asked += 1;
                    full = true;
                    pause = Duration::ZERO;
                }
                Answer::NotNow(wait) => {
                    lock(&self.said).unavailable += 1;
                    full = was_full;
                    pause = wait.min(LONGEST_WAIT);
                }
            }
            full |= self.quiet(&mut socket, if full || was_full { QUIET } else { pause }).await?;
        }
    }

    /// Everything, with the numbers that were sent before.
    fn full_state(&mut self) -> AgentToServer {
        let Said { uid, sent, .. } = *lock(&self.said);
        let sequence = self.count();
        let attributes = [("service.name", SERVICE), ("host.name", "reporter")];
        let mut message = messages::full_state(uid, sequence, &attributes);
        message.health = messages::health(uid, sequence, false, &sent.health.text()).health;
        message.effective_config = config(uid, sequence, sent.config).effective_config;
        message
    }

    /// The next report; a heartbeat while there is none.
    fn news(&mut self) -> AgentToServer {
        let sequence = self.count();
        let holds = self.holds();
        let mut said = lock(&self.said);
        if holds {
            return messages::heartbeat(said.uid, sequence);
        }
        let number = Number(self.next);
        self.next += 1;
        if number.0.is_multiple_of(2) {
            said.sent.health = number;
            messages::health(said.uid, sequence, false, &number.text())
        } else {
            said.sent.config = number;
            config(said.uid, sequence, number)
        }
    }

    fn count(&mut self) -> u64 {
        let sequence = self.sequence;
        self.sequence += 1;
        sequence
    }

    /// The answer to the message that was sent last.
    async fn answer(&mut self, socket: &mut Socket) -> ControlFlow<(), Answer> {
        let end = Instant::now() + ANSWER;
        loop {
            let Some(message) = self.receive(socket, end).await? else { return ControlFlow::Break(()) };
            if message.remote_config.is_some() {
                continue;
            }
            if let Some(error) = message.error_response {
                let wait = error.details.map(|Details::RetryInfo(retry)| retry.retry_after_nanoseconds);
                return ControlFlow::Continue(Answer::NotNow(wait.map_or(AGAIN, Duration::from_nanos)));
            }
            let answer = if asks(&message) { Answer::FullState } else { Answer::Taken };
            return ControlFlow::Continue(answer);
        }
    }

    /// Listens for a while; whether full state is asked for meanwhile.
    async fn quiet(&mut self, socket: &mut Socket, pause: Duration) -> ControlFlow<(), bool> {
        let end = Instant::now() + pause;
        let mut asked = false;
        while let Some(message) = self.receive(socket, end).await? {
            asked |= asks(&message);
        }
        ControlFlow::Continue(asked)
    }

    /// The next message until then.
    async fn receive(&mut self, socket: &mut Socket, end: Instant) -> ControlFlow<(), Option<ServerToAgent>> {
        loop {
            let Ok(item) = timeout_at(end, socket.next()).await else { return ControlFlow::Continue(None) };
            let Some(Ok(item)) = item else { return ControlFlow::Break(()) };
            match item {
                Message::Binary(payload) => {
                    let Ok(message) = wire::decode::<ServerToAgent>(payload) else {
                        return ControlFlow::Break(());
                    };
                    lock(&self.said).offers += u64::from(message.remote_config.is_some());
                    return ControlFlow::Continue(Some(message));
                }
                Message::Close(_) => {
                    // The answer to the Close is ready to be sent.
                    let _ = timeout(AGAIN, socket.flush()).await;
                    return ControlFlow::Break(());
                }
                _ => {}
            }
        }
    }
}

fn asks(message: &ServerToAgent) -> bool {
    message.flags & ServerToAgentFlags::ReportFullState as u64 != 0
}

fn config(uid: Uuid, sequence: u64, number: Number) -> AgentToServer {
    let mut message = messages::effective_config(uid, sequence, &[("reporter.yaml", &number.text())]);
    // It never has a remote config; saying so keeps the report whole.
    message.remote_config_status =
        messages::config_status(uid, sequence, &[], RemoteConfigStatuses::Unset, "").remote_config_status;
    message
}

async fn connect(url: &str) -> Result<Socket, Box<dyn std::error::Error + Send + Sync>> {
    let address = url.trim_start_matches("ws://").split('/').next().unwrap_or_default();
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(client_async(url, stream).await?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_for_what_the_message_says() {
        let sent = Parts { health: Number(4), config: Number(5) };
        let mut said = Said { sent, ..Said::default() };
        said.answered(&messages::health(said.uid, 9, true, ""));
        assert_eq!(said.acknowledged, Parts { health: Number(4), config: Number(0) });
        said.answered(&messages::heartbeat(said.uid, 10));
        assert_eq!(said.acknowledged, Parts { health: Number(4), config: Number(0) });
        assert_eq!(said.acknowledged_sequence, 10);
    }

    #[test]
    fn numbers_are_read_from_what_is_reported() {
        assert_eq!(Number::read(&Number(7).text()), Number(7));
        assert_eq!(Number::read(""), Number(0));
        assert_eq!(Number::read("report: 12\n"), Number(12));
    }
}
