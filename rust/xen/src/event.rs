//! Event channels, in the two-level form that every guest knows (xen/include/public/event_channel.h).
//!
//! A port is one bit in `evtchn_pending` and one in `evtchn_mask`; a bit in the vCPU's `evtchn_pending_sel` says which
//! word to look at, and `evtchn_upcall_pending` that there is one. The state behind a port is here.

use std::collections::BTreeSet;

use crate::domain::{Domain, work};
use crate::errno::Errno;
use crate::public::{BACKEND_DOMID, shared, virq};

/// Ports of the two-level form (`EVTCHN_2L_NR_CHANNELS`).
pub const PORTS: u32 = 4096;
/// Ports that a domain may have open; more is a guest gone wild (`max_event_channels` of xl's configuration).
const MOST_OPEN: u32 = 1023;

/// What a port is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub enum Channel {
    #[default]
    Closed,
    /// Waits for that domain to bind it.
    Unbound {
        remote: u16,
    },
    /// Connected to a port of this or another domain, or to a back-end of ours: then `remote` is its domain, and `port` is its
    /// name for it.
    Interdomain {
        remote: u16,
        port: u32,
    },
    Virq(u32),
    Ipi,
}

/// All ports of a domain.
#[derive(Debug)]
pub struct Events {
    ports: Vec<Channel>,
    open: u32,
    virqs: [Option<u32>; virq::COUNT as usize],
    /// Ports that a reset leaves alone: the builder has made them, and nobody could make them again.
    kept: Vec<u32>,
    /// Ports that the guest has notified and whose back-end is served outside.
    rung: Vec<u32>,
    /// A vCPU in SCHEDOP_poll waits for one of these; empty: it does not poll.
    pub(crate) polled: Vec<u32>,
    /// Domains that the guest may have channels to, beside itself and domain 0; all, if there is no such set.
    remotes: Option<BTreeSet<u16>>,
    /// Host offset of shared_info.
    shared_info: u64,
}

impl Events {
    pub(crate) fn new(shared_info: u64) -> Self {
        Events {
            ports: vec![Channel::Closed],
            open: 0,
            virqs: [None; virq::COUNT as usize],
            kept: Vec::new(),
            rung: Vec::new(),
            polled: Vec::new(),
            remotes: None,
            shared_info,
        }
    }

    /// The channel of a port that is open.
    pub fn channel(&self, port: u32) -> Option<Channel> {
        self.ports.get(port as usize).copied().filter(|channel| *channel != Channel::Closed)
    }

    pub fn virq_port(&self, number: u32) -> Option<u32> {
        self.virqs.get(number as usize).copied().flatten()
    }

    /// All open ports.
    pub fn open_ports(&self) -> Vec<(u32, Channel)> {
        (0..)
            .zip(&self.ports)
            .filter(|(_, channel)| **channel != Channel::Closed)
            .map(|(port, c)| (port, *c))
            .collect()
    }

    /// Whether the guest may have channels to a domain.
    fn allows(&self, remote: u16) -> bool {
        remote == 0 || self.remotes.as_ref().is_none_or(|allowed| allowed.contains(&remote))
    }

    /// Whether the domain may have another port.
    pub(crate) fn has_room(&self) -> Result<(), Errno> {
        if self.open < MOST_OPEN { Ok(()) } else { Err(Errno::NoSpc) }
    }

    /// Takes a free port.
    pub fn allocate(&mut self, channel: Channel) -> Result<u32, Errno> {
        self.has_room()?;
        let free = (1..self.ports.len()).find(|&port| self.ports[port] == Channel::Closed);
        let port = free.unwrap_or_else(|| {
            self.ports.push(Channel::Closed);
            self.ports.len() - 1
        });
        self.ports[port] = channel;
        self.open += 1;
        if let Channel::Virq(number) = channel {
            self.virqs[number as usize] = Some(port as u32);
        }
        Ok(port as u32)
    }

    /// Changes what an open port is bound to.
    pub fn rebind(&mut self, port: u32, channel: Channel) {
        if let Some(slot) = self.ports.get_mut(port as usize).filter(|slot| **slot != Channel::Closed) {
            *slot = channel;
        }
    }

    fn close(&mut self, port: u32) -> Result<Channel, Errno> {
        let channel = self.channel(port).ok_or(Errno::Inval)?;
        if let Channel::Virq(number) = channel {
            self.virqs[number as usize] = None;
        }
        self.ports[port as usize] = Channel::Closed;
        self.open -= 1;
        Ok(channel)
    }

    /// Ports that were notified since this was last asked.
    pub fn take_rung(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.rung)
    }

    fn ring(&mut self, port: u32) {
        if !self.rung.contains(&port) {
            self.rung.push(port);
        }
    }
}

impl Domain {
    /// Sets bits of a word of guest memory; gives what was there.
    fn set_bits(&self, host: u64, bits: u64) -> u64 {
        let memory = self.memory();
        let mut old = memory.load::<u64>(host);
        while let Err(seen) = memory.compare_exchange(host, old, old | bits) {
            old = seen;
        }
        old
    }

    fn clear_bits(&self, host: u64, bits: u64) -> u64 {
        let memory = self.memory();
        let mut old = memory.load::<u64>(host);
        while let Err(seen) = memory.compare_exchange(host, old, old & !bits) {
            old = seen;
        }
        old
    }

    fn shared_info_host(&self) -> u64 {
        self.events().shared_info
    }

    /// Makes an event pending, as its sender does.
    pub fn set_pending(&self, port: u32) {
        let shared = self.shared_info_host();
        let (word, bit) = (u64::from(port / 64) * 8, 1u64 << (port % 64));
        if self.set_bits(shared + shared::EVTCHN_PENDING + word, bit) & bit != 0 {
            return;
        }
        let masked = self.memory().load::<u64>(shared + shared::EVTCHN_MASK + word) & bit != 0;
        if !masked {
            self.select(port);
        }
        // A poller waits for its ports whether they are masked or not.
        if self.events().polled.contains(&port) {
            self.kick();
        }
    }

    /// The second level: tells the vCPU that the word of a port is to be looked at.
    fn select(&self, port: u32) {
        let info = self.vcpu_info();
        let bit = 1u64 << (port / 64);
        if self.set_bits(info + shared::PENDING_SEL, bit) & bit == 0 {
            self.memory().store::<u8>(info + shared::UPCALL_PENDING, 1);
            self.kick();
        }
    }

    /// Whether an event waits that the vCPU has not masked.
    #[inline]
    pub(crate) fn upcall_due(&self) -> bool {
        let pending_and_mask = self.memory().load::<u16>(self.vcpu_info());
        pending_and_mask & 0xff != 0 && pending_and_mask >> 8 == 0
    }

    pub(crate) fn raise_virq(&self, number: u32) {
        let port = self.events().virq_port(number);
        if let Some(port) = port {
            self.set_pending(port);
        }
    }

    /// `EVTCHNOP_send`, and what a kernel's notification does.
    pub(crate) fn send(&self, port: u32) -> Result<(), Errno> {
        let mut events = self.events();
        let channel = events.channel(port).ok_or(Errno::Inval)?;
        if let Channel::Interdomain { remote, .. } | Channel::Unbound { remote } = channel
            && !self.may_signal(&events, remote)
        {
            return Err(Errno::Perm);
        }
        match channel {
            Channel::Interdomain { remote, port: peer } if remote != BACKEND_DOMID => {
                drop(events);
                self.send_across(port, remote, peer);
                Ok(())
            }
            Channel::Interdomain { .. } => {
                events.ring(port);
                drop(events);
                self.ask(work::DOORBELL);
                Ok(())
            }
            Channel::Ipi => {
                drop(events);
                self.set_pending(port);
                Ok(())
            }
            Channel::Unbound { .. } => Ok(()),
            Channel::Virq(_) | Channel::Closed => Err(Errno::Inval),
        }
    }

    fn may_signal(&self, events: &Events, remote: u16) -> bool {
        self.is_itself(remote) || events.allows(remote)
    }

    /// Sets which domains the guest may have channels to, beside itself and domain 0 with its back-ends; `None` is for all.
    /// Channels that it has to others stay, and sending by them fails.
    pub fn set_remotes(&self, allowed: Option<BTreeSet<u16>>) {
        self.events().remotes = allowed;
    }

    /// Whether the guest may have a channel to a domain.
    pub fn allows_remote(&self, remote: u16) -> bool {
        self.may_signal(&self.events(), remote)
    }

    /// `EVTCHNOP_bind_virq`.
    pub(crate) fn bind_virq(&self, number: u32, vcpu: u32) -> Result<u32, Errno> {
        if number >= virq::COUNT {
            return Err(Errno::Inval);
        }
        if !virq::PER_VCPU.contains(&number) && vcpu != 0 {
            return Err(Errno::Inval);
        }
        if vcpu >= self.config.vcpus {
            return Err(Errno::NoEnt);
        }
        if virq::GLOBAL.contains(&number) {
            return Err(Errno::Busy);
        }
        let mut events = self.events();
        if events.virq_port(number).is_some() {
            return Err(Errno::Exist);
        }
        events.allocate(Channel::Virq(number))
    }

    /// `EVTCHNOP_bind_ipi`.
    pub(crate) fn bind_ipi(&self, vcpu: u32) -> Result<u32, Errno> {
        if vcpu >= self.config.vcpus {
            return Err(Errno::NoEnt);
        }
        self.events().allocate(Channel::Ipi)
    }

    /// `EVTCHNOP_alloc_unbound`, also for the toolstack.
    pub fn allocate_unbound(&self, remote: u16) -> Result<u32, Errno> {
        let remote = if self.is_itself(remote) { self.config.domid } else { remote };
        self.events().allocate(Channel::Unbound { remote })
    }

    /// Has a reset leave a port alone.
    pub fn keep_port(&self, port: u32) {
        self.events().kept.push(port);
    }

    /// `EVTCHNOP_reset`: closes all ports but those that the guest could not get back.
    pub(crate) fn reset_ports(&self) {
        let ports: Vec<u32> = {
            let events = self.events();
            events
                .open_ports()
                .iter()
                .map(|(port, _)| *port)
                .filter(|port| !events.kept.contains(port))
                .collect()
        };
        for port in ports {
            // Only the vCPU that is in this call closes ports.
            let _ = self.close_port(port);
        }
    }

    /// A back-end binds a port that the guest has left for it, or one that the builder makes.
    pub fn bind_backend(&self, port: u32, remote: u16, name: u32) -> Result<(), Errno> {
        let mut events = self.events();
        match events.channel(port) {
            Some(Channel::Unbound { remote: expected }) if expected == remote => {
                events.rebind(port, Channel::Interdomain { remote, port: name });
                Ok(())
            }
            _ => Err(Errno::Inval),
        }
    }

    /// A back-end lets go of a port that it bound by that name.
    pub fn unbind_backend(&self, port: u32, name: u32) {
        let mut events = self.events();
        match events.channel(port) {
            Some(Channel::Interdomain { remote, port: bound })
                if bound == name && remote == BACKEND_DOMID =>
            {
                events.rebind(port, Channel::Unbound { remote });
            }
            _ => {}
        }
    }

    /// Has a back-end look at its ring as if the guest had rung; from any thread.
    pub fn ring_backend(&self, port: u32) {
        self.events().ring(port);
        self.summon(work::DOORBELL);
    }

    /// `EVTCHNOP_close`.
    pub(crate) fn close_port(&self, port: u32) -> Result<(), Errno> {
        let channel = self.events().close(port)?;
        if let Channel::Interdomain { remote, port: peer } = channel
            && remote != BACKEND_DOMID
        {
            self.let_go_of(port, remote, peer);
        }
        self.clear_pending(port);
        Ok(())
    }

    pub(crate) fn clear_pending(&self, port: u32) {
        let (word, bit) = (u64::from(port / 64) * 8, 1u64 << (port % 64));
        self.clear_bits(self.shared_info_host() + shared::EVTCHN_PENDING + word, bit);
    }

    /// `EVTCHNOP_unmask`.
    pub(crate) fn unmask(&self, port: u32) -> Result<(), Errno> {
        if self.events().channel(port).is_none() {
            return Err(Errno::Inval);
        }
        let shared = self.shared_info_host();
        let (word, bit) = (u64::from(port / 64) * 8, 1u64 << (port % 64));
        let was_masked = self.clear_bits(shared + shared::EVTCHN_MASK + word, bit) & bit != 0;
        let pending = self.memory().load::<u64>(shared + shared::EVTCHN_PENDING + word) & bit != 0;
        if was_masked && pending {
            self.select(port);
        }
        Ok(())
    }

    /// Whether a port is pending.
    pub(crate) fn is_pending(&self, port: u32) -> bool {
        let at = self.shared_info_host() + shared::EVTCHN_PENDING + u64::from(port / 64) * 8;
        self.memory().load::<u64>(at) >> (port % 64) & 1 != 0
    }

    /// Ports of back-ends that the guest has notified since the last time.
    pub fn take_doorbells(&self) -> Vec<u32> {
        self.events().take_rung()
    }

    /// What an open port is bound to.
    pub fn channel(&self, port: u32) -> Option<Channel> {
        self.events().channel(port)
    }
}
