//! A small domain with notes of what its calls have done. Each call is foretold by the checker and checked after.

use std::sync::Arc;

use trapgate_engine::memory::{GuestMemory, Region};
use trapgate_xen::Errno;
use trapgate_xen::paging::{DirectPaging, FrameType, Mfn};

use super::checker::{Change, Ledger, State, Use, check, descriptor, referred, table};
use super::tlb::{Space, Tlb, path};

/// First frame of the domain. Frames are written as offsets from here in the tests.
pub const RAM: u64 = 0x1000;
/// Frames that the domain can own, and how many it owns first.
pub const FRAMES: u64 = 20;
pub const OWNED: u64 = 17;
/// Frames of the monitor that the guest may map.
pub const SHARED: u64 = 0x5000;
pub const SHARED_FRAMES: u64 = 2;
pub const M2P: u64 = 0x6000;
/// Memory of somebody else.
pub const FOREIGN: u64 = 0x7000;

/// The frames of the builder's tables.
pub const L4: u64 = RAM;
pub const L3: u64 = RAM + 1;
pub const L2: u64 = RAM + 2;
pub const L1: u64 = RAM + 3;

/// Where the builder's tables map a frame of the domain; the page after them is shared, then there is nothing.
pub const fn va(mfn: u64) -> u64 {
    0xffff_ffff_8000_0000 + ((mfn - RAM) << 12)
}

pub const RO: u64 = 0x25;
pub const RW: u64 = 0x27;
pub const TABLE: u64 = 0x67;

/// An entry.
pub const fn pte(mfn: u64, flags: u64) -> u64 {
    (mfn << 12) | flags
}

/// Machine address of an entry.
pub const fn at(mfn: u64, index: u64) -> u64 {
    (mfn << 12) + index * 8
}

pub struct World {
    pub memory: Arc<GuestMemory>,
    pub paging: DirectPaging,
    pub tlb: Tlb,
    pub ledger: Ledger,
}

impl World {
    /// Two vCPUs, no tables.
    pub fn bare() -> World {
        let ranges = [(RAM, FRAMES), (SHARED, SHARED_FRAMES), (M2P, 1), (FOREIGN, 1)];
        let regions =
            ranges.map(|(start, frames)| Region { start: start << 12, len: frames << 12, read_only: false });
        let memory = Arc::new(GuestMemory::new(&regions).unwrap());
        let (ram, shared) = (RAM..RAM + FRAMES, SHARED..SHARED + SHARED_FRAMES);
        let mut paging =
            DirectPaging::new(memory.clone(), ram.clone(), OWNED, shared.clone(), M2P << 12).unwrap();
        assert_eq!(paging.add_vcpu(), 1);
        let place = |r: &Region| (memory.page(r.start).unwrap().offset, r.start, r.len);
        let tlb = Tlb { regions: regions.iter().map(place).collect(), ..Tlb::default() };
        let ledger = Ledger {
            allocated: (RAM..RAM + OWNED).collect(),
            zombies: Default::default(),
            pins: Default::default(),
            kernel: vec![None; 2],
            user: vec![None; 2],
            gdt: vec![vec![]; 2],
            held_writable: vec![],
            held_readable: vec![],
            pfns: (RAM..RAM + OWNED).zip(0..).collect(),
            maximum: FRAMES,
            ram,
            shared,
            m2p: M2P << 12,
        };
        let mut world = World { memory, paging, tlb, ledger };
        world.check();
        world
    }

    /// Runs on the builder's tables: all frames mapped writable but the tables, and a shared frame.
    pub fn started() -> World {
        let mut world = World::bare();
        world.put(L4, 511, pte(L3, TABLE));
        world.put(L3, 510, pte(L2, TABLE));
        world.put(L2, 0, pte(L1, TABLE));
        for mfn in RAM..RAM + OWNED {
            world.put(L1, mfn - RAM, pte(mfn, if mfn <= L1 { RO } else { RW }));
        }
        world.put(L1, FRAMES, pte(SHARED, RW));
        world.pin(4, L4).unwrap();
        world.set_kernel_root(0, L4).unwrap();
        world
    }

    /// Writes as the builder does, before anything counts.
    pub fn put(&mut self, mfn: u64, index: u64, value: u64) {
        self.memory.write(at(mfn, index), &value.to_le_bytes()).unwrap();
    }

    pub fn get(&self, mfn: u64, index: u64) -> u64 {
        table(&self.memory, mfn)[index as usize]
    }

    /// Takes the builder's writable mappings of frames away.
    pub fn make_read_only(&mut self, frames: &[u64]) {
        for mfn in frames {
            self.update_va_mapping(0, va(*mfn), pte(*mfn, RO)).unwrap();
        }
    }

    /// Takes the builder's mapping of a frame away.
    pub fn unmap(&mut self, mfn: u64) {
        self.update_va_mapping(0, va(mfn), 0).unwrap();
    }

    /// Makes tables of frames, each the first entry of the one before, that nobody uses yet.
    pub fn chain(&mut self, tables: &[u64]) {
        self.make_read_only(tables);
        for pair in tables.windows(2) {
            self.mmu_update(at(pair[0], 0), pte(pair[1], TABLE)).unwrap();
        }
    }

    pub fn type_of(&self, mfn: u64) -> (FrameType, u32) {
        let view = self.paging.frame(Mfn(mfn)).unwrap();
        (view.kind, view.type_count)
    }

    /// Recomputes everything and compares.
    pub fn check(&mut self) -> State {
        let before = State::compute(&self.ledger, &self.memory, &Change::default());
        if let Ok(state) = before {
            // What only the tables kept is gone now.
            let gone: Vec<u64> =
                self.ledger.zombies.iter().copied().filter(|m| state.refs(&self.ledger, *m) == 0).collect();
            for mfn in gone {
                self.ledger.zombies.remove(&mfn);
                self.ledger.pfns.remove(&mfn);
                assert_eq!(table(&self.memory, mfn), [0; 512], "freed frame {mfn:#x} keeps its content");
            }
        }
        let state = check(&self.ledger, &self.memory, &self.paging);
        self.tlb.check(&self.memory, &self.ledger, &state);
        state
    }

    fn state(&self) -> State {
        State::compute(&self.ledger, &self.memory, &Change::default()).unwrap()
    }

    fn fits(&self, entry: Option<(u64, u64)>, uses: &[(u64, Option<Use>)]) -> bool {
        State::compute(&self.ledger, &self.memory, &Change { entry, uses: uses.to_vec() }).is_ok()
    }

    fn use_of(&self, mfn: u64) -> Option<Use> {
        self.state().use_of(&self.ledger, mfn)
    }

    /// Compares with what was foretold, notes a success and checks.
    fn done<T>(
        &mut self,
        foretold: bool,
        result: Result<T, Errno>,
        note: impl FnOnce(&mut Ledger),
    ) -> Result<T, Errno> {
        if result.is_ok() {
            note(&mut self.ledger);
        }
        self.check();
        assert_eq!(result.is_ok(), foretold, "the checker foretold otherwise: {:?}", result.err());
        result
    }

    pub fn pin(&mut self, level: u8, mfn: u64) -> Result<(), Errno> {
        let fits = (1..=4).contains(&level)
            && !self.ledger.pins.contains_key(&mfn)
            && self.fits(None, &[(mfn, Some(Use::Table(level)))]);
        let result = self.paging.pin(&mut self.tlb, level, Mfn(mfn));
        self.done(fits, result, |l| {
            l.pins.insert(mfn, level);
        })
    }

    pub fn unpin(&mut self, mfn: u64) -> Result<(), Errno> {
        let fits = self.ledger.pins.contains_key(&mfn);
        let result = self.paging.unpin(&mut self.tlb, Mfn(mfn));
        self.done(fits, result, |l| {
            l.pins.remove(&mfn);
        })
    }

    pub fn set_kernel_root(&mut self, vcpu: usize, mfn: u64) -> Result<(), Errno> {
        let fits = self.fits(None, &[(mfn, Some(Use::Table(4)))]);
        let result = self.paging.set_kernel_root(&mut self.tlb, vcpu, Mfn(mfn));
        self.done(fits, result, |l| l.kernel[vcpu] = Some(mfn))
    }

    pub fn set_user_root(&mut self, vcpu: usize, mfn: u64) -> Result<(), Errno> {
        let fits = mfn == 0 || self.fits(None, &[(mfn, Some(Use::Table(4)))]);
        let result = self.paging.set_user_root(&mut self.tlb, vcpu, Mfn(mfn));
        self.done(fits, result, |l| l.user[vcpu] = (mfn != 0).then_some(mfn))
    }

    /// Whether an entry of a frame in use as a table may become this.
    fn entry_fits(&self, level: u8, maddr: u64, value: u64) -> bool {
        let old = self.get(maddr >> 12, maddr % 4096 / 8);
        let old = referred(old, level);
        value & 1 == 0 || self.fits(Some((maddr, value)), old.as_slice())
    }

    pub fn mmu_update(&mut self, ptr: u64, val: u64) -> Result<(), Errno> {
        let (mfn, maddr) = (ptr >> 12, ptr & !7);
        let fits = self.ledger.owns(mfn)
            && match (ptr & 7, self.use_of(mfn)) {
                (4.., _) => false,
                (1, _) => true,
                (_, Some(Use::Table(4))) if (256..272).contains(&(maddr % 4096 / 8)) => false,
                (_, Some(Use::Table(level))) => self.entry_fits(level, maddr, val),
                (_, Some(Use::Descriptors)) => false,
                (_, None | Some(Use::Written)) => true,
            };
        let old = if self.ledger.owns(mfn) { self.get(mfn, maddr % 4096 / 8) } else { 0 };
        let kept = matches!((ptr & 7, self.use_of(mfn)), (2, Some(Use::Table(_))));
        let result = self.paging.mmu_update(&mut self.tlb, ptr, val);
        if self.ledger.owns(mfn) {
            let stored = val | if kept { old & 0x60 } else { 0 };
            let want = if result.is_ok() && ptr & 7 != 1 { stored } else { old };
            assert_eq!(self.get(mfn, maddr % 4096 / 8), want, "the entry is not what was asked for");
        }
        self.done(fits, result, |l| {
            if ptr & 7 == 1 && l.ram.contains(&mfn) {
                l.pfns.insert(mfn, val);
            }
        })
    }

    pub fn update_va_mapping(&mut self, vcpu: usize, va: u64, pte: u64) -> Result<(), Errno> {
        let l1 = self.ledger.kernel[vcpu].and_then(|root| path(&self.memory, root, va, |_| ())).map(|p| p.l1);
        let fits = l1.is_some_and(|l1| self.entry_fits(1, l1, pte));
        let result = self.paging.update_va_mapping(&mut self.tlb, vcpu, va, pte);
        self.done(fits, result, |_| ())
    }

    pub fn trapped_store(&mut self, maddr: u64, size: u8, old: Option<u64>, new: u64) -> Result<bool, Errno> {
        let live = self.use_of(maddr >> 12) == Some(Use::Table(1));
        assert_eq!(self.paging.is_live_l1(Mfn(maddr >> 12)), live);
        let mut foretold = Err(());
        let mut after = 0;
        if live && matches!(size, 1 | 2 | 4 | 8) && maddr % size as u64 == 0 {
            let word = self.get(maddr >> 12, maddr % 4096 / 8);
            let (first, len) = (maddr as usize % 8, size as usize);
            let mut bytes = word.to_le_bytes();
            let same = old.is_none_or(|old| bytes[first..first + len] == old.to_le_bytes()[..len]);
            bytes[first..first + len].copy_from_slice(&new.to_le_bytes()[..len]);
            after = u64::from_le_bytes(bytes);
            foretold = match same {
                false => Ok(false),
                true if self.entry_fits(1, maddr & !7, after) => Ok(true),
                true => Err(()),
            };
        }
        let result = self.paging.trapped_store(&mut self.tlb, maddr, size, old, new);
        assert_eq!(result.map_err(|_| ()), foretold);
        if result == Ok(true) {
            assert_eq!(self.get(maddr >> 12, maddr % 4096 / 8), after);
        }
        self.done(foretold.is_ok(), result, |_| ())
    }

    pub fn set_gdt(&mut self, vcpu: usize, frames: &[u64]) -> Result<(), Errno> {
        let uses: Vec<_> = frames.iter().map(|m| (*m, Some(Use::Descriptors))).collect();
        let good = |mfn: &u64| table(&self.memory, *mfn).into_iter().all(|d| descriptor(d).is_some());
        let fits = frames.len() <= 14 && self.fits(None, &uses) && frames.iter().all(good);
        let list: Vec<Mfn> = frames.iter().map(|m| Mfn(*m)).collect();
        let result = self.paging.set_gdt(&mut self.tlb, vcpu, &list);
        self.done(fits, result, |l| l.gdt[vcpu] = frames.to_vec())
    }

    pub fn update_descriptor(&mut self, maddr: u64, desc: u64) -> Result<(), Errno> {
        let mfn = maddr >> 12;
        let table = matches!(self.use_of(mfn), Some(Use::Table(_)));
        let fits = maddr % 8 == 0 && self.ledger.owns(mfn) && !table && descriptor(desc).is_some();
        let result = self.paging.update_descriptor(maddr, desc);
        if result.is_ok() {
            assert_eq!(Some(self.get(mfn, maddr % 4096 / 8)), descriptor(desc));
        }
        self.done(fits, result, |_| ())
    }

    pub fn hold_writable(&mut self, mfn: u64) -> Result<(), Errno> {
        let fits = self.fits(None, &[(mfn, Some(Use::Written))]);
        let result = self.paging.hold_writable(&mut self.tlb, Mfn(mfn));
        self.done(fits, result, |l| l.held_writable.push(mfn))
    }

    pub fn hold_readable(&mut self, mfn: u64) -> Result<(), Errno> {
        let fits = self.ledger.owns(mfn);
        let result = self.paging.hold_readable(Mfn(mfn));
        self.done(fits, result, |l| l.held_readable.push(mfn))
    }

    pub fn release_writable(&mut self, mfn: u64) -> Result<(), Errno> {
        let held = self.ledger.held_writable.iter().position(|m| *m == mfn);
        let result = self.paging.release_writable(&mut self.tlb, Mfn(mfn));
        self.done(held.is_some(), result, |l| {
            held.map(|at| l.held_writable.remove(at));
        })
    }

    pub fn release_readable(&mut self, mfn: u64) -> Result<(), Errno> {
        let held = self.ledger.held_readable.iter().position(|m| *m == mfn);
        let result = self.paging.release_readable(&mut self.tlb, Mfn(mfn));
        self.done(held.is_some(), result, |l| {
            held.map(|at| l.held_readable.remove(at));
        })
    }

    pub fn decrease_reservation(&mut self, mfn: u64) -> Result<(), Errno> {
        let fits = self.ledger.allocated.contains(&mfn);
        let result = self.paging.decrease_reservation(&mut self.tlb, Mfn(mfn));
        self.done(fits, result, |l| {
            l.allocated.remove(&mfn);
            l.zombies.insert(mfn);
        })
    }

    pub fn populate(&mut self, pfn: u64) -> Option<u64> {
        let owned = (self.ledger.allocated.len() + self.ledger.zombies.len()) as u64;
        let fits = owned < self.ledger.maximum;
        let mfn = self.paging.populate(pfn).map(|m| m.0);
        if let Some(mfn) = mfn {
            assert!(!self.ledger.owns(mfn) && self.ledger.ram.contains(&mfn), "{mfn:#x} handed out twice");
            assert_eq!(table(&self.memory, mfn), [0; 512]);
        }
        let _ = self.done(fits, mfn.ok_or(Errno::NoMem), |l| {
            l.allocated.extend(mfn);
            l.pfns.extend(mfn.map(|m| (m, pfn)));
        });
        mfn
    }

    pub fn set_maximum(&mut self, frames: u64) {
        self.paging.set_maximum(frames);
        self.ledger.maximum = frames.min(FRAMES);
        self.check();
    }

    pub fn clear_page(&mut self, mfn: u64) -> Result<(), Errno> {
        let fits = self.ledger.owns(mfn) && matches!(self.use_of(mfn), None | Some(Use::Written));
        let result = self.paging.clear_page(Mfn(mfn));
        self.done(fits, result, |_| ())
    }

    pub fn copy_page(&mut self, to: u64, from: u64) -> Result<(), Errno> {
        let fits = self.ledger.owns(to)
            && self.ledger.owns(from)
            && matches!(self.use_of(to), None | Some(Use::Written));
        let result = self.paging.copy_page(Mfn(to), Mfn(from));
        self.done(fits, result, |_| ())
    }

    /// The guest reads; whether it could.
    pub fn guest_load(&mut self, space: Space, va: u64) -> bool {
        let frame = self.tlb.access(&self.memory, &self.ledger, space, va, false);
        self.check();
        frame.is_some()
    }

    /// The guest stores 8 bytes, by a stale translation if there is one; whether it could.
    pub fn guest_store(&mut self, space: Space, va: u64, value: u64) -> bool {
        let frame = self.tlb.access(&self.memory, &self.ledger, space, va, true);
        if let Some(mfn) = frame {
            self.memory.write((mfn << 12) + va % 4096, &value.to_le_bytes()).unwrap();
        }
        self.check();
        frame.is_some()
    }
}
