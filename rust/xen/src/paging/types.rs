//! Getting and dropping the types of frames, and what that means for the entries of tables.
//!
//! A type count that leaves 0 makes the frame what it is wanted as: a table is walked and each entry takes what it
//! refers to, always, even if the frame was that kind of table last, because the references went with the last use. A
//! count that reaches 0 drops them at once: guests make tables writable directly after the call that ended their use.

use trapgate_engine::memory::GuestMemory;

use super::entry::{ENTRIES, Entry, RESERVED_L4};
use super::{DirectPaging, FrameType, TlbControl};
use crate::Errno;

/// Entries in a line of memory.
const IN_LINE: u64 = 8;

/// The entries of a table that lie in lines with a present one. Most lines of most tables have none.
#[derive(Debug)]
struct Lines {
    /// Host offset of the table.
    host: u64,
    /// Lines to come, a bit for each.
    lines: u64,
    /// Entries to come of the line that was begun.
    entries: std::ops::Range<u64>,
}

impl Lines {
    fn next(&mut self, memory: &GuestMemory) -> Option<(u64, Entry)> {
        loop {
            for at in self.entries.by_ref() {
                let entry = Entry(memory.load(self.host + 8 * at));
                if entry.present() {
                    return Some((at, entry));
                }
            }
            if self.lines == 0 {
                return None;
            }
            let first = u64::from(self.lines.trailing_zeros()) * IN_LINE;
            self.lines &= self.lines - 1;
            self.entries = first..first + IN_LINE;
        }
    }
}

impl DirectPaging {
    fn lines(&self, slot: usize) -> Lines {
        let host = self.frames.host(slot);
        Lines { host, lines: self.memory.odd_lines(host), entries: 0..0 }
    }

    /// A general reference and one of the type.
    pub(super) fn get_frame_and_type(
        &mut self,
        tlb: &mut dyn TlbControl,
        slot: usize,
        want: FrameType,
    ) -> Result<(), Errno> {
        if !self.frames[slot].take_ref() {
            return Err(Errno::Inval);
        }
        let got = self.get_type(tlb, slot, want);
        if got.is_err() {
            self.put_frame(tlb, slot);
        }
        got
    }

    pub(super) fn put_frame_and_type(&mut self, tlb: &mut dyn TlbControl, slot: usize) {
        self.put_type(tlb, slot);
        self.put_frame(tlb, slot);
    }

    /// Drops a general reference; a frame without any goes back to the pool.
    pub(super) fn put_frame(&mut self, tlb: &mut dyn TlbControl, slot: usize) {
        if self.frames[slot].drop_ref() {
            self.release(tlb, slot);
        }
    }

    fn get_type(&mut self, tlb: &mut dyn TlbControl, slot: usize, want: FrameType) -> Result<(), Errno> {
        let frame = &mut self.frames[slot];
        if frame.count() > 0 {
            return if frame.label() == want && frame.take_count() { Ok(()) } else { Err(Errno::Inval) };
        }
        let was = frame.label();
        // The label stands before the walk: a table that refers to itself finds it and is refused.
        frame.set_label(want);
        if !frame.take_count() {
            return Err(Errno::Inval);
        }
        if want == FrameType::Writable {
            return Ok(());
        }
        // Only while it was this type could writable translations of the frame come to be; leaving it ends them all.
        if was == FrameType::Writable {
            tlb.protect(self.frames.host(slot));
        }
        let valid = match want.level() {
            Some(level) => self.promote(tlb, slot, level),
            // Under this label nothing but checked descriptors is stored, whatever the count.
            None if was == FrameType::Segdesc => Ok(()),
            None => self.sanitise_frame(slot),
        };
        if valid.is_err() {
            let frame = &mut self.frames[slot];
            let _ = frame.drop_count();
            frame.set_label(FrameType::None);
        }
        valid
    }

    fn put_type(&mut self, tlb: &mut dyn TlbControl, slot: usize) {
        let frame = &mut self.frames[slot];
        if frame.drop_count()
            && let Some(level) = frame.label().level()
        {
            if level == 4 {
                self.alike.forget(slot);
                tlb.root_gone(self.frames.mfn(slot));
            }
            self.drop_entries(tlb, slot, level, ENTRIES);
        }
    }

    /// Takes what all entries of a new table refer to, or nothing.
    fn promote(&mut self, tlb: &mut dyn TlbControl, slot: usize, level: u8) -> Result<(), Errno> {
        let mut lines = self.lines(slot);
        while let Some((at, entry)) = lines.next(&self.memory) {
            let taken = if level == 1 {
                self.take_l1(entry)
            } else if level == 4 && RESERVED_L4.contains(&at) {
                Ok(())
            } else {
                self.take_above(tlb, entry, level)
            };
            if taken.is_err() {
                self.drop_entries(tlb, slot, level, at);
                return taken;
            }
        }
        Ok(())
    }

    /// Drops what the first `count` entries of a table refer to.
    fn drop_entries(&mut self, tlb: &mut dyn TlbControl, slot: usize, level: u8, count: u64) {
        let mut lines = self.lines(slot);
        while let Some((at, entry)) = lines.next(&self.memory).filter(|(at, _)| *at < count) {
            if level == 1 {
                self.drop_l1(tlb, entry);
            } else if !(level == 4 && RESERVED_L4.contains(&at)) {
                self.drop_above(tlb, entry);
            }
        }
    }

    /// Takes what a present entry of an L1 refers to: the frame, and its being writable if the entry lets it be written.
    #[inline]
    pub(super) fn take_l1(&mut self, entry: Entry) -> Result<(), Errno> {
        if !entry.flags_fit_l1() {
            return Err(Errno::Inval);
        }
        let Some(slot) = self.frames.slot(entry.mfn()) else { return Err(self.why_not(entry.mfn())) };
        let frame = &mut self.frames[slot];
        if !frame.take_ref() {
            return Err(Errno::Busy);
        }
        if !entry.writable() {
            return Ok(());
        }
        let fits = frame.label() == FrameType::Writable || frame.count() == 0;
        if fits && frame.take_count() {
            frame.set_label(FrameType::Writable);
            return Ok(());
        }
        // Not the last one: the reference was taken from an owned frame just now.
        let _ = frame.drop_ref();
        Err(Errno::Busy)
    }

    #[inline]
    pub(super) fn drop_l1(&mut self, tlb: &mut dyn TlbControl, entry: Entry) {
        let slot = self.slot_of_live(entry);
        let frame = &mut self.frames[slot];
        if entry.writable() {
            // Nothing follows when the last writable use goes: the label tells the next use of another type.
            let _ = frame.drop_count();
        }
        if frame.drop_ref() {
            self.release(tlb, slot);
        }
    }

    /// Takes the table that a present entry of an L2, L3 or L4 refers to.
    pub(super) fn take_above(
        &mut self,
        tlb: &mut dyn TlbControl,
        entry: Entry,
        level: u8,
    ) -> Result<(), Errno> {
        if !entry.flags_fit_above() {
            return Err(Errno::Inval);
        }
        let want = FrameType::table(level - 1).ok_or(Errno::Inval)?;
        let slot = self.frames.slot(entry.mfn()).ok_or(Errno::Inval)?;
        self.get_frame_and_type(tlb, slot, want)
    }

    pub(super) fn drop_above(&mut self, tlb: &mut dyn TlbControl, entry: Entry) {
        let slot = self.slot_of_live(entry);
        self.put_frame_and_type(tlb, slot);
    }

    /// The frame of an entry that was checked when it came into its table. That it is not one is a bug of the monitor,
    /// which has let somebody write to a table, and stops it.
    #[inline]
    fn slot_of_live(&self, entry: Entry) -> usize {
        self.frames.slot(entry.mfn()).expect("a checked entry names a frame of the domain")
    }
}
