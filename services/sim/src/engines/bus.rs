//! The bus: messages that are lost, doubled, late; requests that nobody answers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use muster_ports::EngineError;
use muster_ports::bus::{Bus, RequestError, Subject, Subscription};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{sleep, sleep_until, timeout};

use super::{Wire, unavailable};
use crate::trace::Hash;
use crate::weather::Engine;

/// The bus as a process sees it.
pub(crate) struct SimBus(pub(super) Arc<Wire>);

/// Messages of one process on one subject arrive in their order, but for those that are late.
fn lane(subject: &Subject) -> u64 {
    let text = format!("{subject:?}");
    text.bytes().fold(7, |lane, byte| lane.wrapping_mul(31).wrapping_add(u64::from(byte)))
}

#[async_trait]
impl Bus for SimBus {
    async fn publish(&self, subject: &Subject, payload: Bytes) -> Result<(), EngineError> {
        let wire = &self.0;
        let told = wire.world.check(|checker| checker.delivering(subject, &payload));
        let what = Hash(&payload);
        wire.world.trace.note(&wire.process.name, format_args!("sends {what} to {subject:?}{told}"));
        if wire.world.weather.is_away(&wire.process.name, Engine::Bus) {
            return Err(unavailable(Engine::Bus, "it is away"));
        }
        let (odds, _) = wire.world.weather.odds();
        let fates = wire.draw(|rng| {
            let copies = 1 + usize::from(rng.chance(odds.message_doubled));
            let fate = |_| {
                let late = rng.chance(odds.message_late).then(|| rng.millis(50, 20_000));
                (rng.chance(odds.message_lost), late)
            };
            (0..copies).map(fate).collect::<Vec<_>>()
        });
        for (is_lost, late) in fates {
            let usual = wire.fate().there;
            let arrival = match late {
                Some(late) => wire.arrival(Engine::Bus, None, late),
                None => wire.arrival(Engine::Bus, Some(lane(subject)), usual),
            };
            let (subject, payload, world) = (subject.clone(), payload.clone(), Arc::clone(&wire.world));
            let name = wire.process.name.clone();
            Handle::current().spawn(async move {
                sleep_until(arrival).await;
                if is_lost || world.weather.is_away(&name, Engine::Bus) {
                    world.trace.note("bus", format_args!("loses {} to {subject:?}", Hash(&payload)));
                } else {
                    // The bus of one process does not fail.
                    let _ = world.bus.publish(&subject, payload).await;
                }
            });
        }
        Ok(())
    }

    async fn request(
        &self,
        subject: &Subject,
        payload: Bytes,
        patience: Duration,
    ) -> Result<Bytes, RequestError> {
        let fate = self.0.fate();
        let (answer, answered) = oneshot::channel();
        let (world, process, subject) =
            (Arc::clone(&self.0.world), Arc::clone(&self.0.process), subject.clone());
        Handle::current().spawn(async move {
            sleep(fate.there).await;
            if world.weather.is_away(&process.name, Engine::Bus) {
                let _ = answer.send(Err(unavailable(Engine::Bus, "it is away").into()));
                return;
            }
            let (request, lost) = (Hash(&payload), fate.lost || fate.unanswered);
            world.trace.note(&process.name, format_args!("asks {request} of {subject:?} lost={lost}"));
            if fate.lost {
                sleep(patience).await;
            } else {
                let result = world.bus.request(&subject, payload, patience).await;
                if fate.unanswered {
                    sleep(patience).await;
                } else {
                    sleep(fate.back).await;
                    // A caller that is gone does not care.
                    let _ = answer.send(result);
                }
            }
        });
        match timeout(patience, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(RequestError::TimedOut),
        }
    }

    async fn subscribe(&self, subject: &Subject) -> Result<Box<dyn Subscription>, EngineError> {
        if self.0.world.weather.is_away(&self.0.process.name, Engine::Bus) {
            return Err(unavailable(Engine::Bus, "it is away"));
        }
        self.0.world.bus.subscribe(subject).await
    }
}
