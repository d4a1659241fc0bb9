//! Loads, stores and read-modify-writes at linear addresses.
//!
//! The common case is one probe of the inline TLB and one access to RAM. Everything else (a miss, a page that holds
//! cached code, device memory, an access across pages) goes through [`Place`], which is found out of line.

use trapgate_x86::exception::Vector;
use trapgate_x86::features::Features;
use trapgate_x86::insn::Seg;
use trapgate_x86::regs::{cr0, cr3, cr4, rflags};

use super::walk;
use crate::fault::{Done, Exception, Stop};
use crate::hooks::HookKind;
use crate::memory::{PAGE, Word};
use crate::monitor::TableStore;
use crate::state::{Flags, Vcpu};

/// Where a byte of linear memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// RAM, at an offset of the host mapping; the page may hold cached code.
    Ram(u64),
    /// Read-only memory: writes are dropped.
    Rom(u64),
    /// Device memory, at a guest-physical address.
    Device(u64),
    /// A page table of a para-virtual guest, at a guest-physical address: stores are its monitor's to make.
    Table(u64),
}

/// What an access is for, as far as it changes the privilege it is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    Read,
    Write,
    Fetch,
    /// The processor's own access to descriptor tables and the TSS: supervisor, whatever the CPL (SDM vol. 3, 4.6.1).
    SystemRead,
    SystemWrite,
}

impl Intent {
    pub(super) fn writes(self) -> bool {
        matches!(self, Intent::Write | Intent::SystemWrite)
    }
}

/// The first bytes of a longer value, as the number that a hook is given.
fn low_bytes(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Whether bits 63 to 47 are all equal.
#[inline(always)]
pub fn canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

impl Vcpu {
    /// Loads from a linear address; `seg` tells a stack fault from a general one.
    #[inline(always)]
    pub fn load<T: Word>(&mut self, seg: Seg, linear: u64) -> Done<T> {
        let entry = self.tlb.entry(linear, self.user_view);
        if entry.read == linear & !0xfff && (linear & 0xfff) as usize <= 4096 - T::SIZE {
            let host = entry.host + (linear & 0xfff);
            return Ok(self.memory.load(host));
        }
        self.load_slow(seg, linear)
    }

    /// Stores to a linear address.
    #[inline(always)]
    pub fn store<T: Word>(&mut self, seg: Seg, linear: u64, value: T) -> Done {
        let entry = self.tlb.entry(linear, self.user_view);
        if entry.write == linear & !0xfff && (linear & 0xfff) as usize <= 4096 - T::SIZE {
            let host = entry.host + (linear & 0xfff);
            self.memory.store_plain(host, value);
            return Ok(());
        }
        self.store_slow(seg, linear, value)
    }

    /// Reads, changes and writes back; write permission is checked before the read. With `lock` the update is a host
    /// atomic. `change` may run more than once and gets the flags as they were each time.
    #[inline(always)]
    pub fn modify<T: Word>(
        &mut self,
        seg: Seg,
        linear: u64,
        lock: bool,
        change: impl Fn(&mut Flags, T) -> T,
    ) -> Done {
        let entry = self.tlb.entry(linear, self.user_view);
        if !lock && entry.write == linear & !0xfff && (linear & 0xfff) as usize <= 4096 - T::SIZE {
            let host = entry.host + (linear & 0xfff);
            let old = self.memory.load(host);
            self.memory.store_plain(host, change(&mut self.flags, old));
            return Ok(());
        }
        self.modify_slow(seg, linear, lock, change)
    }

    #[inline(never)]
    fn modify_slow<T: Word>(
        &mut self,
        seg: Seg,
        linear: u64,
        lock: bool,
        change: impl Fn(&mut Flags, T) -> T,
    ) -> Done {
        self.check_alignment(linear, T::SIZE)?;
        let inside = (linear & 0xfff) as usize <= 4096 - T::SIZE;
        if self.is_para()
            && inside
            && let Place::Table(gpa) = self.place(seg, linear, Intent::Write, T::SIZE as u64)?
        {
            return self.modify_table(linear, gpa, change);
        }
        if lock
            && inside
            && let Place::Ram(host) = self.place(seg, linear, Intent::Write, T::SIZE as u64)?
        {
            let before = self.flags;
            let mut old: T = self.memory.load(host);
            let new_value = loop {
                self.flags = before;
                let new = change(&mut self.flags, old);
                match self.memory.compare_exchange(host, old, new) {
                    Ok(_) => break new,
                    Err(seen) => old = seen,
                }
            };
            self.after_write(host, T::SIZE);
            self.note_access(linear, T::SIZE as u64, Some(old.to_u64()), None);
            self.note_access(linear, T::SIZE as u64, None, Some(new_value.to_u64()));
            return Ok(());
        }
        // Both pages are checked for the write before anything is read.
        self.check_range(seg, linear, T::SIZE as u64, Intent::Write)?;
        let old = self.load_slow(seg, linear)?;
        let before = self.flags;
        let new = change(&mut self.flags, old);
        let done = self.store_slow(seg, linear, new);
        if done.is_err() {
            self.flags = before;
        }
        done
    }

    #[inline(never)]
    fn load_slow<T: Word>(&mut self, seg: Seg, linear: u64) -> Done<T> {
        self.check_alignment(linear, T::SIZE)?;
        let value: T = self.load_as(seg, linear, Intent::Read)?;
        self.note_access(linear, T::SIZE as u64, Some(value.to_u64()), None);
        Ok(value)
    }

    #[inline(never)]
    fn store_slow<T: Word>(&mut self, seg: Seg, linear: u64, value: T) -> Done {
        self.check_alignment(linear, T::SIZE)?;
        self.store_as(seg, linear, value, Intent::Write)?;
        self.note_access(linear, T::SIZE as u64, None, Some(value.to_u64()));
        Ok(())
    }

    /// Where a linear address lies if the inline TLB says so: the processor's own accesses have the supervisor's view, but
    /// never the licence that EFLAGS.AC gives.
    #[inline(always)]
    fn known(&self, linear: u64, intent: Intent) -> Option<u64> {
        let system = matches!(intent, Intent::SystemRead | Intent::SystemWrite);
        if system && self.flags.is_set(rflags::AC) || intent == Intent::Fetch {
            return None;
        }
        let entry = self.tlb.entry(linear, self.user_view && !system);
        let tag = if intent.writes() { entry.write } else { entry.read };
        (tag == linear & !0xfff).then_some(entry.host + (linear & 0xfff))
    }

    /// Loads with a given intent, wherever it lies.
    pub fn load_as<T: Word>(&mut self, seg: Seg, linear: u64, intent: Intent) -> Done<T> {
        let size = T::SIZE as u64;
        if (linear & 0xfff) + size <= PAGE {
            if let Some(host) = self.known(linear, intent) {
                return Ok(self.memory.load(host));
            }
            let place = self.place(seg, linear, intent, size)?;
            return Ok(self.load_at(place));
        }
        self.check_range(seg, linear, size, intent)?;
        let mut value = 0;
        for i in 0..size {
            let place = self.place(seg, linear.wrapping_add(i), intent, 1)?;
            let byte: u8 = self.load_at(place);
            value |= u64::from(byte) << (8 * i);
        }
        Ok(T::from_u64(value))
    }

    /// Stores with a given intent, wherever it lies; both pages are checked before either is written.
    pub fn store_as<T: Word>(&mut self, seg: Seg, linear: u64, value: T, intent: Intent) -> Done {
        let size = T::SIZE as u64;
        if (linear & 0xfff) + size <= PAGE {
            if let Some(host) = self.known(linear, intent) {
                self.memory.store_plain(host, value);
                return Ok(());
            }
            return match self.place(seg, linear, intent, size)? {
                Place::Table(gpa) => self.store_table(
                    linear,
                    TableStore { gpa, size: T::SIZE as u8, old: None, new: value.to_u64() },
                ),
                place => {
                    self.store_at(place, value);
                    Ok(())
                }
            };
        }
        self.check_range(seg, linear, size, intent)?;
        for i in 0..size {
            let at = linear.wrapping_add(i);
            match self.place(seg, at, intent, 1)? {
                Place::Table(_) => return self.refuse_table(at),
                place => self.store_at(place, (value.to_u64() >> (8 * i)) as u8),
            }
        }
        Ok(())
    }

    fn load_at<T: Word>(&mut self, place: Place) -> T {
        match place {
            Place::Ram(host) | Place::Rom(host) => self.memory.load(host),
            Place::Table(gpa) => self
                .memory
                .page(gpa)
                .map_or(T::from_u64(u64::MAX), |page| self.memory.load(page.offset + gpa % PAGE)),
            Place::Device(gpa) => {
                self.recheck();
                self.departures.device_memory += 1;
                let count = self.count_now();
                T::from_u64(self.platform.mmio_read(count, gpa, T::SIZE as u8))
            }
        }
    }

    fn store_at<T: Word>(&mut self, place: Place, value: T) {
        match place {
            Place::Ram(host) => {
                self.memory.store(host, value);
                self.after_write(host, T::SIZE);
            }
            Place::Rom(_) | Place::Table(_) => {}
            Place::Device(gpa) => {
                self.recheck();
                self.departures.device_memory += 1;
                let count = self.count_now();
                self.platform.mmio_write(count, gpa, T::SIZE as u8, value.to_u64());
            }
        }
    }

    /// After a store of so many bytes by the slow way: code of the page may have been running, and it may hold a page table
    /// with a shadow.
    pub(crate) fn after_write(&mut self, host: u64, len: usize) {
        self.follow_store(host, len);
        if self.running_pages.contains(&(host & !0xfff)) {
            self.end_block();
        }
    }

    /// Checks every page of a range for an access, without making it.
    pub fn check_range(&mut self, seg: Seg, linear: u64, size: u64, intent: Intent) -> Done {
        let last = linear.wrapping_add(size - 1);
        // That an operand runs out of the canonical addresses is found before any page of it.
        let first = if self.mode.long && !canonical(last) { last } else { linear };
        self.place(seg, first, intent, 1)?;
        if last & !0xfff != linear & !0xfff {
            // The address reported is that of the first byte that faults.
            self.place(seg, last & !0xfff, intent, 1)?;
        }
        Ok(())
    }

    /// #AC for a misaligned access at CPL 3 with CR0.AM and EFLAGS.AC (SDM vol. 3, 6.15, interrupt 17).
    pub(crate) fn check_alignment(&mut self, linear: u64, size: usize) -> Done {
        if self.alignment_checks() && linear & (size as u64 - 1) != 0 {
            return self.raise(Exception::with_error(Vector::Ac, 0));
        }
        Ok(())
    }

    /// Whether a memory hook covers some of a page.
    pub(super) fn page_is_hooked(&self, linear: u64) -> bool {
        let (first, last) = (linear & !0xfff, linear | 0xfff);
        self.hooks.memory
            && (self.hooks.covers(HookKind::MemRead, first, last)
                || self.hooks.covers(HookKind::MemWrite, first, last))
    }

    /// Tells data breakpoints and memory hooks of an access that was made.
    #[inline(always)]
    fn note_access(&mut self, linear: u64, size: u64, read: Option<u64>, written: Option<u64>) {
        self.data_breakpoint(linear, size, written.is_some());
        if self.hooks.memory {
            if let Some(value) = read {
                self.hook_hit(HookKind::MemRead, linear, size, value);
            }
            if let Some(value) = written {
                self.hook_hit(HookKind::MemWrite, linear, size, value);
            }
        }
    }

    pub(crate) fn alignment_checks(&self) -> bool {
        self.cr0 & cr0::AM != 0 && self.cpl == 3 && self.flags.is_set(rflags::AC)
    }

    /// Reads bytes by the slow way, for operands wider than a word.
    pub fn load_bytes(&mut self, seg: Seg, linear: u64, buf: &mut [u8]) -> Done {
        if buf.is_empty() {
            return Ok(());
        }
        self.check_range(seg, linear, buf.len() as u64, Intent::Read)?;
        self.note_access(linear, buf.len() as u64, Some(0), None);
        let mut done = 0;
        while done < buf.len() {
            let at = linear.wrapping_add(done as u64);
            let n = ((PAGE - at % PAGE) as usize).min(buf.len() - done);
            match self.place(seg, at, Intent::Read, n as u64)? {
                Place::Ram(host) | Place::Rom(host) => self.memory.read_host(host, &mut buf[done..done + n]),
                place @ (Place::Device(_) | Place::Table(_)) => {
                    self.device_bytes(place, &mut buf[done..done + n])
                }
            }
            done += n;
        }
        Ok(())
    }

    fn device_bytes(&mut self, place: Place, buf: &mut [u8]) {
        let Place::Device(gpa) = place else { return };
        for (i, chunk) in buf.chunks_mut(8).enumerate() {
            if chunk.len() == 8 {
                let value: u64 = self.load_at(Place::Device(gpa + 8 * i as u64));
                chunk.copy_from_slice(&value.to_le_bytes());
            } else {
                for (j, byte) in chunk.iter_mut().enumerate() {
                    *byte = self.load_at(Place::Device(gpa + 8 * i as u64 + j as u64));
                }
            }
        }
    }

    /// Writes bytes by the slow way; every page is checked before any is written.
    pub fn store_bytes(&mut self, seg: Seg, linear: u64, bytes: &[u8]) -> Done {
        if bytes.is_empty() {
            return Ok(());
        }
        self.check_range(seg, linear, bytes.len() as u64, Intent::Write)?;
        self.note_access(linear, bytes.len() as u64, None, Some(low_bytes(bytes)));
        let mut done = 0;
        while done < bytes.len() {
            let at = linear.wrapping_add(done as u64);
            let n = ((PAGE - at % PAGE) as usize).min(bytes.len() - done);
            let piece = &bytes[done..done + n];
            match self.place(seg, at, Intent::Write, n as u64)? {
                Place::Ram(host) => {
                    self.memory.write_host(host, piece);
                    self.after_write(host, piece.len());
                }
                Place::Rom(_) => {}
                Place::Table(_) => return self.refuse_table(at),
                Place::Device(gpa) => {
                    for (i, chunk) in piece.chunks(8).enumerate() {
                        if let Ok(eight) = <[u8; 8]>::try_from(chunk) {
                            self.store_at(Place::Device(gpa + 8 * i as u64), u64::from_le_bytes(eight));
                        } else {
                            for (j, byte) in chunk.iter().enumerate() {
                                self.store_at(Place::Device(gpa + 8 * i as u64 + j as u64), *byte);
                            }
                        }
                    }
                }
            }
            done += n;
        }
        Ok(())
    }

    /// Marks a page as holding code and gives its counter; a first mark takes the write right from cached translations.
    pub(crate) fn watch_code(&mut self, host: u64) -> u32 {
        let (state, fresh) = self.memory.watch_code(host);
        if fresh {
            self.tlb.protect_host(host & !(PAGE - 1));
        }
        state
    }

    /// Drops what is cached of one linear page, as INVLPG does.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        self.shadow_tables.flush_page(linear);
        self.tlb.flush_page(linear);
    }

    /// The process-context identifier in CR3; 0 while CR4.PCIDE is clear.
    pub(crate) fn pcid(&self) -> u16 {
        if self.cr4 & cr4::PCIDE != 0 { (self.cr3 & cr3::PCID) as u16 } else { 0 }
    }

    /// The registers that translation depends on.
    pub fn paging(&self) -> walk::Paging {
        walk::Paging {
            cr0: self.cr0,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            pdptes: self.pdptes,
            physical_bits: self.model.physical_bits,
            gigabyte_pages: self.features().contains(Features::PDPE1GB),
            direct: self.is_para(),
        }
    }

    /// Whether cached translations may differ with EFLAGS.AC: then a change of AC flushes.
    pub(crate) fn ac_matters(&self) -> bool {
        self.cr4 & cr4::SMAP != 0 || self.cr0 & cr0::AM != 0
    }

    /// Leaves the exception for delivery and gives the reason to stop.
    #[cold]
    pub fn raise<T>(&mut self, exception: Exception) -> Done<T> {
        self.fault = Some(exception);
        Err(Stop::Fault)
    }
}
