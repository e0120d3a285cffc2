//! How a gateway sends commands.

use muster_ports::bus::{Bus, Subject};
use muster_proto::Message;
use muster_proto::bus::delivery::Action as Delivered;
use muster_proto::bus::send_command::Action;
use muster_proto::bus::{
    AgentMessage, Delivery, DisconnectAgent, ReportFullState, RestartAgent, SendCommand, SendCommands,
    SessionRef,
};
use muster_proto::opamp::{CommandType, ServerToAgent, ServerToAgentFlags};
use muster_testkit::eventually;
use uuid::Uuid;

use crate::{AGENT, Gateway, SOON, cell};

/// The clock of the gateway stands at one second.
const LATER: u64 = 1_000_001;

fn command(session: &[u8], number: u128, expires_at_us: u64, action: Action) -> SendCommand {
    SendCommand {
        session: Some(SessionRef {
            instance_uid: Uuid::from_u128(AGENT).as_bytes().to_vec().into(),
            session_id: session.to_vec().into(),
        }),
        id: Uuid::from_u128(number).as_bytes().to_vec().into(),
        expires_at_us,
        action: Some(action),
    }
}

fn message(data: &'static [u8]) -> Action {
    let (capability, kind) = ("com.example.x".to_owned(), "hello".to_owned());
    Action::Message(AgentMessage { capability, r#type: kind, data: data.into(), data_left_out: false })
}

async fn send(gateway: &Gateway, commands: Vec<SendCommand>) {
    let delivery = Delivery {
        cell: "here".to_owned(),
        tenant: "default".to_owned(),
        traceparent: String::new(),
        action: Some(Delivered::SendCommands(SendCommands { commands })),
    };
    let subject = Subject::Deliveries(cell(), "g1".parse().unwrap());
    gateway.bus.publish(&subject, delivery.encode_to_vec().into()).await.unwrap();
}

/// How many commands had this result.
fn count(gateway: &Gateway, result: &str) -> f64 {
    let families = gateway.registry.gather();
    let family = families.iter().find(|family| family.name() == "muster_gateway_commands_total");
    let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
    let of_result = metrics.iter().filter(|metric| metric.get_label()[1].value() == result);
    of_result.map(|metric| metric.get_counter().get_value()).sum()
}

#[tokio::test]
async fn commands_arrive_in_order_and_a_restart_is_alone_in_its_message() {
    let gateway = Gateway::start().await;
    let (mut agent, session) = gateway.connect().await;
    let commands = vec![
        command(&session, 1, LATER, Action::Restart(RestartAgent {})),
        command(&session, 2, LATER, message(&[0, 0xff])),
        command(&session, 3, LATER, Action::ReportFullState(ReportFullState {})),
    ];
    send(&gateway, commands).await;
    let restart = agent.recv().await;
    let only = ServerToAgent {
        instance_uid: Uuid::from_u128(AGENT).as_bytes().to_vec(),
        capabilities: restart.capabilities,
        command: restart.command,
        ..ServerToAgent::default()
    };
    assert_eq!(restart, only, "nothing else is there");
    assert_ne!(restart.capabilities, 0);
    assert_eq!(restart.command.map(|command| command.r#type()), Some(CommandType::Restart));
    let custom = agent.recv().await.custom_message.unwrap();
    assert_eq!((custom.capability.as_str(), custom.r#type.as_str()), ("com.example.x", "hello"));
    assert_eq!(custom.data, [0, 0xff]);
    assert_eq!(agent.recv().await.flags, ServerToAgentFlags::ReportFullState as u64);
    assert_eq!(count(&gateway, "sent"), 3.0);
    gateway.stop().await;
}

#[tokio::test]
async fn what_is_late_or_for_another_session_is_not_sent() {
    let gateway = Gateway::start().await;
    let (mut agent, session) = gateway.connect().await;
    let nobody = Uuid::from_u128(99);
    let commands = vec![
        command(&session, 1, LATER - 1, Action::Restart(RestartAgent {})),
        command(nobody.as_bytes(), 2, LATER, Action::Restart(RestartAgent {})),
        command(b"no session id", 3, LATER, Action::Restart(RestartAgent {})),
        SendCommand { action: None, ..command(&session, 4, LATER, message(&[])) },
        command(&session, 5, LATER, message(b"last")),
    ];
    send(&gateway, commands).await;
    let first = agent.recv().await;
    assert_eq!(first.custom_message.map(|message| message.data), Some(b"last".to_vec()));
    assert_eq!(
        (count(&gateway, "expired"), count(&gateway, "session_gone"), count(&gateway, "sent")),
        (1.0, 1.0, 1.0)
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_disconnect_closes_the_connection() {
    let gateway = Gateway::start().await;
    let (mut agent, session) = gateway.connect().await;
    send(&gateway, vec![command(&session, 1, LATER, Action::Disconnect(DisconnectAgent {}))]).await;
    assert_eq!(agent.recv_close().await, 1000);
    gateway.stop().await;
}

#[tokio::test]
async fn too_many_commands_for_one_connection_are_counted() {
    let gateway = Gateway::start().await;
    let (mut agent, session) = gateway.connect().await;
    // The gateway's tasks share one thread with the test: none runs while these are put.
    let many = (0..1100).map(|number| command(&session, number, LATER, message(&[]))).collect();
    send(&gateway, many).await;
    eventually(SOON, async || match count(&gateway, "overflow") {
        76.0 => Ok(()),
        overflow => Err(format!("{overflow} are too many")),
    })
    .await;
    for _ in 0..1024 {
        assert!(agent.recv().await.custom_message.is_some());
    }
    assert_eq!(count(&gateway, "sent"), 1024.0);
    gateway.stop().await;
}
