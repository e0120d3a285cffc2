//! Agents: they connect, report, apply what they are offered, and misbehave as real clients do.

mod kind;
mod machine;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_proto::Message;
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) use self::kind::Kind;
use self::machine::{Machine, Reaction};
use crate::Broken;
use crate::check::{AgentView, digest};
use crate::cluster::{Doors, Knock};
use crate::process::Process;
use crate::rng::Rng;
use crate::socket::{AgentEnd, Break, Cable, Conn, Received, address, connect};
use crate::trace::{Hash, Short};
use crate::world::World;

/// Longest wait for a handshake, and for a write.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait between two attempts to connect.
const LAST_BACKOFF: Duration = Duration::from_secs(30);
/// How long a client waits for the server's Close.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// An agent process: usually one agent, or several behind one connection.
pub(crate) struct Agent {
    /// Its name in the trace.
    pub(crate) name: String,
    world: Arc<World>,
    doors: Arc<Doors>,
    machines: Vec<Arc<Mutex<Machine>>>,
    line: Arc<Line>,
    process: Arc<Process>,
    stop: CancellationToken,
    /// Whether its process runs, held or not.
    pub(crate) is_alive: bool,
    lives: u32,
    seed: Rng,
}

/// The present connection.
#[derive(Default)]
struct Line {
    now: Mutex<Option<(Conn, Cable)>>,
    broken: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// An agent process that starts now, with an agent for each of these uids.
    pub(crate) fn start(
        world: &Arc<World>,
        doors: &Arc<Doors>,
        number: u64,
        kind: Kind,
        uids: &[Uuid],
    ) -> Self {
        let name = format!("agent-{number}");
        let seed = Rng::new(world.seed, &name);
        let machines = (0..).zip(uids).map(|(index, uid)| {
            let who = if uids.len() == 1 { name.clone() } else { format!("{name}.{index}") };
            let rng = Rng::new(world.seed, &who);
            Arc::new(Mutex::new(Machine::new(kind, number, who, *uid, rng)))
        });
        let mut agent = Self {
            machines: machines.collect(),
            world: Arc::clone(world),
            doors: Arc::clone(doors),
            line: Arc::default(),
            process: Process::new(world, name.clone()),
            stop: CancellationToken::new(),
            is_alive: false,
            lives: 0,
            seed,
            name,
        };
        agent.begin();
        agent
    }

    fn begin(&mut self) {
        self.is_alive = true;
        self.lives += 1;
        self.process = Process::new(&self.world, self.name.clone());
        self.stop = CancellationToken::new();
        self.line = Arc::default();
        let runner = Runner {
            world: Arc::clone(&self.world),
            doors: Arc::clone(&self.doors),
            machines: self.machines.clone(),
            line: Arc::clone(&self.line),
            stop: self.stop.clone(),
            rng: Rng::new(self.seed.next(), &self.name),
            name: self.name.clone(),
        };
        self.process.spawn(runner.run());
    }

    /// Starts again after an end; `forgets` its config.
    pub(crate) fn restart(&mut self, forgets: bool) {
        for machine in &self.machines {
            lock(machine).restart(forgets);
        }
        self.begin();
    }

    /// Ends without a word.
    pub(crate) fn kill(&mut self, how: Option<Break>) {
        if let (Some(how), Some((_, cable))) = (how, lock(&self.line.now).as_ref()) {
            cable.cut(how);
        }
        self.process.kill();
        self.is_alive = false;
    }

    /// Ends in good order.
    pub(crate) fn stop(&mut self) {
        self.process.resume();
        self.stop.cancel();
        self.is_alive = false;
    }

    /// Is held still, or goes on.
    pub(crate) fn hold(&self, held: bool) {
        match held {
            true => self.process.hold(),
            false => self.process.resume(),
        }
    }

    /// Its connection breaks, and it notices.
    pub(crate) fn cut(&self, how: Break) {
        if let Some((_, cable)) = lock(&self.line.now).as_ref() {
            cable.cut(how);
            self.line.broken.notify_one();
        }
    }

    /// Its uids.
    pub(crate) fn uids(&self) -> Vec<Uuid> {
        self.machines.iter().map(|machine| lock(machine).uid.0).collect()
    }

    /// Its kind.
    pub(crate) fn kind(&self) -> Option<Kind> {
        self.machines.first().map(|machine| lock(machine).kind)
    }

    /// Its agents as they are, if it lives.
    pub(crate) fn views(&self) -> Vec<AgentView> {
        if !self.is_alive {
            return Vec::new();
        }
        let conn = lock(&self.line.now).as_ref().map(|(conn, _)| *conn);
        let peer = conn.map(|conn| address(conn).to_string());
        self.machines.iter().map(|machine| lock(machine).view(peer.clone())).collect()
    }
}

/// Why a connection is over.
enum Over {
    Lost,
    ComeBack(Duration),
    Stopped,
}

struct Runner {
    world: Arc<World>,
    doors: Arc<Doors>,
    machines: Vec<Arc<Mutex<Machine>>>,
    line: Arc<Line>,
    stop: CancellationToken,
    rng: Rng,
    name: String,
}

impl Runner {
    async fn run(mut self) {
        let mut backoff = Duration::ZERO;
        loop {
            let stop = self.stop.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep(backoff) => {}
            }
            for machine in &self.machines {
                lock(machine).idle();
            }
            let tried = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                tried = timeout(PATIENCE, self.connect()) => tried,
            };
            let Ok(Some((conn, mut end))) = tried else {
                backoff = (backoff * 3 / 2).clamp(Duration::from_millis(500), LAST_BACKOFF);
                backoff = backoff / 2 + self.rng.millis(0, 1000).min(backoff / 2);
                continue;
            };
            *lock(&self.line.now) = Some((conn, end.cable()));
            let over = self.talk(conn, &mut end).await;
            *lock(&self.line.now) = None;
            drop(end);
            match over {
                Over::Lost => {
                    self.world.trace.note(&self.name, format_args!("has lost connection {conn}"));
                    backoff = self.rng.millis(0, 100);
                }
                Over::ComeBack(after) => {
                    self.world.trace.note(&self.name, format_args!("leaves connection {conn}"));
                    backoff = after;
                }
                Over::Stopped => return,
            }
        }
    }

    /// Connects to one of the gateways.
    async fn connect(&mut self) -> Option<(Conn, AgentEnd)> {
        let door = self.doors.pick(&mut self.rng)?;
        let conn = self.doors.next_conn();
        let (near, far) = connect(&self.world, conn);
        let (answer, answered) = oneshot::channel();
        door.sender.send(Knock { stream: far, peer: address(conn), answer }).ok()?;
        if answered.await != Ok(true) {
            return None;
        }
        self.world.trace.note(&self.name, format_args!("connects to {} by {conn}", door.name));
        self.world.trace.count("event connection");
        Some((conn, near))
    }

    async fn talk(&mut self, conn: Conn, end: &mut AgentEnd) -> Over {
        let peer = address(conn).to_string();
        for machine in &self.machines {
            lock(machine).connected();
        }
        let line = Arc::clone(&self.line);
        let stop = self.stop.clone();
        loop {
            for machine in self.machines.clone() {
                loop {
                    let Some(message) = lock(&machine).next() else { break };
                    if !self.send(&peer, end, &machine, &message).await {
                        return Over::Lost;
                    }
                }
            }
            let due = self.machines.iter().map(|machine| lock(machine).due()).min();
            let Some(due) = due else { return Over::Stopped };
            let received = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.leave(&peer, end).await;
                    return Over::Stopped;
                }
                () = line.broken.notified() => return Over::Lost,
                received = end.receive() => Some(received),
                () = sleep_until(due) => None,
            };
            let reaction = match received {
                None => Reaction::Stay,
                Some(Ok(Received::Message(message))) => {
                    let uid = message.instance_uid.clone();
                    let deaf = self.world.broken == Some(Broken::NoDirtyFlag);
                    self.note_received(&message);
                    let to = self.machines.iter().find(|machine| lock(machine).uid.as_bytes()[..] == uid[..]);
                    to.map_or(Reaction::Stay, |machine| lock(machine).receive(&message, deaf))
                }
                Some(Ok(Received::Ping(payload))) => match timeout(PATIENCE, end.pong(&payload)).await {
                    Ok(Ok(())) => Reaction::Stay,
                    Ok(Err(_)) | Err(_) => return Over::Lost,
                },
                Some(Ok(Received::Close(code))) => {
                    self.world.trace.note(&self.name, format_args!("is told to close: {code}"));
                    return Over::Lost;
                }
                Some(Ok(Received::Other)) => Reaction::Stay,
                Some(Err(_)) => return Over::Lost,
            };
            if let Reaction::Leave(after) = reaction {
                return Over::ComeBack(after);
            }
            let news = !self.doors.is_calm();
            for machine in &self.machines {
                lock(machine).tick(news);
            }
        }
    }

    fn note_received(&self, message: &muster_proto::opamp::ServerToAgent) {
        let kind = match message {
            message if message.error_response.is_some() => "event refusal heard",
            message if message.agent_identification.is_some() => "event new uid heard",
            message if message.remote_config.is_some() => "event offer heard",
            message if message.flags != 0 => "event ask for full state heard",
            _ => "event answer heard",
        };
        self.world.trace.count(kind);
        let offer = message.remote_config.as_ref().map(|offer| Hash(&offer.config_hash).to_string());
        let error = message.error_response.as_ref().map(|error| error.error_message.as_str());
        self.world.trace.note(
            &self.name,
            format_args!(
                "hears flags {} offer {} error {}",
                message.flags,
                offer.unwrap_or_default(),
                error.unwrap_or_default()
            ),
        );
    }

    /// Whether it was sent.
    async fn send(
        &self,
        peer: &str,
        end: &mut AgentEnd,
        machine: &Mutex<Machine>,
        message: &muster_proto::opamp::AgentToServer,
    ) -> bool {
        let uid = lock(machine).uid;
        let bytes = message.encode_to_vec();
        self.world.check(|checker| checker.sent(peer, uid, message, digest(&bytes)));
        let status = message.remote_config_status.as_ref();
        let status = status.map(|status| (Hash(&status.last_remote_config_hash).to_string(), status.status));
        self.world.trace.note(
            &self.name,
            format_args!(
                "says {} as {} d={} h={} e={} s={status:?}",
                message.sequence_num,
                Short(uid.0),
                u8::from(message.agent_description.is_some()),
                u8::from(message.health.is_some()),
                u8::from(message.effective_config.is_some()),
            ),
        );
        matches!(timeout(PATIENCE, end.send(&bytes)).await, Ok(Ok(())))
    }

    /// Says goodbye, closes, and waits a while for the server to do so too.
    async fn leave(&self, peer: &str, end: &mut AgentEnd) {
        for machine in &self.machines {
            let goodbye = lock(machine).goodbye();
            if !self.send(peer, end, machine, &goodbye).await {
                return;
            }
        }
        let closing = async {
            if end.close().await.is_ok() {
                while let Ok(received) = end.receive().await {
                    if matches!(received, Received::Close(_)) {
                        return;
                    }
                }
            }
        };
        let _ = timeout(CLOSE_WAIT, closing).await;
        self.world.trace.note(&self.name, format_args!("has stopped"));
    }
}
