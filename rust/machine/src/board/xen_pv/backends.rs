//! The back-ends that the run loop serves itself.
//!
//! Each has a number of its own, by which its port is bound: a guest may close a port and open another one of the same
//! number, or name one port for two devices, and must reach no other device by that.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use trapgate_devices::lock;
use trapgate_xen::Domain;
use trapgate_xen::backend::{Backend, Fault, Served};
use trapgate_xen::event::Channel;
use trapgate_xen::public::BACKEND_DOMID;

/// Smaller numbers are the builder's, for the ports of console and XenStore.
const FIRST: u32 = 16;

#[derive(Debug)]
struct Slot {
    port: u32,
    /// `Err`: it failed, and waits to be taken away.
    backend: Result<Box<dyn Backend>, Fault>,
}

#[derive(Debug)]
struct Slots {
    by_number: BTreeMap<u32, Slot>,
    next: u32,
}

/// The connected back-ends of a domain.
#[derive(Debug)]
pub struct Backends(Mutex<Slots>);

impl Default for Backends {
    fn default() -> Self {
        Backends(Mutex::new(Slots { by_number: BTreeMap::new(), next: FIRST }))
    }
}

impl Backends {
    /// Connects a back-end to a port that the guest has left for it, and gives its number. What the guest has put into the
    /// ring before counts.
    ///
    /// # Errors
    /// When the port is none, or `make` fails.
    pub fn connect(
        &self,
        domain: &Arc<Domain>,
        port: u32,
        make: impl FnOnce(&Arc<Domain>) -> Result<Box<dyn Backend>, Fault>,
    ) -> Result<u32, Fault> {
        let mut slots = lock(&self.0);
        let number = slots.next;
        domain.bind_backend(port, BACKEND_DOMID, number).map_err(Fault::Port)?;
        match make(domain) {
            Ok(backend) => {
                slots.next = number.checked_add(1).unwrap_or(FIRST);
                slots.by_number.insert(number, Slot { port, backend: Ok(backend) });
                drop(slots);
                domain.ring_backend(port);
                Ok(number)
            }
            Err(fault) => {
                domain.unbind_backend(port, number);
                Err(fault)
            }
        }
    }

    /// Takes a back-end away; none of that number is fine.
    pub fn disconnect(&self, domain: &Domain, number: u32) {
        let slot = lock(&self.0).by_number.remove(&number);
        if let Some(Slot { port, backend }) = slot {
            if let Ok(backend) = backend {
                backend.disconnect(domain);
            }
            domain.unbind_backend(port, number);
        }
    }

    /// Why a back-end is served no more, if so.
    pub fn fault(&self, number: u32) -> Option<Fault> {
        lock(&self.0).by_number.get(&number)?.backend.as_ref().err().copied()
    }

    /// Serves what was rung for, and what has something for the guest. Gives the ports that are others' to look at:
    /// those of no back-end here, and of those that have just failed.
    pub(super) fn serve(&self, domain: &Domain, rung: &[u32]) -> Vec<u32> {
        let mut slots = lock(&self.0);
        let bound = |port: u32| match domain.channel(port) {
            Some(Channel::Interdomain { port: number, .. }) => Some(number),
            _ => None,
        };
        let is_here = |port: &u32| bound(*port).is_some_and(|number| slots.by_number.contains_key(&number));
        let mut outside: Vec<u32> = rung.iter().copied().filter(|port| !is_here(port)).collect();
        for (number, Slot { port, backend }) in &mut slots.by_number {
            let Ok(live) = backend else { continue };
            if bound(*port) != Some(*number) || !(rung.contains(port) || live.waiting()) {
                continue;
            }
            match live.serve(domain) {
                Ok(Served { notify, more }) => {
                    if notify {
                        domain.set_pending(*port);
                    }
                    if more {
                        domain.ring_backend(*port);
                    }
                }
                Err(fault) => {
                    if let Ok(failed) = std::mem::replace(backend, Err(fault)) {
                        failed.disconnect(domain);
                    }
                    outside.push(*port);
                }
            }
        }
        outside
    }
}
