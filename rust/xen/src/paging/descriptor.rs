//! Descriptor tables: which descriptors a guest may have, and the frames of its GDT.
//!
//! All of a para-virtual guest runs at CPL 3, so every segment is given DPL 3 and nothing may lead elsewhere
//! (xen/arch/x86/pv/descriptor-tables.c). Frames that hold the GDT have a type of their own that excludes writable
//! mappings; entries change through `update_descriptor`.

use trapgate_engine::memory::PAGE;

use super::entry::ENTRIES;
use super::{DirectPaging, FrameType, Mfn, TlbControl};
use crate::Errno;

/// Frames that a guest's GDT can have; what follows is the monitor's (FIRST_RESERVED_GDT_PAGE of
/// xen/include/public/arch-x86/xen.h).
pub const GDT_FRAMES: usize = 14;

const DPL: u64 = 3 << 45;
const SEGMENT: u64 = 1 << 44;
const DESCRIPTOR_PRESENT: u64 = 1 << 47;
const TYPE: u64 = 0xf << 40;
const CALL_GATE: u64 = 0xc << 40;
/// Bits that a call gate must have clear (SDM vol. 3, figure 6-8).
const GATE_RESERVED: u64 = 0xff << 32;

/// A descriptor as a guest may have it; None if it may not.
pub fn sanitise_descriptor(desc: u64) -> Option<u64> {
    // Its use always faults.
    if desc & DESCRIPTOR_PRESENT == 0 {
        return Some(desc);
    }
    if desc & SEGMENT != 0 {
        return Some(desc | DPL);
    }
    match desc & TYPE {
        // The second half of a 16-byte descriptor looks like this.
        0 => Some(desc | DPL),
        // A gate stays but cannot be gone through: there is no inner ring to enter.
        CALL_GATE if desc & GATE_RESERVED == 0 => Some(desc & !DPL),
        _ => None,
    }
}

impl DirectPaging {
    /// `set_gdt`, which has copied the frame numbers. No frames take the GDT away.
    pub fn set_gdt(&mut self, tlb: &mut dyn TlbControl, vcpu: usize, frames: &[Mfn]) -> Result<(), Errno> {
        if frames.len() > GDT_FRAMES {
            return Err(Errno::Inval);
        }
        self.vcpus.get(vcpu).ok_or(Errno::NoEnt)?;
        for (done, mfn) in frames.iter().enumerate() {
            let got = match self.frames.slot(mfn.0) {
                Some(slot) => self.get_frame_and_type(tlb, slot, FrameType::Segdesc),
                None => Err(Errno::Inval),
            };
            if got.is_err() {
                self.put_gdt(tlb, &frames[..done]);
                return Err(Errno::Inval);
            }
        }
        let old = std::mem::replace(&mut self.vcpus[vcpu].gdt, frames.to_vec());
        self.put_gdt(tlb, &old);
        Ok(())
    }

    fn put_gdt(&mut self, tlb: &mut dyn TlbControl, frames: &[Mfn]) {
        for mfn in frames {
            if let Some(slot) = self.frames.slot(mfn.0) {
                self.put_frame_and_type(tlb, slot);
            }
        }
    }

    /// The frames of a vCPU's GDT.
    pub fn gdt(&self, vcpu: usize) -> &[Mfn] {
        self.vcpus.get(vcpu).map_or(&[], |roots| &roots.gdt)
    }

    /// `update_descriptor`: one entry of a frame of descriptors, or of one that is not yet.
    pub fn update_descriptor(&mut self, maddr: u64, desc: u64) -> Result<(), Errno> {
        let desc = sanitise_descriptor(desc).ok_or(Errno::Inval)?;
        if maddr % 8 != 0 {
            return Err(Errno::Inval);
        }
        let slot = self.frames.owned_slot(maddr >> 12).ok_or(Errno::Inval)?;
        if self.frames[slot].label() != FrameType::Segdesc {
            self.let_write(slot)?;
        }
        self.memory.store::<u64>(self.frames.host(slot) + maddr % PAGE, desc);
        Ok(())
    }

    /// Makes a whole frame one of descriptors, or leaves it as it is.
    pub(super) fn sanitise_frame(&self, slot: usize) -> Result<(), Errno> {
        let host = self.frames.host(slot);
        let entry = |at: u64| {
            let raw = self.memory.load::<u64>(host + at * 8);
            sanitise_descriptor(raw).map(|desc| (raw, desc)).ok_or(Errno::Inval)
        };
        for at in 0..ENTRIES {
            entry(at)?;
        }
        for at in 0..ENTRIES {
            let (raw, desc) = entry(at)?;
            // The processor sets "accessed" meanwhile; whatever else changed would be looked at by the exchange that fails.
            if raw != desc && self.memory.compare_exchange(host + at * 8, raw, desc).is_err() {
                let (raw, desc) = entry(at)?;
                self.memory.compare_exchange(host + at * 8, raw, desc).map_err(|_| Errno::Again)?;
            }
        }
        Ok(())
    }
}
