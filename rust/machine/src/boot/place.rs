//! Gives every piece of a boot image its place in guest memory, and keeps them apart.

use std::collections::BTreeMap;

use super::image::{Bytes, Segment};
use super::{BootError, MemoryMap};
use crate::firmware::layout;

/// The pieces placed so far.
#[derive(Debug)]
pub(super) struct Placer<'a> {
    memory: &'a MemoryMap,
    segments: Vec<Segment<'a>>,
    taken: Taken,
}

/// What is taken, segments included. A file may have 65,535 of them, so nothing here looks at all for each.
#[derive(Debug, Default)]
struct Taken {
    /// Ends and what it is, by start; none is empty and none overlap.
    by_start: BTreeMap<u64, (u64, &'static str)>,
}

impl Taken {
    /// The highest one that overlaps `start..end`: start, end, what.
    fn last_in(&self, start: u64, end: u64) -> Option<(u64, u64, &'static str)> {
        let (&begin, &(stop, what)) = self.by_start.range(..end).next_back()?;
        (start < stop).then_some((begin, stop, what))
    }

    /// The start of the lowest one that overlaps `start..end`.
    fn first_start_in(&self, start: u64, end: u64) -> Option<u64> {
        let before = self.by_start.range(..start).next_back().filter(|(_, (stop, _))| start < *stop);
        before.or_else(|| self.by_start.range(start..end).next()).map(|(&begin, _)| begin)
    }

    /// Where the highest one ends that ends at `top` or below; 0 if there is none.
    fn end_below(&self, top: u64) -> u64 {
        let ends = self.by_start.range(..top).rev().map(|(_, &(stop, _))| stop);
        // Only the last one that starts below can reach beyond.
        ends.take(2).find(|&stop| stop <= top).unwrap_or(0)
    }
}

/// The first page is left to the interrupt vectors and the BIOS data area.
const LOW_START: u64 = layout::PAGE;

impl<'a> Placer<'a> {
    pub(super) fn new(memory: &'a MemoryMap) -> Self {
        Self { memory, segments: Vec::new(), taken: Taken::default() }
    }

    /// Keeps `start..start + size` for something that the kernel itself will put there.
    pub(super) fn claim(&mut self, what: &'static str, start: u64, size: u64) -> Result<(), BootError> {
        let end = start.saturating_add(size);
        if !self.memory.is_usable(start, end) {
            return Err(BootError::OutsideMemory { what, start, end, low_end: self.memory.low_end() });
        }
        if size == 0 {
            return Ok(());
        }
        if start < LOW_START {
            return Err(BootError::BiosData { what, start });
        }
        if let Some((begin, _, first)) = self.taken.last_in(start, end) {
            return Err(BootError::Overlap { first, second: what, address: begin.max(start) });
        }
        self.taken.by_start.insert(start, (end, what));
        Ok(())
    }

    /// Places a segment where it says.
    pub(super) fn fixed(&mut self, segment: Segment<'a>) -> Result<(), BootError> {
        self.claim(segment.what, segment.address, segment.size)?;
        self.segments.push(segment);
        Ok(())
    }

    /// Places a small piece at the lowest free address of base memory.
    pub(super) fn low(
        &mut self,
        what: &'static str,
        bytes: impl Into<Bytes<'a>>,
        align: u64,
    ) -> Result<u64, BootError> {
        let bytes = bytes.into();
        self.low_with(what, bytes.len() as u64, align, |_| bytes)
    }

    /// The same for a piece of `size` bytes that contains its own address.
    pub(super) fn low_with<B: Into<Bytes<'a>>>(
        &mut self,
        what: &'static str,
        size: u64,
        align: u64,
        make: impl FnOnce(u64) -> B,
    ) -> Result<u64, BootError> {
        let mut start = LOW_START.next_multiple_of(align);
        while let Some((_, end, _)) = self.taken.last_in(start, start.saturating_add(size)) {
            start = end.next_multiple_of(align);
        }
        if start.saturating_add(size) > layout::EBDA {
            return Err(BootError::NoRoom { what, size, floor: LOW_START, ceiling: layout::EBDA });
        }
        self.claim(what, start, size)?;
        self.segments.push(Segment { what, address: start, bytes: make(start).into(), size });
        Ok(start)
    }

    /// Places a piece page-aligned at the highest free address below `ceiling`, above every other piece below it and
    /// above the first MiB.
    pub(super) fn high(
        &mut self,
        what: &'static str,
        bytes: &'a [u8],
        ceiling: u64,
    ) -> Result<u64, BootError> {
        let size = bytes.len() as u64;
        let mut top = ceiling.min(self.memory.low_usable_end());
        let floor = self.taken.end_below(top);
        let no_room = BootError::NoRoom { what, size, floor: floor.max(layout::HIGH_MEMORY), ceiling: top };
        loop {
            let Some(start) = top.checked_sub(size).map(|start| start & !(layout::PAGE - 1)) else {
                return Err(no_room);
            };
            if start < layout::HIGH_MEMORY {
                return Err(no_room);
            }
            match self.taken.first_start_in(start, start + size) {
                Some(taken) => top = taken,
                None => {
                    self.fixed(Segment::new(what, start, bytes))?;
                    return Ok(start);
                }
            }
        }
    }

    /// Places a piece page-aligned at the lowest free address above everything that lies above the first MiB, where kernels
    /// expect their modules.
    pub(super) fn above(&mut self, what: &'static str, bytes: &'a [u8]) -> Result<u64, BootError> {
        let end = self.taken.end_below(u64::MAX);
        let start = end.max(layout::HIGH_MEMORY).next_multiple_of(layout::PAGE);
        let size = bytes.len() as u64;
        let ceiling = self.memory.low_usable_end();
        if start.saturating_add(size) > ceiling {
            return Err(BootError::NoRoom { what, size, floor: start, ceiling });
        }
        self.fixed(Segment::new(what, start, bytes))?;
        Ok(start)
    }

    pub(super) fn into_segments(self) -> Vec<Segment<'a>> {
        self.segments
    }
}

/// Little-endian bytes of a structure that the loader makes.
#[derive(Debug, Default)]
pub(super) struct Record(Vec<u8>);

impl Record {
    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}
