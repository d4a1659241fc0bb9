//! Types of frames, pins and roots.

use trapgate_xen::Errno;
use trapgate_xen::paging::{FrameType, Mfn};

use crate::world::*;

/// Frames that are mapped writable by the builder.
const A: u64 = RAM + 8;
const B: u64 = RAM + 9;
const C: u64 = RAM + 10;
const D: u64 = RAM + 11;

#[test]
fn a_frame_with_writable_mappings_cannot_become_a_table() {
    let mut world = World::started();
    for level in 1..=4 {
        assert_eq!(world.pin(level, A), Err(Errno::Inval));
    }
    world.make_read_only(&[A]);
    world.pin(1, A).unwrap();
}

#[test]
fn a_table_cannot_be_mapped_writable() {
    let mut world = World::started();
    for mfn in [L4, L3, L2, L1] {
        assert_eq!(world.update_va_mapping(0, va(mfn), pte(mfn, RW)), Err(Errno::Busy));
        assert_eq!(world.mmu_update(at(L1, 40), pte(mfn, RW)), Err(Errno::Busy));
        assert_eq!(world.trapped_store(at(L1, 40), 8, None, pte(mfn, RW)), Err(Errno::Busy));
        world.mmu_update(at(L1, 40), pte(mfn, RO)).unwrap();
    }
}

#[test]
fn unpin_makes_writable_at_once() {
    let mut world = World::started();
    world.chain(&[A, B, C, D]);
    world.pin(4, A).unwrap();
    world.unpin(A).unwrap();
    for mfn in [A, B, C, D] {
        assert_eq!(world.type_of(mfn).1, 0);
        world.update_va_mapping(0, va(mfn), pte(mfn, RW)).unwrap();
    }
}

#[test]
fn every_first_use_validates_even_if_the_type_was_the_same() {
    let mut world = World::started();
    world.make_read_only(&[A]);
    world.pin(1, A).unwrap();
    world.mmu_update(at(A, 7), pte(B, RO)).unwrap();
    world.unpin(A).unwrap();
    // As plain memory now: nothing checks what is stored.
    world.mmu_update(at(A, 7), pte(L4, RW)).unwrap();
    assert_eq!(world.pin(1, A), Err(Errno::Busy));
    world.mmu_update(at(A, 7), pte(B, RW)).unwrap();
    world.pin(1, A).unwrap();
    assert_eq!(world.type_of(B), (FrameType::Writable, 2));
}

#[test]
fn failed_validation_undoes_every_reference() {
    let mut world = World::started();
    world.chain(&[A, B, C, D]);
    for index in 0..6 {
        world.mmu_update(at(D, index), pte(RAM + 12, RW)).unwrap();
    }
    for bad in [pte(L2, RW), pte(C, RW), pte(FOREIGN, RO), pte(0x9999, RO), pte(B, RO | 0x80)] {
        world.mmu_update(at(D, 6), bad).unwrap();
        for (level, mfn) in [(1, D), (2, C), (3, B), (4, A)] {
            // The walk of the L4 finds C typed L2 when it meets a writable mapping of it; that of D alone does not.
            let result = world.pin(level, mfn);
            assert_eq!(result.is_ok(), bad == pte(C, RW) && level == 1, "{bad:#x} at L{level}");
            if result.is_ok() {
                world.unpin(mfn).unwrap();
            }
            assert_eq!(world.type_of(mfn).1, 0);
        }
    }
    world.mmu_update(at(D, 6), 0).unwrap();
    world.pin(4, A).unwrap();
}

#[test]
fn tables_of_the_same_type_are_validated_once_and_counted() {
    let mut world = World::started();
    world.chain(&[A, B, C, D]);
    for index in 1..5 {
        world.mmu_update(at(C, index), pte(D, TABLE)).unwrap();
    }
    world.pin(4, A).unwrap();
    assert_eq!(world.type_of(D), (FrameType::L1, 5));
    world.mmu_update(at(C, 1), 0).unwrap();
    assert_eq!(world.type_of(D), (FrameType::L1, 4));
}

#[test]
fn pin_needs_the_frame_and_is_single() {
    let mut world = World::started();
    world.make_read_only(&[A]);
    for (level, mfn) in [(0, A), (5, A), (1, FOREIGN), (1, M2P), (1, RAM + FRAMES - 1), (1, SHARED), (1, 0)] {
        assert_eq!(world.pin(level, mfn), Err(Errno::Inval));
    }
    world.pin(1, A).unwrap();
    for level in 1..=4 {
        assert_eq!(world.pin(level, A), Err(Errno::Inval));
    }
    world.unpin(A).unwrap();
    assert_eq!(world.unpin(A), Err(Errno::Inval));
    assert_eq!(world.unpin(FOREIGN), Err(Errno::Inval));
    // The builder's pin is recorded, exactly once, while it is the root.
    world.unpin(L4).unwrap();
    assert_eq!(world.unpin(L4), Err(Errno::Inval));
    assert_eq!(world.type_of(L4), (FrameType::L4, 1));
}

#[test]
fn entries_above_an_l1_need_a_table_of_the_level_below() {
    let mut world = World::started();
    world.make_read_only(&[A, B]);
    for (value, what) in [
        (pte(RAM + 12, TABLE), "mapped writable"),
        (pte(L2, TABLE), "itself"),
        (pte(L3, TABLE), "an L3"),
        (pte(A, TABLE | 1 << 7), "superpage"),
        (pte(A, TABLE | 1 << 8), "global"),
        (pte(A, TABLE | 1 << 4), "uncached"),
        (pte(SHARED, TABLE), "shared"),
        (pte(FOREIGN, TABLE), "foreign"),
        (pte(0x9999, TABLE), "no memory"),
    ] {
        assert_eq!(world.mmu_update(at(L2, 5), value), Err(Errno::Inval), "{what}");
    }
    world.mmu_update(at(L2, 5), pte(A, TABLE)).unwrap();
    world.mmu_update(at(L3, 5), pte(B, TABLE)).unwrap();
    assert_eq!((world.type_of(A).0, world.type_of(B).0), (FrameType::L1, FrameType::L2));
    // The same table once more, and one entry less.
    world.mmu_update(at(L2, 6), pte(A, TABLE)).unwrap();
    world.mmu_update(at(L2, 5), 0).unwrap();
    assert_eq!(world.type_of(A), (FrameType::L1, 1));
}

#[test]
fn slots_256_to_271_of_an_l4_are_not_followed_and_not_written() {
    let mut world = World::started();
    world.make_read_only(&[A]);
    for index in 256..=271 {
        world.mmu_update(at(A, index), pte(FOREIGN, RW | 0x80)).unwrap();
    }
    world.pin(4, A).unwrap();
    for index in 256..=271 {
        assert_eq!(world.mmu_update(at(A, index), 0), Err(Errno::Inval));
        assert_eq!(world.mmu_update(at(A, index) | 2, pte(L3, TABLE)), Err(Errno::Inval));
    }
    assert_eq!(world.mmu_update(at(A, 255), pte(FOREIGN, RW)), Err(Errno::Inval));
    world.mmu_update(at(A, 272), pte(L3, TABLE)).unwrap();
    // Nor does the monitor follow them, even to tables that are in use.
    world.make_read_only(&[B]);
    world.mmu_update(at(B, 256), pte(L3, TABLE)).unwrap();
    world.mmu_update(at(B, 511), pte(L3, TABLE)).unwrap();
    world.set_kernel_root(0, B).unwrap();
    let by_256 = 0xffff_8000_0000_0000 | (va(C) & ((1 << 39) - 1));
    assert_eq!(world.update_va_mapping(0, by_256, pte(C, RO)), Err(Errno::Inval));
    assert!(!world.guest_load((0, false), by_256));
    world.update_va_mapping(0, va(C), pte(C, RO)).unwrap();
    world.unpin(A).unwrap();
    // In the tables of the other levels these slots are like any other.
    world.mmu_update(at(L1, 260), pte(D, RW)).unwrap();
}

#[test]
fn roots_are_counted_and_changed_in_order() {
    let mut world = World::started();
    world.chain(&[A, B, C, D]);
    world.pin(4, A).unwrap();
    world.set_kernel_root(0, A).unwrap();
    world.unpin(L4).unwrap();
    assert_eq!(world.type_of(L4).1, 0);
    world.set_user_root(0, A).unwrap();
    world.set_kernel_root(1, A).unwrap();
    assert_eq!(world.type_of(A), (FrameType::L4, 4));
    for mfn in [B, FOREIGN, SHARED, 0, RAM + FRAMES - 1] {
        assert_eq!(world.set_kernel_root(0, mfn), Err(Errno::Inval));
        if mfn != 0 {
            assert_eq!(world.set_user_root(0, mfn), Err(Errno::Inval));
        }
    }
    world.set_user_root(0, 0).unwrap();
    assert_eq!(world.paging.user_root(0), None);
    assert_eq!(world.paging.set_kernel_root(&mut world.tlb, 9, Mfn(A)), Err(Errno::NoEnt));
    assert_eq!(world.paging.kernel_root(9), None);
}

#[test]
fn new_roots_flush() {
    let mut world = World::started();
    for root in [L4, L4] {
        let before = world.tlb.flushes;
        world.set_kernel_root(0, root).unwrap();
        assert_eq!(world.tlb.flushes, before + 1, "guests use it to flush");
    }
    world.set_user_root(0, L4).unwrap();
    assert!(world.guest_load((0, true), va(A)));
    world.set_user_root(0, 0).unwrap();
    assert!(world.tlb.cached.is_empty());
}

#[test]
fn a_new_table_has_no_writable_translation() {
    let mut world = World::started();
    assert!(world.guest_store((0, false), va(A), 0));
    world.make_read_only(&[A]);
    // Still writable by what is cached: the guest has not flushed.
    assert!(world.guest_store((0, false), va(A), pte(B, RO)));
    world.pin(1, A).unwrap();
    assert!(!world.guest_store((0, false), va(A), pte(L4, RW)));
    let before = world.tlb.protects;
    world.unpin(A).unwrap();
    world.pin(2, A).unwrap_err();
    world.pin(1, A).unwrap();
    assert_eq!(world.tlb.protects, before, "no writable translation can have come to be");
}
