//! The frame table: eight bytes of counters for each machine frame of a domain.
//!
//! A frame has one general count (who refers to it at all) and one type count (who relies on its type). Every user
//! of the type holds a general reference too, so a frame without references has no type either.

use std::ops::Range;

use trapgate_engine::memory::{GuestMemory, PAGE};

use super::LayoutError;

/// A machine frame number: machine address >> 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mfn(pub u64);

impl Mfn {
    /// The frame's machine address.
    pub fn maddr(self) -> u64 {
        self.0 << 12
    }
}

/// What a frame is used as. With a type count of 0 it is only what the frame was last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameType {
    None,
    L1,
    L2,
    L3,
    L4,
    Segdesc,
    Writable,
}

impl FrameType {
    /// The type of the tables of a level; 1..=4.
    #[inline(always)]
    pub(super) fn table(level: u8) -> Option<FrameType> {
        match level {
            1 => Some(FrameType::L1),
            2 => Some(FrameType::L2),
            3 => Some(FrameType::L3),
            4 => Some(FrameType::L4),
            _ => None,
        }
    }

    /// The level of a table.
    #[inline(always)]
    pub(super) fn level(self) -> Option<u8> {
        match self {
            FrameType::L1 => Some(1),
            FrameType::L2 => Some(2),
            FrameType::L3 => Some(3),
            FrameType::L4 => Some(4),
            _ => None,
        }
    }
}

/// Whose a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The domain's; also when it has given the frame back and something still refers to it.
    Domain,
    /// The monitor's, which lets the domain map it.
    Monitor,
    /// In the pool from which the domain may get it.
    Free,
}

/// A frame's state, for inspection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameView {
    pub owner: Owner,
    pub kind: FrameType,
    pub type_count: u32,
    pub refs: u32,
    pub pinned: bool,
    /// Not yet given back: one of the references is that of the allocation.
    pub allocated: bool,
}

/// Counters of one frame: type in bits 0..3 and pin in bit 3 of the first word, above them the type count; the
/// allocation in bit 31 of the second, below it the general count.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Frame {
    kind: u32,
    refs: u32,
}

const LABEL: u32 = 7;
const PINNED: u32 = 1 << 3;
const COUNT_SHIFT: u32 = 4;
const COUNT_ONE: u32 = 1 << COUNT_SHIFT;
const ALLOCATED: u32 = 1 << 31;
const REFS: u32 = ALLOCATED - 1;

const LABELS: [FrameType; 8] = [
    FrameType::None,
    FrameType::L1,
    FrameType::L2,
    FrameType::L3,
    FrameType::L4,
    FrameType::Segdesc,
    FrameType::Writable,
    FrameType::None,
];

impl Frame {
    /// A frame that has an owner and no use.
    pub fn allocated() -> Frame {
        Frame { kind: FrameType::None as u32, refs: ALLOCATED | 1 }
    }

    /// A frame of the monitor: the type never changes, as its own count is never put.
    pub fn shared() -> Frame {
        Frame { kind: FrameType::Writable as u32 | COUNT_ONE, refs: ALLOCATED | 1 }
    }

    #[inline(always)]
    pub fn label(self) -> FrameType {
        LABELS[(self.kind & LABEL) as usize]
    }

    #[inline(always)]
    pub fn set_label(&mut self, label: FrameType) {
        self.kind = (self.kind & !LABEL) | label as u32;
    }

    /// The type that somebody relies on now.
    #[inline(always)]
    pub fn live(self) -> Option<FrameType> {
        (self.count() > 0).then(|| self.label())
    }

    #[inline(always)]
    pub fn count(self) -> u32 {
        self.kind >> COUNT_SHIFT
    }

    #[inline(always)]
    pub fn pinned(self) -> bool {
        self.kind & PINNED != 0
    }

    pub fn set_pinned(&mut self, pinned: bool) {
        self.kind = (self.kind & !PINNED) | if pinned { PINNED } else { 0 };
    }

    #[inline(always)]
    pub fn refs(self) -> u32 {
        self.refs & REFS
    }

    /// Whether the frame belongs to somebody.
    #[inline(always)]
    pub fn owned(self) -> bool {
        self.refs() != 0
    }

    pub fn is_allocated(self) -> bool {
        self.refs & ALLOCATED != 0
    }

    /// Forgets that the allocation holds a reference, without dropping it.
    pub fn clear_allocated(&mut self) {
        self.refs &= !ALLOCATED;
    }

    /// One more reference to an owned frame; false if it is nobody's or there are too many.
    #[inline(always)]
    #[must_use]
    pub fn take_ref(&mut self) -> bool {
        let refs = self.refs();
        let fits = refs != 0 && refs != REFS;
        self.refs += u32::from(fits);
        fits
    }

    /// One reference less; true if it was the last. A reference too few is a bug of the monitor and stops it.
    #[inline(always)]
    #[must_use]
    pub fn drop_ref(&mut self) -> bool {
        assert!(self.owned(), "general reference dropped that was never taken");
        self.refs -= 1;
        !self.owned()
    }

    /// One more user of the type; false if there are too many.
    #[inline(always)]
    #[must_use]
    pub fn take_count(&mut self) -> bool {
        match self.kind.checked_add(COUNT_ONE) {
            Some(kind) => {
                self.kind = kind;
                true
            }
            None => false,
        }
    }

    /// One user of the type less; true if it was the last.
    #[inline(always)]
    #[must_use]
    pub fn drop_count(&mut self) -> bool {
        assert!(self.count() > 0, "type reference dropped that was never taken");
        self.kind -= COUNT_ONE;
        self.count() == 0
    }
}

/// Frames that lie together in the machine address space and in the host mapping.
#[derive(Debug, Clone)]
struct Span {
    first: u64,
    frames: u64,
    host: u64,
}

impl Span {
    fn new(memory: &GuestMemory, range: &Range<u64>) -> Result<Span, LayoutError> {
        let frames = range.end.saturating_sub(range.start);
        if frames == 0 {
            return Ok(Span { first: range.start, frames: 0, host: 0 });
        }
        let host = contiguous(memory, range.start << 12, frames * PAGE)?;
        Ok(Span { first: range.start, frames, host })
    }

    #[inline(always)]
    fn position(&self, mfn: u64) -> Option<usize> {
        let at = mfn.wrapping_sub(self.first);
        (at < self.frames).then_some(at as usize)
    }
}

/// Host offset of a range of machine addresses that must lie in one region.
pub(super) fn contiguous(memory: &GuestMemory, start: u64, len: u64) -> Result<u64, LayoutError> {
    let missing = LayoutError::NoMemory { start, len };
    let end = start.checked_add(len).ok_or(LayoutError::NoMemory { start, len })?;
    let home = memory.regions().find(|r| r.start <= start && end <= r.start + r.len && !r.read_only);
    match (home, memory.page(start)) {
        (Some(_), Some(page)) => Ok(page.offset + start % PAGE),
        _ => Err(missing),
    }
}

/// All frames that the domain can refer to. A `slot` is a frame's place in the table: first the domain's, then the monitor's.
#[derive(Debug)]
pub(super) struct FrameTable {
    ram: Span,
    shared: Span,
    cells: Vec<Frame>,
}

impl FrameTable {
    pub fn new(
        memory: &GuestMemory,
        ram: &Range<u64>,
        owned: u64,
        shared: &Range<u64>,
    ) -> Result<FrameTable, LayoutError> {
        let (ram, shared) = (Span::new(memory, ram)?, Span::new(memory, shared)?);
        let mut cells = vec![Frame::allocated(); owned as usize];
        cells.resize(ram.frames as usize, Frame::default());
        cells.resize((ram.frames + shared.frames) as usize, Frame::shared());
        Ok(FrameTable { ram, shared, cells })
    }

    /// The place of a frame, whoever owns it.
    #[inline(always)]
    pub fn slot(&self, mfn: u64) -> Option<usize> {
        match self.ram.position(mfn) {
            Some(at) => Some(at),
            None => self.shared.position(mfn).map(|at| at + self.ram.frames as usize),
        }
    }

    /// The place of a frame that the domain owns or the monitor shares.
    #[inline(always)]
    pub fn owned_slot(&self, mfn: u64) -> Option<usize> {
        self.slot(mfn).filter(|slot| self.cells[*slot].owned())
    }

    pub fn is_ram(&self, slot: usize) -> bool {
        (slot as u64) < self.ram.frames
    }

    pub fn mfn(&self, slot: usize) -> Mfn {
        match (slot as u64).checked_sub(self.ram.frames) {
            None => Mfn(self.ram.first + slot as u64),
            Some(at) => Mfn(self.shared.first + at),
        }
    }

    /// Offset of the frame in the host mapping.
    #[inline(always)]
    pub fn host(&self, slot: usize) -> u64 {
        match (slot as u64).checked_sub(self.ram.frames) {
            None => self.ram.host + slot as u64 * PAGE,
            Some(at) => self.shared.host + at * PAGE,
        }
    }

    pub fn view(&self, slot: usize) -> FrameView {
        let frame = self.cells[slot];
        FrameView {
            owner: match (frame.owned(), self.is_ram(slot)) {
                (false, _) => Owner::Free,
                (true, true) => Owner::Domain,
                (true, false) => Owner::Monitor,
            },
            kind: frame.label(),
            type_count: frame.count(),
            refs: frame.refs(),
            pinned: frame.pinned(),
            allocated: frame.is_allocated(),
        }
    }
}

impl std::ops::Index<usize> for FrameTable {
    type Output = Frame;
    #[inline(always)]
    fn index(&self, slot: usize) -> &Frame {
        &self.cells[slot]
    }
}

impl std::ops::IndexMut<usize> for FrameTable {
    #[inline(always)]
    fn index_mut(&mut self, slot: usize) -> &mut Frame {
        &mut self.cells[slot]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_eight_bytes() {
        assert_eq!(size_of::<Frame>(), 8);
    }

    #[test]
    fn counters_refuse_to_overflow_and_leave_the_rest_alone() {
        let mut frame =
            Frame { kind: (!0 << COUNT_SHIFT) | FrameType::L3 as u32, refs: ALLOCATED | (REFS - 1) };
        assert!(!frame.take_count());
        assert!(!frame.drop_ref() && frame.take_ref() && frame.take_ref());
        assert!(!frame.take_ref());
        assert!(frame.is_allocated() && frame.refs() == REFS && frame.label() == FrameType::L3);
        assert!(!frame.pinned());
    }

    #[test]
    fn nobodys_frame_gives_no_reference() {
        assert!(!Frame::default().take_ref());
    }

    #[test]
    fn labels_survive_packing() {
        for label in LABELS {
            let mut frame = Frame::allocated();
            frame.set_label(label);
            frame.set_pinned(true);
            assert!(frame.take_count());
            assert_eq!((frame.label(), frame.count(), frame.pinned()), (label, 1, true));
        }
    }
}
