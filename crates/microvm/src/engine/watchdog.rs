//! Notices a VMM that runs and does nothing any more, and ends it.
//!
//! A VMM can hang where its guest cannot tell: stopped by a signal, in a system call that does not come back, in a lock.
//! So it is asked for a sign of life now and then. Firecracker's own handlers can deadlock, so only SIGKILL ends it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use beta9_runtime::Result;
use tokio::time::{sleep, timeout};

use super::process::Reach;

/// From one answer to the next question.
const INTERVAL: Duration = Duration::from_secs(10);
/// Answers that make no sense before it counts as stuck.
const MAX_FAILURES: u32 = 3;

/// Somebody who can be asked whether they live.
#[async_trait]
pub(super) trait Pulse: Send {
    /// Comes back when they answered.
    async fn beat(&mut self) -> Result<()>;
}

/// Why the watchdog ended the VMM, if it did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stuck(Arc<OnceLock<String>>);

impl Stuck {
    /// Continues "the VM ended: ".
    pub(crate) fn reason(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }
}

/// Watches a VMM until it ends.
pub(super) fn watch(vmm: Reach, mut pulse: impl Pulse + 'static, deadline: Duration) -> Stuck {
    let stuck = Stuck::default();
    let verdict = stuck.clone();
    tokio::spawn(async move {
        let reason = tokio::select! {
            biased;
            _ = vmm.ended() => return,
            reason = listen(&mut pulse, INTERVAL, deadline) => reason,
        };
        tracing::warn!(reason, "a VMM is stuck and is killed");
        let _ = verdict.0.set(reason);
        vmm.kill();
    });
    stuck
}

/// Comes back with the reason when there is no sign of life.
async fn listen(pulse: &mut impl Pulse, interval: Duration, deadline: Duration) -> String {
    let mut failures = 0;
    loop {
        sleep(interval).await;
        match timeout(deadline, pulse.beat()).await {
            Ok(Ok(())) => failures = 0,
            // One that is ending breaks its connection first.
            Ok(Err(error)) => {
                failures += 1;
                if failures == MAX_FAILURES {
                    return format!("it gave no sign of life {MAX_FAILURES} times: {}", error.chain());
                }
            }
            Err(_) => return format!("it did not answer for {} s", deadline.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use beta9_runtime::{Error, ErrorKind};

    use super::*;

    struct Scripted(Vec<Option<Result<()>>>);

    #[async_trait]
    impl Pulse for Scripted {
        async fn beat(&mut self) -> Result<()> {
            match self.0.pop() {
                Some(Some(answer)) => answer,
                _ => std::future::pending().await,
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn silence_is_noticed_and_a_few_failures_are_forgiven() {
        let failed = || Some(Err(Error::new(ErrorKind::Failed, "broken pipe")));
        let mut silent = Scripted(vec![Some(Ok(())), failed(), failed(), Some(Ok(()))]);
        let brief = Duration::from_millis(1);
        let reason = listen(&mut silent, brief, Duration::from_secs(1)).await;
        assert_eq!(reason, "it did not answer for 1 s");
        let mut broken = Scripted(vec![failed(), failed(), failed()]);
        let reason = listen(&mut broken, brief, Duration::from_secs(1)).await;
        assert_eq!(reason, "it gave no sign of life 3 times: broken pipe");
    }
}
