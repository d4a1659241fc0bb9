//! The back-ends that the run loop serves itself, by the port that their guest rings.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use trapgate_devices::lock;
use trapgate_xen::Domain;
use trapgate_xen::backend::{Backend, Fault, Served};
use trapgate_xen::public::BACKEND_DOMID;

/// Names of ports for the builder's own; those of back-ends follow.
const FIRST_NAME: u32 = 16;

#[derive(Debug)]
struct Slot {
    /// What the port is bound by, so that a later one of the same number is not taken for it.
    name: u32,
    /// `Err`: it failed, and waits to be taken away.
    backend: Result<Box<dyn Backend>, Fault>,
}

#[derive(Debug)]
struct Slots {
    by_port: BTreeMap<u32, Slot>,
    next_name: u32,
}

/// The connected back-ends of a domain.
#[derive(Debug)]
pub struct Backends(Mutex<Slots>);

impl Default for Backends {
    fn default() -> Self {
        Backends(Mutex::new(Slots { by_port: BTreeMap::new(), next_name: FIRST_NAME }))
    }
}

impl Backends {
    /// Connects a back-end to a port that the guest has left for it; what it has put into its ring before counts.
    ///
    /// # Errors
    /// When the port is none, or `make` fails.
    pub fn connect(
        &self,
        domain: &Arc<Domain>,
        port: u32,
        make: impl FnOnce(&Arc<Domain>) -> Result<Box<dyn Backend>, Fault>,
    ) -> Result<(), Fault> {
        self.disconnect(domain, port);
        let mut slots = lock(&self.0);
        let name = slots.next_name;
        slots.next_name = name.checked_add(1).unwrap_or(FIRST_NAME);
        domain.bind_backend(port, BACKEND_DOMID, name).map_err(Fault::Port)?;
        match make(domain) {
            Ok(backend) => {
                slots.by_port.insert(port, Slot { name, backend: Ok(backend) });
                drop(slots);
                domain.ring_backend(port);
                Ok(())
            }
            Err(fault) => {
                domain.unbind_backend(port, name);
                Err(fault)
            }
        }
    }

    /// Takes a back-end away; none there is fine.
    pub fn disconnect(&self, domain: &Domain, port: u32) {
        let slot = lock(&self.0).by_port.remove(&port);
        if let Some(Slot { name, backend }) = slot {
            if let Ok(backend) = backend {
                backend.disconnect(domain);
            }
            domain.unbind_backend(port, name);
        }
    }

    /// Why a back-end is served no more, if so.
    pub fn fault(&self, port: u32) -> Option<Fault> {
        lock(&self.0).by_port.get(&port)?.backend.as_ref().err().copied()
    }

    /// Serves what was rung for, and what has something for the guest. Gives the ports that are others' to look at:
    /// those of no back-end here, and of those that have just failed.
    pub(super) fn serve(&self, domain: &Domain, rung: &[u32]) -> Vec<u32> {
        let mut slots = lock(&self.0);
        let mut outside = Vec::new();
        for port in rung {
            match slots.by_port.get(port) {
                Some(slot) if domain.is_backends(*port, slot.name) => {}
                _ => outside.push(*port),
            }
        }
        for (port, slot) in &mut slots.by_port {
            let Ok(backend) = &mut slot.backend else { continue };
            let called = rung.contains(port) || backend.waiting();
            if !called || !domain.is_backends(*port, slot.name) {
                continue;
            }
            match backend.serve(domain) {
                Ok(Served { notify, more }) => {
                    if notify {
                        domain.set_pending(*port);
                    }
                    if more {
                        domain.ring_backend(*port);
                    }
                }
                Err(fault) => {
                    let failed = std::mem::replace(&mut slot.backend, Err(fault));
                    if let Ok(backend) = failed {
                        backend.disconnect(domain);
                    }
                    outside.push(*port);
                }
            }
        }
        outside
    }
}
