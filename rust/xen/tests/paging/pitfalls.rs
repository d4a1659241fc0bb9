//! Sequences that are easy to get wrong, and those by which real guests start.

use trapgate_xen::Errno;
use trapgate_xen::paging::{FrameType, Mfn};

use super::world::*;

const A: u64 = RAM + 8;
const B: u64 = RAM + 9;
const C: u64 = RAM + 10;
const D: u64 = RAM + 11;
const E: u64 = RAM + 12;

#[test]
fn a_table_that_refers_to_itself_is_refused() {
    let mut world = World::started();
    world.make_read_only(&[A]);
    for flags in [TABLE, TABLE & !2] {
        world.mmu_update(at(A, 3), pte(A, flags)).unwrap();
        for level in 2..=4 {
            assert_eq!(world.pin(level, A), Err(Errno::Inval));
        }
    }
    // An L1 may map itself, but not writable.
    world.mmu_update(at(A, 3), pte(A, RW)).unwrap();
    assert_eq!(world.pin(1, A), Err(Errno::Busy));
    world.mmu_update(at(A, 3), pte(A, RO)).unwrap();
    world.pin(1, A).unwrap();
    assert_eq!(world.mmu_update(at(A, 4), pte(A, RW)), Err(Errno::Busy));
    assert_eq!(world.trapped_store(at(A, 3), 1, Some(RO), RW), Err(Errno::Busy));
    // It keeps itself only as long as it is a table.
    world.unmap(A);
    world.decrease_reservation(A).unwrap();
    assert_eq!(world.paging.owned_frames(), OWNED);
    world.unpin(A).unwrap();
    assert_eq!(world.paging.owned_frames(), OWNED - 1);
}

#[test]
fn a_loop_through_several_levels_is_refused() {
    let mut world = World::started();
    world.chain(&[A, B, C, D]);
    world.mmu_update(at(C, 1), pte(A, TABLE)).unwrap();
    assert_eq!(world.pin(4, A), Err(Errno::Inval));
    world.mmu_update(at(C, 1), pte(B, TABLE)).unwrap();
    assert_eq!(world.pin(4, A), Err(Errno::Inval));
    world.mmu_update(at(C, 1), 0).unwrap();
    world.mmu_update(at(D, 1), pte(A, RW)).unwrap();
    assert_eq!(world.pin(4, A), Err(Errno::Busy));
    world.mmu_update(at(D, 1), pte(A, RO)).unwrap();
    world.pin(4, A).unwrap();
}

#[test]
fn a_writable_alias_between_read_only_and_pin_is_found() {
    let mut world = World::started();
    world.make_read_only(&[A]);
    world.mmu_update(at(L1, 300), pte(A, RW)).unwrap();
    assert_eq!(world.pin(1, A), Err(Errno::Inval));
    world.mmu_update(at(L1, 300), pte(A, RO)).unwrap();
    world.pin(1, A).unwrap();
    assert_eq!(world.mmu_update(at(L1, 300), pte(A, RW)), Err(Errno::Busy));
}

#[test]
fn an_l1_reached_from_two_l2s_stays_until_both_let_go() {
    let mut world = World::started();
    world.make_read_only(&[A, B, C]);
    for l2 in [A, B] {
        world.mmu_update(at(l2, 1), pte(C, TABLE)).unwrap();
        world.pin(2, l2).unwrap();
    }
    world.unpin(A).unwrap();
    assert_eq!(world.update_va_mapping(0, va(C), pte(C, RW)), Err(Errno::Busy));
    world.mmu_update(at(B, 1), 0).unwrap();
    world.update_va_mapping(0, va(C), pte(C, RW)).unwrap();
}

#[test]
fn unpin_of_the_running_root_keeps_it_a_table() {
    let mut world = World::started();
    world.unpin(L4).unwrap();
    assert_eq!(world.update_va_mapping(0, va(L4), pte(L4, RW)), Err(Errno::Busy));
    // The same root again: taken before it is put, so it never stops being one.
    world.set_kernel_root(0, L4).unwrap();
    assert!(world.guest_load((0, false), va(A)));
    world.pin(4, L4).unwrap();
}

#[test]
fn no_user_root_can_be_set_any_time() {
    let mut world = World::started();
    world.set_user_root(0, 0).unwrap();
    world.make_read_only(&[A]);
    world.set_user_root(0, A).unwrap();
    world.set_user_root(0, A).unwrap();
    world.set_user_root(0, 0).unwrap();
    world.update_va_mapping(0, va(A), pte(A, RW)).unwrap();
}

#[test]
fn ballooning_of_what_is_in_use() {
    let mut world = World::started();
    world.make_read_only(&[A, B, C]);
    world.pin(1, A).unwrap();
    world.set_user_root(0, B).unwrap();
    world.set_gdt(0, &[C]).unwrap();
    world.hold_writable(D).unwrap();
    world.hold_readable(E).unwrap();
    for mfn in [A, B, C, D, E] {
        world.decrease_reservation(mfn).unwrap();
        world.unmap(mfn);
    }
    world.decrease_reservation(L4).unwrap();
    world.decrease_reservation(L1).unwrap();
    assert_eq!(world.paging.owned_frames(), OWNED);
    // None of them is given to anybody.
    let fresh: Vec<u64> = (0..FRAMES - OWNED).map(|pfn| world.populate(pfn).unwrap()).collect();
    assert_eq!(fresh, (RAM + OWNED..RAM + FRAMES).collect::<Vec<_>>());
    assert_eq!(world.populate(0), None);
    world.unpin(A).unwrap();
    assert_eq!(world.populate(1), Some(A));
    world.set_user_root(0, 0).unwrap();
    assert_eq!(world.populate(2), Some(B));
    world.set_gdt(0, &[]).unwrap();
    assert_eq!(world.populate(3), Some(C));
    world.release_writable(D).unwrap();
    assert_eq!(world.populate(4), Some(D));
    world.release_readable(E).unwrap();
    assert_eq!(world.populate(5), Some(E));
    assert_eq!(world.paging.frame(Mfn(C)).unwrap().kind, FrameType::None);
}

#[test]
fn a_whole_tree_that_was_given_back_goes_with_its_last_entry() {
    let mut world = World::started();
    world.chain(&[A, B, C]);
    world.mmu_update(at(C, 5), pte(D, RW)).unwrap();
    world.mmu_update(at(L4, 0), pte(A, TABLE)).unwrap();
    for mfn in [A, B, C, D] {
        world.decrease_reservation(mfn).unwrap();
        world.unmap(mfn);
    }
    assert_eq!(world.paging.owned_frames(), OWNED);
    assert!(world.guest_store((0, false), 5 << 12, 7));
    world.mmu_update(at(L4, 0), 0).unwrap();
    assert_eq!(world.paging.owned_frames(), OWNED - 4);
    assert!(!world.guest_load((0, false), 5 << 12));
}

#[test]
fn a_frame_given_back_and_still_in_use_is_a_frame_like_any_other() {
    let mut world = World::started();
    world.decrease_reservation(A).unwrap();
    world.mmu_update(at(L1, 300), pte(A, RW)).unwrap();
    world.unmap(A);
    world.mmu_update(at(L1, 300), pte(A, RO)).unwrap();
    world.pin(1, A).unwrap();
    world.mmu_update(at(L1, 300), 0).unwrap();
    world.unpin(A).unwrap();
    assert_eq!(world.paging.owned_frames(), OWNED - 1);
}

#[test]
fn a_freed_frame_has_no_writable_translation() {
    let mut world = World::started();
    assert!(world.guest_store((0, false), va(A), 1));
    world.unmap(A);
    // The guest does not flush.
    world.decrease_reservation(A).unwrap();
    assert_eq!(world.populate(7), Some(A));
    world.pin(1, A).unwrap();
    assert!(!world.guest_store((0, false), va(A), pte(L4, RW)));
}

#[test]
fn vcpu_info_on_a_table_and_a_table_on_vcpu_info() {
    let mut world = World::started();
    assert_eq!(world.hold_writable(L1), Err(Errno::Inval));
    world.hold_writable(A).unwrap();
    world.make_read_only(&[A]);
    assert_eq!(world.mmu_update(at(L2, 3), pte(A, TABLE)), Err(Errno::Inval));
    assert_eq!(world.set_kernel_root(0, A), Err(Errno::Inval));
}

#[test]
fn tables_and_descriptors_exclude_each_other() {
    let mut world = World::started();
    world.make_read_only(&[A]);
    assert_eq!(world.set_gdt(0, &[L2]), Err(Errno::Inval));
    world.set_gdt(0, &[A]).unwrap();
    for level in 1..=4 {
        assert_eq!(world.pin(level, A), Err(Errno::Inval));
    }
    world.set_gdt(0, &[]).unwrap();
    world.pin(1, A).unwrap();
    assert_eq!(world.set_gdt(0, &[A]), Err(Errno::Inval));
}

#[test]
fn descriptors_are_checked_again_after_any_store() {
    const TASK: u64 = 0x0000_8900_0000_0000;
    for way in 0..4 {
        let mut world = World::started();
        world.make_read_only(&[A]);
        world.mmu_update(at(B, 1), TASK).unwrap();
        world.set_gdt(0, &[A]).unwrap();
        world.set_gdt(0, &[]).unwrap();
        // Nobody relies on the type now, so it is plain memory to all of these.
        match way {
            0 => world.mmu_update(at(A, 1), TASK).unwrap(),
            1 => world.copy_page(A, B).unwrap(),
            2 => {
                world.update_va_mapping(0, va(A), pte(A, RW)).unwrap();
                assert!(world.guest_store((0, false), va(A) + 8, TASK));
                world.make_read_only(&[A]);
            }
            _ => {
                world.hold_writable(A).unwrap();
                world.put(A, 1, TASK);
                world.release_writable(A).unwrap();
            }
        }
        assert_eq!(world.set_gdt(0, &[A]), Err(Errno::Inval), "way {way}");
    }
}

#[test]
fn an_entry_may_be_replaced_by_what_it_was() {
    let mut world = World::started();
    for (table, index) in [(L4, 511), (L3, 510), (L2, 0), (L1, A - RAM), (L1, 0)] {
        let entry = world.get(table, index);
        for command in [0, 2, 3] {
            world.mmu_update(at(table, index) | command, entry).unwrap();
        }
    }
    assert_eq!(world.paging.frame(Mfn(A)).unwrap().refs, 2);
}

#[test]
fn the_boot_loader_hands_over_to_a_kernel() {
    let mut world = World::started();
    // New tables by a window that is remapped again and again.
    let window = RAM + 7;
    for (table, index, value) in [
        (A, 511, pte(B, 7)),
        (B, 510, pte(C, 7)),
        (C, 0, pte(D, 7)),
        (D, A - RAM, pte(A, 5)),
        (D, D - RAM, pte(D, 5)),
        (D, L4 - RAM, pte(L4, 5)),
        (D, L3 - RAM, pte(L3, 5)),
        (D, L2 - RAM, pte(L2, 5)),
        (D, L1 - RAM, pte(L1, 5)),
        (D, E - RAM, pte(E, 7)),
        (D, 20, pte(SHARED, 7)),
        (D, 21, pte(SHARED + 1, 7)),
    ] {
        world.update_va_mapping(0, va(window), pte(table, 7)).unwrap();
        world.tlb.flush_page_of(va(window));
        assert!(world.guest_store((0, false), va(window) + index * 8, value));
    }
    for mfn in [A, B, C, D, window] {
        world.make_read_only(&[mfn]);
    }
    world.pin(4, A).unwrap();
    world.set_kernel_root(0, A).unwrap();
    world.unpin(L4).unwrap();
    for mfn in [L4, L3, L2, L1] {
        world.update_va_mapping(0, va(mfn), pte(mfn, 7)).unwrap();
        assert!(world.guest_store((0, false), va(mfn), !0));
    }
}

#[test]
fn a_process_forks_and_both_end() {
    let mut world = World::started();
    // Parent: user half with two pages, kernel half shared with the builder's L4.
    let (parent, child) = ([A, B, C, D], [E, RAM + 13, RAM + 14, RAM + 15]);
    let page = RAM + 5;
    for [l4, l3, l2, l1] in [parent, child] {
        world.chain(&[l4, l3, l2, l1]);
        world.mmu_update(at(l4, 511), world.get(L4, 511)).unwrap();
    }
    world.mmu_update(at(D, 1), pte(page, RW)).unwrap();
    world.pin(1, D).unwrap();
    world.pin(4, A).unwrap();
    world.set_kernel_root(0, A).unwrap();
    world.set_user_root(0, A).unwrap();
    assert!(world.guest_store((0, true), 0x1000, 1));
    // The parent's entry loses RW by `lock and`, the child's is stored before it is a table.
    let entry = world.get(D, 1);
    world.trapped_store(at(D, 1), 8, Some(entry), entry & !2).unwrap();
    world.mmu_update(at(child[3], 1), entry & !2).unwrap();
    world.set_kernel_root(0, A).unwrap();
    assert!(!world.guest_store((0, true), 0x1000, 1));
    world.pin(1, child[3]).unwrap();
    world.pin(4, child[0]).unwrap();
    world.set_kernel_root(0, child[0]).unwrap();
    world.set_user_root(0, child[0]).unwrap();
    assert!(world.guest_load((0, true), 0x1000));
    // Both end: `xchg` of the entries, then the tables are memory again.
    for [l4, l3, l2, l1] in [parent, child] {
        let entry = world.get(l1, 1);
        assert_eq!(world.trapped_store(at(l1, 1), 8, Some(entry), 0), Ok(true));
        world.set_kernel_root(0, L4).unwrap();
        world.set_user_root(0, 0).unwrap();
        world.unpin(l4).unwrap();
        world.unpin(l1).unwrap();
        for mfn in [l4, l3, l2, l1] {
            world.update_va_mapping(0, va(mfn), pte(mfn, RW)).unwrap();
        }
    }
}
