//! The host mapping of guest RAM: the one place that turns an offset into a host pointer.
//!
//! Accesses are relaxed atomics of the widest aligned pieces, so that a guest access of up to 8 bytes inside an
//! aligned 8 bytes is single-copy atomic (SDM vol. 3, 9.1.1), whoever else reads or writes the page meanwhile.
#![allow(unsafe_code)]

use std::fs::File;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegion;

use super::MemoryError;

const PAGE_BYTES: usize = super::PAGE as usize;

/// One shared mapping of a memfd that holds all RAM of a machine.
#[derive(Debug)]
pub(super) struct HostRam {
    region: MmapRegion,
    file: File,
    base: *mut u8,
    len: usize,
}

// SAFETY: `base` points into `region`, which lives as long as this value and is never remapped; every access
// through it is atomic, so sharing it between threads cannot make a data race.
unsafe impl Send for HostRam {}
// SAFETY: as above.
unsafe impl Sync for HostRam {}

impl HostRam {
    /// Maps `len` bytes of fresh zeroed memory.
    pub fn new(len: u64) -> Result<Self, MemoryError> {
        let host = |e: std::io::Error| MemoryError::Host { bytes: len, source: e };
        let bytes = usize::try_from(len).map_err(|_| MemoryError::TooLarge { bytes: len })?;
        let file = ram_file(len).map_err(host)?;
        let mapped = file.try_clone().map_err(host)?;
        let region = MmapRegion::from_file(FileOffset::new(mapped, 0), bytes)
            .map_err(|e| host(std::io::Error::other(e.to_string())))?;
        let base = region.as_ptr();
        #[cfg(target_os = "linux")]
        // SAFETY: the range is exactly the mapping made above; DontFork only keeps it out of forked children.
        unsafe {
            rustix::mm::madvise(base.cast(), bytes, rustix::mm::Advice::LinuxDontFork)
                .map_err(|e| host(e.into()))?;
        }
        Ok(HostRam { region, file, base, len: bytes })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Address of the mapping, for read-only views that live no longer than the memory.
    pub fn base(&self) -> *const u8 {
        self.region.as_ptr()
    }

    #[inline(always)]
    fn at(&self, offset: u64, size: usize) -> *mut u8 {
        // A wrong offset is a bug of ours, not of the guest: it must never become an access outside the mapping.
        assert!(offset <= (self.len - size) as u64, "RAM offset out of the mapping");
        // SAFETY: `offset + size <= len`, so the result stays inside the mapping.
        unsafe { self.base.add(offset as usize) }
    }
}

#[cfg(target_os = "linux")]
fn ram_file(len: u64) -> std::io::Result<File> {
    let fd = rustix::fs::memfd_create("guest-ram", rustix::fs::MemfdFlags::CLOEXEC)?;
    let file = File::from(fd);
    file.set_len(len)?;
    Ok(file)
}

#[cfg(not(target_os = "linux"))]
fn ram_file(len: u64) -> std::io::Result<File> {
    let file = tempfile::tempfile()?;
    file.set_len(len)?;
    Ok(file)
}

/// An unsigned integer that guest memory is accessed by.
pub trait Word: Copy + Eq + Default + std::fmt::Debug + 'static {
    /// Size in bytes.
    const SIZE: usize;
    fn from_u64(value: u64) -> Self;
    fn to_u64(self) -> u64;
    #[doc(hidden)]
    fn load(ram: &RamRef<'_>, offset: u64) -> Self;
    #[doc(hidden)]
    fn store(ram: &RamRef<'_>, offset: u64, value: Self);
    #[doc(hidden)]
    fn compare_exchange(ram: &RamRef<'_>, offset: u64, old: Self, new: Self) -> Result<Self, Self>;
}

/// A borrowed view through which [`Word`] reaches the mapping; only this module can make one.
#[derive(Debug)]
pub struct RamRef<'a>(&'a HostRam);

macro_rules! word {
    ($int:ty, $atomic:ty) => {
        impl Word for $int {
            const SIZE: usize = size_of::<$int>();
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $int
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn load(ram: &RamRef<'_>, offset: u64) -> Self {
                let ptr = ram.0.at(offset, Self::SIZE);
                if offset % Self::SIZE as u64 == 0 {
                    // SAFETY: in bounds by `at`, aligned by the test (the mapping is page-aligned), only ever
                    // accessed atomically.
                    <$int>::from_le(unsafe { <$atomic>::from_ptr(ptr.cast()) }.load(Ordering::Relaxed))
                } else {
                    ram.0.load_split(offset, Self::SIZE) as $int
                }
            }
            #[inline(always)]
            fn store(ram: &RamRef<'_>, offset: u64, value: Self) {
                let ptr = ram.0.at(offset, Self::SIZE);
                if offset % Self::SIZE as u64 == 0 {
                    // SAFETY: as in `load`.
                    unsafe { <$atomic>::from_ptr(ptr.cast()) }.store(value.to_le(), Ordering::Relaxed);
                } else {
                    ram.0.store_split(offset, Self::SIZE, value as u64);
                }
            }
            #[inline(always)]
            fn compare_exchange(ram: &RamRef<'_>, offset: u64, old: Self, new: Self) -> Result<Self, Self> {
                let ptr = ram.0.at(offset, Self::SIZE);
                if offset % Self::SIZE as u64 == 0 {
                    // SAFETY: as in `load`.
                    unsafe { <$atomic>::from_ptr(ptr.cast()) }
                        .compare_exchange(old.to_le(), new.to_le(), Ordering::SeqCst, Ordering::SeqCst)
                        .map(<$int>::from_le)
                        .map_err(<$int>::from_le)
                } else {
                    ram.0
                        .compare_exchange_split(offset, Self::SIZE, old as u64, new as u64)
                        .map(|v| v as $int)
                        .map_err(|v| v as $int)
                }
            }
        }
    };
}
word!(u8, AtomicU8);
word!(u16, AtomicU16);
word!(u32, AtomicU32);
word!(u64, AtomicU64);

impl HostRam {
    #[inline(always)]
    pub fn load<T: Word>(&self, offset: u64) -> T {
        T::load(&RamRef(self), offset)
    }

    #[inline(always)]
    pub fn store<T: Word>(&self, offset: u64, value: T) {
        T::store(&RamRef(self), offset, value);
    }

    #[inline(always)]
    pub fn compare_exchange<T: Word>(&self, offset: u64, old: T, new: T) -> Result<T, T> {
        T::compare_exchange(&RamRef(self), offset, old, new)
    }

    /// Misaligned load: from the one or two aligned 8 bytes that hold it.
    #[inline(never)]
    fn load_split(&self, offset: u64, size: usize) -> u64 {
        let low = offset & !7;
        let shift = (offset & 7) * 8;
        let mut value = self.load::<u64>(low) >> shift;
        if (offset & 7) as usize + size > 8 {
            value |= self.load::<u64>(low + 8) << (64 - shift);
        }
        value
    }

    /// Misaligned store: atomic inside an aligned 8 bytes, in two such pieces across them.
    #[inline(never)]
    fn store_split(&self, offset: u64, size: usize, value: u64) {
        let shift = (offset & 7) * 8;
        let mask = if size == 8 { u64::MAX } else { (1 << (size * 8)) - 1 };
        self.merge(offset & !7, mask << shift, value << shift);
        if (offset & 7) as usize + size > 8 {
            self.merge((offset & !7) + 8, mask >> (64 - shift), value >> (64 - shift));
        }
    }

    fn merge(&self, offset: u64, mask: u64, value: u64) {
        let mut old = self.load::<u64>(offset);
        while let Err(seen) = self.compare_exchange(offset, old, (old & !mask) | (value & mask)) {
            old = seen;
        }
    }

    /// Misaligned compare-exchange: atomic inside an aligned 8 bytes; across them only while one vCPU runs.
    #[inline(never)]
    fn compare_exchange_split(&self, offset: u64, size: usize, old: u64, new: u64) -> Result<u64, u64> {
        let shift = (offset & 7) * 8;
        let mask = if size == 8 { u64::MAX } else { (1u64 << (size * 8)) - 1 };
        if (offset & 7) as usize + size <= 8 {
            let at = offset & !7;
            loop {
                let word = self.load::<u64>(at);
                let seen = (word >> shift) & mask;
                if seen != old {
                    return Err(seen);
                }
                let next = (word & !(mask << shift)) | (new << shift);
                if self.compare_exchange(at, word, next).is_ok() {
                    return Ok(seen);
                }
            }
        }
        let seen = self.load_split(offset, size) & mask;
        if seen != old {
            return Err(seen);
        }
        self.store_split(offset, size, new);
        Ok(seen)
    }

    /// Calls `each` with every page that is not all zeros, in ascending order. Pages that were never touched are found by
    /// the file's holes and are not brought into memory by looking.
    pub fn each_page_in_use(&self, mut each: impl FnMut(u64, &[u8; PAGE_BYTES])) {
        let mut page = [0u8; PAGE_BYTES];
        let mut at = self.next_data(0);
        while at < self.len as u64 {
            self.read(at, &mut page);
            if page.iter().any(|byte| *byte != 0) {
                each(at, &page);
            }
            at = self.next_data(at + PAGE_BYTES as u64);
        }
    }

    /// Gives a page back to the host; it reads as zeros until it is written again.
    pub fn discard(&self, offset: u64) {
        self.at(offset, PAGE_BYTES);
        if self.punch(offset).is_err() {
            self.fill(offset, PAGE_BYTES, 0);
        }
    }

    #[cfg(target_os = "linux")]
    fn punch(&self, offset: u64) -> rustix::io::Result<()> {
        use rustix::fs::FallocateFlags as Flags;
        rustix::fs::fallocate(&self.file, Flags::PUNCH_HOLE | Flags::KEEP_SIZE, offset, PAGE_BYTES as u64)
    }

    #[cfg(not(target_os = "linux"))]
    fn punch(&self, _offset: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    /// The first page from `at` on that the file has memory for.
    #[cfg(target_os = "linux")]
    fn next_data(&self, at: u64) -> u64 {
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(at)) {
            Ok(found) => found & !(PAGE_BYTES as u64 - 1),
            Err(rustix::io::Errno::NXIO) => self.len as u64,
            Err(_) => at,
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn next_data(&self, at: u64) -> u64 {
        at
    }

    /// The aligned 8 bytes that lie whole in a range, and the number of bytes before them.
    fn words(&self, offset: u64, len: usize) -> (usize, &[AtomicU64]) {
        let start = self.at(offset, len);
        let before = (offset.wrapping_neg() & 7) as usize;
        let count = len.saturating_sub(before) / 8;
        if count == 0 {
            return (len, &[]);
        }
        // SAFETY: `at` has checked the whole range, the first word is aligned as the mapping is, and guest memory is only
        // ever accessed by atomics.
        let words = unsafe { std::slice::from_raw_parts(start.add(before).cast::<AtomicU64>(), count) };
        (before, words)
    }

    /// Copies bytes out, aligned 8 at a time.
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        let (before, words) = self.words(offset, buf.len());
        let (first, rest) = buf.split_at_mut(before);
        let (middle, last) = rest.split_at_mut(8 * words.len());
        for (eight, word) in middle.chunks_exact_mut(8).zip(words) {
            eight.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        let behind = offset + (before + 8 * words.len()) as u64;
        for (at, bytes) in [(offset, first), (behind, last)] {
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte = self.load::<u8>(at + i as u64);
            }
        }
    }

    /// Which of the 64 lines of a page, of 64 bytes each, hold a word of 8 bytes whose lowest bit is set.
    pub fn odd_lines(&self, page: u64) -> u64 {
        let start = self.at(page & !(super::PAGE - 1), PAGE_BYTES);
        let mut lines = 0;
        for line in 0..64 {
            lines |= u64::from(Self::is_odd_line(start, line)) << line;
        }
        lines
    }

    /// Four vectors together: most lines of a page table are empty, and looking at words one by one takes five times as long.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn is_odd_line(page: *mut u8, line: usize) -> bool {
        let odd: u32;
        // SAFETY: the line is inside the page, which the caller has checked and which is aligned as the mapping is. The
        // loads are not bound to Rust's rules on who else may write meanwhile; what they find is a hint where to look.
        unsafe {
            std::arch::asm!(
                "movdqa {a}, [{at}]", "movdqa {b}, [{at} + 16]",
                "por {a}, [{at} + 32]", "por {b}, [{at} + 48]",
                "por {a}, {b}", "psllq {a}, 63", "movmskpd {odd:e}, {a}",
                at = in(reg) page.add(64 * line), a = out(xmm_reg) _, b = out(xmm_reg) _, odd = out(reg) odd,
                options(nostack, pure, readonly, preserves_flags)
            );
        }
        odd != 0
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_odd_line(page: *mut u8, line: usize) -> bool {
        // SAFETY: as above; guest memory is only ever accessed by atomics.
        let words = unsafe { std::slice::from_raw_parts(page.add(64 * line).cast::<AtomicU64>(), 8) };
        words.iter().fold(0, |all, word| all | word.load(Ordering::Relaxed)) & u64::to_le(1) != 0
    }

    /// Copies bytes in, aligned 8 at a time.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let (before, words) = self.words(offset, bytes.len());
        let (first, rest) = bytes.split_at(before);
        let (middle, last) = rest.split_at(8 * words.len());
        for (eight, word) in middle.chunks_exact(8).zip(words) {
            let eight = eight.try_into().unwrap_or_default();
            word.store(u64::from_ne_bytes(eight), Ordering::Relaxed);
        }
        let behind = offset + (before + 8 * words.len()) as u64;
        for (at, bytes) in [(offset, first), (behind, last)] {
            for (i, byte) in bytes.iter().enumerate() {
                self.store(at + i as u64, *byte);
            }
        }
    }

    /// Fills a range with one byte.
    pub fn fill(&self, offset: u64, len: usize, byte: u8) {
        self.fill_words::<u8>(offset, len, byte);
    }

    /// Copies `count` elements upwards, one after the other, as REP MOVS does: where the ranges overlap, what was written
    /// is read again.
    pub fn copy_words<T: Word>(&self, from: u64, to: u64, count: usize) {
        let (source, target) = (self.at(from, count * T::SIZE), self.at(to, count * T::SIZE));
        #[cfg(target_arch = "x86_64")]
        // SAFETY: both ranges are inside the mapping; the instruction is not bound to Rust's rules on who else may access
        // the bytes meanwhile, and gives each element in whole.
        unsafe {
            match T::SIZE {
                1 => std::arch::asm!("rep movsb", inout("rcx") count => _, inout("rsi") source => _,
                    inout("rdi") target => _, options(nostack, preserves_flags)),
                2 => std::arch::asm!("rep movsw", inout("rcx") count => _, inout("rsi") source => _,
                    inout("rdi") target => _, options(nostack, preserves_flags)),
                4 => std::arch::asm!("rep movsd", inout("rcx") count => _, inout("rsi") source => _,
                    inout("rdi") target => _, options(nostack, preserves_flags)),
                _ => std::arch::asm!("rep movsq", inout("rcx") count => _, inout("rsi") source => _,
                    inout("rdi") target => _, options(nostack, preserves_flags)),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (source, target);
            for i in 0..count as u64 {
                let value: T = self.load(from + i * T::SIZE as u64);
                self.store(to + i * T::SIZE as u64, value);
            }
        }
    }

    /// Fills `count` elements with one value.
    pub fn fill_words<T: Word>(&self, offset: u64, count: usize, value: T) {
        let target = self.at(offset, count * T::SIZE);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as in `copy_words`.
        unsafe {
            let value = value.to_u64();
            match T::SIZE {
                1 => {
                    std::arch::asm!("rep stosb", inout("rcx") count => _, inout("rdi") target => _, in("rax") value,
                    options(nostack, preserves_flags))
                }
                2 => {
                    std::arch::asm!("rep stosw", inout("rcx") count => _, inout("rdi") target => _, in("rax") value,
                    options(nostack, preserves_flags))
                }
                4 => {
                    std::arch::asm!("rep stosd", inout("rcx") count => _, inout("rdi") target => _, in("rax") value,
                    options(nostack, preserves_flags))
                }
                _ => {
                    std::arch::asm!("rep stosq", inout("rcx") count => _, inout("rdi") target => _, in("rax") value,
                    options(nostack, preserves_flags))
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = target;
            for i in 0..count as u64 {
                self.store(offset + i * T::SIZE as u64, value);
            }
        }
    }
}
