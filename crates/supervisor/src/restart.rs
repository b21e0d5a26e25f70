//! Starting a container again when it ends, as its policy says.
//!
//! The supervisor does this and not the worker, so a worker that is gone misses nothing.

use std::time::Duration;

use beta9_types::{Exit, ExitReason, RestartPolicy};

/// docker's pauses: the first one, twice as long after each failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// One that ran for so long begins with the first pause again.
const LONG_ENOUGH: Duration = Duration::from_secs(10);

/// What a policy has done so far.
#[derive(Debug)]
pub(crate) struct Restarts {
    policy: RestartPolicy,
    count: u32,
    pause: Duration,
    /// Somebody asked for the container's end.
    stopped: bool,
}

impl Restarts {
    pub(crate) fn new(policy: RestartPolicy) -> Self {
        Self { policy, count: 0, pause: FIRST_PAUSE, stopped: false }
    }

    /// Follows another policy from now on.
    pub(crate) fn follow(&mut self, policy: RestartPolicy) {
        self.policy = policy;
    }

    /// From now on the end is the end.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// How often it was started again.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// The pause before it is started again after it `ran` and ended in `exit`; `None` if it is not. A first start that failed is for its
    /// caller to see.
    pub(crate) fn next(&mut self, exit: &Exit, ran: Duration) -> Option<Duration> {
        let never_ran = exit.reason == ExitReason::StartFailed && self.count == 0;
        if self.stopped || never_ran || !self.policy.restarts(exit.code, self.count) {
            return None;
        }
        if ran >= LONG_ENOUGH {
            self.pause = FIRST_PAUSE;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        self.count += 1;
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_it_runs_for_long_enough() {
        let mut restarts = Restarts::new(RestartPolicy::Always);
        for pause in [100, 200, 400] {
            assert_eq!(restarts.next(&Exit::exited(0), Duration::ZERO), Some(Duration::from_millis(pause)));
        }
        assert_eq!(restarts.next(&Exit::exited(0), LONG_ENOUGH), Some(FIRST_PAUSE));
        restarts.stop();
        assert_eq!(restarts.next(&Exit::exited(0), Duration::ZERO), None);
    }

    #[test]
    fn failures_are_counted_and_a_first_failed_start_is_final() {
        let now = Duration::ZERO;
        let mut restarts = Restarts::new(RestartPolicy::OnFailure(2));
        assert!(restarts.next(&Exit::start_failed(127, "x"), now).is_none());
        assert!(restarts.next(&Exit::exited(1), now).is_some());
        assert!(restarts.next(&Exit::start_failed(125, "x"), now).is_some());
        assert!(restarts.next(&Exit::exited(1), now).is_none());
        assert_eq!(restarts.count(), 2);
        assert!(Restarts::new(RestartPolicy::OnFailure(0)).next(&Exit::exited(0), now).is_none());
    }
}
