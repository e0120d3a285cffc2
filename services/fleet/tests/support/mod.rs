//! A small OpAMP server that records what agents send and answers as a test says.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use muster_fleet::wire;
use muster_proto::opamp::{
    AgentConfigFile, AgentConfigMap, AgentRemoteConfig, AgentToServer, RemoteConfigStatuses, ServerToAgent,
};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// One message of an agent, or the end of its connection.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Counts connections, from 0.
    pub(crate) connection: usize,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Message(Box<AgentToServer>),
    /// The agent's Close, with its code.
    Close(u16),
}

impl Record {
    pub(crate) fn message(&self) -> Option<&AgentToServer> {
        match &self.what {
            What::Message(message) => Some(message),
            What::Close(_) => None,
        }
    }
}

type Reply = dyn Fn(usize, &AgentToServer) -> ServerToAgent + Send + Sync;

pub(crate) struct Server {
    pub(crate) url: String,
    records: watch::Sender<Vec<Record>>,
    cut: Arc<Mutex<CancellationToken>>,
    end: CancellationToken,
}

impl Server {
    /// Answers every message with what `reply` makes of the connection's number and the message;
    /// the instance_uid is filled in where it is missing.
    pub(crate) async fn start(
        reply: impl Fn(usize, &AgentToServer) -> ServerToAgent + Send + Sync + 'static,
    ) -> Self {
        Self::shedding(0, reply).await
    }

    /// A server that answers the first `shed` connections with 503.
    pub(crate) async fn shedding(
        shed: usize,
        reply: impl Fn(usize, &AgentToServer) -> ServerToAgent + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/v1/opamp", listener.local_addr().unwrap());
        let server = Self {
            url,
            records: watch::Sender::default(),
            cut: Arc::new(Mutex::new(CancellationToken::new())),
            end: CancellationToken::new(),
        };
        let (records, cut, end) = (server.records.clone(), Arc::clone(&server.cut), server.end.clone());
        let reply: Arc<Reply> = Arc::new(reply);
        tokio::spawn(end.run_until_cancelled_owned(async move {
            let mut connections = 0;
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if connections < shed {
                    let answer =
                        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n";
                    stream.write_all(answer.as_bytes()).await.unwrap();
                } else {
                    let cut = cut.lock().unwrap().clone();
                    let serve = serve(stream, connections, records.clone(), Arc::clone(&reply));
                    tokio::spawn(cut.run_until_cancelled_owned(serve));
                }
                connections += 1;
            }
        }));
        server
    }

    /// Cuts every connection without a Close.
    pub(crate) fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }

    /// Waits until `condition` holds for the records.
    pub(crate) async fn wait(&self, condition: impl FnMut(&Vec<Record>) -> bool) -> Vec<Record> {
        let mut records = self.records.subscribe();
        let met = tokio::time::timeout(DEADLINE, records.wait_for(condition)).await;
        match met {
            Ok(records) => records.unwrap().clone(),
            Err(_) => panic!("the agents did not send what was expected: {:#?}", self.records.borrow()),
        }
    }

    /// Waits until `count` messages fit and returns these.
    pub(crate) async fn messages(
        &self,
        count: usize,
        fits: impl Fn(&AgentToServer) -> bool,
    ) -> Vec<(usize, AgentToServer)> {
        let select = |records: &Vec<Record>| -> Vec<(usize, AgentToServer)> {
            let messages = records.iter().filter_map(|record| Some((record.connection, record.message()?)));
            messages.filter(|(_, message)| fits(message)).map(|(at, message)| (at, message.clone())).collect()
        };
        select(&self.wait(|records| select(records).len() >= count).await)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.cancel();
        self.cut();
    }
}

async fn serve(stream: TcpStream, connection: usize, records: watch::Sender<Vec<Record>>, reply: Arc<Reply>) {
    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        let what = match message {
            Message::Binary(payload) => What::Message(Box::new(wire::decode(payload).unwrap())),
            Message::Close(frame) => What::Close(frame.map_or(1005, |frame| frame.code.into())),
            _ => continue,
        };
        let answer = match &what {
            What::Message(message) if message.agent_disconnect.is_none() => {
                let mut answer = reply(connection, message);
                if answer.instance_uid.is_empty() {
                    answer.instance_uid = message.instance_uid.clone();
                }
                Some(answer)
            }
            _ => None,
        };
        records.send_modify(|records| records.push(Record { connection, what }));
        if let Some(answer) = answer {
            socket.send(Message::Binary(wire::encode(&answer))).await.unwrap();
        }
    }
}

/// An offer of one file, `edge`.
pub(crate) fn offer(hash: &[u8], body: &str) -> ServerToAgent {
    let file = AgentConfigFile { body: body.to_owned().into(), content_type: "text/yaml".to_owned() };
    let config = AgentConfigMap { config_map: [("edge".to_owned(), file)].into() };
    let remote_config = AgentRemoteConfig { config: Some(config), config_hash: hash.to_vec() };
    ServerToAgent { remote_config: Some(remote_config), ..Default::default() }
}

/// Whether the message reports this status.
pub(crate) fn reports(message: &AgentToServer, status: RemoteConfigStatuses) -> bool {
    message.remote_config_status.as_ref().is_some_and(|reported| reported.status() == status)
}

/// Whether the message says nothing but that the agent is there.
pub(crate) fn is_bare(message: &AgentToServer) -> bool {
    let bare = AgentToServer {
        instance_uid: message.instance_uid.clone(),
        sequence_num: message.sequence_num,
        capabilities: message.capabilities,
        ..Default::default()
    };
    *message == bare
}
