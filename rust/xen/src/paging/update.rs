//! Changes of single entries: `mmu_update`, `update_va_mapping`, and stores to tables that trapped.
//!
//! New references are taken before the entry changes and old ones dropped after, so a failed call changes nothing.
//! Entries are exchanged atomically, because page walks set accessed and dirty meanwhile.

use trapgate_engine::memory::PAGE;

use super::entry::{ACCESSED, DIRTY, ENTRIES, Entry, RESERVED_L4, canonical, index};
use super::{DirectPaging, FrameType, Mfn, TlbControl};
use crate::Errno;

/// Commands in the low bits of an update's pointer (xen/include/public/xen.h).
const COMMAND: u64 = 7;
const MMU_NORMAL_PT_UPDATE: u64 = 0;
const MMU_MACHPHYS_UPDATE: u64 = 1;
const MMU_PT_UPDATE_PRESERVE_AD: u64 = 2;
const MMU_PT_UPDATE_NO_TRANSLATE: u64 = 3;

impl DirectPaging {
    /// One element of `mmu_update`: `ptr` is a machine address with the command in its low bits.
    pub fn mmu_update(&mut self, tlb: &mut dyn TlbControl, ptr: u64, val: u64) -> Result<(), Errno> {
        match ptr & COMMAND {
            MMU_NORMAL_PT_UPDATE | MMU_PT_UPDATE_NO_TRANSLATE => {
                self.normal_update(tlb, ptr & !COMMAND, val, false)
            }
            MMU_PT_UPDATE_PRESERVE_AD => self.normal_update(tlb, ptr & !COMMAND, val, true),
            MMU_MACHPHYS_UPDATE => self.machphys_update(ptr >> 12, val),
            _ => Err(Errno::NoSys),
        }
    }

    fn normal_update(
        &mut self,
        tlb: &mut dyn TlbControl,
        maddr: u64,
        val: u64,
        preserve: bool,
    ) -> Result<(), Errno> {
        let slot = self.frames.owned_slot(maddr >> 12).ok_or(Errno::Inval)?;
        let host = self.frames.host(slot) + maddr % PAGE;
        match self.frames[slot].live() {
            Some(FrameType::L1) => {
                self.replace_l1(tlb, host, |old| Some(if preserve { with_ad(val, old) } else { val }))?;
            }
            Some(table) if table.level().is_some() => {
                if table == FrameType::L4 && RESERVED_L4.contains(&(maddr / 8 % ENTRIES)) {
                    return Err(Errno::Inval);
                }
                self.replace_above(tlb, host, table.level().unwrap_or(4), val, preserve)?;
            }
            _ => {
                self.let_write(slot)?;
                self.memory.store::<u64>(host, val);
            }
        }
        Ok(())
    }

    /// `update_va_mapping` without its flush, which is the caller's after success.
    pub fn update_va_mapping(
        &mut self,
        tlb: &mut dyn TlbControl,
        vcpu: usize,
        va: u64,
        pte: u64,
    ) -> Result<(), Errno> {
        let host = self.l1_entry_of(vcpu, va).ok_or(Errno::Inval)?;
        self.replace_l1(tlb, host, |_| Some(pte)).map(drop)
    }

    /// A store of 1, 2, 4 or 8 bytes to an entry of a table typed L1 (writable page tables). `old`: for
    /// read-modify-write and exchange the value (of that size) that must still be there; None for a plain store.
    /// Ok(false): somebody changed the entry, so it is to be read again. An error means that the guest gets the page
    /// fault.
    pub fn trapped_store(
        &mut self,
        tlb: &mut dyn TlbControl,
        maddr: u64,
        size: u8,
        old: Option<u64>,
        new: u64,
    ) -> Result<bool, Errno> {
        if !matches!(size, 1 | 2 | 4 | 8) || maddr % u64::from(size) != 0 {
            return Err(Errno::Inval);
        }
        let slot = self.frames.slot(maddr >> 12).ok_or(Errno::Inval)?;
        if self.frames[slot].live() != Some(FrameType::L1) {
            return Err(Errno::Inval);
        }
        let host = self.frames.host(slot) + maddr % PAGE / 8 * 8;
        let shift = maddr % 8 * 8;
        let mask = (u64::MAX >> (64 - u64::from(size) * 8)) << shift;
        let (old, new) = (old.map(|old| (old << shift) & mask), (new << shift) & mask);
        self.replace_l1(tlb, host, |word| match old {
            Some(old) if word & mask != old => None,
            _ => Some((word & !mask) | new),
        })
    }

    /// Puts what `make` makes of it into an entry of a live L1, if that may be there; false if `make` does not want to.
    #[inline]
    fn replace_l1(
        &mut self,
        tlb: &mut dyn TlbControl,
        host: u64,
        make: impl Fn(u64) -> Option<u64>,
    ) -> Result<bool, Errno> {
        loop {
            let old = Entry(self.memory.load(host));
            let Some(new) = make(old.0).map(Entry) else { return Ok(false) };
            let moves = !new.same_l1_hold(old);
            if new.present() {
                if moves {
                    self.take_l1(new)?;
                } else if !new.flags_fit_l1() {
                    return Err(Errno::Inval);
                }
            }
            if self.memory.compare_exchange(host, old.0, new.0).is_ok() {
                self.tell_of_l1(tlb, host, old, new);
                if moves && old.present() {
                    self.drop_l1(tlb, old);
                }
                return Ok(true);
            }
            // A walk has set a bit meanwhile, which it does at most twice an entry.
            if moves && new.present() {
                self.drop_l1(tlb, new);
            }
        }
    }

    /// Says what an L1 entry that has changed means for cached translations. A page that is made read-only to become a
    /// page table loses the right at once, so that nothing is left for a flush to do.
    #[inline]
    fn tell_of_l1(&self, tlb: &mut dyn TlbControl, host: u64, old: Entry, new: Entry) {
        let unmarked = old.unmarked_by(new);
        if !old.outdated_by(new) && !unmarked {
            return;
        }
        let Some(maddr) = self.memory.address_of(host) else { return };
        if old.only_protected_by(new)
            && !unmarked
            && let Some(slot) = self.frames.slot(old.mfn())
        {
            tlb.table_protected(maddr, self.frames.host(slot));
        } else {
            tlb.table_changed(maddr);
        }
    }

    /// The same for an entry of a live table of level 2 to 4. Unlike an L1's, this is a change that a guest does not
    /// flush for itself, as Xen does it.
    fn replace_above(
        &mut self,
        tlb: &mut dyn TlbControl,
        host: u64,
        level: u8,
        val: u64,
        preserve: bool,
    ) -> Result<(), Errno> {
        loop {
            let old = Entry(self.memory.load(host));
            let new = Entry(if preserve { with_ad(val, old.0) } else { val });
            let moves = !new.same_table(old);
            if new.present() {
                if moves {
                    self.take_above(tlb, new, level)?;
                } else if !new.flags_fit_above() {
                    return Err(Errno::Inval);
                }
            }
            if self.memory.compare_exchange(host, old.0, new.0).is_ok() {
                let upper = level == 4 && host % PAGE / 8 >= ENTRIES / 2;
                if upper {
                    self.alike.clear();
                }
                if old.outdated_by(new) {
                    // Translations of the upper half may have come by the same entry of another root.
                    if upper {
                        tlb.upper_half_changed();
                    } else {
                        self.memory.address_of(host).into_iter().for_each(|maddr| tlb.table_changed(maddr));
                        tlb.flush_all();
                    }
                } else if old.unmarked_by(new) {
                    self.memory.address_of(host).into_iter().for_each(|maddr| tlb.table_changed(maddr));
                }
                if moves && old.present() {
                    self.drop_above(tlb, old);
                }
                return Ok(());
            }
            if moves && new.present() {
                self.drop_above(tlb, new);
            }
        }
    }

    /// The host offset of the L1 entry for a linear address, by the kernel's root. Each table is looked at where it
    /// lies, never through the guest's own translations, and must be of its level now.
    fn l1_entry_of(&self, vcpu: usize, va: u64) -> Option<u64> {
        if !canonical(va) || RESERVED_L4.contains(&index(va, 4)) {
            return None;
        }
        let mut slot = self.vcpus.get(vcpu)?.kernel?;
        for level in [4, 3, 2] {
            if self.frames[slot].live() != FrameType::table(level) {
                return None;
            }
            let entry = Entry(self.memory.load(self.frames.host(slot) + index(va, level) * 8));
            slot = self.frames.slot(entry.mfn()).filter(|_| entry.present())?;
        }
        (self.frames[slot].live() == Some(FrameType::L1)).then(|| self.frames.host(slot) + index(va, 1) * 8)
    }

    /// Allows a store by the monitor for the guest to a frame that is no table and holds no descriptors in use.
    pub(super) fn let_write(&mut self, slot: usize) -> Result<(), Errno> {
        let frame = &mut self.frames[slot];
        match (frame.live(), frame.label()) {
            (None | Some(FrameType::Writable), FrameType::Writable) => Ok(()),
            // Nothing that an earlier type has checked is trusted: descriptors will be looked at again, and tables always
            // are. It has no writable translation, so it need not be called writable.
            (None, _) => {
                frame.set_label(FrameType::None);
                Ok(())
            }
            _ => Err(Errno::Inval),
        }
    }

    /// MMUEXT_CLEAR_PAGE.
    pub fn clear_page(&mut self, mfn: Mfn) -> Result<(), Errno> {
        let slot = self.frames.owned_slot(mfn.0).ok_or(Errno::Inval)?;
        self.let_write(slot)?;
        self.memory.fill_host(self.frames.host(slot), PAGE as usize, 0);
        Ok(())
    }

    /// MMUEXT_COPY_PAGE.
    pub fn copy_page(&mut self, to: Mfn, from: Mfn) -> Result<(), Errno> {
        let source = self.frames.owned_slot(from.0).ok_or(Errno::Inval)?;
        let target = self.frames.owned_slot(to.0).ok_or(Errno::Inval)?;
        self.let_write(target)?;
        let (source, target) = (self.frames.host(source), self.frames.host(target));
        self.memory.copy_host::<u64>(source, target, ENTRIES as usize);
        Ok(())
    }
}

/// `val` with the bits that walks set in `old`.
fn with_ad(val: u64, old: u64) -> u64 {
    val | (old & (ACCESSED | DIRTY))
}
