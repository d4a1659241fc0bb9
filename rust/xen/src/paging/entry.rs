//! Page-table entries: their bits, and which of them a guest may set.
//!
//! A domain without devices has no say in cache attributes and no superpages (xen/arch/x86/mm.c keeps the masks;
//! layout: SDM vol. 3, 5.5). What is not listed as refused here is the guest's to use, and entries stay as it wrote them.

pub(super) use trapgate_engine::mmu::access::canonical;

/// Entries of a table.
pub(super) const ENTRIES: u64 = 512;

pub(super) const PRESENT: u64 = 1 << 0;
pub(super) const WRITABLE: u64 = 1 << 1;
pub(super) const WRITE_THROUGH: u64 = 1 << 3;
pub(super) const CACHE_DISABLE: u64 = 1 << 4;
pub(super) const ACCESSED: u64 = 1 << 5;
pub(super) const DIRTY: u64 = 1 << 6;
/// PAT in an L1 entry, page size above.
pub(super) const PAT_OR_SIZE: u64 = 1 << 7;
pub(super) const GLOBAL: u64 = 1 << 8;
pub(super) const NO_EXECUTE: u64 = 1 << 63;
pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const REFUSED_IN_L1: u64 = WRITE_THROUGH | CACHE_DISABLE | PAT_OR_SIZE;
const REFUSED_ABOVE: u64 = REFUSED_IN_L1 | GLOBAL;

/// L4 slots of the hypervisor's own space, 0xffff_8000_0000_0000 to 0xffff_87ff_ffff_ffff
/// (xen/include/public/arch-x86/xen-x86_64.h): neither checked nor followed nor written.
pub(super) const RESERVED_L4: std::ops::RangeInclusive<u64> = 256..=271;

/// The value of one entry, at whichever level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry(pub u64);

impl Entry {
    #[inline(always)]
    pub fn present(self) -> bool {
        self.0 & PRESENT != 0
    }

    #[inline(always)]
    pub fn writable(self) -> bool {
        self.0 & WRITABLE != 0
    }

    #[inline(always)]
    pub fn mfn(self) -> u64 {
        (self.0 & ADDRESS) >> 12
    }

    /// Whether the guest may have these flags in an entry of an L1.
    #[inline(always)]
    pub fn flags_fit_l1(self) -> bool {
        self.0 & REFUSED_IN_L1 == 0
    }

    /// Whether the guest may have these flags in an entry of an L2, L3 or L4.
    #[inline(always)]
    pub fn flags_fit_above(self) -> bool {
        self.0 & REFUSED_ABOVE == 0
    }

    /// Whether both are present L1 entries that hold the same references: everything else about them may differ.
    #[inline(always)]
    pub fn same_l1_hold(self, other: Entry) -> bool {
        (self.0 ^ other.0) & (PRESENT | WRITABLE | ADDRESS) == 0 && self.present()
    }

    /// Whether both are present entries of an L2, L3 or L4 that hold the same table. RW may differ: it gives no right
    /// to the table itself, as no table is ever reached as data through a table above it.
    #[inline(always)]
    pub fn same_table(self, other: Entry) -> bool {
        (self.0 ^ other.0) & (PRESENT | ADDRESS) == 0 && self.present()
    }

    /// Whether translations made through this entry may allow what they should not, or lead elsewhere, once it is `new`. One
    /// that allows less than it might heals by a walk.
    #[inline(always)]
    pub fn outdated_by(self, new: Entry) -> bool {
        self.present()
            && ((self.0 ^ new.0) & (PRESENT | ADDRESS) != 0
                || self.0 & !new.0 & WRITABLE != 0
                || new.0 & !self.0 & NO_EXECUTE != 0)
    }

    /// Whether a present entry becomes `new` with flags cleared that a walk is to set again.
    #[inline(always)]
    pub fn unmarked_by(self, new: Entry) -> bool {
        self.present() && self.0 & !new.0 & (ACCESSED | DIRTY) != 0
    }

    /// Whether all that the entry loses with `new` is the right to write.
    #[inline(always)]
    pub fn only_protected_by(self, new: Entry) -> bool {
        self.outdated_by(new)
            && (self.0 ^ new.0) & (PRESENT | ADDRESS) == 0
            && new.0 & !self.0 & NO_EXECUTE == 0
    }
}

/// Index of the entry that translates a linear address in the table of a level.
pub(super) fn index(va: u64, level: u8) -> u64 {
    (va >> (12 + 9 * (u32::from(level) - 1))) & (ENTRIES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_of_a_domain_without_devices() {
        let free = (0x7ff << 52) | NO_EXECUTE | (7 << 9) | DIRTY | ACCESSED | 4 | WRITABLE | PRESENT;
        assert!(Entry(free | GLOBAL | ADDRESS).flags_fit_l1());
        assert!(Entry(free | ADDRESS).flags_fit_above());
        for bit in [3, 4, 7] {
            assert!(!Entry(1 | 1 << bit).flags_fit_l1());
            assert!(!Entry(1 | 1 << bit).flags_fit_above());
        }
        assert!(!Entry(1 | GLOBAL).flags_fit_above());
    }

    #[test]
    fn addresses_are_taken_apart() {
        assert_eq!(index(0xffff_8000_0000_0000, 4), 256);
        assert_eq!(index(0xffff_ffff_8123_4567, 3), 510);
        assert_eq!(index(0x0000_0000_0123_4567, 1), 0x34);
        assert!(canonical(0xffff_8000_0000_0000) && canonical(0x7fff_ffff_ffff));
        assert!(!canonical(0x8000_0000_0000) && !canonical(0xffff_7fff_ffff_ffff));
    }
}
