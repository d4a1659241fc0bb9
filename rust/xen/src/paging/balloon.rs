//! Frames that the domain gives back and gets, and the array M2P that says what each is to it.
//!
//! Giving back drops only the reference of the allocation (xen/common/memory.c): what is mapped, pinned or held stays
//! the domain's, and counts as such, until the last reference goes. Then the host has its page back.

use super::frame::Frame;
use super::{DirectPaging, FrameType, Mfn, TlbControl};
use crate::Errno;

/// In M2P: no frame of the domain.
pub(super) const NO_PFN: u64 = !0;

/// Frames that are nobody's.
#[derive(Debug)]
pub(super) struct Pool {
    /// Slots of frames that were given back.
    returned: Vec<u32>,
    /// The first slot that was never owned, up to `frames`.
    fresh: u64,
    frames: u64,
    owned: u64,
    maximum: u64,
}

impl Pool {
    pub fn new(frames: u64, owned: u64) -> Pool {
        Pool { returned: Vec::new(), fresh: owned, frames, owned, maximum: frames }
    }

    fn take(&mut self) -> Option<usize> {
        if self.owned >= self.maximum {
            return None;
        }
        let slot = match self.returned.pop() {
            Some(slot) => slot as usize,
            None if self.fresh < self.frames => {
                self.fresh += 1;
                self.fresh as usize - 1
            }
            None => return None,
        };
        self.owned += 1;
        Some(slot)
    }
}

impl DirectPaging {
    /// XENMEM_decrease_reservation for one frame. It fails only for a frame that is not the domain's or that it has
    /// given back before.
    pub fn decrease_reservation(&mut self, tlb: &mut dyn TlbControl, mfn: Mfn) -> Result<(), Errno> {
        let slot = self.frames.slot(mfn.0).filter(|slot| self.frames.is_ram(*slot)).ok_or(Errno::Inval)?;
        if !self.frames[slot].is_allocated() {
            return Err(Errno::Inval);
        }
        self.frames[slot].clear_allocated();
        self.put_frame(tlb, slot);
        Ok(())
    }

    /// XENMEM_populate_physmap for one frame: a frame of zeros that M2P calls `pfn`. None at the maximum.
    pub fn populate(&mut self, pfn: u64) -> Option<Mfn> {
        let slot = self.pool.take()?;
        self.frames[slot] = Frame::allocated();
        self.set_m2p(slot, pfn);
        Some(self.frames.mfn(slot))
    }

    /// Takes a frame without references out of the domain.
    pub(super) fn release(&mut self, tlb: &mut dyn TlbControl, slot: usize) {
        let host = self.frames.host(slot);
        // A guest need not flush before it gives a frame back. Translations for reading may stay: they show zeros, or
        // what this same domain puts there later.
        if self.frames[slot].label() == FrameType::Writable {
            tlb.protect(host);
        }
        self.frames[slot] = Frame::default();
        self.memory.discard(host);
        self.set_m2p(slot, NO_PFN);
        self.pool.owned -= 1;
        self.pool.returned.push(slot as u32);
    }

    /// Frames that the domain has, those included that it gave back and something still refers to.
    pub fn owned_frames(&self) -> u64 {
        self.pool.owned
    }

    /// Frames that the domain may have.
    pub fn maximum(&self) -> u64 {
        self.pool.maximum
    }

    /// Sets how many frames the domain may have, at most all there are. One that has more keeps them.
    pub fn set_maximum(&mut self, frames: u64) {
        self.pool.maximum = frames.min(self.pool.frames);
    }

    /// MMU_MACHPHYS_UPDATE. Frames of the monitor are the domain's to name, too, but have no entry.
    pub(super) fn machphys_update(&mut self, mfn: u64, pfn: u64) -> Result<(), Errno> {
        let slot = self.frames.owned_slot(mfn).ok_or(Errno::Inval)?;
        self.set_m2p(slot, pfn);
        Ok(())
    }

    pub(super) fn set_m2p(&self, slot: usize, pfn: u64) {
        if self.frames.is_ram(slot) {
            self.memory.store::<u64>(self.m2p + slot as u64 * 8, pfn);
        }
    }
}
