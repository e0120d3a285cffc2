//! The start of a role: waiting for the server and for what must be on it, up to a deadline.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::{
    AccountErrorKind, Context, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind,
};
use async_nats::jetstream::stream::{Config, Stream};
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, ConnectErrorKind, Event};
use muster_ports::bus::MAX_PAYLOAD;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use super::connection::Notices;
use super::errors::NatsError;
use super::{NatsOptions, streams};

/// The oldest server that does what is asked of it: older ones drop settings in silence.
const LEAST_VERSION: (u64, u64) = (2, 10);
/// Time between two attempts.
const ATTEMPT_EVERY: Duration = Duration::from_secs(1);
/// What trying again does not mend.
const LASTING: [ErrorCode; 8] = [
    ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED,
    ErrorCode::STREAM_SUBJECT_OVERLAP,
    ErrorCode::STREAM_INVALID_CONFIG,
    ErrorCode::STORAGE_RESOURCES_EXCEEDED,
    ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
    ErrorCode::STREAM_LIMITS,
    ErrorCode::JETSTREAM_NOT_ENABLED,
    ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT,
];

/// A start that is under way.
pub(super) struct Start<'a> {
    options: &'a NatsOptions,
    until: Instant,
}

impl<'a> Start<'a> {
    pub(super) fn new(options: &'a NatsOptions) -> Self {
        // A deadline that the clock cannot tell is a day.
        let now = Instant::now();
        let until = now.checked_add(options.deadline).unwrap_or(now + Duration::from_secs(24 * 60 * 60));
        Self { options, until }
    }

    /// Connects to a server that is recent enough. Also returns how often the connection was made.
    pub(super) async fn connect(
        &self,
        notices: &Arc<Notices>,
    ) -> Result<(Client, watch::Receiver<u64>), NatsError> {
        let addresses = self.options.addresses()?;
        let (sender, mut made) = watch::channel(0);
        let sender = Arc::new(sender);
        loop {
            let (sender, notices) = (Arc::clone(&sender), Arc::clone(notices));
            let options = self.options.connect_options().await?.event_callback(move |event| {
                if event == Event::Connected {
                    sender.send_modify(|made| *made += 1);
                }
                notices.event(&event);
                async {}
            });
            let reason = match timeout_at(self.until, options.connect(addresses.clone())).await {
                Ok(Ok(client)) => {
                    check_version(&client.server_info().version)
                        .and_then(|()| check_payload(client.max_payload()))
                        .map_err(|(reason, fix)| self.refused(reason, fix))?;
                    // Or the first connection would be taken for another one later.
                    let _ = timeout(ATTEMPT_EVERY, made.wait_for(|made| *made > 0)).await;
                    return Ok((client, made));
                }
                Ok(Err(error)) => match error.kind() {
                    ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                        return Err(self.refused(
                            "it does not accept the credentials",
                            "check the token or the credentials file, and the users of the server",
                        ));
                    }
                    _ => error.to_string(),
                },
                Err(_) => "no answer".to_owned(),
            };
            self.pause(reason).await?;
        }
    }

    /// Waits until JetStream answers.
    pub(super) async fn jetstream(&self, context: &Context) -> Result<(), NatsError> {
        const FIX: &str = "enable it with a `jetstream` block in the server's configuration, and in the account where there are accounts";
        let has_it = context.client().server_info().jetstream;
        loop {
            let Err(error) = context.query_account().await else { return Ok(()) };
            match error.kind() {
                AccountErrorKind::JetStreamUnavailable if !has_it => {
                    return Err(self.refused("JetStream is not enabled on the server", FIX));
                }
                AccountErrorKind::JetStream(error) if is_lasting(&error) => {
                    return Err(self.refused(error, FIX));
                }
                _ => self.pause(format!("JetStream does not answer: {error}")).await?,
            }
        }
    }

    /// The stream, with these very settings. Where it is absent it is created, or waited for by a role
    /// that must not.
    pub(super) async fn stream(&self, context: &Context, want: Config) -> Result<Stream, NatsError> {
        loop {
            // A creation is read back too: what came is compared, not what was asked for.
            match context.get_stream(&want.name).await {
                Ok(stream) => {
                    streams::compare(&want, &stream.cached_info().config)
                        .map_err(|(reason, fix)| self.refused(reason, fix))?;
                    return Ok(stream);
                }
                Err(error) if !is_absent(&error) => {
                    self.pause(format!("the stream {} cannot be read: {error}", want.name)).await?;
                }
                Err(_) if self.options.cluster.is_none() => {
                    let name = &want.name;
                    self.pause(format!("there is no stream {name} yet; a control creates it")).await?;
                }
                Err(_) => self.create(context, &want).await?,
            }
        }
    }

    async fn create(&self, context: &Context, want: &Config) -> Result<(), NatsError> {
        let name = &want.name;
        let Err(error) = context.create_stream(want.clone()).await else {
            info!(stream = name, replicas = want.num_replicas, "created a stream on NATS");
            return Ok(());
        };
        match error.kind() {
            // Another one did, perhaps with other settings: they are compared next.
            CreateStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NAME_EXIST => {
                Ok(())
            }
            CreateStreamErrorKind::JetStream(error) if is_lasting(&error) => Err(self.refused(
                format_args!("it does not create the stream {name}: {error}"),
                "check the settings for replicas and for the sizes of the log and the blobs against what the servers have",
            )),
            _ => self.pause(format!("the stream {name} is not created: {error}")).await,
        }
    }

    /// Logs what is waited for, and waits, unless the deadline has passed.
    async fn pause(&self, reason: String) -> Result<(), NatsError> {
        let servers = self.options.servers();
        if Instant::now() + ATTEMPT_EVERY > self.until {
            let waited = self.options.deadline;
            return Err(NatsError::NotReady { servers, waited, reason });
        }
        warn!(servers, reason, "waiting for NATS");
        sleep(ATTEMPT_EVERY).await;
        Ok(())
    }

    fn refused(&self, reason: impl Display, fix: impl Display) -> NatsError {
        NatsError::Refused {
            servers: self.options.servers(),
            reason: reason.to_string(),
            fix: fix.to_string(),
        }
    }
}

fn is_lasting(error: &jetstream::Error) -> bool {
    LASTING.contains(&error.error_code())
}

fn is_absent(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Whether a server of this version can be used; if not, the reason and the fix.
fn check_version(version: &str) -> Result<(), (String, String)> {
    let (major, minor) = LEAST_VERSION;
    let fix = format!("upgrade every server to {major}.{minor} or later");
    let mut numbers = version.trim_start_matches('v').split(['.', '-', '+']).map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(own_major)), Some(Ok(own_minor))) if (own_major, own_minor) >= LEAST_VERSION => Ok(()),
        (Some(Ok(_)), Some(Ok(_))) => Err((
            format!(
                "the server is version {version}, and {major}.{minor} is the oldest that does what Muster asks of it"
            ),
            fix,
        )),
        _ => Err((format!("the server does not tell its version: {version:?}"), fix)),
    }
}

/// Whether a server takes payloads that are large enough; if not, the reason and the fix.
fn check_payload(limit: usize) -> Result<(), (String, String)> {
    if limit >= MAX_PAYLOAD {
        return Ok(());
    }
    let reason =
        format!("the server takes payloads of {limit} bytes at most, and Muster sends {MAX_PAYLOAD}");
    Err((reason, "set `max_payload: 1MB` or more in the configuration of every server".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_for_small_payloads_are_refused() {
        assert_eq!(check_payload(1 << 20), Ok(()));
        assert!(check_payload(1_000_000).unwrap_err().1.contains("max_payload: 1MB"));
    }

    #[test]
    fn old_servers_are_refused() {
        for version in ["2.10.0", "2.10.22", "2.15.2", "2.12.0-beta.1", "3.0.0", "v2.11.1"] {
            assert_eq!(check_version(version), Ok(()), "{version}");
        }
        for version in ["2.9.10", "2.9.25-beta.3", "1.4.1", "0.10.0"] {
            let (reason, fix) = check_version(version).unwrap_err();
            assert!(reason.contains(version) && reason.contains("2.10"), "{reason}");
            assert_eq!(fix, "upgrade every server to 2.10 or later");
        }
        for version in ["", "2", "latest", "2.x"] {
            assert!(check_version(version).unwrap_err().0.contains("does not tell its version"), "{version}");
        }
    }
}
