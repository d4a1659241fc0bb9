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
            Some(Channel::Interdomain { remote: BACKEND_DOMID, port: number }) => Some(number),
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use trapgate_engine::{GuestMemory, Requests};
    use trapgate_xen::domain::{Config, Host, Layout};
    use trapgate_xen::{Errno, domain::work};

    use super::*;

    #[derive(Debug)]
    struct NoHost;

    impl Host for NoHost {
        fn emergency_output(&self, _: &[u8]) {}
        fn wake(&self) {}
    }

    fn domain() -> Arc<Domain> {
        let layout = Layout::new(1, 16);
        let memory = Arc::new(GuestMemory::new(&layout.regions()).unwrap());
        let config = Config { domid: 1, handle: [0; 16], vcpus: 1, wall_seconds: 0 };
        Domain::new(config, layout, 16, memory, Arc::new(Requests::default()), Box::new(NoHost)).unwrap()
    }

    /// Counts its rounds, and how often it was let go of; fails in the third round.
    #[derive(Clone, Debug, Default)]
    struct Counter(Arc<(AtomicU32, AtomicU32)>);

    impl Counter {
        fn counts(&self) -> (u32, u32) {
            (self.0.0.load(Ordering::Relaxed), self.0.1.load(Ordering::Relaxed))
        }
    }

    impl Backend for Counter {
        fn serve(&mut self, _: &Domain) -> Result<Served, Fault> {
            let round = self.0.0.fetch_add(1, Ordering::Relaxed);
            if round == 2 { Err(Fault::Torn(1)) } else { Ok(Served { notify: false, more: round == 0 }) }
        }
        fn disconnect(self: Box<Self>, _: &Domain) {
            self.0.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_back_end_is_served_when_its_port_rings() {
        let domain = domain();
        let backends = Backends::default();
        let counter = Counter::default();
        let (port, other) = (domain.allocate_unbound(0).unwrap(), domain.allocate_unbound(0).unwrap());
        let number = backends.connect(&domain, port, |_| Ok(Box::new(counter.clone()))).unwrap();
        // What was in the ring before counts: it is rung for at once.
        let rung = domain.take_doorbells();
        assert_eq!((&rung, domain.take_work()), (&vec![port], work::DOORBELL));
        assert!(backends.serve(&domain, &rung).is_empty());
        // It had more to do.
        assert_eq!(domain.take_doorbells(), [port]);
        assert_eq!(backends.serve(&domain, &[other, port]), [other]);
        assert_eq!((counter.counts(), backends.fault(number)), ((2, 0), None));
        // One that fails is let go of at once, and those outside hear of it once.
        assert_eq!(backends.serve(&domain, &[port]), [port]);
        assert_eq!((counter.counts(), backends.fault(number)), ((3, 1), Some(Fault::Torn(1))));
        assert!(backends.serve(&domain, &[port]).is_empty());
        backends.disconnect(&domain, number);
        backends.disconnect(&domain, number);
        assert_eq!((counter.counts(), domain.channel(port)), ((3, 1), Some(Channel::Unbound { remote: 0 })));
    }

    #[test]
    fn one_port_is_one_device() {
        let domain = domain();
        let backends = Backends::default();
        let (first, second) = (Counter::default(), Counter::default());
        let port = domain.allocate_unbound(0).unwrap();
        let number = backends.connect(&domain, port, |_| Ok(Box::new(first.clone()))).unwrap();
        let refused = backends.connect(&domain, port, |_| Ok(Box::new(second.clone())));
        assert_eq!(refused, Err(Fault::Port(Errno::Inval)));
        for wild in [0, 4095, u32::MAX] {
            assert!(backends.connect(&domain, wild, |_| Ok(Box::new(second.clone()))).is_err());
        }
        // Ports for another domain are not ours to bind.
        let foreign = domain.allocate_unbound(5).unwrap();
        assert!(backends.connect(&domain, foreign, |_| Ok(Box::new(second.clone()))).is_err());
        backends.serve(&domain, &[port]);
        assert_eq!((first.counts(), second.counts()), ((1, 0), (0, 0)));
        backends.disconnect(&domain, number);
        // A port whose rings could not be used is free again.
        assert!(backends.connect(&domain, port, |_| Err(Fault::Torn(1))).is_err());
        assert!(backends.connect(&domain, port, |_| Ok(Box::new(second))).is_ok());
    }
}
