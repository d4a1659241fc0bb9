//! A domain without a vCPU, for tests: they write what a guest would write.

use std::sync::Arc;

use trapgate_engine::{GuestMemory, Requests};

use crate::domain::{Config, Domain, Host, Layout};
use crate::event::Channel;
use crate::paging::Mfn;

#[derive(Debug)]
struct NoHost;

impl Host for NoHost {
    fn emergency_output(&self, _: &[u8]) {}
    fn wake(&self) {}
}

/// Pages that the domain has.
pub(crate) const PAGES: u64 = 256;

pub(crate) fn domain() -> Arc<Domain> {
    domain_of(1)
}

/// The domain of a number.
pub(crate) fn domain_of(domid: u16) -> Arc<Domain> {
    let layout = Layout::new(domid, PAGES);
    let memory = Arc::new(GuestMemory::new(&layout.regions()).unwrap());
    let config = Config { domid, handle: [0; 16], vcpus: 1, wall_seconds: 0 };
    Domain::new(config, layout, PAGES, memory, Arc::new(Requests::default()), Box::new(NoHost)).unwrap()
}

impl Domain {
    pub(crate) fn test_mfn(&self, pfn: u64) -> Mfn {
        Mfn(self.layout.ram.start + pfn)
    }

    pub(crate) fn open_ports_for_test(&self) -> Vec<(u32, Channel)> {
        self.events().open_ports()
    }

    fn entry_at(&self, reference: u32) -> u64 {
        self.layout.grants.start * 4096 + u64::from(reference) * 8
    }

    /// Writes a grant entry.
    pub(crate) fn test_entry(&self, reference: u32, flags: u16, domid: u16, frame: u32) {
        let entry = u64::from(flags) | u64::from(domid) << 16 | u64::from(frame) << 32;
        self.memory().write(self.entry_at(reference), &entry.to_le_bytes()).unwrap();
    }

    /// Grants the back-ends' domain a page for reading and writing.
    pub(crate) fn test_grant(&self, reference: u32, pfn: u64) {
        self.test_entry(reference, 1, 0, self.test_mfn(pfn).0 as u32);
    }

    /// Flags of a grant entry.
    pub(crate) fn test_flags(&self, reference: u32) -> u16 {
        let mut bytes = [0; 2];
        self.memory().read(self.entry_at(reference), &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    pub(crate) fn test_write(&self, pfn: u64, offset: u64, bytes: &[u8]) {
        self.memory().write(self.test_mfn(pfn).maddr() + offset, bytes).unwrap();
    }

    pub(crate) fn test_read<const N: usize>(&self, pfn: u64, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory().read(self.test_mfn(pfn).maddr() + offset, &mut bytes).unwrap();
        bytes
    }
}
