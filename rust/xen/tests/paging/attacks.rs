//! What hostile guests could do to Xen by its published security advisories (https://xenbits.xen.org/xsa/), told in the
//! terms of this implementation: the flaw is named, and the test tries what it made possible.

use trapgate_xen::Errno;
use trapgate_xen::paging::{FrameType, Mfn};

use super::world::*;

const A: u64 = RAM + 8;
const B: u64 = RAM + 9;
const C: u64 = RAM + 10;
const D: u64 = RAM + 11;

/// XSA-148: the short way for changed flags let an L2 entry become a superpage, which covered frames of others.
#[test]
fn xsa_148_no_flag_that_changes_the_meaning_takes_the_short_way() {
    let mut world = World::started();
    for (table, index) in [(L2, 0), (L3, 510), (L4, 511)] {
        let entry = world.get(table, index);
        for command in [0, 2, 3] {
            for bit in [3, 4, 7, 8] {
                let result = world.mmu_update(at(table, index) | command, entry | 1 << bit);
                assert_eq!(result, Err(Errno::Inval));
            }
        }
        assert_eq!(world.get(table, index), entry);
    }
}

/// XSA-182: a table that mapped itself read-only got RW by the short way, and so became writable to the guest.
#[test]
fn xsa_182_no_table_is_reached_as_data_through_a_table_above() {
    let mut world = World::started();
    for (table, level) in [(L4, 4u8), (L3, 3), (L2, 2)] {
        for target in [L4, L3, L2] {
            for flags in [TABLE, TABLE & !2] {
                let fits = target == table + 1;
                let result = world.mmu_update(at(table, 9), pte(target, flags));
                assert_eq!(result.is_ok(), fits, "L{level} to {target:#x}");
                if fits {
                    world.mmu_update(at(table, 9), 0).unwrap();
                }
            }
        }
    }
    // Nor through the tree of a second L4 that is not in use.
    world.make_read_only(&[A]);
    world.mmu_update(at(A, 9), pte(L4, TABLE & !2)).unwrap();
    assert_eq!(world.pin(4, A), Err(Errno::Inval));
}

/// XSA-212: an output address was not checked, so a call stored frame numbers where the guest liked. What is stored
/// here beside entries is M2P, and only inside it.
#[test]
fn xsa_212_m2p_is_stored_to_for_own_frames_only() {
    let mut world = World::started();
    let mut before = [0u8; 4096];
    world.memory.read(M2P << 12, &mut before).unwrap();
    for mfn in [RAM - 1, RAM + FRAMES, RAM + FRAMES - 1, M2P, FOREIGN, 0, !0 >> 12, RAM + (1 << 40)] {
        assert_eq!(world.mmu_update(at(mfn, 0) | 1, 0x4141_4141), Err(Errno::Inval));
    }
    let mut after = [0u8; 4096];
    world.memory.read(M2P << 12, &mut after).unwrap();
    assert_eq!(before, after);
}

/// XSA-213: in one batch of calls the vCPU went over to its user tables, and calls that follow mappings then wrote by
/// the wrong ones.
#[test]
fn xsa_213_a_user_root_never_decides_what_is_written() {
    let mut world = World::started();
    world.make_read_only(&[A, B, C, D]);
    for (table, index, below) in [(A, 511, B), (B, 510, C), (C, 0, D)] {
        world.mmu_update(at(table, index), pte(below, TABLE)).unwrap();
    }
    world.set_user_root(0, A).unwrap();
    world.update_va_mapping(0, va(RAM + 5), 0).unwrap();
    assert_eq!((world.get(D, 5), world.get(L1, 5)), (0, 0));
    world.mmu_update(at(D, 5), pte(RAM + 5, RW)).unwrap();
    assert_eq!(world.get(L1, 5), 0);
    // A user root whose kernel half is made of other tables gives no way to the kernel's.
    assert_eq!(world.mmu_update(at(A, 511), pte(A, TABLE)), Err(Errno::Inval));
}

/// XSA-227: the address of an entry was not checked for alignment, so a store went over two entries or two pages.
#[test]
fn xsa_227_no_store_goes_over_an_entry() {
    let mut world = World::started();
    let last = at(L1, 511);
    for offset in 1..8 {
        assert_eq!(world.trapped_store(last + offset, 8, None, !0), Err(Errno::Inval));
        assert_eq!(world.update_descriptor(at(A, 511) + offset, 0), Err(Errno::Inval));
    }
    for (offset, size) in [(6, 4), (7, 2), (5, 2), (3, 4)] {
        assert_eq!(world.trapped_store(last + offset, size, None, !0), Err(Errno::Inval));
    }
    // An update's low bits are no offset.
    world.mmu_update(last | 3, pte(B, RO)).unwrap();
    assert_eq!((world.get(L1, 511), world.get(L2, 0)), (pte(B, RO), pte(L1, TABLE)));
}

/// XSA-234: what was taken for writing was dropped for reading and the other way round, by unmapping with other
/// arguments or after the entry had changed, so counts went wrong.
#[test]
fn xsa_234_what_is_dropped_is_what_was_taken() {
    let mut world = World::started();
    world.hold_readable(A).unwrap();
    world.hold_writable(B).unwrap();
    assert_eq!(world.release_writable(A), Err(Errno::Inval));
    assert_eq!(world.release_readable(B), Err(Errno::Inval));
    world.release_readable(A).unwrap();
    world.release_writable(B).unwrap();
    assert_eq!(world.release_writable(B), Err(Errno::Inval));
    // An entry is dropped by what it is now.
    for (first, second) in [(RW, RO), (RO, RW)] {
        world.mmu_update(at(L1, 200), pte(A, first)).unwrap();
        world.mmu_update(at(L1, 200), pte(A, second)).unwrap();
        world.trapped_store(at(L1, 200), 8, None, 0).unwrap();
        assert_eq!(world.paging.frame(Mfn(A)).unwrap().type_count, 1);
    }
    // Accessed, dirty and ignored bits that changed since do not matter.
    world.mmu_update(at(L1, 200), pte(A, 7)).unwrap();
    super::tlb::set_bits(&world.memory, at(L1, 200), 0x60);
    world.mmu_update(at(L1, 200), 0).unwrap();
}

/// XSA-255: pages of the monitor were freed while the guest still mapped them.
#[test]
fn xsa_255_frames_of_the_monitor_are_never_freed() {
    let mut world = World::started();
    world.update_va_mapping(0, va(A), pte(SHARED, RW)).unwrap();
    assert!(world.guest_store((0, false), va(A), 1));
    assert_eq!(world.decrease_reservation(SHARED), Err(Errno::Inval));
    world.update_va_mapping(0, va(A), 0).unwrap();
    world.mmu_update(at(L1, FRAMES), 0).unwrap();
    for _ in 0..FRAMES - OWNED {
        assert!(world.populate(0).unwrap() < RAM + FRAMES);
    }
    assert_eq!(world.paging.frame(Mfn(SHARED)).unwrap().kind, FrameType::Writable);
}

/// XSA-286: entries were changed through the guest's own mapping of its tables, which another vCPU could have
/// exchanged while the old one was still cached.
#[test]
fn xsa_286_updates_follow_the_tables_as_they_are() {
    let mut world = World::started();
    world.make_read_only(&[A, B, C]);
    world.mmu_update(at(A, 510), pte(B, TABLE)).unwrap();
    world.mmu_update(at(B, 0), pte(C, TABLE)).unwrap();
    world.set_kernel_root(1, L4).unwrap();
    assert!(world.guest_store((1, false), va(RAM + 5), 3));
    // The L4's entry is exchanged: no vCPU keeps a translation by the old tables, and the next update goes by the new.
    world.mmu_update(at(L4, 511), pte(A, TABLE)).unwrap();
    assert!(world.tlb.cached.is_empty());
    world.update_va_mapping(1, va(RAM + 5), pte(RAM + 6, RO)).unwrap();
    assert_eq!((world.get(C, 5), world.get(L1, 5)), (pte(RAM + 6, RO), pte(RAM + 5, RW | 0x40)));
    // The old L3 is a table no more, so the guest may write to what were tables.
    world.mmu_update(at(C, 6), pte(L1, RW)).unwrap();
    assert!(world.guest_store((0, false), va(RAM + 6), 0));
}

/// XSA-401: a frame became a table while writable translations of it were still in use during the check.
#[test]
fn xsa_401_translations_go_before_the_check() {
    let mut world = World::started();
    for level in 1..=4 {
        let mfn = RAM + 7 + u64::from(level);
        assert!(world.guest_store((0, false), va(mfn), 0));
        world.make_read_only(&[mfn]);
        // The check itself fails: even so it must not have read what a vCPU could still change.
        world.mmu_update(at(mfn, 511), pte(FOREIGN, RW)).unwrap();
        let before = world.tlb.protects;
        world.pin(level, mfn).unwrap_err();
        assert_eq!(world.tlb.protects, before + 1);
        assert!(!world.guest_store((0, false), va(mfn), pte(L4, RW)));
    }
}
