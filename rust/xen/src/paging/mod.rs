//! Direct paging: whose frames there are, what type each has, and which entries a guest may put into its page tables.
//!
//! A para-virtual guest writes machine frame numbers into its own page tables, so each entry is checked before it
//! counts: it must name a frame of this domain, and no frame may be a page table (or hold descriptors) and be mapped
//! writable at the same time. [`DirectPaging`] keeps two counters a frame for this, after the rules that open
//! xen/arch/x86/mm.c: a frame has one type at a time, a type lasts as long as somebody relies on it, and a frame that
//! becomes a table is checked in whole first. The guest's calls are those of xen/include/public/xen.h: `mmu_update`,
//! `mmuext_op`, `update_va_mapping`, `set_gdt`, `update_descriptor` and the reservation calls of memory.h.
//!
//! The machine address space is the "guest-physical" one of [`GuestMemory`]; what is physical to the guest is its own
//! affair. The array M2P is written here because frames change hands here, but nothing reads it: its content is what
//! the guest says.
//!
//! Parts: `frame` counters, `entry` bits, `types` getting and dropping types, `update` entries that change, `roots`
//! pins and roots, `descriptor` GDT, `holds` frames the monitor uses, `balloon` frames that come and go.

mod balloon;
mod descriptor;
mod entry;
mod frame;
mod holds;
mod roots;
mod types;
mod update;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use trapgate_engine::memory::{GuestMemory, PAGE};

pub use descriptor::{GDT_FRAMES, sanitise_descriptor};
pub use frame::{FrameType, FrameView, Mfn, Owner};

use crate::Errno;
use balloon::Pool;
use frame::FrameTable;
use holds::Hold;
use roots::{Alike, Roots};

/// What the TLBs of the domain's vCPUs must forget.
///
/// Assumed of the TLBs: they keep translations of whole pages only, nothing negative and no part of a walk, and a
/// walk that overlaps a call here is done again (there is one lock for both, or a count of calls).
pub trait TlbControl {
    /// Drop everything of this domain's address spaces that may be wrong: what came from entries that were reported by
    /// [`TlbControl::table_changed`], and all of the lower half of linear memory.
    fn flush_all(&mut self);
    /// A vCPU has another root of page tables; `same_upper_half`: its entries for the upper half of linear memory are
    /// those of the old one. What came from the lower half must go, and from the upper half too unless it is the same
    /// and no entry that it came from was reported by [`TlbControl::table_changed`] meanwhile.
    fn root_changed(&mut self, root: Mfn, same_upper_half: bool) {
        let _ = (root, same_upper_half);
        self.flush_all();
    }
    /// A vCPU has another root for user mode, by which alone user mode translates.
    fn user_root_changed(&mut self, root: Option<Mfn>) {
        let _ = root;
        self.flush_all();
    }
    /// Drop what came from the upper half by whichever root: an entry of one has changed.
    fn upper_half_changed(&mut self) {
        self.flush_all();
    }
    /// A frame is a root no more, and what came from it is never right again.
    fn root_gone(&mut self, root: Mfn) {
        let _ = root;
    }
    /// An entry of a live table at this machine address no longer allows what it allowed, or has lost flags that a walk sets
    /// again. The guest flushes for itself, or by its next change of roots.
    fn table_changed(&mut self, maddr: u64) {
        let _ = maddr;
    }
    /// The same, where all that is lost is the right to write to the frame at this host offset.
    fn table_protected(&mut self, maddr: u64, host: u64) {
        let _ = host;
        self.table_changed(maddr);
    }
    /// Drop one linear page.
    fn flush_page(&mut self, va: u64);
    /// Once this returns no vCPU has a writable translation of this host page (offset as [`GuestMemory::page`] gives it),
    /// nor a store by one under way.
    fn protect(&mut self, host: u64);
}

/// Why a domain's memory cannot be laid out as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Frames that are not writable memory in one region.
    #[error("machine addresses {start:#x} and {len:#x} bytes on are not one region of memory")]
    NoMemory { start: u64, len: u64 },
    /// MFN 0 stands for "no table"; more than 2^40 frames or 2^32 of one domain cannot be numbered.
    #[error("frames {0:#x?} cannot be given to a domain")]
    Numbers(Range<u64>),
    /// RAM, shared frames and M2P must be apart.
    #[error("the domain's memory, the shared frames and M2P overlap")]
    Overlap,
    /// More frames owned than there are.
    #[error("{owned} frames owned of {frames}")]
    Owned { owned: u64, frames: u64 },
    #[error("M2P at {0:#x} is not aligned to its entries")]
    Alignment(u64),
}

/// The frames of one domain with their types, the page-table roots and descriptor tables of its vCPUs, and the pool
/// from which it can get more frames.
#[derive(Debug)]
pub struct DirectPaging {
    memory: Arc<GuestMemory>,
    frames: FrameTable,
    /// Host offset of the array M2P.
    m2p: u64,
    vcpus: Vec<Roots>,
    alike: Alike,
    holds: HashMap<usize, Hold>,
    pool: Pool,
}

impl DirectPaging {
    /// `ram`: the frames that the domain can ever own; the first `owned` of them are its own now. `shared`: frames of
    /// the monitor that the guest may map writable, which therefore never become tables. `m2p`: machine address of an
    /// array of one u64 for each frame of `ram`, outside both; it is filled with the PFNs 0, 1, ... and !0 for frames
    /// not owned. Frames not owned must never have been written. There is one vCPU, without roots.
    pub fn new(
        memory: Arc<GuestMemory>,
        ram: Range<u64>,
        owned: u64,
        shared: Range<u64>,
        m2p: u64,
    ) -> Result<Self, LayoutError> {
        for range in [&ram, &shared] {
            let frames = range.end.saturating_sub(range.start);
            if range.end > 1 << 40 || frames >= 1 << 32 || (frames > 0 && range.start == 0) {
                return Err(LayoutError::Numbers(range.clone()));
            }
        }
        let frames = ram.end.saturating_sub(ram.start);
        if owned > frames {
            return Err(LayoutError::Owned { owned, frames });
        }
        if m2p % 8 != 0 {
            return Err(LayoutError::Alignment(m2p));
        }
        let array = frame::contiguous(&memory, m2p, frames.max(1) * 8)?;
        let array_frames = m2p / PAGE..(m2p + frames.max(1) * 8).div_ceil(PAGE);
        let apart = |a: &Range<u64>, b: &Range<u64>| {
            a.is_empty() || b.is_empty() || a.end <= b.start || b.end <= a.start
        };
        if !(apart(&ram, &shared) && apart(&ram, &array_frames) && apart(&shared, &array_frames)) {
            return Err(LayoutError::Overlap);
        }
        let paging = DirectPaging {
            frames: FrameTable::new(&memory, &ram, owned, &shared)?,
            memory,
            m2p: array,
            vcpus: vec![Roots::default()],
            alike: Alike::default(),
            holds: HashMap::new(),
            pool: Pool::new(frames, owned),
        };
        for pfn in 0..frames {
            paging.set_m2p(pfn as usize, if pfn < owned { pfn } else { balloon::NO_PFN });
        }
        Ok(paging)
    }

    /// The state of a frame; None if the domain can never refer to it.
    pub fn frame(&self, mfn: Mfn) -> Option<FrameView> {
        self.frames.slot(mfn.0).map(|slot| self.frames.view(slot))
    }

    /// Whether a store that faulted on this frame is one for [`Self::trapped_store`].
    #[inline]
    pub fn is_live_l1(&self, mfn: Mfn) -> bool {
        self.frames.slot(mfn.0).is_some_and(|slot| self.frames[slot].live() == Some(FrameType::L1))
    }

    /// Why a present L1 entry may not name a frame: not RAM at all, or RAM of somebody else.
    #[cold]
    fn why_not(&self, mfn: u64) -> Errno {
        if mfn == entry::ADDRESS >> 12 {
            Errno::Inval
        } else if self.frames.slot(mfn).is_some() || self.memory.page(mfn << 12).is_some() {
            Errno::Busy
        } else {
            Errno::Perm
        }
    }
}
