//! Frames that the monitor itself uses: the registered vcpu_info, and what back-ends have mapped by grants.
//!
//! A hold is a reference, and for writing also one of the type writable, so a frame that a back-end writes to cannot
//! become a table meanwhile. Holds are counted by kind, because a release of the other kind would corrupt the counts.

use super::{DirectPaging, FrameType, Mfn, TlbControl};
use crate::Errno;

/// Holds of one frame.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Hold {
    writable: u32,
    readable: u32,
}

impl DirectPaging {
    /// Keeps a frame for reading and writing by the monitor.
    pub fn hold_writable(&mut self, tlb: &mut dyn TlbControl, mfn: Mfn) -> Result<(), Errno> {
        let slot = self.frames.slot(mfn.0).ok_or(Errno::Inval)?;
        self.get_frame_and_type(tlb, slot, FrameType::Writable)?;
        self.holds.entry(slot).or_default().writable += 1;
        Ok(())
    }

    /// Keeps a frame for reading by the monitor, whatever its type.
    pub fn hold_readable(&mut self, mfn: Mfn) -> Result<(), Errno> {
        let slot = self.frames.slot(mfn.0).ok_or(Errno::Inval)?;
        if !self.frames[slot].take_ref() {
            return Err(Errno::Inval);
        }
        self.holds.entry(slot).or_default().readable += 1;
        Ok(())
    }

    /// Ends one [`Self::hold_writable`].
    pub fn release_writable(&mut self, tlb: &mut dyn TlbControl, mfn: Mfn) -> Result<(), Errno> {
        let slot = self.end_hold(mfn, |hold| &mut hold.writable)?;
        self.put_frame_and_type(tlb, slot);
        Ok(())
    }

    /// Ends one [`Self::hold_readable`].
    pub fn release_readable(&mut self, tlb: &mut dyn TlbControl, mfn: Mfn) -> Result<(), Errno> {
        let slot = self.end_hold(mfn, |hold| &mut hold.readable)?;
        self.put_frame(tlb, slot);
        Ok(())
    }

    fn end_hold(&mut self, mfn: Mfn, kind: impl Fn(&mut Hold) -> &mut u32) -> Result<usize, Errno> {
        let slot = self.frames.slot(mfn.0).ok_or(Errno::Inval)?;
        let hold = self.holds.get_mut(&slot).ok_or(Errno::Inval)?;
        let count = kind(hold);
        *count = count.checked_sub(1).ok_or(Errno::Inval)?;
        if hold.writable == 0 && hold.readable == 0 {
            self.holds.remove(&slot);
        }
        Ok(slot)
    }
}
