//! Contested instance_uids: finds out whether the session that holds one still has its agent, many at once
//! and off the fold path. `domain::duplicates` decides.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use muster_domain::duplicates::{Answer, Lease, Step, Verdict, judge};
use muster_domain::ids::{GatewayId, InstanceUid, Tenant};
use muster_ports::bus::{RequestError, Subject};
use muster_proto::Message;
use muster_proto::bus::{
    ContestResolved, ContestVerdict, GatewayReply, GatewayRequest, ProbeResult, ProbeSession, ResolveContest,
    SessionRef, gateway_reply, gateway_request,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::Shared;

/// A gateway that does not answer a probe for this long is taken for gone.
const PROBE_DEADLINE: Duration = Duration::from_millis(3500);
/// Contests at once; a further one is left undecided. A load balancer that is lost leaves thousands.
pub(crate) const MOST: usize = 16_384;
/// One look at the leases serves all contests for this long: less than the time between two questions.
const LEASES_KEPT: Duration = Duration::from_millis(250);
/// Longest wait for the lease bucket.
const LEASES_DEADLINE: Duration = Duration::from_millis(500);
/// A gateway that was found gone from the bus is not asked again for this long, unless it renews its lease.
const GONE_FOR: Duration = Duration::from_secs(3);

/// A probe that has no answer after this time may have reached a gateway that was just ending: whether
/// anybody listens for it is asked apart, once for all contests.
const LOST_AFTER: Duration = Duration::from_millis(400);
/// Longest wait for a gateway to say that it listens.
const LISTENS_DEADLINE: Duration = Duration::from_secs(1);

/// When a gateway was asked last whether it listens, and whether it did.
type Listening = Arc<tokio::sync::Mutex<Option<(Instant, bool)>>>;

/// Versions of the gateways' leases; none if the bucket could not be read.
type Leases = Option<Arc<BTreeMap<String, u64>>>;

/// What contests share.
pub(crate) struct Contests {
    places: Semaphore,
    /// The last look at the leases. Who looks holds the lock: the others wait and see the same.
    leases: tokio::sync::Mutex<Option<(Instant, Leases)>>,
    /// Gateways that nobody listened for twice: since when, and their leases then.
    gone: Mutex<BTreeMap<GatewayId, (Instant, u64)>>,
    listening: Mutex<BTreeMap<GatewayId, Listening>>,
}

impl Default for Contests {
    fn default() -> Self {
        Self {
            places: Semaphore::new(MOST),
            leases: tokio::sync::Mutex::default(),
            gone: Mutex::default(),
            listening: Mutex::default(),
        }
    }
}

impl Contests {
    /// What the bucket says of a gateway's lease, and the lease's version.
    async fn lease(&self, shared: &Shared, gateway: &GatewayId) -> (Lease, Option<u64>) {
        let mut seen = self.leases.lock().await;
        let leases = match &*seen {
            Some((at, leases)) if at.elapsed() < LEASES_KEPT => leases.clone(),
            _ => {
                let leases = read_leases(shared).await;
                *seen = Some((Instant::now(), leases.clone()));
                leases
            }
        };
        drop(seen);
        let Some(leases) = leases else { return (Lease::Unknown, None) };
        let version = leases.get(gateway.as_str()).copied();
        (if version.is_some() { Lease::Live } else { Lease::Lapsed }, version)
    }

    /// Whether a gateway with this lease was found gone a moment ago.
    fn is_gone(&self, gateway: &GatewayId, lease: Option<u64>) -> bool {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|_, (since, _)| since.elapsed() < GONE_FOR);
        gone.get(gateway).is_some_and(|(_, version)| lease == Some(*version))
    }

    /// Whether anybody listens under a gateway's name; one that does not answer may.
    async fn listens(&self, shared: &Shared, gateway: &GatewayId) -> bool {
        let listening = {
            let mut all = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(gateway.clone()).or_default())
        };
        // Who asks holds the lock: the others wait and see the same.
        let mut seen = listening.lock().await;
        if let Some((at, listens)) = *seen
            && at.elapsed() < LEASES_KEPT
        {
            return listens;
        }
        // A question about nothing is answered at once.
        let question = GatewayRequest::default().encode_to_vec().into();
        let subject = Subject::Gateway(shared.settings.cell.clone(), gateway.clone());
        let answer = shared.engines.bus.request(&subject, question, LISTENS_DEADLINE).await;
        let listens = !matches!(answer, Err(RequestError::NoResponders));
        *seen = Some((Instant::now(), listens));
        listens
    }

    fn set_gone(&self, gateway: &GatewayId, lease: Option<u64>) {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner).remove(gateway);
        if let Some(version) = lease {
            let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
            gone.entry(gateway.clone()).or_insert((Instant::now(), version));
        }
    }
}

async fn read_leases(shared: &Shared) -> Leases {
    let prefix = format!("gateways/{}/", shared.settings.cell);
    let leases = match timeout(LEASES_DEADLINE, shared.engines.leases.list(&prefix)).await {
        Ok(Ok(leases)) => leases,
        Ok(Err(error)) => {
            debug!(%error, "the leases of the gateways cannot be read");
            return None;
        }
        Err(_) => {
            debug!("the leases of the gateways cannot be read in time");
            return None;
        }
    };
    let named = leases.into_iter().filter_map(|(key, lease)| {
        let name = key.strip_prefix(&prefix)?;
        Some((name.to_owned(), lease.version))
    });
    Some(Arc::new(named.collect()))
}

/// Decides about a contested uid.
///
/// # Errors
/// With the reason, if nobody can tell now.
pub(crate) async fn resolve(
    shared: &Shared,
    tenant: &Tenant,
    contest: ResolveContest,
) -> Result<ContestResolved, String> {
    let uid = InstanceUid::try_from(contest.instance_uid.as_ref()).map_err(|error| error.to_string())?;
    let gateway: GatewayId = contest.holder_gateway.parse().map_err(|error| format!("{error}"))?;
    let verdict = match shared.contests.places.try_acquire() {
        Ok(_place) => decide(shared, tenant, &contest, &gateway).await,
        Err(_) => Verdict::Undecided("too many instance_uids are contested at once"),
    };
    let count = |verdict: &str| shared.metrics.duplicates.with_label_values(&[verdict]).inc();
    let holder = contest.holder_gateway;
    let newcomer = contest.newcomer_gateway;
    match verdict {
        Verdict::Takeover(why) => {
            count("takeover");
            info!(event = "instance_uid_contested", %tenant, agent_id = %uid, gateway = holder, newcomer, verdict = "takeover", why, "an agent connected anew");
            Ok(ContestResolved { verdict: ContestVerdict::Takeover.into(), new_instance_uid: Bytes::new() })
        }
        Verdict::Duplicate(why) => {
            let new = shared.engines.new_id();
            count("duplicate");
            info!(event = "instance_uid_contested", %tenant, agent_id = %uid, new_agent_id = %new, gateway = holder, newcomer, verdict = "duplicate", why, "two live agents use one instance_uid");
            let new_instance_uid = Bytes::copy_from_slice(new.as_bytes());
            Ok(ContestResolved { verdict: ContestVerdict::HolderAlive.into(), new_instance_uid })
        }
        Verdict::Undecided(why) => {
            count("undecided");
            if let Some(more) = shared.outages.contests.tell((shared.engines.clock)()) {
                warn!(event = "instance_uid_contested", %tenant, agent_id = %uid, gateway = holder, newcomer, verdict = "undecided", why, more, "nobody can tell now whose an instance_uid is; the newcomer is told to come again");
            }
            Err(why.to_owned())
        }
    }
}

async fn decide(shared: &Shared, tenant: &Tenant, contest: &ResolveContest, gateway: &GatewayId) -> Verdict {
    let (mut lease, mut version) = shared.contests.lease(shared, gateway).await;
    let mut answers = Vec::new();
    if shared.contests.is_gone(gateway, version) {
        answers = vec![Answer::NobodyListens; 2];
    }
    loop {
        let after = match judge(lease, &answers) {
            Step::Ask { after } => after,
            Step::Decided(verdict) => return verdict,
        };
        if !after.is_zero() {
            sleep(after).await;
            (lease, version) = shared.contests.lease(shared, gateway).await;
        }
        answers.push(ask(shared, tenant, contest, gateway).await);
        if let [.., Answer::NobodyListens, Answer::NobodyListens] = answers[..] {
            shared.contests.set_gone(gateway, version);
        }
    }
}

/// Asks the holder's gateway whether the old session still has its agent.
async fn ask(shared: &Shared, tenant: &Tenant, contest: &ResolveContest, gateway: &GatewayId) -> Answer {
    let session = SessionRef {
        instance_uid: contest.instance_uid.clone(),
        session_id: contest.holder_session_id.clone(),
    };
    let request = GatewayRequest {
        cell: shared.settings.cell.to_string(),
        tenant: tenant.to_string(),
        traceparent: String::new(),
        request: Some(gateway_request::Request::Probe(ProbeSession { session: Some(session) })),
    };
    let subject = Subject::Gateway(shared.settings.cell.clone(), gateway.clone());
    let gone = async {
        sleep(LOST_AFTER).await;
        if shared.contests.listens(shared, gateway).await {
            pending::<()>().await;
        }
    };
    let answer = tokio::select! {
        biased;
        answer = shared.engines.bus.request(&subject, request.encode_to_vec().into(), PROBE_DEADLINE) => answer,
        () = gone => Err(RequestError::NoResponders),
    };
    let reply = match answer {
        Ok(reply) => GatewayReply::decode(reply),
        Err(RequestError::NoResponders) => return Answer::NobodyListens,
        Err(RequestError::TimedOut) => return Answer::Unanswered,
        Err(RequestError::Engine(error)) => {
            debug!(%tenant, %gateway, %error, "a gateway could not be asked for one of its agents");
            return Answer::Failed;
        }
    };
    match reply.map(|reply| reply.reply) {
        Ok(Some(gateway_reply::Reply::Probe(result))) => match ProbeResult::try_from(result) {
            Ok(ProbeResult::Alive) => Answer::Alive,
            Ok(ProbeResult::Silent) => Answer::Silent,
            Ok(ProbeResult::Absent) => Answer::Absent,
            Ok(ProbeResult::Unspecified) | Err(_) => Answer::Failed,
        },
        Ok(Some(gateway_reply::Reply::Error(error))) => {
            debug!(%tenant, %gateway, error, "a gateway cannot tell whether one of its agents is there");
            Answer::Failed
        }
        Ok(None) | Err(_) => Answer::Failed,
    }
}
