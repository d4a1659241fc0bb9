//! Pins and page-table roots: what keeps whole trees of tables typed.

use super::entry::{ACCESSED, DIRTY, ENTRIES, RESERVED_L4};
use super::{DirectPaging, FrameType, Mfn, TlbControl};
use crate::Errno;

/// Roots and descriptor table of one vCPU; frames by their slots.
#[derive(Debug, Default)]
pub(super) struct Roots {
    pub kernel: Option<usize>,
    pub user: Option<usize>,
    pub gdt: Vec<Mfn>,
}

/// Live roots of which it is known that their entries for the upper half of linear memory are alike: switches of processes
/// need not compare them again.
#[derive(Debug, Default)]
pub(super) struct Alike(Vec<usize>);

/// More are not remembered.
const MOST_ALIKE: usize = 64;

impl Alike {
    fn has(&self, one: usize, other: usize) -> bool {
        self.0.contains(&one) && self.0.contains(&other)
    }

    fn note(&mut self, one: usize, other: usize) {
        if !self.0.contains(&one) || self.0.len() >= MOST_ALIKE {
            self.0 = vec![one];
        }
        self.0.push(other);
    }

    /// A root is none any more.
    pub fn forget(&mut self, root: usize) {
        self.0.retain(|known| *known != root);
    }

    /// An entry of a root has changed.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl DirectPaging {
    /// Adds a vCPU without roots and gives its number.
    pub fn add_vcpu(&mut self) -> usize {
        self.vcpus.push(Roots::default());
        self.vcpus.len() - 1
    }

    /// MMUEXT_PIN_L1_TABLE to MMUEXT_PIN_L4_TABLE.
    pub fn pin(&mut self, tlb: &mut dyn TlbControl, level: u8, mfn: Mfn) -> Result<(), Errno> {
        let want = FrameType::table(level).ok_or(Errno::Inval)?;
        let slot = self.frames.slot(mfn.0).ok_or(Errno::Inval)?;
        if self.frames[slot].pinned() {
            return Err(Errno::Inval);
        }
        self.get_frame_and_type(tlb, slot, want)?;
        self.frames[slot].set_pinned(true);
        Ok(())
    }

    /// MMUEXT_UNPIN_TABLE.
    pub fn unpin(&mut self, tlb: &mut dyn TlbControl, mfn: Mfn) -> Result<(), Errno> {
        let slot = self.frames.slot(mfn.0).ok_or(Errno::Inval)?;
        if !self.frames[slot].pinned() {
            return Err(Errno::Inval);
        }
        self.frames[slot].set_pinned(false);
        self.put_frame_and_type(tlb, slot);
        Ok(())
    }

    /// MMUEXT_NEW_BASEPTR and MOV CR3: always a flush, as that is what guests use it for.
    pub fn set_kernel_root(&mut self, tlb: &mut dyn TlbControl, vcpu: usize, mfn: Mfn) -> Result<(), Errno> {
        let old = self.vcpus.get(vcpu).ok_or(Errno::NoEnt)?.kernel;
        let new = self.frames.slot(mfn.0).ok_or(Errno::Inval)?;
        self.get_frame_and_type(tlb, new, FrameType::L4)?;
        self.vcpus[vcpu].kernel = Some(new);
        let same = old.is_some_and(|old| old == new || self.alike(old, new));
        tlb.root_changed(mfn, same);
        if let Some(old) = old {
            self.put_frame_and_type(tlb, old);
        }
        Ok(())
    }

    /// MMUEXT_NEW_USER_BASEPTR; MFN 0 is none.
    pub fn set_user_root(&mut self, tlb: &mut dyn TlbControl, vcpu: usize, mfn: Mfn) -> Result<(), Errno> {
        let old = self.vcpus.get(vcpu).ok_or(Errno::NoEnt)?.user;
        let new = match mfn.0 {
            0 => None,
            mfn => Some(self.frames.slot(mfn).ok_or(Errno::Inval)?),
        };
        if new == old {
            return Ok(());
        }
        if let Some(new) = new {
            self.get_frame_and_type(tlb, new, FrameType::L4)?;
        }
        self.vcpus[vcpu].user = new;
        tlb.user_root_changed(new.map(|new| self.frames.mfn(new)));
        if let Some(old) = old {
            self.put_frame_and_type(tlb, old);
        }
        Ok(())
    }

    /// Whether two live roots have the same entries for the upper half of linear memory.
    fn alike(&mut self, one: usize, other: usize) -> bool {
        let known = self.alike.has(one, other);
        if !known && self.same_upper_half(one, other) {
            self.alike.note(one, other);
            return true;
        }
        known
    }

    /// The same, by looking. What is the monitor's is left out, and what walks set.
    fn same_upper_half(&self, one: usize, other: usize) -> bool {
        const UPPER: std::ops::Range<u64> = ENTRIES / 2..ENTRIES;
        let (one, other) = (self.frames.host(one), self.frames.host(other));
        UPPER.filter(|index| !RESERVED_L4.contains(index)).all(|index| {
            let entry = |table: u64| self.memory.load::<u64>(table + index * 8);
            (entry(one) ^ entry(other)) & !(ACCESSED | DIRTY) == 0
        })
    }

    /// The root for the guest's kernel; none before the first [`Self::set_kernel_root`].
    pub fn kernel_root(&self, vcpu: usize) -> Option<Mfn> {
        self.vcpus.get(vcpu)?.kernel.map(|slot| self.frames.mfn(slot))
    }

    /// The root for the guest's user code.
    pub fn user_root(&self, vcpu: usize) -> Option<Mfn> {
        self.vcpus.get(vcpu)?.user.map(|slot| self.frames.mfn(slot))
    }
}
