//! Waiting for a condition in another process, which cannot notify a test: the one place that polls.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_millis(200);

/// Asks again until the answer is `Ok`, and returns that. After the deadline it panics with the
/// reason that the last attempt gave.
pub async fn eventually<T>(deadline: Duration, attempt: impl AsyncFnMut() -> Result<T, String>) -> T {
    match try_eventually(deadline, attempt).await {
        Ok(value) => value,
        Err(reason) => panic!("not within {deadline:?}: {reason}"),
    }
}

/// As [`eventually`], but returns the last reason.
pub async fn try_eventually<T>(
    deadline: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, String> {
    let end = Instant::now() + deadline;
    let mut pause = SHORTEST;
    let mut last = None;
    loop {
        match timeout_at(end, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(reason)) => last = Some(reason),
            Err(_) => return Err(last.unwrap_or_else(|| "the first attempt did not end".to_owned())),
        }
        if Instant::now() + pause >= end {
            return Err(last.unwrap_or_default());
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_good_answer_counts() {
        let mut attempts = 0;
        let value = eventually(Duration::from_secs(10), async || {
            attempts += 1;
            if attempts < 3 { Err("not yet".to_owned()) } else { Ok(attempts) }
        })
        .await;
        assert_eq!(value, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "not within 50ms: it is blue")]
    async fn the_last_reason_is_told() {
        eventually(Duration::from_millis(50), async || Err::<(), _>("it is blue".to_owned())).await;
    }

    #[tokio::test]
    async fn an_attempt_that_hangs_is_given_up() {
        let mut attempts = 0;
        let outcome: Result<(), String> = try_eventually(Duration::from_millis(50), async || {
            attempts += 1;
            if attempts > 1 {
                std::future::pending::<()>().await;
            }
            Err("it is blue".to_owned())
        })
        .await;
        assert_eq!(outcome, Err("it is blue".to_owned()));
    }
}
