//! Channels whose two ends are both guests': ports of one domain, or of two that live in one hypervisor
//! (xen/common/event_channel.c, evtchn_bind_interdomain and evtchn_close).
//!
//! Each end names the other. An event goes over only while both still do: a number of a domain, or of a port, may have come
//! to stand for something else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::domain::Domain;
use crate::errno::Errno;
use crate::event::Channel;
use crate::public::{BACKEND_DOMID, DOMID_SELF};

/// The domains of a hypervisor that may have channels to each other.
#[derive(Debug, Default)]
pub struct Neighbours(Mutex<BTreeMap<u16, Weak<Domain>>>);

impl Neighbours {
    fn change<T>(&self, how: impl FnOnce(&mut BTreeMap<u16, Weak<Domain>>) -> T) -> T {
        how(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn find(&self, domid: u16) -> Option<Arc<Domain>> {
        self.change(|domains| domains.get(&domid).and_then(Weak::upgrade))
    }
}

/// Where the other end of a channel is.
enum End {
    Here,
    There(Arc<Domain>),
}

impl Domain {
    /// Lets the domain have channels to others that have joined the same; the first time counts.
    pub fn join(self: &Arc<Self>, neighbours: &Arc<Neighbours>) {
        if self.neighbours.set(Arc::clone(neighbours)).is_ok() {
            neighbours.change(|domains| domains.insert(self.config.domid, Arc::downgrade(self)));
        }
    }

    /// Whether a number stands for this domain.
    pub(crate) fn is_itself(&self, domid: u16) -> bool {
        [DOMID_SELF, self.config.domid].contains(&domid)
    }

    fn end_at(&self, domid: u16) -> Option<End> {
        if self.is_itself(domid) {
            return Some(End::Here);
        }
        self.neighbours.get()?.find(domid).map(End::There)
    }

    /// `EVTCHNOP_bind_interdomain`: connects a new port to one that another domain, or this one, has left for this domain.
    pub(crate) fn bind_interdomain(&self, remote: u16, remote_port: u32) -> Result<u32, Errno> {
        if !self.allows_remote(remote) {
            return Err(Errno::Perm);
        }
        // Back-ends serve the ports that guests make; they have none for guests to bind.
        let missing = if remote == BACKEND_DOMID { Errno::Inval } else { Errno::Srch };
        let port = match self.end_at(remote).ok_or(missing)? {
            End::Here => self.connect(None, remote_port),
            End::There(other) if other.allows_remote(self.config.domid) => {
                self.connect(Some(&other), remote_port)
            }
            End::There(_) => Err(Errno::Perm),
        }?;
        // Who was sent something before there was a connection did not get it, and is to look.
        self.set_pending(port);
        Ok(port)
    }

    /// Makes the port that is connected to `remote_port` of another domain, or of this one.
    fn connect(&self, other: Option<&Domain>, remote_port: u32) -> Result<u32, Errno> {
        let own = self.config.domid;
        let here = |remote| Channel::Interdomain { remote, port: remote_port };
        let there = |port| Channel::Interdomain { remote: own, port };
        let left_for_us = Some(Channel::Unbound { remote: own });
        let Some(other) = other else {
            let mut events = self.events();
            events.has_room()?;
            if events.channel(remote_port) != left_for_us {
                return Err(Errno::Inval);
            }
            let port = events.allocate(here(own))?;
            events.rebind(remote_port, there(port));
            return Ok(port);
        };
        let remote = other.config.domid;
        // Two domains that bind each other's ports take the two locks in the same order.
        let (mut events, mut others);
        if own < remote {
            events = self.events();
            others = other.events();
        } else {
            others = other.events();
            events = self.events();
        }
        events.has_room()?;
        if others.channel(remote_port) != left_for_us {
            return Err(Errno::Inval);
        }
        let port = events.allocate(here(remote))?;
        others.rebind(remote_port, there(port));
        Ok(port)
    }

    /// Sends an event from `port` to the guest's port at the other end; nobody there is no error.
    pub(crate) fn send_across(&self, port: u32, remote: u16, remote_port: u32) {
        let from = Channel::Interdomain { remote: self.config.domid, port };
        match self.end_at(remote) {
            Some(End::Here) => self.set_pending(remote_port),
            Some(End::There(other)) if other.channel(remote_port) == Some(from) => {
                other.set_pending(remote_port);
            }
            _ => {}
        }
    }

    /// A port is gone: the other end waits for this domain again.
    pub(crate) fn let_go_of(&self, port: u32, remote: u16, remote_port: u32) {
        let own = self.config.domid;
        let end = self.end_at(remote);
        let other = match &end {
            Some(End::Here) => self,
            Some(End::There(other)) => &**other,
            None => return,
        };
        let mut events = other.events();
        if events.channel(remote_port) == Some(Channel::Interdomain { remote: own, port }) {
            events.rebind(remote_port, Channel::Unbound { remote: own });
        }
    }
}

/// A domain is destroyed: nothing leads to it any more.
impl Drop for Domain {
    fn drop(&mut self) {
        let Some(neighbours) = self.neighbours.get() else { return };
        let domid = self.config.domid;
        let open = self.events().open_ports();
        for (port, channel) in open {
            if let Channel::Interdomain { remote, port: remote_port } = channel {
                self.let_go_of(port, remote, remote_port);
            }
        }
        // Its number may stand for another domain already.
        neighbours.change(|domains| {
            if domains.get(&domid).is_some_and(|domain| std::ptr::eq(domain.as_ptr(), self)) {
                domains.remove(&domid);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{domain, domain_of};

    /// Two domains of one hypervisor, and one of another.
    fn three() -> [Arc<Domain>; 3] {
        let domains = [1, 2, 3].map(domain_of);
        let neighbours = Arc::default();
        domains[..2].iter().for_each(|domain| domain.join(&neighbours));
        domains[2].join(&Arc::default());
        domains
    }

    fn take(domain: &Domain, port: u32) -> bool {
        let was = domain.is_pending(port);
        domain.clear_pending(port);
        was
    }

    #[test]
    fn a_port_that_was_left_for_a_domain_is_bound_by_it_and_by_no_other() {
        let [one, two, three] = three();
        let port = one.allocate_unbound(2).unwrap();
        assert_eq!(one.bind_interdomain(2, port), Err(Errno::Inval), "nothing was left for it");
        assert_eq!(three.bind_interdomain(1, port), Err(Errno::Srch), "another hypervisor's");
        assert_eq!(two.bind_interdomain(3, port), Err(Errno::Srch));
        assert_eq!(two.bind_interdomain(0, port), Err(Errno::Inval));
        for wrong in [0, port + 1, 4096, u32::MAX] {
            assert_eq!(two.bind_interdomain(1, wrong), Err(Errno::Inval), "port {wrong}");
        }
        let bound = two.bind_interdomain(1, port).unwrap();
        assert!(take(&two, bound) && !take(&one, port), "who binds is to look");
        assert_eq!(two.bind_interdomain(1, port), Err(Errno::Inval), "it is bound");
        assert_eq!(one.channel(port), Some(Channel::Interdomain { remote: 2, port: bound }));
        one.send(port).unwrap();
        assert!(take(&two, bound) && !take(&one, port));
        two.send(bound).unwrap();
        assert!(take(&one, port) && !take(&two, bound));
        assert!(one.take_doorbells().is_empty(), "no back-end has to do with it");
    }

    #[test]
    fn the_other_end_of_what_is_closed_waits_again() {
        let [one, two, _] = three();
        let port = one.allocate_unbound(2).unwrap();
        let bound = two.bind_interdomain(1, port).unwrap();
        take(&two, bound);
        one.close_port(port).unwrap();
        assert_eq!(two.channel(bound), Some(Channel::Unbound { remote: 1 }));
        two.send(bound).unwrap();
        // The number is used anew, for something else.
        assert_eq!(one.bind_ipi(0), Ok(port));
        assert!(!one.is_pending(port));
        assert!(one.bind_interdomain(2, bound).is_ok());
        two.reset_ports();
        assert_eq!(
            one.open_ports_for_test(),
            [(port, Channel::Ipi), (port + 1, Channel::Unbound { remote: 2 })]
        );
    }

    #[test]
    fn nothing_leads_to_a_domain_that_is_gone() {
        let [one, two, _] = three();
        let neighbours = Arc::clone(one.neighbours.get().unwrap());
        let (port, spare) = (one.allocate_unbound(2).unwrap(), one.allocate_unbound(2).unwrap());
        two.bind_interdomain(1, port).unwrap();
        drop(two);
        assert_eq!(one.channel(port), Some(Channel::Unbound { remote: 2 }));
        assert_eq!(one.send(port), Ok(()));
        let again = domain_of(2);
        assert_eq!(again.bind_interdomain(1, spare), Err(Errno::Srch), "it has not joined");
        again.join(&neighbours);
        assert!(again.bind_interdomain(1, spare).is_ok());
    }

    #[test]
    fn permissions_are_asked_for_on_both_sides() {
        let [one, two, _] = three();
        let port = one.allocate_unbound(2).unwrap();
        two.set_remotes(Some([3].into()));
        assert_eq!(two.bind_interdomain(1, port), Err(Errno::Perm));
        two.set_remotes(None);
        one.set_remotes(Some([3].into()));
        assert_eq!(two.bind_interdomain(1, port), Err(Errno::Perm));
        one.set_remotes(None);
        let bound = two.bind_interdomain(1, port).unwrap();
        two.set_remotes(Some([3].into()));
        assert_eq!(two.send(bound), Err(Errno::Perm));
    }

    #[test]
    fn a_domain_has_channels_to_itself() {
        let one = domain();
        let port = one.allocate_unbound(DOMID_SELF).unwrap();
        let bound = one.bind_interdomain(DOMID_SELF, port).unwrap();
        take(&one, bound);
        one.send(port).unwrap();
        assert!(take(&one, bound) && !take(&one, port));
        // A back-end of the same name as the port at the other end lets go of what is its own, which this is not.
        one.unbind_backend(bound, port);
        assert_eq!(one.channel(bound), Some(Channel::Interdomain { remote: 1, port }));
        one.close_port(bound).unwrap();
        assert_eq!(one.channel(port), Some(Channel::Unbound { remote: 1 }));
        assert_eq!(one.bind_interdomain(1, port), Ok(bound));
    }

    #[test]
    fn two_that_bind_at_once_do_not_wait_for_each_other() {
        let [one, two, _] = three();
        let bind_all = |from: &Domain, to: &Domain| {
            let (own, other) = (from.config.domid, to.config.domid);
            for _ in 0..300 {
                let port = to.allocate_unbound(own).unwrap();
                let bound = from.bind_interdomain(other, port).unwrap();
                from.send(bound).unwrap();
                from.close_port(bound).unwrap();
                to.close_port(port).unwrap();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| bind_all(&one, &two));
            scope.spawn(|| bind_all(&two, &one));
        });
        assert_eq!((one.open_ports_for_test(), two.open_ports_for_test()), (vec![], vec![]));
    }

    #[test]
    fn a_reset_closes_what_is_the_guests_own() {
        let one = domain();
        let console = one.allocate_unbound(0).unwrap();
        one.bind_backend(console, 0, 2).unwrap();
        one.keep_port(console);
        let timer = one.bind_virq(0, 0).unwrap();
        let disk = one.allocate_unbound(0).unwrap();
        one.bind_backend(disk, 0, 3).unwrap();
        let ipi = one.bind_ipi(0).unwrap();
        one.send(ipi).unwrap();
        one.reset_ports();
        assert_eq!(one.open_ports_for_test(), [(console, Channel::Interdomain { remote: 0, port: 2 })]);
        assert!(!one.is_pending(ipi));
        assert_eq!(one.bind_virq(0, 0), Ok(timer), "free again");
    }
}
