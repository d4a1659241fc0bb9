//! Guest-physical memory: where RAM lies, how it is reached, and who is told when a page is written.
//!
//! Every writer goes through [`GuestMemory`], which keeps one counter a page. The counter is odd while an executor
//! holds decoded code of that page, and the first write after that makes it even: comparing one number tells
//! an executor whether its copy of the code may still be used, whichever alias or device wrote.

mod host;
mod tables;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use host::HostRam;
pub use host::Word;
use tables::TracedTables;
pub(crate) use tables::after_a_write;

/// Size of a page and of the unit in which writes are noticed.
pub const PAGE: u64 = 4096;

/// What can go wrong with guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host gave no memory.
    #[error("the host cannot provide {bytes} bytes of guest memory: {source}")]
    Host { bytes: u64, source: std::io::Error },
    /// More than this host can address.
    #[error("{bytes} bytes of guest memory are more than this host can address")]
    TooLarge { bytes: u64 },
    /// A region that is not whole pages, is empty or overlaps another.
    #[error("memory region at {start:#x} of {len:#x} bytes is empty, misaligned or overlaps another")]
    Region { start: u64, len: u64 },
    /// An access outside RAM.
    #[error("no RAM at guest-physical {start:#x}..{end:#x}")]
    NoRam { start: u64, end: u64 },
}

/// A range of guest-physical addresses that is RAM (or read-only memory).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First guest-physical address, page-aligned.
    pub start: u64,
    /// Length in bytes, whole pages.
    pub len: u64,
    /// The guest's writes are dropped, as on a ROM.
    pub read_only: bool,
}

#[derive(Debug)]
struct Placed {
    region: Region,
    /// Offset of the region's first byte in the host mapping.
    host: u64,
}

/// A page of RAM as the mapping knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPage {
    /// Offset of the page in the mapping; not related to its guest-physical address.
    pub offset: u64,
    pub read_only: bool,
}

/// All RAM of one machine.
#[derive(Debug)]
pub struct GuestMemory {
    ram: HostRam,
    placed: Vec<Placed>,
    /// One a host page: odd while code of this page is cached.
    code: Vec<AtomicU32>,
    /// Times that a page with cached code was written first.
    code_writes: AtomicU64,
    tables: TracedTables,
}

impl GuestMemory {
    /// Maps the given regions, which must be disjoint whole pages.
    pub fn new(regions: &[Region]) -> Result<Self, MemoryError> {
        let mut placed: Vec<Placed> = Vec::with_capacity(regions.len());
        let mut sorted = regions.to_vec();
        sorted.sort_by_key(|r| r.start);
        let (mut host, mut end) = (0u64, 0u64);
        for region in sorted {
            let bad = MemoryError::Region { start: region.start, len: region.len };
            let Some(stop) = region.start.checked_add(region.len) else { return Err(bad) };
            if region.len == 0 || (region.start | region.len) % PAGE != 0 || region.start < end {
                return Err(bad);
            }
            placed.push(Placed { region, host });
            end = stop;
            host = host.checked_add(region.len).ok_or(MemoryError::TooLarge { bytes: u64::MAX })?;
        }
        let ram = HostRam::new(host)?;
        let code = (0..host / PAGE).map(|_| AtomicU32::new(0)).collect();
        let tables = TracedTables::default();
        Ok(GuestMemory { ram, placed, code, code_writes: AtomicU64::new(0), tables })
    }

    /// The regions, in ascending order.
    pub fn regions(&self) -> impl Iterator<Item = Region> + '_ {
        self.placed.iter().map(|p| p.region)
    }

    /// Bytes of RAM in all.
    pub fn len(&self) -> u64 {
        self.ram.len() as u64
    }

    /// Never: a machine without RAM cannot be made.
    pub fn is_empty(&self) -> bool {
        self.ram.len() == 0
    }

    /// Calls `each` with the guest-physical address and content of every page of RAM that is not all zeros.
    pub fn each_page_in_use(&self, mut each: impl FnMut(u64, &[u8; PAGE as usize])) {
        self.ram.each_page_in_use(|host, page| {
            let home = self.placed.iter().find(|p| host.wrapping_sub(p.host) < p.region.len);
            if let Some(p) = home {
                each(p.region.start + (host - p.host), page);
            }
        });
    }

    /// Address of the whole mapping in this process, for read-only views.
    pub fn host_base(&self) -> *const u8 {
        self.ram.base()
    }

    /// The host page that holds a guest-physical address, if there is RAM.
    #[inline]
    pub fn page(&self, gpa: u64) -> Option<HostPage> {
        for p in &self.placed {
            let delta = gpa.wrapping_sub(p.region.start);
            if delta < p.region.len {
                return Some(HostPage {
                    offset: p.host + (delta & !(PAGE - 1)),
                    read_only: p.region.read_only,
                });
            }
        }
        None
    }

    /// The guest-physical address of a host offset.
    pub fn address_of(&self, host: u64) -> Option<u64> {
        let home = self.placed.iter().find(|p| host.wrapping_sub(p.host) < p.region.len)?;
        Some(home.region.start + (host - home.host))
    }

    /// Loads from a host offset that came from [`Self::page`]; the access must stay inside the page.
    #[inline(always)]
    pub fn load<T: Word>(&self, host: u64) -> T {
        self.ram.load(host)
    }

    /// Stores to a host offset without noticing code: only for pages whose [`Self::code_state`] is even.
    #[inline(always)]
    pub fn store_plain<T: Word>(&self, host: u64, value: T) {
        self.ram.store(host, value);
    }

    /// Stores to a host offset and notices the write.
    pub fn store<T: Word>(&self, host: u64, value: T) {
        self.ram.store(host, value);
        self.page_written(host);
    }

    /// Atomic compare-exchange at a host offset; the write is noticed.
    pub fn compare_exchange<T: Word>(&self, host: u64, old: T, new: T) -> Result<T, T> {
        let done = self.ram.compare_exchange(host, old, new);
        if done.is_ok() {
            self.page_written(host);
        }
        done
    }

    /// The page's code counter: odd while code of it is cached.
    #[inline(always)]
    pub fn code_state(&self, host: u64) -> u32 {
        self.code[(host / PAGE) as usize].load(Ordering::Acquire)
    }

    /// Changes when a page with cached code was written: then its [`Self::code_state`] is to be looked at.
    pub fn code_writes(&self) -> u64 {
        self.code_writes.load(Ordering::Acquire)
    }

    /// Marks the page as holding cached code and gives its (odd) counter and whether it was newly marked.
    pub fn watch_code(&self, host: u64) -> (u32, bool) {
        let cell = &self.code[(host / PAGE) as usize];
        let mut now = cell.load(Ordering::Acquire);
        loop {
            if now & 1 == 1 {
                return (now, false);
            }
            match cell.compare_exchange(now, now.wrapping_add(1), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return (now.wrapping_add(1), true),
                Err(seen) => now = seen,
            }
        }
    }

    /// The same for a flag that a walk sets in an entry of a page table: shadows of the table stay right.
    pub(crate) fn mark_entry<T: Word>(&self, host: u64, old: T, new: T) -> Result<T, T> {
        let done = self.ram.compare_exchange(host, old, new);
        if done.is_ok() {
            self.code_written(host);
        }
        done
    }

    /// Begins to trace writes to a page that holds a page table with a shadow; gives its state.
    pub(crate) fn trace_table(&self, host: u64) -> u32 {
        self.tables.trace(host, self.len() / PAGE)
    }

    /// Ends that.
    pub(crate) fn release_table(&self, host: u64) {
        self.tables.release(host);
    }

    /// Odd while the page is traced; any write to it changes this, see [`after_a_write`].
    #[inline]
    pub(crate) fn table_state(&self, host: u64) -> u32 {
        self.tables.state(host)
    }

    /// Notices a write to the page at a host offset.
    #[inline]
    pub fn page_written(&self, host: u64) {
        self.tables.written(host);
        self.code_written(host);
    }

    #[inline]
    fn code_written(&self, host: u64) {
        let cell = &self.code[(host / PAGE) as usize];
        let now = cell.load(Ordering::Acquire);
        if now & 1 == 1 {
            // A failed exchange means that someone else has noticed a write already.
            let _ = cell.compare_exchange(now, now.wrapping_add(1), Ordering::AcqRel, Ordering::Acquire);
            self.code_writes.fetch_add(1, Ordering::Release);
        }
    }

    /// Copies bytes from a host offset, inside one page.
    pub fn read_host(&self, host: u64, buf: &mut [u8]) {
        self.ram.read(host, buf);
    }

    /// Which of the 64 lines of a page, of 64 bytes each, hold a word of 8 bytes whose lowest bit is set: where the present
    /// entries of a page table are.
    pub fn odd_lines(&self, host: u64) -> u64 {
        self.ram.odd_lines(host)
    }

    /// Copies bytes to a host offset, inside one page, and notices the write.
    pub fn write_host(&self, host: u64, bytes: &[u8]) {
        self.ram.write(host, bytes);
        self.page_written(host);
    }

    /// Copies elements from one host offset to another as REP MOVS does, each range inside one page, and notices the write.
    pub fn copy_host<T: Word>(&self, from: u64, to: u64, count: usize) {
        self.ram.copy_words::<T>(from, to, count);
        self.page_written(to);
    }

    /// Fills elements at a host offset, inside one page, and notices the write.
    pub fn fill_words_host<T: Word>(&self, host: u64, count: usize, value: T) {
        self.ram.fill_words(host, count, value);
        self.page_written(host);
    }

    /// Fills bytes at a host offset, inside one page, and notices the write.
    pub fn fill_host(&self, host: u64, len: usize, byte: u8) {
        self.ram.fill(host, len, byte);
        self.page_written(host);
    }

    /// Gives the page that holds a host offset back to the host and notices the write: its content is zeros from now on.
    pub fn discard(&self, host: u64) {
        self.ram.discard(host & !(PAGE - 1));
        self.page_written(host);
    }

    /// Reads guest-physical memory; nothing is read if part of the range is not RAM.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.check(gpa, buf.len())?;
        self.pieces(gpa, buf.len(), |host, range| self.ram.read(host, &mut buf[range]));
        Ok(())
    }

    /// Writes guest-physical memory as a loader or a device does (read-only regions included); nothing is written
    /// if part of the range is not RAM.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.check(gpa, bytes.len())?;
        self.pieces(gpa, bytes.len(), |host, range| self.write_host(host, &bytes[range]));
        Ok(())
    }

    /// Fills guest-physical memory with zeros.
    pub fn zero(&self, gpa: u64, len: usize) -> Result<(), MemoryError> {
        self.check(gpa, len)?;
        self.pieces(gpa, len, |host, range| self.fill_host(host, range.len(), 0));
        Ok(())
    }

    fn check(&self, gpa: u64, len: usize) -> Result<(), MemoryError> {
        let bad = || MemoryError::NoRam { start: gpa, end: gpa.saturating_add(len as u64) };
        let end = gpa.checked_add(len as u64).ok_or_else(bad)?;
        let mut at = gpa;
        while at < end {
            self.page(at).ok_or_else(bad)?;
            at = (at & !(PAGE - 1)).saturating_add(PAGE);
        }
        Ok(())
    }

    fn pieces(&self, gpa: u64, len: usize, mut each: impl FnMut(u64, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < len {
            let at = gpa + done as u64;
            let n = ((PAGE - at % PAGE) as usize).min(len - done);
            if let Some(page) = self.page(at) {
                each(page.offset + at % PAGE, done..done + n);
            }
            done += n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemory {
        let region = |start, len| Region { start, len, read_only: false };
        GuestMemory::new(&[region(0x1_0000_0000, 0x4000), region(0, 0x8000)]).unwrap()
    }

    #[test]
    fn lines_with_an_odd_word_are_found() {
        let memory = memory();
        let host = memory.page(0x2000).unwrap().offset;
        assert_eq!(memory.odd_lines(host), 0);
        memory.fill_host(host, PAGE as usize, 0xfe);
        assert_eq!(memory.odd_lines(host), 0);
        let mut want = 0;
        for entry in (0..512u64).map(|n| n * 77 % 512) {
            let line = entry / 8;
            memory.store::<u64>(host + 8 * entry, 1);
            want |= 1 << line;
            assert_eq!(memory.odd_lines(host), want, "{entry}");
            if entry % 3 == 0 {
                memory.store::<u64>(host + 8 * entry, !1);
                let still = (0..8).any(|n| memory.load::<u64>(host + 64 * line + 8 * n) & 1 != 0);
                want = if still { want } else { want & !(1 << line) };
                assert_eq!(memory.odd_lines(host + 0x123), want, "{entry}");
            }
        }
    }

    #[test]
    fn misaligned_accesses_agree_with_bytes() {
        let memory = memory();
        let bytes: Vec<u8> = (0..64).collect();
        memory.write(0x100, &bytes).unwrap();
        let host = memory.page(0x100).unwrap().offset + 0x100;
        for at in 0..32u64 {
            let want = u64::from_le_bytes(bytes[at as usize..at as usize + 8].try_into().unwrap());
            assert_eq!(memory.load::<u64>(host + at), want);
            assert_eq!(memory.load::<u32>(host + at), want as u32);
            assert_eq!(memory.load::<u16>(host + at), want as u16);
        }
        for at in 0..16u64 {
            memory.store::<u32>(host + at, 0xa1b2_c3d4);
            let mut seen = [0; 64];
            memory.read(0x100, &mut seen).unwrap();
            let mut want: Vec<u8> = bytes.clone();
            want[at as usize..at as usize + 4].copy_from_slice(&0xa1b2_c3d4u32.to_le_bytes());
            assert_eq!(seen[..], want[..]);
            memory.write(0x100, &bytes).unwrap();
        }
    }

    #[test]
    fn ranges_cross_pages_but_not_holes() {
        let memory = memory();
        memory.write(0x0ffc, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        let mut seen = [0; 4];
        memory.read(0x1000, &mut seen).unwrap();
        assert_eq!(seen, [5, 6, 7, 8]);
        assert!(memory.write(0x7ffc, &[0; 8]).is_err());
        assert!(memory.read(u64::MAX - 3, &mut [0; 8]).is_err());
        memory.write(0x1_0000_3ff8, &[9; 8]).unwrap();
    }

    #[test]
    fn a_write_is_noticed_once_until_watched_again() {
        let memory = memory();
        let host = memory.page(0x2000).unwrap().offset;
        let (state, fresh) = memory.watch_code(host);
        assert!(fresh && state & 1 == 1);
        assert_eq!(memory.watch_code(host), (state, false));
        memory.write(0x2fff, &[0]).unwrap();
        assert_ne!(memory.code_state(host), state);
        let (again, fresh) = memory.watch_code(host);
        assert!(fresh && again != state);
    }

    #[test]
    fn a_discarded_page_is_zeros_and_no_longer_in_use() {
        let memory = memory();
        memory.write(0x1ffc, &[7; 8]).unwrap();
        let host = memory.page(0x2000).unwrap().offset;
        let (state, _) = memory.watch_code(host);
        memory.discard(host + 0x123);
        assert_ne!(memory.code_state(host), state, "cached code of the page must go");
        let mut seen = [1; 8];
        memory.read(0x1ffc, &mut seen).unwrap();
        assert_eq!(seen, [7, 7, 7, 7, 0, 0, 0, 0], "only the page itself is emptied");
        let mut used = Vec::new();
        memory.each_page_in_use(|gpa, _| used.push(gpa));
        assert_eq!(used, [0x1000]);
        memory.write(0x2000, &[3]).unwrap();
        assert_eq!(memory.load::<u8>(host), 3);
    }

    #[test]
    fn regions_are_checked() {
        let region = |start, len| Region { start, len, read_only: false };
        assert!(GuestMemory::new(&[region(0, 0x2000), region(0x1000, 0x1000)]).is_err());
        assert!(GuestMemory::new(&[region(0, 0)]).is_err());
        assert!(GuestMemory::new(&[region(0x800, 0x1000)]).is_err());
        assert!(GuestMemory::new(&[region(u64::MAX - 0xfff, 0x1000)]).is_err());
    }
}
