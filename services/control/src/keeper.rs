//! Keeps the bucket of agents' credentials as the store is, and lets uids that the server gives join them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use muster_domain::credential::MAX_UIDS;
use muster_domain::ids::{Cell, Digest, InstanceUid, Tenant};
use muster_ports::bus::{Bus, Received, Subject, Subscription};
use muster_ports::credentials::{CredentialStore, sync};
use muster_ports::kv::KeyValue;
use muster_ports::seldom::Seldom;
use muster_ports::{Clock, EngineError};
use muster_proto::Message;
use muster_proto::bus::{ControlReply, ControlRequest, JoinUid, JoinedUid, control_reply, control_request};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often the store is looked at without a wake-up.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Longest look.
const DEADLINE: Duration = Duration::from_secs(30);
/// Attempts at a credential while others change it.
const ATTEMPTS: usize = 8;

/// What the keeper works on.
#[derive(Clone)]
pub struct Keeper {
    /// Region of the bucket.
    pub cell: Cell,
    /// The credentials.
    pub store: Arc<dyn CredentialStore>,
    /// Where gateways read them: a bucket without a time to live.
    pub bucket: Arc<dyn KeyValue>,
    /// Wakes the keeper; by it gateways are woken, and ask.
    pub bus: Arc<dyn Bus>,
    /// The time.
    pub clock: Clock,
}

impl Keeper {
    /// Works until `stop`. Any number of processes may do so at once.
    ///
    /// # Errors
    /// If the bus cannot be set up at the start.
    pub async fn run(self, stop: CancellationToken) -> Result<(), EngineError> {
        let wake = self.bus.subscribe(&Subject::Wake(self.cell.clone())).await?;
        let requests = self.bus.subscribe(&Subject::Keeper(self.cell.clone())).await?;
        tokio::join!(self.follow(wake, stop.clone()), self.serve(requests, stop));
        Ok(())
    }

    async fn follow(&self, mut wake: Box<dyn Subscription>, stop: CancellationToken) {
        let outage = Seldom::default();
        loop {
            if let Err(error) = self.look().await
                && let Some(more) = outage.tell((self.clock)())
            {
                warn!(%error, more, "credentials do not reach the gateways; this is tried again");
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                woken = wake.next() => if woken.is_none() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Brings the bucket up to the store and wakes the gateways.
    async fn look(&self) -> Result<(), String> {
        let sync = sync(self.store.as_ref(), self.bucket.as_ref(), &self.cell);
        let moved = tokio::time::timeout(DEADLINE, sync).await.map_err(|_| "no answer in time".to_owned())?;
        if moved.map_err(|error| error.to_string())? {
            let subject = Subject::Credentials(self.cell.clone());
            // Who is not woken looks by itself within seconds.
            let _ = self.bus.publish(&subject, Bytes::new()).await;
        }
        Ok(())
    }

    /// Answers gateways, one after the other: uids are given seldom.
    async fn serve(&self, mut requests: Box<dyn Subscription>, stop: CancellationToken) {
        loop {
            let received = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                received = requests.next() => received,
            };
            let Some(Received { payload, reply: Some(reply) }) = received else { return };
            let answered = tokio::time::timeout(DEADLINE, self.answer(payload)).await;
            let answer = match answered {
                Ok(Ok(())) => control_reply::Reply::Joined(JoinedUid {}),
                Ok(Err(error)) => control_reply::Reply::Error(error),
                Err(_) => control_reply::Reply::Error("no answer in time".to_owned()),
            };
            let answer = ControlReply { reply: Some(answer) };
            if let Err(error) = reply.send(answer.encode_to_vec().into()).await {
                warn!(%error, "an answer to a gateway was lost");
            }
        }
    }

    async fn answer(&self, payload: Bytes) -> Result<(), String> {
        let request = ControlRequest::decode(payload).map_err(|error| error.to_string())?;
        let tenant: Tenant = request.tenant.parse().map_err(|error| format!("{error}"))?;
        match request.request {
            Some(control_request::Request::JoinUid(JoinUid { credential_digest, instance_uid })) => {
                let digest =
                    Digest::try_from(credential_digest.as_ref()).map_err(|error| error.to_string())?;
                let uid = InstanceUid::try_from(instance_uid.as_ref()).map_err(|error| error.to_string())?;
                self.join(&tenant, &digest, uid).await
            }
            _ => Err("this version does not know the request".to_owned()),
        }
    }

    /// Lets a uid join those that a credential may be used for.
    async fn join(&self, tenant: &Tenant, digest: &Digest, uid: InstanceUid) -> Result<(), String> {
        for _ in 0..ATTEMPTS {
            let found = self.store.credential_of(digest).await.map_err(|error| error.to_string())?;
            let found = found.filter(|found| found.tenant == *tenant);
            let mut credential = found.ok_or("there is no such credential (any more)")?;
            if let Err(refusal) = credential.check((self.clock)()) {
                return Err(format!("the credential is {}", refusal.name()));
            }
            let Some(uids) = &mut credential.uids else { return Ok(()) };
            if uids.insert(uid) {
                if uids.len() > MAX_UIDS {
                    return Err(format!("the credential has {MAX_UIDS} instance_uids already"));
                }
                let changed = self.store.change_credential(&credential, None).await;
                if changed.map_err(|error| error.to_string())?.is_none() {
                    continue;
                }
                info!(event = "uid_joined", %tenant, agent_id = %uid, credential = %credential.id, "a new instance_uid may be used with its agent's credential");
            }
            // Another gateway may be asked next.
            return self.look().await;
        }
        Err("the credential is being changed by others".to_owned())
    }
}
