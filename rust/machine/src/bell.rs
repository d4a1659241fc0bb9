//! The bell by which blocked machines call the threads that schedule them: what lets a few threads run many guests.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use trapgate_devices::lock;

/// Who rang, and who listens. Numbers are the scheduler's own.
#[derive(Debug, Default)]
pub struct Bell {
    state: Mutex<State>,
    /// Threads with nothing to run wait here, and are the first to be called.
    idle: Condvar,
    /// Listens while they all run guests.
    watcher: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rung: BTreeSet<u64>,
    idle: usize,
}

impl Bell {
    /// Calls one of the threads that wait.
    pub fn ring(&self, number: u64) {
        let mut state = lock(&self.state);
        state.rung.insert(number);
        if state.idle > 0 {
            self.idle.notify_one();
        } else {
            self.watcher.notify_one();
        }
    }

    /// Waits at most `time` until somebody rings, and gives who has since the last time. A `watcher` is left alone while
    /// another thread waits that is none.
    pub fn wait(&self, time: Duration, watcher: bool) -> Vec<u64> {
        let mut state = lock(&self.state);
        let waited = if watcher {
            self.watcher.wait_timeout_while(state, time, |state| state.rung.is_empty() || state.idle > 0)
        } else {
            state.idle += 1;
            self.idle.wait_timeout_while(state, time, |state| state.rung.is_empty())
        };
        (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if watcher {
            if state.idle > 0 {
                return Vec::new();
            }
        } else {
            state.idle -= 1;
        }
        std::mem::take(&mut state.rung).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn each_ring_is_heard_once() {
        let bell = Bell::default();
        bell.ring(2);
        bell.ring(1);
        bell.ring(2);
        assert_eq!(bell.wait(LONG, false), [1, 2]);
        assert!(bell.wait(Duration::ZERO, false).is_empty());
        bell.ring(3);
        assert_eq!(bell.wait(LONG, true), [3]);
    }

    #[test]
    fn idle_threads_hear_it_before_the_watcher() {
        let bell = Arc::new(Bell::default());
        let idle = thread::spawn({
            let bell = Arc::clone(&bell);
            move || bell.wait(LONG, false)
        });
        while lock(&bell.state).idle == 0 {
            thread::yield_now();
        }
        let watcher = thread::spawn({
            let bell = Arc::clone(&bell);
            move || bell.wait(Duration::from_millis(20), true)
        });
        assert!(watcher.join().unwrap().is_empty());
        bell.ring(5);
        assert_eq!(idle.join().unwrap(), [5]);
    }
}
