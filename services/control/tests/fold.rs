//! Control on engines in memory: what is in the log becomes stored state, in order, once.
#![expect(clippy::unwrap_used, reason = "tests end with their panics")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use muster_adapters_memory::log::Limits;
use muster_adapters_memory::{
    MemoryBlobs, MemoryBus, MemoryKeyValue, MemoryLog, MemoryOwnership, MemoryStore,
};
use muster_control::{Engines, Metrics, Settings, run};
use muster_domain::agent::EndReason;
use muster_domain::ids::{AgentKey, Cell, Incarnation, InstanceUid, MessageId, Partition, Timestamp};
use muster_domain::intent::plan;
use muster_domain::manifest;
use muster_ports::bus::{Bus, Subject};
use muster_ports::kv::{KeyValue as _, Precondition};
use muster_ports::log::Log;
use muster_ports::store::{
    AgentWrite, Commit, CommitError, FleetStore, FoldStore, IntentStore, PartitionRow, RESYNC_LIFT,
    RecoveryStore, StoredAgent,
};
use muster_ports::{EngineError, LEASE_TTL, Random, Spawner};
use muster_ports::{epochs, floors};
use muster_proto::Message;
use muster_proto::bus::delivery::Action;
use muster_proto::bus::{Delivery, Envelope, GatewayLease, SessionStarted};
use muster_proto::opamp::any_value::Value;
use muster_proto::opamp::{AgentDescription, AgentToServer, AnyValue, KeyValue};
use prometheus::Registry;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(10);

/// A store that refuses what is poisonous, and that can be made to hold a commit back.
struct Unkind {
    store: Arc<MemoryStore>,
    /// Commits wait while this is false.
    open: watch::Receiver<bool>,
    /// Commits that have waited.
    waited: AtomicU64,
}

#[async_trait]
impl FoldStore for Unkind {
    async fn partition(&self, cell: &Cell, partition: Partition) -> Result<PartitionRow, EngineError> {
        self.store.partition(cell, partition).await
    }

    async fn agents(&self, cell: &Cell, keys: &[AgentKey]) -> Result<Vec<StoredAgent>, EngineError> {
        self.store.agents(cell, keys).await
    }

    async fn partition_agents(
        &self,
        cell: &Cell,
        partition: Partition,
        after: Option<&AgentKey>,
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        self.store.partition_agents(cell, partition, after, limit).await
    }

    async fn orphans(
        &self,
        cell: &Cell,
        partition: Partition,
        live: &[Incarnation],
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        self.store.orphans(cell, partition, live, limit).await
    }

    async fn commit(&self, commit: Commit) -> Result<PartitionRow, CommitError> {
        if !*self.open.borrow() {
            self.waited.fetch_add(1, Ordering::SeqCst);
            self.open.clone().wait_for(|open| *open).await.unwrap();
        }
        let is_poison = |write: &AgentWrite| {
            let description = write.agent.state.description.as_ref();
            description.and_then(|description| description.attribute("n")) == Some(&POISON.into())
        };
        if commit.agents.iter().any(is_poison) {
            return Err(CommitError::Rejected { reason: "poison".to_owned() });
        }
        self.store.commit(commit).await
    }
}

/// A report that [`Unkind`] refuses.
const POISON: u64 = 666;

struct Cluster {
    log: Arc<MemoryLog>,
    bus: Arc<MemoryBus>,
    store: Arc<MemoryStore>,
    values: Arc<MemoryKeyValue>,
    /// The lease bucket of the control that was started last.
    leases: Arc<MemoryKeyValue>,
    ownership: Arc<MemoryOwnership>,
    registry: Registry,
    stop: CancellationToken,
    controls: Vec<JoinHandle<()>>,
}

impl Cluster {
    fn new() -> Self {
        Self {
            log: Arc::new(MemoryLog::default()),
            bus: Arc::new(MemoryBus::default()),
            store: Arc::new(MemoryStore::default()),
            values: Arc::new(MemoryKeyValue::new(None)),
            leases: Arc::default(),
            ownership: Arc::new(MemoryOwnership::new()),
            registry: Registry::new(),
            stop: CancellationToken::new(),
            controls: Vec::new(),
        }
    }

    /// Starts one more control. All of them work on all partitions.
    fn start_control(&mut self) {
        self.start_control_on(self.store.clone());
    }

    /// As [`Cluster::start_control`], with a store of its own making.
    fn start_control_on(&mut self, fold: Arc<dyn FoldStore>) {
        // A bucket for each control: none sees the others, so that all work on all partitions.
        self.leases = Arc::new(MemoryKeyValue::new(Some(LEASE_TTL)));
        let leases = self.leases.clone();
        let clock = Arc::new(AtomicU64::new(1_000_000));
        let engines = Engines {
            log: self.log.clone(),
            blobs: Arc::new(MemoryBlobs::default()),
            bus: self.bus.clone(),
            leases,
            values: self.values.clone(),
            polls: self.ownership.clone(),
            fold,
            components: self.store.clone(),
            intent: self.store.clone(),
            commands: self.store.clone(),
            rollouts: self.store.clone(),
            fleet: self.store.clone(),
            clock: Arc::new(move || Timestamp(clock.fetch_add(1, Ordering::Relaxed))),
            random: Random::new(|| Uuid::now_v7().as_u64_pair().1),
            spawner: Spawner::new(|task| drop(tokio::spawn(task))),
        };
        self.registry = Registry::new();
        let metrics = Metrics::register(&self.registry).unwrap();
        // Small batches: two controls meet often.
        let poll_every = Duration::from_secs(3600);
        let settings =
            Settings { max_batch: 3, poll_every, ..Settings::new("default".parse().unwrap(), "control") };
        let stop = self.stop.clone();
        self.controls.push(tokio::spawn(async move { run(settings, engines, metrics, stop).await.unwrap() }));
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        for control in self.controls.drain(..) {
            control.await.unwrap();
        }
    }

    async fn publish(&self, key: &AgentKey, payload: Vec<u8>) {
        let id = MessageId(Uuid::now_v7());
        self.log.publish(Partition::of(key), id, payload.into()).await.unwrap();
    }

    /// The n-th report of an agent: its attribute `n` says so.
    async fn report(&self, key: &AgentKey, n: u64) {
        let attribute =
            |key: &str, value| KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) };
        let description = AgentDescription {
            non_identifying_attributes: vec![
                attribute("n", Value::IntValue(i64::try_from(n).unwrap())),
                attribute("team", Value::StringValue("blue".to_owned())),
            ],
            ..AgentDescription::default()
        };
        let message = AgentToServer {
            instance_uid: key.uid.as_bytes().to_vec(),
            sequence_num: n,
            capabilities: 0x1003,
            agent_description: Some(description),
            ..AgentToServer::default()
        };
        let envelope = Envelope {
            cell: "default".to_owned(),
            tenant: key.tenant.to_string(),
            instance_uid: key.uid.as_bytes().to_vec().into(),
            session_id: Uuid::from_u128(7).as_bytes().to_vec().into(),
            claim: 1,
            gateway: "gw".to_owned(),
            incarnation: Uuid::from_u128(8).as_bytes().to_vec().into(),
            received_at_us: 1_000_000,
            sequence_num: n,
            agent_to_server: Some(message.encode_to_vec().into()),
            started: (n == 0).then(SessionStarted::default),
            ..Envelope::default()
        };
        self.publish(key, envelope.encode_to_vec()).await;
    }

    /// Waits until every one of these agents has its n-th report, and returns them.
    async fn agents_at(&self, keys: &[AgentKey], n: u64) -> Vec<StoredAgent> {
        let all = async {
            let mut agents = Vec::new();
            for key in keys {
                loop {
                    let found = self.store.agent(key).await.unwrap();
                    match found.filter(|(stored, _)| stored.agent.state.sequence_num == n) {
                        Some((stored, _)) => break agents.push(stored),
                        None => tokio::task::yield_now().await,
                    }
                }
            }
            agents
        };
        tokio::time::timeout(SOON, all).await.unwrap()
    }

    fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let metrics =
            families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
        metrics.map(|metric| metric.get_counter().get_value()).sum()
    }

    async fn apply(&self, text: &str) {
        self.apply_unheard(text).await;
        self.bus.publish(&Subject::Wake("default".parse().unwrap()), Default::default()).await.unwrap();
    }

    /// Applies manifests, and the wake-up is lost.
    async fn apply_unheard(&self, text: &str) {
        let tenant = "default".parse().unwrap();
        let documents = manifest::parse(text).unwrap();
        let intent = self.store.intent(&tenant).await.unwrap();
        let change = plan(&intent, &documents, Timestamp(1), Uuid::now_v7).unwrap();
        self.store.change(&tenant, &change).await.unwrap();
    }
}

fn key(number: u128) -> AgentKey {
    AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(number)) }
}

const MANIFESTS: &str = "
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: base}
spec: {config: {a: 1}}
---
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {name: blue}
spec: {template: {name: base}, selector: {matchLabels: {team: blue}}}
";

#[tokio::test]
async fn two_controls_on_the_same_partitions_fold_each_report_once() {
    let mut cluster = Cluster::new();
    cluster.start_control();
    cluster.start_control();
    let keys: Vec<_> = (0..20).map(key).collect();
    for n in 0..50 {
        for key in &keys {
            cluster.report(key, n).await;
        }
    }
    for stored in cluster.agents_at(&keys, 49).await {
        let description = stored.agent.state.description.unwrap();
        assert_eq!(description.non_identifying["n"], 49, "{}", stored.agent.key);
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_restarted_control_goes_on_from_the_row_and_a_new_log_is_a_new_epoch() {
    let mut cluster = Cluster::new();
    cluster.start_control();
    let keys = [key(1)];
    cluster.report(&keys[0], 0).await;
    cluster.report(&keys[0], 1).await;
    cluster.agents_at(&keys, 1).await;
    cluster.stop().await;

    // Another log, as after the loss of one in memory: its first position is not taken for the old one.
    cluster.log = Arc::new(MemoryLog::default());
    cluster.stop = CancellationToken::new();
    cluster.start_control();
    cluster.report(&keys[0], 2).await;
    cluster.agents_at(&keys, 2).await;
    cluster.stop().await;
}

#[tokio::test]
async fn an_entry_that_cannot_be_understood_is_passed_over() {
    let mut cluster = Cluster::new();
    cluster.start_control();
    let keys = [key(1)];
    cluster.report(&keys[0], 0).await;
    cluster.publish(&keys[0], vec![0xff, 0xff]).await;
    cluster.report(&keys[0], 1).await;
    cluster.agents_at(&keys, 1).await;
    cluster.stop().await;
    assert_eq!(cluster.metric("muster_control_quarantined_entries_total"), 1.0);
}

#[tokio::test]
async fn agents_with_one_config_share_a_delivery() {
    let mut cluster = Cluster::new();
    let gateway = Subject::Deliveries("default".parse().unwrap(), "gw".parse().unwrap());
    let mut deliveries = cluster.bus.subscribe(&gateway).await.unwrap();
    cluster.start_control();
    // Agents of one partition, so that one transaction decides for all of them.
    let partition = Partition::of(&key(0));
    let keys: Vec<_> = (0..10_000).map(key).filter(|key| Partition::of(key) == partition).take(50).collect();
    for key in &keys {
        cluster.report(key, 0).await;
    }
    cluster.agents_at(&keys, 0).await;
    cluster.apply(MANIFESTS).await;
    let received = tokio::time::timeout(SOON, deliveries.next()).await.unwrap().unwrap();
    let delivery = Delivery::decode(received.payload).unwrap();
    let Some(Action::RemoteConfig(offer)) = delivery.action else { unreachable!("{delivery:?}") };
    assert_eq!((offer.targets.len(), offer.files.len(), offer.intent_revision), (50, 1, 1));
    assert_eq!(offer.files[0].name, "base");
    let one_hash = offer.targets.iter().all(|target| target.config_hash == offer.targets[0].config_hash);
    assert!(one_hash, "the same inputs have the same hash");
    cluster.stop().await;
}

#[tokio::test]
async fn a_control_paused_in_the_middle_of_a_batch_does_no_harm() {
    let mut cluster = Cluster::new();
    let (gate, open) = watch::channel(true);
    let store = Arc::new(Unkind { store: cluster.store.clone(), open, waited: AtomicU64::new(0) });
    cluster.start_control_on(store.clone());
    let keys = [key(1), key(2), key(3)];
    for key in &keys {
        cluster.report(key, 0).await;
    }
    cluster.agents_at(&keys, 0).await;

    // It has read and decided, and stops just before it writes. Another one does the work meanwhile.
    gate.send(false).unwrap();
    for key in &keys {
        cluster.report(key, 1).await;
    }
    let paused = async {
        while store.waited.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, paused).await.unwrap();
    cluster.start_control();
    for n in 2..30 {
        for key in &keys {
            cluster.report(key, n).await;
        }
    }
    cluster.agents_at(&keys, 29).await;

    // It wakes up with its old batch: nothing goes back, and it works on.
    gate.send(true).unwrap();
    for n in 30..40 {
        for key in &keys {
            cluster.report(key, n).await;
        }
    }
    for stored in cluster.agents_at(&keys, 39).await {
        assert_eq!(stored.agent.state.description.unwrap().non_identifying["n"], 39);
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_report_that_the_store_refuses_is_found_and_the_others_are_folded() {
    let mut cluster = Cluster::new();
    let (_gate, open) = watch::channel(true);
    let gateway = Subject::Deliveries("default".parse().unwrap(), "gw".parse().unwrap());
    let mut deliveries = cluster.bus.subscribe(&gateway).await.unwrap();
    let partition = Partition::of(&key(0));
    let keys: Vec<_> = (0..10_000).map(key).filter(|key| Partition::of(key) == partition).take(9).collect();
    for (n, key) in keys.iter().enumerate() {
        cluster.report(key, 0).await;
        cluster.report(key, if n == 4 { POISON } else { 1 }).await;
    }
    let store = Arc::new(Unkind { store: cluster.store.clone(), open, waited: AtomicU64::new(0) });
    cluster.start_control_on(store);
    let (bad, good): (Vec<_>, Vec<_>) = keys.iter().cloned().partition(|key| *key == keys[4]);
    cluster.agents_at(&good, 1).await;
    cluster.agents_at(&bad, 0).await;
    let received = tokio::time::timeout(SOON, deliveries.next()).await.unwrap().unwrap();
    let Some(Action::RequestFullState(asked)) = Delivery::decode(received.payload).unwrap().action else {
        unreachable!("no other delivery is due")
    };
    assert_eq!(asked.sessions[0].instance_uid, bad[0].uid.as_bytes().as_slice());
    // The agent's next report is as good as any.
    cluster.report(&bad[0], 2).await;
    cluster.agents_at(&bad, 2).await;
    cluster.stop().await;
    assert_eq!(cluster.metric("muster_control_quarantined_entries_total"), 1.0);
}

#[tokio::test]
async fn a_change_that_one_partition_stumbles_upon_reaches_all() {
    let mut cluster = Cluster::new();
    let gateway = Subject::Deliveries("default".parse().unwrap(), "gw".parse().unwrap());
    let mut deliveries = cluster.bus.subscribe(&gateway).await.unwrap();
    cluster.start_control();
    let keys: Vec<_> = (0..40).map(key).collect();
    for key in &keys {
        cluster.report(key, 0).await;
    }
    cluster.agents_at(&keys, 0).await;
    // Control knows a first intent, of which nobody is to have anything.
    cluster.apply(&MANIFESTS.replace("team: blue", "team: red")).await;
    cluster.report(&keys[0], 1).await;
    cluster.agents_at(&keys[..1], 1).await;
    cluster.apply_unheard(MANIFESTS).await;
    cluster.report(&keys[0], 2).await;
    let mut offered = std::collections::BTreeSet::new();
    while offered.len() < keys.len() {
        let received = tokio::time::timeout(SOON, deliveries.next()).await.unwrap().unwrap();
        if let Some(Action::RemoteConfig(offer)) = Delivery::decode(received.payload).unwrap().action {
            offered.extend(offer.targets.into_iter().map(|target| target.instance_uid));
        }
    }
    cluster.stop().await;
}

#[tokio::test]
async fn floors_rise_before_the_offers_of_a_changed_assignment() {
    let mut cluster = Cluster::new();
    cluster.apply(MANIFESTS).await;
    let gateway = Subject::Deliveries("default".parse().unwrap(), "gw".parse().unwrap());
    let mut deliveries = cluster.bus.subscribe(&gateway).await.unwrap();
    let mut risen = cluster.bus.subscribe(&Subject::Floors("default".parse().unwrap())).await.unwrap();
    cluster.start_control();
    let key = key(1);
    cluster.report(&key, 0).await;
    let floors = async || floors::load(cluster.values.as_ref(), &"default".parse().unwrap()).await.unwrap();
    let floor = async || floors().await.map(|floors| floors.of(&key.tenant, "blue").0);
    tokio::time::timeout(SOON, risen.next()).await.unwrap().unwrap();
    assert_eq!(floor().await, Some(0), "the bucket is loaded, and nothing was superseded yet");

    tokio::time::timeout(SOON, deliveries.next()).await.unwrap().unwrap();
    cluster.apply(&MANIFESTS.replace("{a: 1}", "{a: 2}")).await;
    let delivery = tokio::time::timeout(SOON, deliveries.next()).await.unwrap().unwrap();
    let Some(Action::RemoteConfig(offer)) = Delivery::decode(delivery.payload).unwrap().action else {
        panic!()
    };
    assert_eq!((offer.intent_revision, offer.assignments), (2, vec!["blue".to_owned()]));
    assert_eq!(floor().await, Some(2));
    tokio::time::timeout(SOON, risen.next()).await.unwrap().unwrap();
    cluster.stop().await;
}

/// Waits until gateways are told of an epoch of the agent's partition from this on.
async fn told(cluster: &Cluster, key: &AgentKey, epoch: u64) -> u64 {
    let cell = "default".parse().unwrap();
    let told = async {
        loop {
            let found = epochs::load(cluster.values.as_ref(), &cell).await.unwrap().of(Partition::of(key));
            if found >= epoch {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, told).await.unwrap()
}

#[tokio::test]
async fn gateways_are_told_of_every_epoch() {
    let mut cluster = Cluster::new();
    let cell: Cell = "default".parse().unwrap();
    cluster.start_control();
    let keys = [key(1)];
    assert_eq!(told(&cluster, &keys[0], 1).await, 1);
    cluster.report(&keys[0], 0).await;
    cluster.agents_at(&keys, 0).await;
    cluster.stop().await;

    // Another log.
    cluster.log = Arc::new(MemoryLog::default());
    cluster.stop = CancellationToken::new();
    cluster.start_control();
    assert_eq!(told(&cluster, &keys[0], 2).await, 2);
    cluster.report(&keys[0], 1).await;
    cluster.agents_at(&keys, 1).await;

    // A store of which an operator says that it was restored, while control runs.
    cluster.store.resync(&cell).await.unwrap();
    cluster.report(&keys[0], 2).await;
    cluster.agents_at(&keys, 2).await;
    assert_eq!(told(&cluster, &keys[0], 3).await, 2 + RESYNC_LIFT);
    cluster.stop().await;

    // One of which nobody says so, and which knows of an earlier epoch than gateways do.
    cluster.store = Arc::default();
    cluster.log = Arc::new(MemoryLog::default());
    cluster.stop = CancellationToken::new();
    cluster.start_control();
    assert_eq!(told(&cluster, &keys[0], 3 + RESYNC_LIFT).await, 3 + RESYNC_LIFT);
    cluster.stop().await;
}

#[tokio::test]
async fn a_log_that_is_lost_before_anything_of_it_was_folded_is_another_epoch() {
    let log = |id| Arc::new(MemoryLog::with_id(Limits::default(), MessageId(Uuid::from_u128(id))));
    let mut cluster = Cluster::new();
    let mut epoch = 1;
    for (id, wanted) in [(1, 1), (1, 1), (2, 2), (2, 2), (3, 3)] {
        cluster.log = log(id);
        cluster.stop = CancellationToken::new();
        cluster.start_control();
        epoch = told(&cluster, &key(1), wanted.max(epoch)).await;
        assert_eq!(epoch, wanted, "log {id}");
        // The row is made when the bucket is told.
        begins_with(&cluster, &key(1), id).await;
        cluster.stop().await;
    }
}

/// Waits until the agent's partition begins with this log.
async fn begins_with(cluster: &Cluster, key: &AgentKey, id: u128) {
    let cell = "default".parse().unwrap();
    let begun = async {
        loop {
            let row = cluster.store.partition(&cell, Partition::of(key)).await.unwrap();
            if row.message == Some(MessageId(Uuid::from_u128(id))) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, begun).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_bucket_that_is_lost_is_told_the_epochs_again() {
    let mut cluster = Cluster::new();
    cluster.start_control();
    let (cell, partition) = ("default".parse().unwrap(), Partition::of(&key(1)));
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.values.remove("epochs/default").await.unwrap();
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(epochs::load(cluster.values.as_ref(), &cell).await.unwrap().of(partition), 1);
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn sessions_of_a_lost_gateway_end_by_the_observation_of_control_whatever_clocks_say() {
    let mut cluster = Cluster::new();
    cluster.start_control();
    // The lease of the life that the sessions began in, and then none.
    let incarnation = Bytes::copy_from_slice(Uuid::from_u128(8).as_bytes());
    let lease = Bytes::from(GatewayLease { incarnation, floors: None }.encode_to_vec());
    let renew = || cluster.leases.put("gateways/default/gw", lease.clone(), Precondition::Any);
    renew().await.unwrap();
    cluster.report(&key(1), 0).await;
    cluster.agents_at(&[key(1)], 0).await;
    let ended = async || {
        let (stored, _) = cluster.store.agent(&key(1)).await.unwrap().unwrap();
        stored.agent.session.unwrap().ended.map(|(_, reason)| reason)
    };
    for second in 0..60 {
        // A bucket that is lost for some seconds is no lost gateway.
        if second % 9 == 0 {
            renew().await.unwrap();
        } else if second % 9 == 4 {
            cluster.leases.remove("gateways/default/gw").await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(ended().await, None, "after {second} s");
    }
    cluster.leases.remove("gateways/default/gw").await.unwrap();
    tokio::time::sleep(Duration::from_secs(21)).await;
    assert_eq!(ended().await, Some(EndReason::GatewayLost));
    cluster.stop().await;
}

#[tokio::test]
async fn a_store_that_is_restored_from_a_backup_counts_its_intent_anew() {
    let mut cluster = Cluster::new();
    let tenant = "default".parse().unwrap();
    cluster.apply(MANIFESTS).await;
    let backup = Arc::new((*cluster.store).clone());
    cluster.apply(&MANIFESTS.replace("a: 1", "a: 2")).await;
    cluster.start_control();
    cluster.report(&key(1), 0).await;
    cluster.agents_at(&[key(1)], 0).await;
    cluster.stop().await;
    assert_eq!(cluster.store.intent(&tenant).await.unwrap().revision.0, 2);

    cluster.store = backup;
    cluster.stop = CancellationToken::new();
    cluster.start_control();
    cluster.report(&key(1), 1).await;
    cluster.agents_at(&[key(1)], 1).await;
    cluster.stop().await;
    assert_eq!(cluster.store.intent(&tenant).await.unwrap().revision.0, 3, "2 was used");
}
