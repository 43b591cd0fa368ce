use std::{
    future::Future,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::Trouble;
use crate::error::Result;

const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A server that wants a longer one is told of, not waited for.
const LONGEST_ASKED: Duration = Duration::from_mins(5);

/// Counts what went wrong since something last came, and waits longer each time.
pub(crate) struct Retries {
    failed: u32,
    allowed: u32,
    first_pause: Duration,
}

impl Retries {
    /// After `allowed` repetitions in a row the trouble is an error.
    pub(crate) fn new(allowed: u32, first_pause: Duration) -> Self {
        Self { failed: 0, allowed, first_pause }
    }

    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next repetition, and says so; an error if there is to be none.
    pub(crate) async fn wait(&mut self, trouble: Trouble, note: &dyn Fn(Option<String>)) -> Result<()> {
        let Trouble::Passing { error, after } = trouble else { return Err(trouble.into_error()) };
        self.failed += 1;
        if self.failed > self.allowed || after.is_some_and(|after| after > LONGEST_ASKED) {
            return Err(error);
        }
        let doubled = self.first_pause.saturating_mul(1 << (self.failed - 1).min(16)).min(LONGEST_PAUSE);
        // Between a half and all of it, lest many come back at once.
        let pause = after.unwrap_or(doubled.mul_f64(0.5 + 0.5 * fraction()));
        note(Some(format!(
            "{}; trying again in {:.0} s ({} of {})",
            error.message,
            pause.as_secs_f64().ceil(),
            self.failed,
            self.allowed
        )));
        tokio::time::sleep(pause).await;
        note(None);
        Ok(())
    }
}

/// Asks until there is an answer, or trouble that lasts.
pub(crate) async fn patiently<T, F: Future<Output = std::result::Result<T, Trouble>>>(
    mut retries: Retries,
    note: &dyn Fn(Option<String>),
    mut ask: impl FnMut() -> F,
) -> Result<T> {
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(trouble) => retries.wait(trouble, note).await?,
        }
    }
}

/// Somewhere from 0 to 1.
fn fraction() -> f64 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.subsec_nanos());
    f64::from(nanos % 1_000_000) / 1e6
}
