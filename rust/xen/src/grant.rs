//! The grant table, version 1: pages that the guest lets other domains use (xen/include/public/grant_table.h).
//!
//! A back-end of ours uses a page only while it holds it as Xen's map operation would: the entry says so by its
//! bits for reading and writing, which keep the guest from taking the grant back, and the frame has a reference of
//! ours, so that it can become neither a page table nor somebody else's. The guest can write its entries at any
//! time; each is judged by one load, and what was found then stands until the last user has gone.

use std::collections::HashMap;
use std::ops::Range;

use trapgate_engine::GuestMemory;

use crate::domain::{Domain, Later};
use crate::paging::Mfn;
use crate::public::BACKEND_DOMID;

/// Grant references in one frame of 8-byte entries.
pub const ENTRIES_PER_FRAME: u64 = 512;

const PAGE: usize = 4096;

/// Flags of an entry (`GTF_*`).
mod flags {
    pub const TYPE: u16 = 3;
    pub const PERMIT_ACCESS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 2;
    pub const READING: u16 = 1 << 3;
    pub const WRITING: u16 = 1 << 4;
}

/// An entry that changes each time it is looked at is given up after as many times as by Xen.
const ATTEMPTS: u32 = 5;

/// Why a grant cannot be used (`GNTST_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Status {
    #[error("the entry does not permit this access to the back-end's domain")]
    General,
    #[error("there is no such grant reference")]
    BadReference,
    #[error("the entry names no frame that the domain may share like this")]
    BadPage,
    #[error("the bytes are not inside of one page")]
    BadCopy,
}

/// What a back-end does with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// Who uses an entry now.
#[derive(Clone, Copy, Debug)]
struct Pin {
    mfn: Mfn,
    readers: u32,
    writers: u32,
}

/// The grant table of a domain.
#[derive(Debug)]
pub struct Grants {
    frames: Range<u64>,
    /// Host offset of the first frame; they are contiguous.
    host: u64,
    /// Frames that the guest has asked for.
    used: u64,
    pins: HashMap<u32, Pin>,
}

impl Grants {
    pub(crate) fn new(frames: Range<u64>, host: u64) -> Self {
        Grants { frames, host, used: 1, pins: HashMap::new() }
    }

    /// Frames in use, and the most that there can be.
    pub fn size(&self) -> (u64, u64) {
        (self.used, self.frames.end - self.frames.start)
    }

    /// Grows the table to `count` frames; false if that is more than there can be.
    pub fn grow(&mut self, count: u64) -> bool {
        let fits = count <= self.frames.end - self.frames.start;
        if fits {
            self.used = self.used.max(count);
        }
        fits
    }

    /// MFN of a frame of the table.
    pub fn frame(&self, index: u64) -> u64 {
        self.frames.start + index
    }

    /// Entries that back-ends use now.
    pub fn in_use(&self) -> usize {
        self.pins.len()
    }

    /// Host offset of an entry, if the table has grown that far.
    fn entry(&self, reference: u32) -> Option<u64> {
        let inside = u64::from(reference) / ENTRIES_PER_FRAME < self.used;
        inside.then_some(self.host + u64::from(reference) * 8)
    }
}

/// A page of the guest's that a back-end has mapped. It is given back by [`Domain::unmap_grant`].
#[derive(Debug)]
#[must_use = "the guest cannot take the page back before it is unmapped"]
pub struct Mapping {
    reference: u32,
    mfn: Mfn,
    /// Host offset of the page.
    host: u64,
    access: Access,
}

impl Mapping {
    /// Host offset of the page, for the words of a ring.
    pub(crate) fn host(&self) -> u64 {
        self.host
    }

    /// Copies bytes of the page.
    pub fn read(&self, memory: &GuestMemory, offset: usize, bytes: &mut [u8]) -> Result<(), Status> {
        inside_page(offset, bytes.len())?;
        memory.read_host(self.host + offset as u64, bytes);
        Ok(())
    }

    /// Copies bytes into the page.
    pub fn write(&self, memory: &GuestMemory, offset: usize, bytes: &[u8]) -> Result<(), Status> {
        if self.access == Access::Read {
            return Err(Status::General);
        }
        inside_page(offset, bytes.len())?;
        memory.write_host(self.host + offset as u64, bytes);
        Ok(())
    }
}

fn inside_page(offset: usize, length: usize) -> Result<(), Status> {
    if offset.checked_add(length).is_some_and(|end| end <= PAGE) { Ok(()) } else { Err(Status::BadCopy) }
}

impl Domain {
    /// Maps a page that the guest has granted to the back-ends' domain.
    ///
    /// # Errors
    /// When the guest has not granted it, or the page cannot be used so.
    pub fn map_grant(&self, reference: u32, access: Access) -> Result<Mapping, Status> {
        let mut grants = self.grants();
        let at = grants.entry(reference).ok_or(Status::BadReference)?;
        let known = grants.pins.get(&reference).copied();
        if known.is_none_or(|pin| access == Access::Write && pin.writers == 0) {
            self.set_status(at, access)?;
        }
        // The frame counts as it stood when the first user came; the guest may have written another one since.
        let mfn = known.map_or_else(|| Mfn(u64::from(self.memory().load::<u32>(at + 4))), |pin| pin.mfn);
        let mut pin = known.unwrap_or(Pin { mfn, readers: 0, writers: 0 });
        let Some(host) = self.hold_granted(mfn, access) else {
            self.clear_status(at, pin);
            return Err(Status::BadPage);
        };
        match access {
            Access::Read => pin.readers += 1,
            Access::Write => pin.writers += 1,
        }
        grants.pins.insert(reference, pin);
        Ok(Mapping { reference, mfn, host, access })
    }

    /// Gives a page back. To be done before the guest hears of it: it would find its grant in use.
    pub fn unmap_grant(&self, mapping: Mapping) {
        let Mapping { reference, mfn, access, .. } = mapping;
        let mut grants = self.grants();
        let at = grants.entry(reference);
        if let (Some(at), Some(pin)) = (at, grants.pins.get_mut(&reference)) {
            match access {
                Access::Read => pin.readers -= 1,
                Access::Write => pin.writers -= 1,
            }
            let left = *pin;
            if left.readers == 0 && left.writers == 0 {
                grants.pins.remove(&reference);
            }
            // The hold goes first: once the bits are clear the guest may use the frame for anything.
            self.release_granted(mfn, access);
            self.clear_status(at, left);
        }
    }

    /// Reads bytes of a granted page.
    pub fn copy_from_grant(&self, reference: u32, offset: usize, bytes: &mut [u8]) -> Result<(), Status> {
        let mapping = self.map_grant(reference, Access::Read)?;
        let copied = mapping.read(self.memory(), offset, bytes);
        self.unmap_grant(mapping);
        copied
    }

    /// Writes bytes to a granted page.
    pub fn copy_to_grant(&self, reference: u32, offset: usize, bytes: &[u8]) -> Result<(), Status> {
        let mapping = self.map_grant(reference, Access::Write)?;
        let copied = mapping.write(self.memory(), offset, bytes);
        self.unmap_grant(mapping);
        copied
    }

    /// Checks an entry and says in it that it is used, in one step.
    fn set_status(&self, at: u64, access: Access) -> Result<(), Status> {
        for _ in 0..ATTEMPTS {
            let old = self.memory().load::<u32>(at);
            let (flags, domid) = (old as u16, (old >> 16) as u16);
            let refused = access == Access::Write && flags & flags::READ_ONLY != 0;
            if flags & flags::TYPE != flags::PERMIT_ACCESS || domid != BACKEND_DOMID || refused {
                return Err(Status::General);
            }
            let bits = match access {
                Access::Read => flags::READING,
                Access::Write => flags::READING | flags::WRITING,
            };
            if self.memory().compare_exchange(at, old, old | u32::from(bits)).is_ok() {
                return Ok(());
            }
        }
        Err(Status::General)
    }

    /// Takes back of an entry's bits what its users do not need.
    fn clear_status(&self, at: u64, left: Pin) {
        let unused = match left {
            Pin { readers: 0, writers: 0, .. } => flags::READING | flags::WRITING,
            Pin { writers: 0, .. } => flags::WRITING,
            _ => return,
        };
        let mut old = self.memory().load::<u32>(at);
        while let Err(seen) = self.memory().compare_exchange(at, old, old & !u32::from(unused)) {
            old = seen;
        }
    }

    /// Takes the references that go with a mapping and gives the frame's host offset.
    fn hold_granted(&self, mfn: Mfn, access: Access) -> Option<u64> {
        // What the monitor shares with the guest is not the guest's to grant.
        if !self.layout.ram.contains(&mfn.0) {
            return None;
        }
        let page = self.memory().page(mfn.maddr())?;
        let mut paging = self.paging();
        match access {
            Access::Read => paging.hold_readable(mfn),
            Access::Write => paging.hold_writable(&mut Later(self), mfn),
        }
        .ok()
        .map(|()| page.offset)
    }

    fn release_granted(&self, mfn: Mfn, access: Access) {
        let mut paging = self.paging();
        let released = match access {
            Access::Read => paging.release_readable(&mut Later(self), mfn),
            Access::Write => paging.release_writable(&mut Later(self), mfn),
        };
        debug_assert!(released.is_ok(), "a mapping has a hold");
    }
}

#[cfg(test)]
mod tests;
