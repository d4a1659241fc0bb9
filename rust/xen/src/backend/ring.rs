//! A ring of requests and responses in a page of the guest's (xen/include/public/io/ring.h), from the back-end's side.
//!
//! The guest can write all of the page at any time: an index of its is read once for each look and bounded, and the
//! places of requests taken and responses given are kept here.

use std::sync::atomic::{Ordering, fence};

use trapgate_engine::GuestMemory;

use super::Fault;
use crate::domain::Domain;
use crate::grant::{Access, Mapping};

const REQ_PROD: u64 = 0;
const REQ_EVENT: u64 = 4;
const RSP_PROD: u64 = 8;
const RSP_EVENT: u64 = 12;
const ENTRIES: u64 = 64;
const PAGE: u64 = 4096;

/// Our end of a ring.
#[derive(Debug)]
pub struct Ring {
    page: Mapping,
    /// Bytes of an entry: of a request or a response, whichever is longer.
    entry: u64,
    size: u32,
    /// Requests taken, responses written, and how many of those the guest knows of.
    taken: u32,
    given: u32,
    published: u32,
}

impl Ring {
    /// Maps the ring behind a grant reference. It goes on where its indices stand.
    ///
    /// # Errors
    /// When the page cannot be mapped, or holds no ring.
    pub fn attach(domain: &Domain, reference: u32, entry: u64) -> Result<Self, Fault> {
        let page =
            domain.map_grant(reference, Access::Write).map_err(|status| Fault::Ring { reference, status })?;
        // The largest power of two that fits.
        let size = 1 << ((PAGE - ENTRIES) / entry).ilog2();
        let given = domain.memory().load::<u32>(page.host() + RSP_PROD);
        let ring = Ring { page, entry, size, taken: given, given, published: given };
        match ring.waiting(domain.memory()) {
            Ok(_) => Ok(ring),
            Err(fault) => {
                ring.detach(domain);
                Err(fault)
            }
        }
    }

    /// Gives the page back.
    pub fn detach(self, domain: &Domain) {
        domain.unmap_grant(self.page);
    }

    /// Entries of the ring.
    pub fn size(&self) -> u32 {
        self.size
    }

    fn word(&self, memory: &GuestMemory, at: u64) -> u32 {
        memory.load::<u32>(self.page.host() + at)
    }

    fn place(&self, index: u32) -> u64 {
        self.page.host() + ENTRIES + u64::from(index & (self.size - 1)) * self.entry
    }

    /// Requests that can be taken.
    ///
    /// # Errors
    /// When the guest says that there are more than the ring can hold.
    pub fn waiting(&self, memory: &GuestMemory) -> Result<u32, Fault> {
        let produced = self.word(memory, REQ_PROD);
        let ahead = produced.wrapping_sub(self.given);
        let open = self.taken.wrapping_sub(self.given);
        if ahead > self.size || ahead < open {
            return Err(Fault::Indices { ahead, size: self.size });
        }
        Ok(ahead - open)
    }

    /// Copies the next request, of those that wait.
    pub fn take(&mut self, memory: &GuestMemory, request: &mut [u8]) {
        // The request itself is looked at after the index that says that it is there.
        fence(Ordering::Acquire);
        memory.read_host(self.place(self.taken), request);
        self.taken = self.taken.wrapping_add(1);
    }

    /// Writes the next response; the guest does not know of it before [`Self::publish`].
    pub fn respond(&mut self, memory: &GuestMemory, response: &[u8]) {
        memory.write_host(self.place(self.given), response);
        self.given = self.given.wrapping_add(1);
    }

    /// Shows the guest the responses; true if it wants an event for them.
    pub fn publish(&mut self, memory: &GuestMemory) -> bool {
        let (old, new) = (self.published, self.given);
        if old == new {
            return false;
        }
        fence(Ordering::Release);
        memory.store::<u32>(self.page.host() + RSP_PROD, new);
        // Either we see what the guest waits for, or the guest sees the responses before it waits.
        fence(Ordering::SeqCst);
        self.published = new;
        new.wrapping_sub(self.word(memory, RSP_EVENT)) < new.wrapping_sub(old)
    }

    /// Asks for an event at the `more`-th request from now on; true if so many have come meanwhile.
    ///
    /// # Errors
    /// As [`Self::waiting`].
    pub fn expect(&mut self, memory: &GuestMemory, more: u32) -> Result<bool, Fault> {
        memory.store::<u32>(self.page.host() + REQ_EVENT, self.taken.wrapping_add(more));
        fence(Ordering::SeqCst);
        Ok(self.waiting(memory)? >= more)
    }
}
