//! Commands: queued, settled by commits, forgotten.

use std::time::Duration;

use muster_domain::command::{Action, Command, CommandState, Status};
use muster_domain::ids::{AgentKey, CommandId, Partition, Timestamp};
use muster_domain::report::CustomMessage;
use uuid::Uuid;

use super::build::{NOW, agent, cell, commit, key, key_of, stored, tenant, write};
use crate::contract::poll::join;
use crate::store::{Commit, CommitError, QueueError, QueuedCommand, SettledCommand, Store};

/// More than any case queues.
const MANY: usize = 100_000;

fn id(number: u128) -> CommandId {
    CommandId(Uuid::from_u128(0xc0 << 64 | number))
}

fn command(number: u128, key: &AgentKey) -> Command {
    Command {
        id: id(number),
        key: key.clone(),
        action: Action::Restart,
        created_at: NOW,
        expires_at: NOW.plus(Duration::from_secs(300)),
        actor: "somebody".to_owned(),
        state: CommandState::QUEUED,
    }
}

fn settled(number: u128, status: Status, at: Timestamp) -> SettledCommand {
    let state = CommandState::settled(status, "because", at);
    SettledCommand { tenant: tenant("default"), id: id(number), state }
}

async fn queue(store: &dyn Store, commands: &[Command]) {
    for (name, of) in [("default", key(0).tenant), ("other", key_of("other", 0).tenant)] {
        let commands: Vec<_> = commands.iter().filter(|command| command.key.tenant == of).cloned().collect();
        store.queue(&tenant(name), &commands, MANY, None).await.unwrap();
    }
}

async fn queued(store: &dyn Store) -> Vec<CommandId> {
    store.queued(MANY).await.unwrap().into_iter().map(|queued| queued.id).collect()
}

/// A commit of the first agent's partition that settles these.
async fn settling(store: &dyn Store, commands: Vec<SettledCommand>) -> Commit {
    let partition = Partition::of(&key(1));
    let row = store.partition(&cell(), partition).await.unwrap();
    Commit { commands, ..commit(&cell(), partition, row, Vec::new()) }
}

async fn of_default(store: &dyn Store, numbers: &[u128]) -> Vec<Command> {
    let ids: Vec<_> = numbers.iter().copied().map(id).collect();
    store.commands(&tenant("default"), &ids).await.unwrap()
}

pub(super) async fn a_command_is_read_back(store: &dyn Store) {
    let message = |kind: &str, data: Vec<u8>| {
        let capability = "com.example.größe/v2".to_owned();
        Action::Message(CustomMessage { capability, kind: kind.to_owned(), data })
    };
    let actions = [
        Action::Restart,
        Action::Pause,
        Action::Resume,
        Action::Disconnect,
        Action::ReportFullState,
        message("empty", Vec::new()),
        message("every byte", (0..=u8::MAX).collect()),
        message("large", vec![0xc3; 64 << 10]),
    ];
    let commands = (1..).zip(actions).map(|(number, action)| Command { action, ..command(number, &key(1)) });
    let commands: Vec<_> = commands.collect();
    queue(store, &commands).await;
    assert_eq!(of_default(store, &[8, 7, 6, 5, 4, 3, 2, 1, 99]).await, commands);
    assert_eq!(of_default(store, &[]).await, []);
}

pub(super) async fn all_are_queued_or_none(store: &dyn Store) {
    queue(store, &[command(1, &key(1)), command(2, &key(2))]).await;
    // Repeated: what is there stays, whatever the repetition says.
    let other = Command { action: Action::Pause, ..command(2, &key(3)) };
    queue(store, &[other, command(3, &key(3))]).await;
    assert_eq!(queued(store).await, [id(1), id(2), id(3)]);
    assert_eq!(of_default(store, &[2]).await, [command(2, &key(2))]);
    let refused = store.queue(&tenant("default"), &[command(4, &key(4)), command(5, &key(5))], 4, None).await;
    assert!(matches!(refused, Err(QueueError::Full { queued: 3 })), "{refused:?}");
    assert_eq!(queued(store).await, [id(1), id(2), id(3)]);
}

pub(super) async fn the_queue_of_a_tenant_is_bounded(store: &dyn Store) {
    queue(store, &[command(1, &key(1)), command(2, &key_of("other", 1))]).await;
    store.queue(&tenant("default"), &[command(3, &key(1))], 2, None).await.unwrap();
    let refused = store.queue(&tenant("default"), &[command(4, &key(1))], 2, None).await;
    assert!(matches!(refused, Err(QueueError::Full { queued: 2 })), "{refused:?}");
    // What is settled makes room.
    let commit = settling(store, vec![settled(1, Status::Sent, NOW)]).await;
    store.commit(commit).await.unwrap();
    store.queue(&tenant("default"), &[command(4, &key(1))], 2, None).await.unwrap();
    store.queue(&tenant("default"), &[], 0, None).await.unwrap();
}

pub(super) async fn queued_ones_come_in_order(store: &dyn Store) {
    assert_eq!(store.queued(10).await.unwrap(), []);
    let commands = [command(3, &key(1)), command(1, &key_of("other", 2)), command(2, &key(3))];
    queue(store, &commands).await;
    let header = |command: &Command| QueuedCommand {
        id: command.id,
        key: command.key.clone(),
        expires_at: command.expires_at,
    };
    let [third, first, second] = &commands;
    assert_eq!(store.queued(10).await.unwrap(), [first, second, third].map(header));
    assert_eq!(store.queued(2).await.unwrap(), [first, second].map(header));
}

pub(super) async fn a_commit_settles_what_is_queued(store: &dyn Store) {
    let commands: Vec<_> = (1..=4).map(|number| command(number, &key(number))).collect();
    queue(store, &commands).await;
    let later = NOW.plus(Duration::from_secs(1));
    let states = [Status::Sent, Status::Refused, Status::Expired];
    let settled: Vec<_> = (1..).zip(states).map(|(number, status)| settled(number, status, later)).collect();
    let commit = settling(store, settled.clone()).await;
    store.commit(commit).await.unwrap();
    assert_eq!(queued(store).await, [id(4)]);
    let expected: Vec<_> = commands
        .into_iter()
        .map(|command| {
            let state =
                settled.iter().find(|settled| settled.id == command.id).map(|settled| settled.state.clone());
            Command { state: state.unwrap_or(command.state), ..command }
        })
        .collect();
    assert_eq!(of_default(store, &[1, 2, 3, 4]).await, expected);
}

pub(super) async fn a_commit_settles_all_or_writes_nothing(store: &dyn Store) {
    queue(store, &[command(1, &key(1)), command(2, &key(2))]).await;
    let first = settling(store, vec![settled(1, Status::Sent, NOW)]).await;
    store.commit(first).await.unwrap();
    let before = of_default(store, &[1, 2]).await;
    // Settled before, and never there.
    for gone in [1, 77] {
        let both = vec![settled(2, Status::Sent, NOW), settled(gone, Status::Expired, NOW)];
        let mut tried = settling(store, both).await;
        tried.agents = vec![write(agent(&key(1)))];
        let row = store.partition(&cell(), tried.partition).await.unwrap();
        match store.commit(tried).await {
            Err(CommitError::CommandMoved(moved)) => assert_eq!(moved, id(gone)),
            other => panic!("{other:?} where command {gone} is not queued"),
        }
        assert_eq!(store.partition(&cell(), row_partition()).await.unwrap(), row, "the row moved");
        assert_eq!(stored(store, &key(1)).await, None, "something was written");
        assert_eq!(of_default(store, &[1, 2]).await, before);
    }
    let mut old = settling(store, vec![settled(2, Status::Sent, NOW)]).await;
    old.generation += 1;
    assert!(matches!(store.commit(old).await, Err(CommitError::RowMoved)));
    assert_eq!(queued(store).await, [id(2)]);
}

fn row_partition() -> Partition {
    Partition::of(&key(1))
}

pub(super) async fn one_of_two_commits_settles_a_command(store: &dyn Store) {
    // Of two partitions, so that nothing but the command itself stands between them.
    let elsewhere = Partition::all().find(|partition| *partition != row_partition()).unwrap();
    for round in 1..=5 {
        queue(store, &[command(round, &key(1))]).await;
        let here = settling(store, vec![settled(round, Status::Sent, NOW)]).await;
        let row = store.partition(&cell(), elsewhere).await.unwrap();
        let commands = vec![settled(round, Status::Expired, NOW)];
        let there = Commit { commands, ..commit(&cell(), elsewhere, row, Vec::new()) };
        let expected = match join(store.commit(here), store.commit(there)).await {
            (Ok(_), Err(CommitError::CommandMoved(_))) => Status::Sent,
            (Err(CommitError::CommandMoved(_)), Ok(_)) => Status::Expired,
            outcomes => panic!("{outcomes:?} of two commits that settle one command"),
        };
        let found = of_default(store, &[round]).await;
        assert_eq!(found.first().map(|command| command.state.status), Some(expected));
    }
}

pub(super) async fn an_agents_latest_come_first(store: &dyn Store) {
    let commands: Vec<_> = (1..=5).map(|number| command(number, &key(number % 2))).collect();
    queue(store, &commands).await;
    let commit = settling(store, vec![settled(3, Status::Refused, NOW)]).await;
    store.commit(commit).await.unwrap();
    let latest = async |limit| {
        let found = store.latest_commands(&key(1), limit).await.unwrap();
        found.into_iter().map(|command| command.id).collect::<Vec<_>>()
    };
    assert_eq!(latest(10).await, [id(5), id(3), id(1)]);
    assert_eq!(latest(2).await, [id(5), id(3)]);
    assert_eq!(store.latest_commands(&key(9), 10).await.unwrap(), []);
}

pub(super) async fn old_settled_ones_are_forgotten(store: &dyn Store) {
    let commands: Vec<_> = (1..=5).map(|number| command(number, &key(1))).collect();
    queue(store, &commands).await;
    let at = |seconds| NOW.plus(Duration::from_secs(seconds));
    let ends = (1..=4).map(|number| settled(number, Status::Sent, at(number as u64))).collect();
    let commit = settling(store, ends).await;
    store.commit(commit).await.unwrap();
    assert_eq!(store.forget_settled(at(1), 10).await.unwrap(), 0);
    assert_eq!(store.forget_settled(at(4), 2).await.unwrap(), 2);
    assert_eq!(store.forget_settled(at(4), 2).await.unwrap(), 1);
    let left: Vec<_> = of_default(store, &[1, 2, 3, 4, 5]).await.iter().map(|command| command.id).collect();
    assert_eq!(left, [id(4), id(5)], "the newest, and what is queued, stay");
}

pub(super) async fn tenants_are_apart(store: &dyn Store) {
    let (ours, theirs) = (command(1, &key(1)), command(2, &key_of("other", 1)));
    queue(store, &[ours.clone(), theirs]).await;
    assert_eq!(of_default(store, &[1, 2]).await, std::slice::from_ref(&ours));
    assert_eq!(store.latest_commands(&key(1), 10).await.unwrap(), [ours]);
    // Another tenant's name does not settle it.
    let tried = settling(store, vec![settled(2, Status::Sent, NOW)]).await;
    assert!(matches!(store.commit(tried).await, Err(CommitError::CommandMoved(_))));
}
