//! Attempts that overlap: each begins when its time has come or one before it has failed, and the first success ends the others.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;

/// Runs attempts, given with the time after which each begins at the latest. `None` if there are none; the error is that of the last
/// one in the list.
pub(in crate::sys) async fn first_success<T, E, F>(attempts: Vec<(Duration, F)>) -> Option<Result<T, E>>
where
    F: Future<Output = Result<T, E>>,
{
    let started = Instant::now();
    let mut waiting = attempts.into_iter().enumerate();
    let mut next = waiting.next();
    let mut running = FuturesUnordered::new();
    let mut failure: Option<(usize, E)> = None;
    let mut begin = true;
    loop {
        if begin || running.is_empty() {
            match next.take() {
                Some((index, (_, attempt))) => {
                    running.push(async move { (index, attempt.await) });
                    next = waiting.next();
                }
                None if running.is_empty() => return failure.map(|(_, error)| Err(error)),
                None => {}
            }
        }
        let due = next.as_ref().map(|(_, (delay, _))| started + *delay);
        begin = tokio::select! {
            Some((index, result)) = running.next() => match result {
                Ok(value) => return Some(Ok(value)),
                Err(error) => {
                    if failure.as_ref().is_none_or(|(worst, _)| *worst <= index) {
                        failure = Some((index, error));
                    }
                    true
                }
            },
            () = tokio::time::sleep_until(due.unwrap_or(started)), if due.is_some() => true,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attempts as (begins after ms, takes ms, succeeds), and which one won, with the time it all took.
    async fn run(attempts: &[(u64, u64, bool)]) -> (Option<Result<usize, usize>>, Duration) {
        let started = Instant::now();
        let futures = attempts.iter().enumerate().map(|(n, (delay, takes, succeeds))| {
            let attempt = async move {
                tokio::time::sleep(Duration::from_millis(*takes)).await;
                if *succeeds { Ok(n) } else { Err(n) }
            };
            (Duration::from_millis(*delay), attempt)
        });
        let result = first_success(futures.collect()).await;
        (result, started.elapsed())
    }

    const SOON: Duration = Duration::from_millis(900);

    #[tokio::test]
    async fn the_first_success_wins() {
        assert!(matches!(run(&[(0, 1, true), (1000, 1, true)]).await, (Some(Ok(0)), t) if t < SOON));
        assert!(matches!(run(&[(0, 5000, true), (20, 1, true)]).await, (Some(Ok(1)), t) if t < SOON));
    }

    #[tokio::test]
    async fn a_failure_lets_the_next_begin_at_once() {
        assert!(matches!(run(&[(0, 1, false), (5000, 1, true)]).await, (Some(Ok(1)), t) if t < SOON));
        // Also while an earlier one still tries.
        assert!(matches!(run(&[(0, 5000, false), (1, 1, false), (5000, 1, true)]).await, (Some(Ok(2)), t) if t < SOON));
    }

    #[tokio::test]
    async fn when_all_fail_the_last_ones_error_is_told() {
        assert!(matches!(run(&[(0, 30, false), (1, 1, false)]).await, (Some(Err(1)), _)));
        assert!(run(&[]).await.0.is_none());
    }
}
