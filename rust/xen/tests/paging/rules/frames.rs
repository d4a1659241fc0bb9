//! Frames that hold descriptors, that the monitor uses, and that come and go.

use trapgate_engine::memory::{GuestMemory, Region};
use trapgate_xen::Errno;
use trapgate_xen::paging::{DirectPaging, FrameType, LayoutError, Mfn, TlbControl, sanitise_descriptor};

use crate::world::*;

/// Frames that are mapped writable by the builder.
const A: u64 = RAM + 8;
const B: u64 = RAM + 9;

#[test]
fn shared_frames_are_writable_for_ever() {
    let mut world = World::started();
    world.update_va_mapping(0, va(A), pte(SHARED + 1, RW)).unwrap();
    world.update_va_mapping(0, va(A), 0).unwrap();
    for level in 1..=4 {
        assert_eq!(world.pin(level, SHARED + 1), Err(Errno::Inval));
    }
    assert_eq!(world.set_gdt(0, &[SHARED + 1]), Err(Errno::Inval));
    assert_eq!(world.decrease_reservation(SHARED + 1), Err(Errno::Inval));
    assert_eq!(world.type_of(SHARED + 1), (FrameType::Writable, 1));
}

#[test]
fn set_gdt_types_and_sanitises_whole_frames_or_nothing() {
    let mut world = World::started();
    let kernel_code = 0x00af_9b00_0000_ffff;
    world.mmu_update(at(A, 2), kernel_code).unwrap();
    world.mmu_update(at(B, 1), kernel_code).unwrap();
    world.mmu_update(at(B, 511), 0x0000_8900_0000_0000).unwrap();
    assert_eq!(world.set_gdt(0, &[A]), Err(Errno::Inval), "mapped writable");
    world.make_read_only(&[A, B]);
    assert_eq!(world.set_gdt(0, &[A, B]), Err(Errno::Inval), "a task segment behind the entries in use");
    assert_eq!(world.get(B, 1), kernel_code, "not changed in part");
    assert_eq!((world.type_of(A).1, world.paging.gdt(0).len()), (0, 0));
    assert_eq!(world.set_gdt(0, &[A; 15]), Err(Errno::Inval));
    world.set_gdt(0, &[A; 14]).unwrap();
    assert_eq!(world.get(A, 2), 0x00af_fb00_0000_ffff);
    assert_eq!(world.set_gdt(0, &[A, L4]), Err(Errno::Inval));
    assert_eq!(world.paging.gdt(0), [Mfn(A); 14], "the old one stays");
    assert_eq!(world.update_va_mapping(0, va(A), pte(A, RW)), Err(Errno::Busy));
    assert_eq!(world.mmu_update(at(A, 2), 0), Err(Errno::Inval));
    world.set_gdt(1, &[A]).unwrap();
    world.set_gdt(0, &[]).unwrap();
    assert_eq!(world.type_of(A), (FrameType::Segdesc, 1));
    assert_eq!(world.paging.set_gdt(&mut world.tlb, 2, &[]), Err(Errno::NoEnt));
}

#[test]
fn update_descriptor_checks_and_needs_a_fitting_frame() {
    let mut world = World::started();
    world.make_read_only(&[A]);
    world.set_gdt(0, &[A]).unwrap();
    for mfn in [A, B] {
        world.update_descriptor(at(mfn, 3), 0x00cf_9300_0000_ffff).unwrap();
        assert_eq!(world.get(mfn, 3), 0x00cf_f300_0000_ffff);
    }
    assert_eq!(world.update_descriptor(at(A, 3), 0x0000_8900_0000_0000), Err(Errno::Inval));
    assert_eq!(world.update_descriptor(at(A, 3) + 4, 0), Err(Errno::Inval));
    for mfn in [L1, L4, FOREIGN, 0] {
        assert_eq!(world.update_descriptor(at(mfn, 3), 0), Err(Errno::Inval));
    }
}

#[test]
fn descriptors_are_of_ring_3_and_gates_lead_nowhere() {
    assert_eq!(sanitise_descriptor(0x00af_9b00_0000_ffff), Some(0x00af_fb00_0000_ffff));
    assert_eq!(sanitise_descriptor(0x00af_1b00_0000_ffff), Some(0x00af_1b00_0000_ffff), "not present");
    assert_eq!(sanitise_descriptor(0x0000_0900_0000_0000), Some(0x0000_0900_0000_0000));
    assert_eq!(sanitise_descriptor(0x0000_8000_0000_0000), Some(0x0000_e000_0000_0000), "second half");
    assert_eq!(sanitise_descriptor(0x1234_ec00_0010_5678), Some(0x1234_8c00_0010_5678));
    assert_eq!(sanitise_descriptor(0x1234_ec01_0010_5678), None, "a gate with parameters");
    for system in (1..16).filter(|t| *t != 0xc) {
        assert_eq!(sanitise_descriptor((0x80 | system) << 40), None);
    }
}

#[test]
fn holds_keep_frames_and_their_type() {
    let mut world = World::started();
    world.make_read_only(&[A]);
    world.hold_writable(A).unwrap();
    assert_eq!(world.pin(1, A), Err(Errno::Inval));
    assert_eq!(world.set_gdt(0, &[A]), Err(Errno::Inval));
    world.hold_readable(L4).unwrap();
    assert_eq!(world.hold_writable(L4), Err(Errno::Inval));
    assert_eq!(world.hold_readable(FOREIGN), Err(Errno::Inval));
    assert_eq!(world.hold_writable(RAM + FRAMES - 1), Err(Errno::Inval));
    assert_eq!(world.release_readable(A), Err(Errno::Inval), "held for writing");
    assert_eq!(world.release_writable(L4), Err(Errno::Inval));
    world.release_writable(A).unwrap();
    assert_eq!(world.release_writable(A), Err(Errno::Inval));
    world.pin(1, A).unwrap();
    world.release_readable(L4).unwrap();
    world.hold_writable(SHARED).unwrap();
    world.release_writable(SHARED).unwrap();
}

#[test]
fn a_frame_given_back_lives_until_its_last_reference() {
    let mut world = World::started();
    world.make_read_only(&[A]);
    world.pin(1, A).unwrap();
    world.decrease_reservation(A).unwrap();
    assert_eq!(world.decrease_reservation(A), Err(Errno::Inval), "given back before");
    assert_eq!(world.paging.owned_frames(), OWNED);
    world.unpin(A).unwrap();
    assert_eq!(world.paging.owned_frames(), OWNED, "still mapped");
    world.update_va_mapping(0, va(A), 0).unwrap();
    assert_eq!(world.paging.owned_frames(), OWNED - 1);
    assert_eq!(world.update_va_mapping(0, va(A), pte(A, RO)), Err(Errno::Busy));
    for mfn in [FOREIGN, M2P, SHARED, A, 0] {
        assert_eq!(world.decrease_reservation(mfn), Err(Errno::Inval));
    }
}

#[test]
fn populate_gives_zeroed_frames_up_to_the_maximum() {
    let mut world = World::started();
    world.mmu_update(at(A, 9), 0x1234).unwrap();
    world.update_va_mapping(0, va(A), 0).unwrap();
    world.decrease_reservation(A).unwrap();
    for pfn in 0..=FRAMES - OWNED {
        assert!(world.populate(1000 + pfn).is_some());
    }
    assert_eq!(world.populate(0), None, "no frame left");
    world.update_va_mapping(0, va(A), 0).unwrap();
    world.decrease_reservation(A).unwrap();
    world.set_maximum(FRAMES - 1);
    assert_eq!(world.populate(0), None);
    world.set_maximum(!0);
    assert_eq!(world.paging.maximum(), FRAMES);
    assert_eq!(world.populate(0), Some(A));
}

#[test]
fn stores_drop_cached_code() {
    let mut world = World::started();
    let watch = |world: &World, mfn: u64| {
        let host = world.memory.page(mfn << 12).unwrap().offset;
        (host, world.memory.watch_code(host).0)
    };
    for step in 0..6 {
        let (host, state) = watch(&world, if step == 1 { L1 } else { A });
        match step {
            0 => world.mmu_update(at(A, 0), 1).unwrap(),
            1 => world.trapped_store(at(L1, 99), 8, None, 0).map(drop).unwrap(),
            2 => world.update_descriptor(at(A, 0), 0).unwrap(),
            3 => world.clear_page(A).unwrap(),
            4 => world.copy_page(A, B).unwrap(),
            _ => {
                world.update_va_mapping(0, va(A), 0).unwrap();
                world.decrease_reservation(A).unwrap();
            }
        }
        assert_ne!(world.memory.code_state(host), state, "step {step}");
    }
}

struct NoTlb;

impl TlbControl for NoTlb {
    fn flush_all(&mut self) {}
    fn flush_page(&mut self, _va: u64) {}
    fn protect(&mut self, _host: u64) {}
}

#[test]
fn layouts_are_checked() {
    let region = |start: u64, frames: u64| Region { start: start << 12, len: frames << 12, read_only: false };
    let memory = std::sync::Arc::new(GuestMemory::new(&[region(0x100, 600), region(0x1000, 4)]).unwrap());
    let make = |ram, owned, shared, m2p| DirectPaging::new(memory.clone(), ram, owned, shared, m2p).map(drop);
    let m2p = 0x1000 << 12;
    assert_eq!(make(0x100..0x140, 64, 0x1001..0x1003, m2p), Ok(()));
    assert_eq!(make(0x100..0x140, 0, 0..0, m2p + 0x800), Ok(()));
    assert!(matches!(make(0x100..0x140, 65, 0..0, m2p), Err(LayoutError::Owned { .. })));
    assert!(matches!(make(0x100..0x140, 1, 0x13f..0x141, m2p), Err(LayoutError::Overlap)));
    assert!(matches!(make(0x100..0x140, 1, 0x1000..0x1001, m2p), Err(LayoutError::Overlap)));
    assert!(matches!(make(0x100..0x140, 1, 0..0, 0x13f << 12), Err(LayoutError::Overlap)));
    assert!(matches!(make(0x100..0x140, 1, 0..0, m2p + 4), Err(LayoutError::Alignment(_))));
    assert!(matches!(make(0..4, 1, 0x1001..0x1002, m2p), Err(LayoutError::Numbers(_))));
    assert!(matches!(make(1 << 40..(1 << 40) + 1, 1, 0..0, m2p), Err(LayoutError::Numbers(_))));
    assert!(matches!(make(0x100..0x400, 1, 0..0, m2p), Err(LayoutError::NoMemory { .. })));
    assert!(matches!(make(0x100..0x140, 1, 0..0, 0x1004 << 12), Err(LayoutError::NoMemory { .. })));
    let mut empty = DirectPaging::new(memory.clone(), 0x100..0x100, 0, 0..0, m2p).unwrap();
    assert_eq!((empty.populate(0), empty.frame(Mfn(0x100))), (None, None));
    assert_eq!(empty.pin(&mut NoTlb, 4, Mfn(0x100)), Err(Errno::Inval));
}
