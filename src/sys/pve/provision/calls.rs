//! Single calls, with the tasks they start, and looking until something has happened.

use std::time::{Duration, Instant};

use super::{Images, StepError, Watch};
use crate::pve::{HostName, Request, VolumeId, reply};
use crate::sys::image::Image;
use crate::sys::pve::{Executor, UPLOAD_TASK_LIMIT, Upload, wait_task};

/// Pause between two looks at something that is about to happen.
const LOOK_PAUSE: Duration = Duration::from_millis(150);

pub(super) async fn upload(
    executor: &dyn Executor,
    (host, volume): (&HostName, &VolumeId),
    image: &Image,
    watch: &mut dyn Watch,
) -> Result<(), StepError> {
    let upload = Upload {
        host: host.clone(),
        storage: volume.storage().clone(),
        file: image.path.clone(),
        name: volume.file_name().to_owned(),
        sha256: image.sha256.clone(),
    };
    let task = executor.upload(&upload).await?;
    wait_task(executor, &task, UPLOAD_TASK_LIMIT, &mut |line| watch.line(line)).await?;
    Ok(())
}

/// Uploads the image that serves every guest, outside of any plan: several plans wait for it.
///
/// # Errors
/// If it cannot be stored.
pub async fn upload_image(executor: &dyn Executor, host: &HostName, volume: &VolumeId, images: &dyn Images) -> Result<(), StepError> {
    upload(executor, (host, volume), images.shared(), &mut Unwatched).await
}

/// Nobody watches.
pub(in crate::sys::pve) struct Unwatched;

impl Watch for Unwatched {
    fn begin(&mut self, _title: &str) {}

    fn line(&mut self, _text: &str) {}

    fn end(&mut self, _took: Duration, _ok: bool) {}
}

/// Makes a request and waits for its task, if it started one.
pub(in crate::sys::pve) async fn run_call(
    executor: &dyn Executor,
    request: &Request,
    task: Option<Duration>,
    watch: &mut dyn Watch,
) -> Result<(), StepError> {
    follow(executor, &executor.call(request).await?, task, watch).await
}

/// Waits for the task that a call gave, if it gave one.
pub(super) async fn follow(
    executor: &dyn Executor,
    value: &serde_json::Value,
    task: Option<Duration>,
    watch: &mut dyn Watch,
) -> Result<(), StepError> {
    // Some calls reply with a task only when they take longer (removing a volume).
    if let Some(limit) = task.filter(|_| !value.is_null()) {
        let task = reply::upid(value)?;
        let warned = wait_task(executor, &task, limit, &mut |line| watch.line(line)).await?;
        if warned {
            tracing::warn!(%task, "the task ended with warnings");
        }
    }
    Ok(())
}

/// Looks again and again until `look` gives a value, at most for `limit`. Losing the connection meanwhile counts as "not yet".
pub(in crate::sys::pve) async fn until<T, F>(limit: Duration, look: impl Fn() -> F) -> Result<T, StepError>
where
    F: Future<Output = Result<Result<T, String>, StepError>>,
{
    let begun = Instant::now();
    loop {
        let last = match look().await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(why)) => why,
            Err(StepError::Call(error)) if error.is_passing() => error.to_string(),
            Err(StepError::Mesh(error)) => error.to_string(),
            Err(error) => return Err(error),
        };
        if begun.elapsed() > limit {
            return Err(StepError::TooLong { limit, last: Some(last) });
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}
