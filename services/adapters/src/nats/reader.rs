//! Reads one partition, over the end of every consumer and every connection.
//!
//! A consumer here is a short-lived thing in the memory of one server: it needs no acknowledgements, and
//! goes away with its server, its connection, or half a minute without a reader. Whenever anything about
//! it is in doubt, a missing number, a heartbeat that does not come, an error, another connection, the
//! reader makes a new one that begins after the last entry it handed on. So no entry is skipped, and none
//! is repeated.
//!
//! A new consumer continues only on the very log that was read before. On a stream that was made anew, or
//! that lost its end, the reader gives up with an error, because only its caller can decide what that means
//! for what was folded.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use muster_domain::ids::{MessageId, Partition};
use muster_ports::EngineError;
use muster_ports::log::{LogEntry, LogReader, Position};
use tokio::sync::watch;
use tokio::task::unconstrained;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::errors::{corrupt, unavailable};
use super::log::{Found, NatsLog, message_id};

/// Entries that are fetched ahead, at most one and a half times; bytes likewise.
const AHEAD: usize = 256;
const AHEAD_BYTES: usize = 4 * 1024 * 1024;
/// How often a server says that a quiet consumer is alive. After twice this time without a sign it counts
/// as gone.
const HEARTBEAT: Duration = Duration::from_millis(1500);
/// How long one request for entries stands.
const REQUEST: Duration = Duration::from_secs(30);
/// A consumer goes away when nobody asked it for this long.
const INACTIVE: Duration = Duration::from_secs(30);
/// First and longest wait between attempts to go on.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The reader.
pub(super) struct NatsReader {
    log: NatsLog,
    partition: Partition,
    /// The last entry that was handed on.
    last: Last,
    /// Consumers that were given up since the last entry.
    doubts: u32,
    state: State,
}

/// Where a reader stands, and by what to recognise the log.
#[derive(Debug, Clone, Copy)]
struct Last {
    position: Position,
    /// The id of the entry there, if it is known.
    id: Option<MessageId>,
    /// When the stream was made, in nanoseconds.
    stream_made: i128,
}

enum State {
    Reading(Box<Consumer>),
    /// Kept here, and not in `next`, so that callers that cancel often do not keep it from ending.
    Opening(BoxFuture<'static, Result<Consumer, EngineError>>),
    /// What comes next has to be opened.
    Lost,
}

struct Consumer {
    messages: pull::Stream,
    /// Number of the last message of this consumer.
    delivered: u64,
    /// Changes when the connection is made again.
    made: watch::Receiver<u64>,
}

/// Something about a consumer is in doubt.
#[derive(Debug)]
struct Doubt(String);

impl NatsReader {
    /// Begins to read after a position.
    pub(super) async fn open(
        log: NatsLog,
        partition: Partition,
        position: Position,
    ) -> Result<Self, EngineError> {
        let stream_made = info(&log).await?.created.unix_timestamp_nanos();
        let id = match log.look(partition, position).await? {
            Found::Entry(id) => Some(id),
            Found::Nothing | Found::Elsewhere => None,
        };
        let last = Last { position, id, stream_made };
        let state = State::Reading(Box::new(consume(&log, partition, position).await?));
        Ok(Self { log, partition, last, doubts: 0, state })
    }

    /// A consumer, once there is one. Fails only when the log is another one.
    fn reopen(&self) -> BoxFuture<'static, Result<Consumer, EngineError>> {
        let (log, partition, last) = (self.log.clone(), self.partition, self.last);
        // The first is replaced at once; one after the other would be, too, but for this.
        let pause = match self.doubts {
            0 | 1 => Duration::ZERO,
            more => RETRY.0.saturating_mul(1 << more.min(16)).min(RETRY.1),
        };
        Box::pin(async move {
            sleep(pause).await;
            let mut wait = RETRY.0;
            loop {
                let attempt = async {
                    recognise(&log, partition, last).await?;
                    consume(&log, partition, last.position).await
                };
                match attempt.await {
                    Ok(consumer) => return Ok(consumer),
                    Err(error @ EngineError::Corrupt { .. }) => return Err(error),
                    Err(error) => {
                        if let Some(left_out) = log.connection.notices.due("reader") {
                            warn!(%partition, left_out, %error, "a partition of the log cannot be read; trying again");
                        }
                    }
                }
                sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
            }
        })
    }

    /// The entry in a message, if it is the next one of the consumer.
    fn accept(&self, message: jetstream::Message, delivered: &mut u64) -> Result<LogEntry, Doubt> {
        let info = message.info().map_err(|error| Doubt(error.to_string()))?;
        let (number, sequence) = (info.consumer_sequence, info.stream_sequence);
        if number != *delivered + 1 {
            return Err(Doubt(format!("message {number} after {delivered}")));
        }
        if sequence <= self.last.position.0 {
            return Err(Doubt(format!("position {sequence} after {}", self.last.position.0)));
        }
        *delivered = number;
        let id = message_id(message.headers.as_ref());
        Ok(LogEntry { position: Position(sequence), id, payload: message.message.payload })
    }

    /// Takes an answer of the consumer's stream; `None` leaves the consumer in doubt.
    fn take<E: ToString>(
        &mut self,
        consumer: &mut Consumer,
        answer: Option<Result<jetstream::Message, E>>,
    ) -> Option<LogEntry> {
        let accepted = match answer {
            Some(Ok(message)) => self.accept(message, &mut consumer.delivered),
            Some(Err(error)) => Err(Doubt(error.to_string())),
            None => Err(Doubt("its messages end".to_owned())),
        };
        match accepted {
            Ok(entry) => {
                self.last.position = entry.position;
                self.last.id = Some(entry.id);
                self.doubts = 0;
                Some(entry)
            }
            Err(Doubt(reason)) => {
                self.doubts = self.doubts.saturating_add(1);
                debug!(partition = %self.partition, position = self.last.position.0, reason, "a consumer of the log is given up for a new one");
                None
            }
        }
    }
}

#[async_trait]
impl LogReader for NatsReader {
    async fn next(&mut self, max: usize) -> Result<Vec<LogEntry>, EngineError> {
        let max = max.max(1);
        loop {
            let reading = match &mut self.state {
                State::Reading(reading) => reading,
                State::Opening(opening) => {
                    match opening.await {
                        Ok(consumer) => self.state = State::Reading(Box::new(consumer)),
                        Err(error) => {
                            self.state = State::Lost;
                            return Err(error);
                        }
                    }
                    continue;
                }
                State::Lost => {
                    self.state = State::Opening(self.reopen());
                    continue;
                }
            };
            let first = tokio::select! {
                biased;
                answer = reading.messages.next() => Some(answer),
                Ok(()) = reading.made.changed() => None,
            };
            // Nothing waits from here on, so that nothing is lost by a cancelled wait.
            let State::Reading(mut consumer) = std::mem::replace(&mut self.state, State::Lost) else {
                continue;
            };
            let Some(answer) = first else { continue };
            let Some(entry) = self.take(&mut consumer, answer) else { continue };
            let mut entries = vec![entry];
            while entries.len() < max {
                // Unconstrained: a used-up budget of the task would look like an end of what is there.
                let Some(answer) = unconstrained(consumer.messages.next()).now_or_never() else {
                    self.state = State::Reading(consumer);
                    return Ok(entries);
                };
                let Some(entry) = self.take(&mut consumer, answer) else { return Ok(entries) };
                entries.push(entry);
            }
            self.state = State::Reading(consumer);
            return Ok(entries);
        }
    }
}

async fn info(log: &NatsLog) -> Result<jetstream::stream::Info, EngineError> {
    let info = async { log.stream.get_info().await.map_err(|error| log.failed(&error)) };
    log.connection.bounded("a question about the log", info).await
}

/// Makes sure that the log is the one that was read so far.
async fn recognise(log: &NatsLog, partition: Partition, last: Last) -> Result<(), EngineError> {
    let info = info(log).await?;
    let another = |reason: &str| Err(corrupt(format_args!("the stream {}", log.stream_name()), reason));
    if info.created.unix_timestamp_nanos() != last.stream_made {
        return another("it was made anew while it was read");
    }
    if info.state.last_sequence < last.position.0 {
        return another("it ends below what was read from it");
    }
    match (last.id, log.look(partition, last.position).await?) {
        // Purged: positions are not given twice within one life of a stream.
        (None, _) | (_, Found::Nothing) => Ok(()),
        (Some(id), Found::Entry(found)) if id == found => Ok(()),
        (Some(_), Found::Entry(_) | Found::Elsewhere) => another("it holds another entry where one was read"),
    }
}

/// Makes a consumer of what comes after a position.
async fn consume(log: &NatsLog, partition: Partition, after: Position) -> Result<Consumer, EngineError> {
    // Before anything else: a connection that is made from here on is noticed.
    let mut made = log.connection.made.clone();
    made.mark_unchanged();
    let config = pull::Config {
        description: Some(format!("reads partition {partition}")),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: after.0 + 1 },
        ack_policy: AckPolicy::None,
        filter_subject: log.subject(partition),
        inactive_threshold: INACTIVE,
        num_replicas: 1,
        memory_storage: true,
        ..pull::Config::default()
    };
    let open = async {
        let consumer = log.stream.create_consumer(config.clone()).await;
        let consumer = consumer.map_err(|error| log.failed(&error))?;
        let found = &consumer.cached_info().config;
        if found.filter_subject != config.filter_subject
            || found.deliver_policy != config.deliver_policy
            || found.ack_policy != config.ack_policy
        {
            return Err(unavailable("the server made a consumer unlike the one that was asked for"));
        }
        let bytes = AHEAD_BYTES.max(2 * log.connection.client.max_payload());
        let messages = consumer
            .stream()
            .max_messages_per_batch(AHEAD)
            .max_bytes_per_batch(bytes)
            .expires(REQUEST)
            .heartbeat(HEARTBEAT)
            .messages()
            .await;
        messages.map_err(unavailable)
    };
    let messages = log.connection.bounded("a new reader", open).await?;
    Ok(Consumer { messages, delivered: 0, made })
}
