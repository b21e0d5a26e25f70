//! Notices a VMM that runs and does nothing any more, and ends it.
//!
//! A VMM can hang where its guest cannot tell: stopped by a signal, in a system call that does not come back, in a lock.
//! So it is asked for a sign of life now and then. Firecracker's own handlers can deadlock, so only SIGKILL ends it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use beta9_runtime::Result;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::Change;
use super::controls::{Controls, Wish};
use super::process::Reach;

/// From one answer to the next question.
const INTERVAL: Duration = Duration::from_secs(10);
/// Answers that make no sense before it counts as stuck.
const MAX_FAILURES: u32 = 3;

/// Somebody who can be asked whether they live, and for changes.
#[async_trait]
pub(super) trait Pulse: Send {
    /// Comes back when they answered.
    async fn beat(&mut self) -> Result<()>;

    /// Comes back when it is changed.
    async fn change(&mut self, change: Change) -> Result<()>;
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

/// Watches a VMM until it ends, and changes what it is asked to.
pub(super) fn watch(vmm: Reach, mut pulse: impl Pulse + 'static, deadline: Duration) -> (Stuck, Controls) {
    let stuck = Stuck::default();
    let verdict = stuck.clone();
    let (controls, mut wishes) = Controls::new();
    tokio::spawn(async move {
        let reason = tokio::select! {
            biased;
            _ = vmm.ended() => return,
            reason = listen(&mut pulse, &mut wishes, INTERVAL, deadline) => reason,
        };
        tracing::warn!(reason, "a VMM is stuck and is killed");
        let _ = verdict.0.set(reason);
        vmm.kill();
    });
    (stuck, controls)
}

/// Comes back with the reason when there is no sign of life.
async fn listen(
    pulse: &mut impl Pulse,
    wishes: &mut mpsc::Receiver<Wish>,
    interval: Duration,
    deadline: Duration,
) -> String {
    let mut failures = 0;
    let mut next = Instant::now() + interval;
    loop {
        tokio::select! {
            // A flood of changes does not keep it from being asked.
            biased;
            () = sleep_until(next) => {}
            Some(wish) = wishes.recv() => {
                let Ok(outcome) = timeout(deadline, pulse.change(wish.change)).await else {
                    return format!("it did not answer for {} s", deadline.as_secs());
                };
                let _ = wish.done.send(outcome);
                continue;
            }
        }
        next = Instant::now() + interval;
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

    use crate::engine::DiskLimit;

    struct Scripted(Vec<Option<Result<()>>>);

    #[async_trait]
    impl Pulse for Scripted {
        async fn beat(&mut self) -> Result<()> {
            match self.0.pop() {
                Some(Some(answer)) => answer,
                _ => std::future::pending().await,
            }
        }

        async fn change(&mut self, _: Change) -> Result<()> {
            self.beat().await
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn silence_is_noticed_and_a_few_failures_are_forgiven() {
        let failed = || Some(Err(Error::new(ErrorKind::Failed, "broken pipe")));
        let mut silent = Scripted(vec![Some(Ok(())), failed(), failed(), Some(Ok(()))]);
        let brief = Duration::from_millis(1);
        let (_controls, mut wishes) = Controls::new();
        let reason = listen(&mut silent, &mut wishes, brief, Duration::from_secs(1)).await;
        assert_eq!(reason, "it did not answer for 1 s");
        let mut broken = Scripted(vec![failed(), failed(), failed()]);
        let reason = listen(&mut broken, &mut wishes, brief, Duration::from_secs(1)).await;
        assert_eq!(reason, "it gave no sign of life 3 times: broken pipe");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn changes_are_answered_and_one_that_is_not_counts_as_silence() {
        let refused = || Some(Err(Error::new(ErrorKind::Failed, "no")));
        let mut pulse = Scripted(vec![None, refused(), Some(Ok(()))]);
        let (controls, mut wishes) = Controls::new();
        let long = Duration::from_secs(60);
        let change = Change::Disks(DiskLimit::default());
        let ask = async {
            controls.change(change).await.unwrap();
            assert_eq!(controls.change(change).await.unwrap_err().to_string(), "no");
            controls.change(change).await
        };
        let brief = Duration::from_millis(50);
        let served = async {
            let reason = listen(&mut pulse, &mut wishes, long, brief).await;
            drop(wishes);
            reason
        };
        let (reason, last) = tokio::join!(served, ask);
        assert_eq!(reason, "it did not answer for 0 s");
        assert_eq!(last.unwrap_err().to_string(), "the VM is over");
    }
}
