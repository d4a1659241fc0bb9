//! What reaches a running machine from outside its vCPU: requests of the guest to the machine as a whole, stops from other
//! threads, and the wake-up of a halted vCPU: of the thread that sleeps in it, or of whoever schedules it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use trapgate_devices::{MachineControl, lock};
use trapgate_engine::Requests;

use crate::bell::Bell;

/// Flags and the wake-up, shared by chips, handles and the run loop.
#[derive(Debug)]
pub struct Signal {
    requests: Arc<Requests>,
    stop: AtomicBool,
    control: AtomicU32,
    exit_value: AtomicU64,
    awake: Mutex<Awake>,
    changed: Condvar,
}

/// Whether the vCPU has something to look at, and who is to hear of it.
#[derive(Debug, Default)]
struct Awake {
    now: bool,
    /// The vCPU is halted and no thread sleeps for it: the bell is rung, once.
    parked: bool,
    bell: Option<(Arc<Bell>, u64)>,
}

const POWER_OFF: u32 = 1;
const RESET: u32 = 2;
const DEBUG_EXIT: u32 = 4;

/// What the guest asked of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    PowerOff,
    Reset,
    DebugExit(u32),
}

impl Signal {
    pub(crate) fn new(requests: Arc<Requests>) -> Arc<Self> {
        Arc::new(Signal {
            requests,
            stop: AtomicBool::new(false),
            control: AtomicU32::new(0),
            exit_value: AtomicU64::new(0),
            awake: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Makes the run end with [`crate::Exit::Stopped`]; from any thread.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.stop_vcpu();
    }

    pub(crate) fn take_stop(&self) -> bool {
        self.stop.swap(false, Ordering::AcqRel)
    }

    /// Brings the vCPU back to the run loop at its next boundary.
    pub(crate) fn stop_vcpu(&self) {
        self.requests.post(Requests::STOP);
        self.wake();
    }

    /// Wakes the run loop from a halt.
    pub(crate) fn wake(&self) {
        let mut awake = lock(&self.awake);
        awake.now = true;
        self.changed.notify_all();
        if std::mem::take(&mut awake.parked)
            && let Some((bell, number)) = &awake.bell
        {
            bell.ring(*number);
        }
    }

    /// Has a bell rung by that number when a machine that gave its thread back has something to do; see
    /// [`crate::Exit::Blocked`].
    pub fn set_bell(&self, bell: Option<(Arc<Bell>, u64)>) {
        lock(&self.awake).bell = bell;
    }

    /// The vCPU is halted and its thread goes; false if there is something to do already.
    pub(crate) fn park(&self) -> bool {
        let mut awake = lock(&self.awake);
        awake.parked = !std::mem::take(&mut awake.now);
        awake.parked
    }

    /// Brings the vCPU to its next boundary, or out of a halt, to look around.
    pub fn poke(&self) {
        self.stop_vcpu();
    }

    /// Sleeps until woken, at most `time`.
    pub(crate) fn sleep(&self, time: Duration) {
        let awake = lock(&self.awake);
        let (mut awake, _) = self
            .changed
            .wait_timeout_while(awake, time, |awake| !awake.now)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        awake.now = false;
    }

    pub(crate) fn take_control(&self) -> Option<Control> {
        let what = self.control.swap(0, Ordering::AcqRel);
        if what & DEBUG_EXIT != 0 {
            Some(Control::DebugExit(self.exit_value.load(Ordering::Acquire) as u32))
        } else if what & POWER_OFF != 0 {
            Some(Control::PowerOff)
        } else if what & RESET != 0 {
            Some(Control::Reset)
        } else {
            None
        }
    }

    fn ask(&self, what: u32) {
        self.control.fetch_or(what, Ordering::AcqRel);
        self.stop_vcpu();
    }
}

impl MachineControl for Signal {
    fn power_off(&self) {
        self.ask(POWER_OFF);
    }
    fn reset(&self) {
        self.ask(RESET);
    }
    fn debug_exit(&self, value: u32) {
        self.exit_value.store(u64::from(value), Ordering::Release);
        self.ask(DEBUG_EXIT);
    }
}
