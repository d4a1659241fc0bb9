//! All calls in any order on few frames, so that aliases, loops, retyping and ballooning of what is in use happen often.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::tlb::Space;
use super::world::*;

#[derive(Clone, Debug)]
enum Op {
    Pin(u8, u64),
    /// Read-only where the builder mapped it, then a table.
    MakeTable(u8, u64),
    Unpin(u64),
    /// One of the pinned.
    UnpinOne(prop::sample::Index),
    KernelRoot(usize, u64),
    UserRoot(usize, u64),
    Update(u64, u64),
    Map(usize, u64, u64),
    Trapped(u64, u8, Option<u64>, u64),
    TrappedAgain(u64, u64),
    Gdt(usize, Vec<u64>),
    Descriptor(u64, u64),
    Hold(u64, bool),
    Release(u64, bool),
    ReleaseOne(prop::sample::Index),
    Decrease(u64),
    Populate(u64),
    Maximum(u64),
    Clear(u64),
    Copy(u64, u64),
    Load(Space, u64),
    Store(Space, u64, u64),
    FlushPage(u64),
}

/// Mostly frames of the domain, few of them more often.
fn frame() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => L4..=L1,
        8 => L1 + 1..RAM + 9,
        4 => RAM + 9..RAM + FRAMES,
        1 => SHARED..SHARED + SHARED_FRAMES,
        1 => prop::sample::select(vec![M2P, FOREIGN, 0, RAM - 1, RAM + FRAMES, 0xff_ffff_ffff, 1 << 39]),
    ]
}

/// Frames that are not the builder's tables.
fn other() -> impl Strategy<Value = u64> {
    L1 + 1..RAM + 9
}

fn flags() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => Just(RO), 8 => Just(RW), 4 => Just(5u64), 4 => Just(7u64), 4 => Just(TABLE), 3 => Just(TABLE & !2),
        3 => Just(0u64), 2 => Just(RW | 1 << 63), 1 => Just(RW | 0x7f << 52 | 0xe00),
        1 => (0..9u64).prop_map(|bit| RO ^ (1 << bit)),
    ]
}

fn entry() -> impl Strategy<Value = u64> {
    prop_oneof![12 => (frame(), flags()).prop_map(|(m, f)| pte(m, f)), 1 => Just(0u64), 1 => any::<u64>()]
}

/// Indices by which the frames of the builder's tables are reached, and some more.
fn index() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..4u64, 4 => 0..FRAMES + 2, 2 => Just(510u64), 2 => Just(511u64), 1 => 255..=272u64]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..FRAMES + 2).prop_map(|i| va(RAM + i)),
        4 => (index(), index(), index(), index()).prop_map(|(a, b, c, d)| {
            let low = (a << 39) | (b << 30) | (c << 21) | (d << 12);
            if a >= 256 { low | 0xffff << 48 } else { low }
        }),
        1 => any::<u64>(),
    ]
}

fn space() -> impl Strategy<Value = Space> {
    (prop_oneof![3 => Just(0usize), 1 => Just(1usize)], prop::bool::weighted(0.25))
}

fn descriptor() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0x00af_9b00_0000_ffffu64),
        Just(0x00cf_9300_0000_ffff),
        Just(0),
        Just(0x0000_8c00_0010_0000),
        Just(0x0000_8900_0000_0000),
        Just(0x0000_8c01_0010_0000),
        any::<u64>(),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let vcpu = || prop_oneof![4 => Just(0usize), 1 => Just(1usize)];
    let root = || prop_oneof![3 => Just(L4), 3 => other(), 1 => frame(), 1 => Just(0u64)];
    let entry_of_l1 = || (prop_oneof![3 => Just(L1), 2 => other(), 1 => frame()], index());
    let entry_of = || (prop_oneof![3 => L4..=L1, 4 => other(), 1 => frame()], index());
    let command =
        prop_oneof![6 => Just(0u64), 3 => Just(2u64), 1 => Just(3u64), 1 => Just(1u64), 1 => 4..8u64];
    let size = prop_oneof![4 => Just(8u8), 1 => Just(4u8), 1 => Just(2u8), 1 => Just(1u8), 1 => 0..17u8];
    prop_oneof![
        8 => (prop_oneof![4 => 1..=4u8, 1 => 0..=5u8], prop_oneof![2 => frame(), 3 => other()])
            .prop_map(|(l, m)| Op::Pin(l, m)),
        8 => (1..=4u8, other()).prop_map(|(l, m)| Op::MakeTable(l, m)),
        2 => prop_oneof![frame(), other()].prop_map(Op::Unpin),
        4 => any::<prop::sample::Index>().prop_map(Op::UnpinOne),
        3 => any::<prop::sample::Index>().prop_map(Op::ReleaseOne),
        3 => (vcpu(), root()).prop_map(|(v, m)| Op::KernelRoot(v, m)),
        3 => (vcpu(), root()).prop_map(|(v, m)| Op::UserRoot(v, m)),
        24 => (command, entry_of(), entry()).prop_map(|(c, (m, i), e)| Op::Update(at(m, i) | c, e)),
        // What a guest does all day: a page becomes read-only or writable where the builder mapped it.
        12 => (other(), any::<bool>()).prop_map(|(m, w)| Op::Map(0, va(m), pte(m, if w { RW } else { RO }))),
        6 => other().prop_map(|m| Op::Map(0, va(m), 0)),
        8 => (vcpu(), address(), entry()).prop_map(|(v, a, e)| Op::Map(v, a, e)),
        4 => (entry_of_l1(), prop_oneof![3 => Just(0u64), 1 => Just(4u64), 2 => 0..8u64], size, prop::option::weighted(0.2, any::<u64>()), entry())
            .prop_map(|((m, i), byte, size, old, e)| Op::Trapped(at(m, i) + byte, size, old, e)),
        6 => (entry_of_l1(), entry()).prop_map(|((m, i), e)| Op::TrappedAgain(at(m, i), e)),
        4 => (vcpu(), prop::collection::vec(prop_oneof![4 => other(), 1 => frame()], 0..3))
            .prop_map(|(v, frames)| Op::Gdt(v, frames)),
        4 => (entry_of(), descriptor()).prop_map(|((m, i), d)| Op::Descriptor(at(m, i), d)),
        3 => (frame(), any::<bool>()).prop_map(|(m, w)| Op::Hold(m, w)),
        1 => (frame(), any::<bool>()).prop_map(|(m, w)| Op::Release(m, w)),
        2 => frame().prop_map(Op::Decrease),
        4 => (0..64u64).prop_map(Op::Populate),
        1 => (FRAMES - 6..FRAMES + 3).prop_map(Op::Maximum),
        1 => frame().prop_map(Op::Clear),
        2 => (frame(), frame()).prop_map(|(a, b)| Op::Copy(a, b)),
        6 => (space(), address()).prop_map(|(s, a)| Op::Load(s, a & !7)),
        14 => (space(), address(), index(), entry()).prop_map(|(s, a, i, e)| Op::Store(s, (a & !0xfff) + i * 8, e)),
        1 => address().prop_map(Op::FlushPage),
    ]
}

fn run(world: &mut World, op: Op) -> bool {
    match op {
        Op::Pin(level, mfn) => world.pin(level, mfn).is_ok(),
        Op::MakeTable(level, mfn) => {
            let _ = world.update_va_mapping(0, va(mfn), pte(mfn, RO));
            world.pin(level, mfn).is_ok()
        }
        Op::Unpin(mfn) => world.unpin(mfn).is_ok(),
        Op::UnpinOne(at) => {
            let pinned: Vec<u64> = world.ledger.pins.keys().copied().collect();
            !pinned.is_empty() && world.unpin(*at.get(&pinned)).is_ok()
        }
        Op::KernelRoot(vcpu, mfn) => world.set_kernel_root(vcpu, mfn).is_ok(),
        Op::UserRoot(vcpu, mfn) => world.set_user_root(vcpu, mfn).is_ok(),
        Op::Update(ptr, val) => world.mmu_update(ptr, val).is_ok(),
        Op::Map(vcpu, va, pte) => world.update_va_mapping(vcpu, va, pte).is_ok(),
        Op::Trapped(maddr, size, old, new) => world.trapped_store(maddr, size, old, new) == Ok(true),
        Op::TrappedAgain(maddr, new) => {
            let old = world.ledger.owns(maddr >> 12).then(|| world.get(maddr >> 12, maddr % 4096 / 8));
            world.trapped_store(maddr, 8, old, new) == Ok(true)
        }
        Op::Gdt(vcpu, frames) => world.set_gdt(vcpu, &frames).is_ok(),
        Op::Descriptor(maddr, desc) => world.update_descriptor(maddr, desc).is_ok(),
        Op::Hold(mfn, true) => world.hold_writable(mfn).is_ok(),
        Op::Hold(mfn, false) => world.hold_readable(mfn).is_ok(),
        Op::Release(mfn, true) => world.release_writable(mfn).is_ok(),
        Op::Release(mfn, false) => world.release_readable(mfn).is_ok(),
        Op::ReleaseOne(at) => {
            let held: Vec<(u64, bool)> = world
                .ledger
                .held_writable
                .iter()
                .map(|m| (*m, true))
                .chain(world.ledger.held_readable.iter().map(|m| (*m, false)))
                .collect();
            match held.is_empty() {
                true => false,
                false => match *at.get(&held) {
                    (mfn, true) => world.release_writable(mfn).is_ok(),
                    (mfn, false) => world.release_readable(mfn).is_ok(),
                },
            }
        }
        Op::Decrease(mfn) => world.decrease_reservation(mfn).is_ok(),
        Op::Populate(pfn) => world.populate(pfn).is_some(),
        Op::Maximum(frames) => {
            world.set_maximum(frames);
            true
        }
        Op::Clear(mfn) => world.clear_page(mfn).is_ok(),
        Op::Copy(to, from) => world.copy_page(to, from).is_ok(),
        Op::Load(space, va) => world.guest_load(space, va),
        Op::Store(space, va, value) => world.guest_store(space, va, value),
        Op::FlushPage(va) => {
            trapgate_xen::paging::TlbControl::flush_page(&mut world.tlb, va);
            true
        }
    }
}

/// Gives everything up and sees that nothing is left over.
fn tear_down(mut world: World) {
    for vcpu in 0..2 {
        world.set_user_root(vcpu, 0).unwrap();
        world.set_gdt(vcpu, &[]).unwrap();
    }
    for mfn in world.ledger.pins.keys().copied().collect::<Vec<_>>() {
        world.unpin(mfn).unwrap();
    }
    for mfn in world.ledger.held_writable.clone() {
        world.release_writable(mfn).unwrap();
    }
    for mfn in world.ledger.held_readable.clone() {
        world.release_readable(mfn).unwrap();
    }
    for mfn in world.ledger.allocated.clone() {
        world.decrease_reservation(mfn).unwrap();
    }
    if world.ledger.kernel == [None, None] {
        assert_eq!(world.paging.owned_frames(), 0);
    }
}

#[test]
fn any_calls_keep_the_counts() {
    let config =
        Config { cases: 600, failure_persistence: None, max_shrink_iters: 4000, ..Config::default() };
    let sequences = prop::collection::vec(op(), 1..150);
    let mut tried = std::collections::BTreeMap::<String, (u32, u32)>::new();
    let tally = std::cell::RefCell::new(&mut tried);
    // The same sequences in every run, so that what they reach is the same: see the last assertion.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(config, rng)
        .run(&sequences, |ops| {
            let mut world = World::started();
            for op in ops {
                let name = format!("{op:?}").split(['(', ' ']).next().unwrap_or_default().to_owned();
                let done = run(&mut world, op);
                let mut tally = tally.borrow_mut();
                let counts = tally.entry(name).or_default();
                counts.0 += 1;
                counts.1 += u32::from(done);
            }
            tear_down(world);
            Ok(())
        })
        .unwrap();
    println!("{tried:?}");
    // A test of refusals only would prove little.
    assert!(tried.values().all(|(_, done)| *done > 0), "{tried:?}");
}
