//! The grant table, version 1: pages that the guest lets other domains use (xen/include/public/grant_table.h).

use std::ops::Range;

/// Grant references in one frame of 8-byte entries.
pub const ENTRIES_PER_FRAME: u64 = 512;

/// The grant table of a domain.
#[derive(Debug)]
pub struct Grants {
    frames: Range<u64>,
    /// Frames that the guest has asked for.
    used: u64,
}

impl Grants {
    pub(crate) fn new(frames: Range<u64>) -> Self {
        Grants { frames, used: 1 }
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

    /// MFN of the frame that holds an entry, and its offset there.
    pub fn entry(&self, reference: u32) -> Option<u64> {
        let frame = u64::from(reference) / ENTRIES_PER_FRAME;
        let at = (self.frames.start + frame) * 4096 + u64::from(reference) % ENTRIES_PER_FRAME * 8;
        (frame < self.used).then_some(at)
    }
}
