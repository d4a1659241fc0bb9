//! Entries that change.

use std::sync::atomic::{AtomicU64, Ordering};

use trapgate_xen::Errno;
use trapgate_xen::paging::{FrameType, Mfn};

use crate::world::*;

/// Ends the walks of the other thread, also when the test fails.
struct Ending<'a>(&'a AtomicU64);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(u64::MAX, Ordering::SeqCst);
    }
}

/// Frames that are mapped writable by the builder.
const A: u64 = RAM + 8;
const B: u64 = RAM + 9;
const C: u64 = RAM + 10;
const D: u64 = RAM + 11;

#[test]
fn entries_of_an_l1_have_their_error_numbers() {
    let mut world = World::started();
    let entry = at(L1, 300);
    let free = RAM + FRAMES - 1;
    for (value, errno) in [
        (pte(A, RO | 1 << 3), Errno::Inval),
        (pte(A, RO | 1 << 4), Errno::Inval),
        (pte(A, RO | 1 << 7), Errno::Inval),
        (pte(0xff_ffff_ffff, RO), Errno::Inval),
        (pte(0x9999, RO), Errno::Perm),
        (pte(0, RO), Errno::Perm),
        (pte(FOREIGN, RO), Errno::Busy),
        (pte(M2P, RO), Errno::Busy),
        (pte(free, RO), Errno::Busy),
        (pte(free, RW), Errno::Busy),
        (pte(L3, RW), Errno::Busy),
    ] {
        assert_eq!(world.mmu_update(entry, value), Err(errno), "{value:#x}");
        assert_eq!(world.get(L1, 300), 0);
    }
    for good in
        [pte(A, RW | 1 << 8), pte(A, RO | 1 << 63 | 0x7ff << 52 | 0xe00), pte(SHARED + 1, RW), 0x80, !1]
    {
        world.mmu_update(entry, good).unwrap();
        assert_eq!(world.get(L1, 300), good);
    }
}

#[test]
fn harmless_bits_change_without_references_but_flags_are_checked_first() {
    let mut world = World::started();
    let before = world.type_of(A);
    for flags in [RW | 1 << 63, RW | 1 << 8, RW | 0x7ff << 52, RW & !4, RW & !0x20, RW | 0xe00] {
        world.mmu_update(at(L1, A - RAM), pte(A, flags)).unwrap();
        assert_eq!(world.type_of(A), before);
        assert_eq!(world.mmu_update(at(L1, A - RAM), pte(A, flags | 8)), Err(Errno::Inval));
    }
    world.mmu_update(at(L2, 0), pte(L1, TABLE | 1 << 63)).unwrap();
    assert_eq!(world.mmu_update(at(L2, 0), pte(L1, TABLE | 1 << 7)), Err(Errno::Inval));
    assert_eq!(world.mmu_update(at(L2, 0), pte(L1, TABLE | 1 << 8)), Err(Errno::Inval));
    // RW of an L1 is not harmless.
    world.mmu_update(at(L1, A - RAM), pte(A, RO)).unwrap();
    assert_eq!(world.type_of(A), (FrameType::Writable, 0));
    world.mmu_update(at(L1, A - RAM), pte(A, RW)).unwrap();
    assert_eq!(world.type_of(A), (FrameType::Writable, 1));
}

#[test]
fn an_entry_that_fails_leaves_the_old_one_counted() {
    let mut world = World::started();
    assert_eq!(world.mmu_update(at(L1, A - RAM), pte(L2, RW)), Err(Errno::Busy));
    assert_eq!(world.get(L1, A - RAM), pte(A, RW));
    assert_eq!(world.mmu_update(at(L3, 510), pte(L4, TABLE)), Err(Errno::Inval));
    assert_eq!(world.get(L3, 510), pte(L2, TABLE));
}

#[test]
fn mmu_update_commands() {
    let mut world = World::started();
    for command in 4..8 {
        assert_eq!(world.mmu_update(at(L1, 300) | command, 0), Err(Errno::NoSys));
    }
    world.mmu_update(at(L1, 300) | 3, pte(A, RO)).unwrap();
    // Accessed and dirty are kept by command 2 only.
    world.mmu_update(at(L1, 300), pte(A, 0x67)).unwrap();
    world.mmu_update(at(L1, 300) | 2, pte(A, 5)).unwrap();
    assert_eq!(world.get(L1, 300), pte(A, 0x65));
    world.mmu_update(at(L1, 300), pte(A, 5)).unwrap();
    assert_eq!(world.get(L1, 300), pte(A, 5));
    world.mmu_update(at(L2, 0) | 2, pte(L1, 7)).unwrap();
    assert_eq!(world.get(L2, 0), pte(L1, TABLE));
    // Frames of others, and what is no frame.
    for mfn in [FOREIGN, M2P, 0, RAM + FRAMES - 1, !0 >> 12] {
        assert_eq!(world.mmu_update(at(mfn, 0), 0), Err(Errno::Inval));
        assert_eq!(world.mmu_update(at(mfn, 0) | 1, 0), Err(Errno::Inval));
    }
}

#[test]
fn machphys_update_takes_any_number_for_own_frames() {
    let mut world = World::started();
    world.mmu_update(at(A, 0) | 1, !0 - 5).unwrap();
    world.mmu_update(at(L4, 3) | 1, 0x1234).unwrap();
    // Of the monitor's frames the guest may say so, but there is no entry.
    world.mmu_update(at(SHARED, 0) | 1, 77).unwrap();
    // What M2P says moves no frame.
    assert_eq!(world.update_va_mapping(0, va(L4), pte(L4, RW)), Err(Errno::Busy));
}

#[test]
fn updates_of_frames_that_are_no_tables_are_plain_stores() {
    let mut world = World::started();
    for mfn in [A, SHARED] {
        world.mmu_update(at(mfn, 511), 0xdead_beef_0000_00ff).unwrap();
        assert_eq!(world.get(mfn, 511), 0xdead_beef_0000_00ff);
    }
    world.make_read_only(&[A]);
    world.mmu_update(at(A, 2), pte(L4, RW)).unwrap();
    assert_eq!(world.type_of(L4), (FrameType::L4, 2));
}

#[test]
fn update_va_mapping_goes_by_the_kernel_root_and_needs_an_l1() {
    let mut world = World::started();
    for bad in [
        0,
        va(RAM) + (1 << 21),
        va(RAM) ^ (1 << 38),
        0xffff_8000_0000_0000,
        0xffff_87ff_ffff_f000,
        0x8000_0000_0000,
        0x7fff_ffff_8000_0000,
    ] {
        assert_eq!(world.update_va_mapping(0, bad, 0), Err(Errno::Inval), "{bad:#x}");
    }
    assert_eq!(world.update_va_mapping(1, va(A), 0), Err(Errno::Inval), "a vCPU without a root");
    assert_eq!(world.paging.update_va_mapping(&mut world.tlb, 2, va(A), 0), Err(Errno::Inval));
    // A user root does not count.
    world.chain(&[A, B, C, D]);
    world.pin(4, A).unwrap();
    world.set_user_root(0, A).unwrap();
    assert_eq!(world.update_va_mapping(0, 0, pte(B, RO)), Err(Errno::Inval));
    world.set_kernel_root(0, A).unwrap();
    world.update_va_mapping(0, 0, pte(B, RO)).unwrap();
    assert_eq!(world.get(D, 0), pte(B, RO));
}

#[test]
fn trapped_stores_stay_inside_one_entry_of_a_live_l1() {
    let mut world = World::started();
    let entry = at(L1, A - RAM);
    for (maddr, size) in [(entry + 4, 8), (entry + 1, 2), (entry + 6, 4), (entry, 3), (entry, 16), (entry, 0)]
    {
        assert_eq!(world.trapped_store(maddr, size, None, 0), Err(Errno::Inval));
    }
    for mfn in [L2, L3, L4, A, FOREIGN, SHARED] {
        assert_eq!(world.trapped_store(at(mfn, 0), 8, None, 0), Err(Errno::Inval));
        assert!(!world.paging.is_live_l1(Mfn(mfn)));
    }
    assert!(world.paging.is_live_l1(Mfn(L1)));
}

#[test]
fn trapped_read_modify_write_compares_its_own_bytes() {
    let mut world = World::started();
    let entry = at(L1, A - RAM);
    // `lock btr $1` on a byte: the entry loses RW, the frame its writable use.
    assert_eq!(world.trapped_store(entry, 1, Some(RW), RO), Ok(true));
    assert_eq!(world.type_of(A).1, 0);
    assert_eq!(world.trapped_store(entry, 1, Some(RW), 0), Ok(false));
    // `xchg` of the whole, first with a value that is no longer there.
    assert_eq!(world.trapped_store(entry, 8, Some(pte(A, RW)), 0), Ok(false));
    assert_eq!(world.trapped_store(entry, 8, Some(pte(A, RO)), 0), Ok(true));
    // In halves: the low one makes it present, so it is checked with the high one that is there.
    assert_eq!(world.trapped_store(entry + 4, 4, Some(0), 1 << 31), Ok(true));
    assert_eq!(world.trapped_store(entry, 4, None, pte(B, RW)), Ok(true));
    assert_eq!(world.get(L1, A - RAM), pte(B, RW) | 1 << 63);
    assert_eq!(world.trapped_store(entry + 2, 2, None, 0xffff), Err(Errno::Perm));
}

#[test]
fn changes_above_an_l1_flush_if_a_translation_may_be_wrong() {
    let mut world = World::started();
    world.make_read_only(&[A]);
    let flushes = |world: &mut World, value: u64, index: u64| {
        let before = world.tlb.flushes;
        world.mmu_update(at(L2, index), value).unwrap();
        world.tlb.flushes - before
    };
    assert_eq!(flushes(&mut world, pte(A, TABLE), 7), 0, "nothing was there");
    assert_eq!(flushes(&mut world, pte(A, TABLE | 0xe00), 7), 0);
    assert_eq!(flushes(&mut world, pte(A, TABLE & !2), 7), 1);
    assert_eq!(flushes(&mut world, pte(A, TABLE & !2 | 1 << 63), 7), 1);
    assert_eq!(flushes(&mut world, pte(L1, TABLE & !2 | 1 << 63), 7), 1);
    assert_eq!(flushes(&mut world, 0, 7), 1);
    assert_eq!(flushes(&mut world, 0x1000, 7), 0);
    let before = world.tlb.flushes;
    world.make_read_only(&[B]);
    world.trapped_store(at(L1, 1), 8, None, 0).unwrap();
    assert_eq!(world.tlb.flushes, before, "an L1 is the guest's to flush");
}

#[test]
fn pages_are_cleared_and_copied_only_where_writing_is_allowed() {
    let mut world = World::started();
    world.mmu_update(at(A, 9), 0x1234).unwrap();
    world.copy_page(B, A).unwrap();
    world.clear_page(A).unwrap();
    assert_eq!((world.get(A, 9), world.get(B, 9)), (0, 0x1234));
    world.copy_page(B, L1).unwrap();
    for mfn in [L1, L4, FOREIGN, 0] {
        assert_eq!(world.clear_page(mfn), Err(Errno::Inval));
        assert_eq!(world.copy_page(mfn, A), Err(Errno::Inval));
    }
    assert_eq!(world.copy_page(A, FOREIGN), Err(Errno::Inval));
}

#[test]
fn walks_that_set_bits_meanwhile_lose_nothing() {
    let mut world = World::started();
    world.make_read_only(&[A]);
    let stop = AtomicU64::new(0);
    let memory = world.memory.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while stop.load(Ordering::Relaxed) == 0 {
                // As a walk does: only entries that are present, in an exchange that fails if they change.
                for maddr in [at(L1, 300), at(L2, 7)] {
                    let host = memory.page(maddr).unwrap().offset + maddr % 4096;
                    let old = memory.load::<u64>(host);
                    if old & 1 == 1 {
                        let _ = memory.compare_exchange(host, old, old ^ 0x60);
                    }
                }
            }
        });
        let _ending = Ending(&stop);
        let tlb = &mut world.tlb;
        for round in 0..500_000u64 {
            let flags = if round % 2 == 0 { RW } else { RO };
            let target = if round % 3 == 0 { B } else { C };
            world.paging.mmu_update(tlb, at(L1, 300) | (round % 2 * 2), pte(target, flags)).unwrap();
            // A walk does not touch what is not present, so leave it present for most rounds.
            if round % 4 == 3 {
                let _ = world.paging.trapped_store(tlb, at(L1, 300), 1, Some(flags), 0).unwrap();
            }
            let table = if round % 5 == 0 { 0 } else { pte(if round % 3 == 0 { A } else { L1 }, TABLE) };
            world.paging.mmu_update(tlb, at(L2, 7), table).unwrap();
        }
    });
    world.check();
}

#[test]
fn preserved_bits_are_not_lost_to_a_walk_that_overlaps() {
    let mut world = World::started();
    let (round, walked) = (AtomicU64::new(0), AtomicU64::new(0));
    let memory = world.memory.clone();
    let entry = at(L1, 300);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 0;
            while last != u64::MAX {
                let now = round.load(Ordering::SeqCst);
                if now == last {
                    std::thread::yield_now();
                    continue;
                }
                crate::tlb::set_bits(&memory, entry, 0x60);
                last = now;
                walked.store(now, Ordering::SeqCst);
            }
        });
        let _ending = Ending(&round);
        for now in 1..1500 {
            world.paging.mmu_update(&mut world.tlb, entry, pte(A, 5)).unwrap();
            round.store(now, Ordering::SeqCst);
            let mut flip = 0u64;
            while walked.load(Ordering::SeqCst) != now {
                flip ^= 1 << 63;
                world.paging.mmu_update(&mut world.tlb, entry | 2, pte(A, 5) | flip).unwrap();
                let word = world.get(L1, 300);
                // `lock btr` of the other half by the value just read.
                let high = word >> 32;
                let _ = world.paging.trapped_store(&mut world.tlb, entry + 4, 4, Some(high), high ^ 1 << 30);
            }
            assert_eq!(world.get(L1, 300) & 0x60, 0x60, "round {now}");
        }
    });
    world.check();
}
