//! Translations of a para-virtual guest that outlive a change of its address space: they must not outlive a change of the
//! page tables that they came from, whichever root that goes by.

mod common;

use common::para_machine;
use trapgate_machine::Machine;

const BASE: u64 = 0xffff_ffff_8000_0000;
const PAGE: u64 = 4096;
/// An address of the upper half that the first mapping says nothing of.
const ELSEWHERE: u64 = 0xffff_9600_0000_0000;
const SLOT: u64 = 300;
/// An address of the lower half, which each root has for itself.
const LOWER: u64 = 3 << 39;
const LOWER_SLOT: u64 = 3;
/// Where arguments of calls are.
const ARGUMENTS: u64 = BASE + 0x200 * PAGE;

const MMU_UPDATE: u32 = 1;
const UPDATE_VA_MAPPING: u32 = 14;
const MMUEXT_OP: u32 = 26;
const PIN_ROOT: u64 = 3;
const UNPIN: u64 = 4;
const NEW_BASEPTR: u64 = 5;
const NEW_USER_BASEPTR: u64 = 15;
const SELF: u64 = 0x7ff0;

struct Guest {
    machine: Machine,
    first: u64,
}

impl Guest {
    fn new() -> Self {
        let machine = para_machine(&[0xeb, 0xfe]);
        let first = machine.domain().unwrap().layout.ram.start;
        Guest { machine, first }
    }

    fn call(&mut self, number: u32, args: [u64; 5]) -> u64 {
        self.machine.native_hypercall(number, args).unwrap().unwrap()
    }

    fn load(&mut self, va: u64) -> Option<u64> {
        self.machine.cpu_mut().load_u64(va).ok()
    }

    fn store(&mut self, va: u64, value: u64) {
        self.machine.cpu_mut().store_u64(va, value).unwrap();
    }

    /// A page-table entry that leads to a PFN.
    fn entry(&self, pfn: u64) -> u64 {
        (self.first + pfn) << 12 | 0x67
    }

    /// Makes a page that is mapped at first read-only, as it is to become a page table.
    fn protect(&mut self, pfn: u64) {
        let entry = self.entry(pfn) & !2;
        assert_eq!(self.call(UPDATE_VA_MAPPING, [BASE + pfn * PAGE, entry, 0, 0, 0]), 0, "PFN {pfn:#x}");
    }

    /// Tables at three PFNs from `pfn` on that lead from an entry of a root to a page.
    fn tables(&mut self, pfn: u64, page: u64) {
        for (table, next) in [(pfn, pfn + 1), (pfn + 1, pfn + 2), (pfn + 2, page)] {
            self.store(BASE + table * PAGE, self.entry(next));
        }
        (pfn..pfn + 3).for_each(|table| self.protect(table));
    }

    /// A root at a PFN that is the present one, and leads to tables at `ELSEWHERE`.
    fn root(&mut self, pfn: u64, tables: u64) {
        self.root_of(pfn, SLOT, tables);
    }

    fn root_of(&mut self, pfn: u64, slot: u64, tables: u64) {
        let now = self.machine.domain().unwrap().paging().kernel_root(0).unwrap();
        for index in (0..512).filter(|index| !(256..272).contains(index)) {
            let mut entry = [0; 8];
            self.machine.cpu().memory().read(now.maddr() + index * 8, &mut entry).unwrap();
            self.store(BASE + pfn * PAGE + index * 8, u64::from_le_bytes(entry));
        }
        self.store(BASE + pfn * PAGE + slot * 8, self.entry(tables));
        self.protect(pfn);
    }

    fn enter(&mut self, pfn: u64) {
        self.extended(NEW_BASEPTR, pfn);
    }

    /// An extended operation on a frame.
    fn extended(&mut self, operation: u64, pfn: u64) {
        self.store(ARGUMENTS, operation);
        self.store(ARGUMENTS + 8, self.first + pfn);
        assert_eq!(self.call(MMUEXT_OP, [ARGUMENTS, 1, 0, SELF, 0]), 0);
    }

    /// Changes an entry of a live table.
    fn update(&mut self, table: u64, index: u64, entry: u64) {
        self.store(ARGUMENTS, (self.first + table) << 12 | (index * 8));
        self.store(ARGUMENTS + 8, entry);
        assert_eq!(self.call(MMU_UPDATE, [ARGUMENTS, 1, 0, SELF, 0]), 0);
    }
}

/// Flags of entries that walks set.
const ACCESSED: u64 = 0x20;
const DIRTY: u64 = 0x40;

impl Guest {
    fn enter_user(&mut self, pfn: u64) {
        self.extended(NEW_USER_BASEPTR, pfn);
    }

    /// What an address is to user mode, which a root translates for.
    fn user_load(&mut self, root: u64, va: u64) -> Option<u64> {
        let kernel = self.machine.cpu().cr3;
        self.machine.cpu_mut().toggle_kernel_mode((self.first + root) << 12);
        let value = self.load(va);
        self.machine.cpu_mut().toggle_kernel_mode(kernel);
        value
    }

    fn try_store(&mut self, va: u64, value: u64) -> bool {
        self.machine.cpu_mut().store_u64(va, value).is_ok()
    }

    fn entry_at(&self, table: u64, index: u64) -> u64 {
        let mut entry = [0; 8];
        let at = (self.first + table) << 12 | (index * 8);
        self.machine.cpu().memory().read(at, &mut entry).unwrap();
        u64::from_le_bytes(entry)
    }
}

/// Two roots with lower halves of their own: 0x300 leads to 0x280 by the tables at 0x310, 0x301 to 0x281 by those at 0x318.
/// The tables at 0x320 lead to 0x282.
fn two_spaces() -> Guest {
    let mut guest = Guest::new();
    for (pfn, value) in [(0x280, 0x1111), (0x281, 0x2222), (0x282, 0x3333)] {
        guest.store(BASE + pfn * PAGE, value);
    }
    for (tables, page) in [(0x310, 0x280), (0x318, 0x281), (0x320, 0x282)] {
        guest.tables(tables, page);
    }
    for (root, tables) in [(0x300, 0x310), (0x301, 0x318)] {
        guest.root_of(root, LOWER_SLOT, tables);
        // It stays a root while it is not in use.
        guest.extended(PIN_ROOT, root);
    }
    guest.enter(0x300);
    assert_eq!(guest.load(LOWER), Some(0x1111));
    guest.enter(0x301);
    assert_eq!(guest.load(LOWER), Some(0x2222));
    guest
}

#[test]
fn a_space_that_comes_back_is_what_it_was() {
    let mut guest = two_spaces();
    for _ in 0..3 {
        for (root, value) in [(0x300, 0x1111), (0x301, 0x2222)] {
            guest.enter(root);
            assert_eq!(guest.load(LOWER), Some(value));
        }
    }
}

#[test]
fn what_changes_while_a_space_is_away_is_seen_when_it_comes_back() {
    let changes = [(0x300, LOWER_SLOT, 0x320), (0x310, 0, 0x321), (0x311, 0, 0x322), (0x312, 0, 0x282)];
    for (table, index, target) in changes {
        for entry in [true, false] {
            let mut guest = two_spaces();
            let (entry, value) = if entry { (guest.entry(target), Some(0x3333)) } else { (0, None) };
            guest.update(table, index, entry);
            guest.enter(0x300);
            assert_eq!(guest.load(LOWER), value, "table {table:#x}");
            guest.enter(0x301);
            assert_eq!(guest.load(LOWER), Some(0x2222));
        }
    }
}

#[test]
fn rights_that_are_taken_while_a_space_is_away_are_gone() {
    let mut guest = two_spaces();
    guest.enter(0x300);
    assert!(guest.try_store(LOWER, 5));
    guest.enter(0x301);
    guest.update(0x312, 0, guest.entry(0x280) & !2);
    guest.enter(0x300);
    assert_eq!(guest.load(LOWER), Some(5));
    assert!(!guest.try_store(LOWER, 6));
    // A page that nobody else has written to.
    guest.update(0x312, 1, guest.entry(0x284));
    assert!(guest.try_store(LOWER + PAGE, 7));
    for away in [false, true] {
        guest.enter(if away { 0x301 } else { 0x300 });
        guest.update(0x312, 1, guest.entry(0x284) & !2);
        guest.enter(0x300);
        assert!(!guest.try_store(LOWER + PAGE, 8));
        guest.update(0x312, 1, guest.entry(0x284));
        assert!(guest.try_store(LOWER + PAGE, 9));
    }
}

#[test]
fn a_page_that_becomes_a_table_while_a_space_is_away_is_not_written_by_it() {
    let mut guest = two_spaces();
    guest.enter(0x300);
    assert!(guest.try_store(LOWER, 0));
    guest.enter(0x301);
    guest.update(0x312, 0, guest.entry(0x280) & !2);
    guest.protect(0x280);
    guest.update(0x321, 1, guest.entry(0x280));
    guest.enter(0x300);
    assert!(!guest.try_store(LOWER, guest.first << 12 | 0x67));
    assert_eq!(guest.load(LOWER), Some(0));
}

#[test]
fn flags_that_are_taken_away_are_set_again() {
    for away in [false, true] {
        let mut guest = two_spaces();
        guest.enter(0x300);
        assert!(guest.try_store(LOWER, 7));
        if away {
            guest.enter(0x301);
        }
        let entry = guest.entry_at(0x312, 0);
        assert_eq!(entry & (ACCESSED | DIRTY), ACCESSED | DIRTY);
        guest.update(0x312, 0, entry & !(ACCESSED | DIRTY));
        guest.enter(0x300);
        assert_eq!(guest.load(LOWER), Some(7));
        assert_eq!(guest.entry_at(0x312, 0) & (ACCESSED | DIRTY), ACCESSED);
        assert!(guest.try_store(LOWER, 8));
        assert_eq!(guest.entry_at(0x312, 0) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
        // Dirty alone: the page must not be written as before.
        guest.update(0x312, 0, entry & !DIRTY);
        guest.enter(0x300);
        assert!(guest.try_store(LOWER, 9));
        assert_eq!(guest.entry_at(0x312, 0) & DIRTY, DIRTY);
        // Writable no more and not accessed: the right goes at once, the flag with the flush.
        guest.update(0x312, 0, entry & !(ACCESSED | 2));
        guest.enter(0x300);
        assert_eq!(guest.load(LOWER), Some(9));
        assert_eq!(guest.entry_at(0x312, 0) & ACCESSED, ACCESSED);
    }
}

#[test]
fn a_root_that_was_something_else_meanwhile_is_another() {
    let mut guest = two_spaces();
    // No root any more: it may be written to, and is one again.
    guest.extended(UNPIN, 0x300);
    let (slot, entry) = (0x300 * PAGE + LOWER_SLOT * 8, guest.entry(0x320));
    let writable = guest.entry(0x300);
    assert_eq!(guest.call(UPDATE_VA_MAPPING, [BASE + 0x300 * PAGE, writable, 0, 0, 0]), 0);
    guest.store(BASE + slot, entry);
    guest.protect(0x300);
    guest.enter(0x300);
    assert_eq!(guest.load(LOWER), Some(0x3333));
}

#[test]
fn user_mode_has_spaces_of_its_own() {
    let mut guest = two_spaces();
    for _ in 0..2 {
        for (root, value) in [(0x300, 0x1111), (0x301, 0x2222)] {
            guest.enter_user(root);
            assert_eq!(guest.user_load(root, LOWER), Some(value));
        }
    }
    guest.update(0x312, 0, guest.entry(0x282));
    // A change of the kernel's root is a flush, for user mode as well.
    guest.update(0x31a, 0, guest.entry(0x280));
    guest.enter(0x300);
    assert_eq!(guest.user_load(0x301, LOWER), Some(0x1111));
    guest.enter_user(0x300);
    assert_eq!(guest.user_load(0x300, LOWER), Some(0x3333));
}

/// Two roots, 0x300 and 0x301, lead to the page 0x280 by the tables at 0x310; those at 0x320 lead to 0x281.
fn two_roots() -> Guest {
    let mut guest = Guest::new();
    guest.store(BASE + 0x280 * PAGE, 0x1111);
    guest.store(BASE + 0x281 * PAGE, 0x2222);
    guest.tables(0x310, 0x280);
    guest.tables(0x320, 0x281);
    guest.root(0x300, 0x310);
    guest.root(0x301, 0x310);
    guest.enter(0x300);
    assert_eq!(guest.load(ELSEWHERE), Some(0x1111));
    guest
}

#[test]
fn what_all_roots_share_is_right_in_each() {
    let mut guest = two_roots();
    guest.enter(0x301);
    assert_eq!(guest.load(ELSEWHERE), Some(0x1111));
    guest.enter(0x300);
    assert_eq!(guest.load(ELSEWHERE), Some(0x1111));
}

#[test]
fn an_entry_of_the_root_that_changes_takes_what_came_by_another_root_along() {
    let mut guest = two_roots();
    guest.enter(0x301);
    guest.update(0x301, SLOT, guest.entry(0x320));
    assert_eq!(guest.load(ELSEWHERE), Some(0x2222));
    // The other root still leads where it did.
    guest.enter(0x300);
    assert_eq!(guest.load(ELSEWHERE), Some(0x1111));
}

#[test]
fn entries_below_the_root_that_change_are_seen_at_once_or_by_the_next_flush() {
    for (table, target) in [(0x310, 0x321), (0x311, 0x322), (0x312, 0x281)] {
        let mut guest = two_roots();
        guest.update(table, 0, guest.entry(target));
        guest.enter(0x301);
        assert_eq!(guest.load(ELSEWHERE), Some(0x2222), "table {table:#x}");
        guest.update(table, 0, 0);
        guest.enter(0x300);
        assert_eq!(guest.load(ELSEWHERE), None, "table {table:#x}");
    }
}

#[test]
fn a_page_that_becomes_a_table_is_not_written_by_what_was_cached() {
    let mut guest = two_roots();
    // Cached as writable, in the kernel's own mapping and elsewhere.
    guest.store(BASE + 0x290 * PAGE, 0);
    guest.protect(0x290);
    guest.update(0x322, 1, (guest.first + 0x290) << 12 | 0x21);
    guest.update(0x321, 1, guest.entry(0x290));
    assert!(guest.machine.cpu_mut().store_u64(BASE + 0x290 * PAGE, guest.first << 12 | 0x67).is_err());
    assert_eq!(guest.load(BASE + 0x290 * PAGE), Some(0));
}
