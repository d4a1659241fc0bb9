//! The board of `para`: a Xen PV domain, its console ring, its back-ends, and the doorbells of those served outside.

mod backends;
mod console;
mod platform;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use trapgate_devices::lock;
use trapgate_xen::Domain;
use trapgate_xen::domain::work;
use trapgate_xen::public::Shutdown;

pub use backends::Backends;
pub(crate) use platform::XenPvPlatform;

use crate::boot::xen::Start;
use crate::console::Console;
use crate::exit::Exit;
use console::Ring;

/// A domain and what it is connected to.
#[derive(Debug)]
pub struct XenPvBoard {
    pub domain: Arc<Domain>,
    /// Where the builder left the shared pages and ports.
    pub start: Start,
    /// What is served here.
    pub backends: Backends,
    console: Arc<Console>,
    ring: Mutex<Ring>,
    /// Ports that were rung and not yet served outside.
    doorbells: Mutex<Vec<u32>>,
    served: AtomicU64,
    accesses: AtomicU64,
}

impl XenPvBoard {
    pub(crate) fn new(domain: Arc<Domain>, start: Start, console: Arc<Console>) -> Self {
        XenPvBoard {
            ring: Mutex::new(Ring::new(start.console)),
            backends: Backends::default(),
            domain,
            start,
            console,
            doorbells: Mutex::default(),
            served: AtomicU64::new(0),
            accesses: AtomicU64::new(0),
        }
    }

    pub(crate) fn feed(&self, console: &Console) {
        if console.has_input() && lock(&self.ring).feed(self.domain.memory(), console) {
            self.domain.set_pending(self.start.ports.console);
        }
    }

    pub(crate) fn can_feed(&self, console: &Console) -> bool {
        console.has_input() && lock(&self.ring).has_room(self.domain.memory())
    }

    pub(crate) fn served(&self, count: u64) {
        self.served.store(count, Ordering::Relaxed);
    }

    pub(crate) fn last_served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    pub(crate) fn note_access(&self) {
        let accesses = self.accesses.load(Ordering::Relaxed).wrapping_add(1);
        self.accesses.store(accesses, Ordering::Relaxed);
    }

    pub(crate) fn accesses(&self) -> u64 {
        self.accesses.load(Ordering::Relaxed)
    }

    /// Serves what can be served here, and says what cannot.
    pub(crate) fn request(&self) -> Option<Exit> {
        let work = self.domain.take_work();
        if work == 0 {
            return None;
        }
        if work & (work::DOORBELL | work::YIELD | work::BACKEND) != 0 {
            self.serve_rings(work);
        }
        if work & work::SHUTDOWN != 0
            && let Some(ended) = self.domain.ended()
        {
            return Some(match ended.reason {
                Shutdown::PowerOff => Exit::PoweredOff,
                Shutdown::Reboot | Shutdown::SoftReset => Exit::Reset,
                Shutdown::Suspend => Exit::Suspended,
                Shutdown::Crash | Shutdown::Watchdog => Exit::Crashed,
            });
        }
        if work & work::HYPERCALL != 0 {
            return Some(Exit::Hypercall);
        }
        (!lock(&self.doorbells).is_empty()).then_some(Exit::Doorbell)
    }

    fn serve_rings(&self, work: u32) {
        let rung = self.domain.take_doorbells();
        // A kernel that yields may wait for its output to go before it has an event for that.
        if (rung.contains(&self.start.ports.console) || work & work::YIELD != 0)
            && lock(&self.ring).drain(self.domain.memory(), &self.console)
        {
            self.domain.set_pending(self.start.ports.console);
        }
        let outside = self.backends.serve(&self.domain, &rung);
        let mut doorbells = lock(&self.doorbells);
        for port in outside {
            if port != self.start.ports.console && !doorbells.contains(&port) {
                doorbells.push(port);
            }
        }
    }

    /// Lets the run end with [`Exit::Doorbell`] though the guest has rung nothing: somebody outside has something for it.
    pub fn ring_outside(&self) {
        let store = self.start.ports.store;
        let mut doorbells = lock(&self.doorbells);
        if !doorbells.contains(&store) {
            doorbells.push(store);
        }
        drop(doorbells);
        self.domain.ask(work::DOORBELL);
    }

    /// Ports that the guest has rung and that are to be served outside; see [`Exit::Doorbell`].
    pub fn take_doorbells(&self) -> Vec<u32> {
        std::mem::take(&mut lock(&self.doorbells))
    }
}
