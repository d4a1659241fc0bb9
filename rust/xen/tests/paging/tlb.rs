//! A page walk as hardware does it, and a TLB that keeps what it found until told otherwise.

use trapgate_engine::memory::GuestMemory;
use trapgate_xen::paging::TlbControl;

use super::checker::{Ledger, State, Use, hypervisor_slot};

/// Whose root: the number of the vCPU, and whether it is the user's.
pub type Space = (usize, bool);

#[derive(Clone, Debug)]
pub struct Cached {
    pub space: Space,
    /// Linear page.
    pub page: u64,
    /// The frame that is reached.
    pub mfn: u64,
    pub writable: bool,
    /// The part of the walk above the L1 that must not change unnoticed.
    path: Path,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Machine address of the L1 entry.
    pub l1: u64,
    writable: bool,
    no_execute: bool,
}

#[derive(Default, Debug)]
pub struct Tlb {
    pub cached: Vec<Cached>,
    pub flushes: u32,
    pub protects: u32,
    /// Machine address of the first host offset of the regions that hold frames: (host, maddr, len).
    pub regions: Vec<(u64, u64, u64)>,
}

impl TlbControl for Tlb {
    fn flush_all(&mut self) {
        self.flushes += 1;
        self.cached.clear();
    }

    fn flush_page(&mut self, va: u64) {
        self.cached.retain(|c| c.page != va >> 12);
    }

    fn protect(&mut self, host: u64) {
        assert_eq!(host % 4096, 0);
        self.protects += 1;
        let (start, maddr, _) = *self.regions.iter().find(|r| (r.0..r.0 + r.2).contains(&host)).unwrap();
        let mfn = (host - start + maddr) >> 12;
        self.cached.retain(|c| !(c.writable && c.mfn == mfn));
    }
}

impl Tlb {
    /// INVLPG.
    pub fn flush_page_of(&mut self, va: u64) {
        self.flush_page(va);
    }
}

fn load(memory: &GuestMemory, maddr: u64) -> u64 {
    let mut raw = [0; 8];
    memory.read(maddr, &mut raw).unwrap();
    u64::from_le_bytes(raw)
}

/// The way to the L1 entry for an address, if all levels above are present.
pub fn path(memory: &GuestMemory, root: u64, va: u64, mut each: impl FnMut(u64)) -> Option<Path> {
    if va >> 47 != 0 && va >> 47 != 0x1_ffff {
        return None;
    }
    let mut path = Path { l1: root << 12, writable: true, no_execute: false };
    for level in (1..=4u8).rev() {
        let at = va >> (12 + 9 * (level as u32 - 1)) & 511;
        if hypervisor_slot(level, at as usize) {
            return None;
        }
        path.l1 += at * 8;
        if level == 1 {
            break;
        }
        let entry = load(memory, path.l1);
        if entry & 1 == 0 {
            return None;
        }
        each(path.l1);
        path.writable &= entry & 2 != 0;
        path.no_execute |= entry >> 63 != 0;
        path.l1 = entry & 0x000f_ffff_ffff_f000;
    }
    Some(path)
}

impl Tlb {
    /// The machine frame for an access, from the TLB or by a walk that sets accessed and dirty; None is a page fault.
    pub fn access(
        &mut self,
        memory: &GuestMemory,
        ledger: &Ledger,
        space: Space,
        va: u64,
        write: bool,
    ) -> Option<u64> {
        let hit =
            self.cached.iter().find(|c| c.space == space && c.page == va >> 12 && (c.writable || !write));
        if let Some(hit) = hit {
            return Some(hit.mfn);
        }
        let root = if space.1 { ledger.user[space.0] } else { ledger.kernel[space.0] }?;
        let mut above = Vec::new();
        let path = path(memory, root, va, |maddr| above.push(maddr))?;
        let leaf = load(memory, path.l1);
        let writable = path.writable && leaf & 2 != 0;
        if leaf & 1 == 0 || (write && !writable) {
            return None;
        }
        for maddr in above {
            set_bits(memory, maddr, 0x20);
        }
        set_bits(memory, path.l1, if write { 0x60 } else { 0x20 });
        self.flush_page(va);
        let mfn = (leaf >> 12) & 0xff_ffff_ffff;
        self.cached.push(Cached { space, page: va >> 12, mfn, writable, path });
        Some(mfn)
    }

    /// Asserts that nothing is cached that should have been dropped.
    pub fn check(&self, memory: &GuestMemory, ledger: &Ledger, state: &State) {
        for cached in &self.cached {
            let used = state.use_of(ledger, cached.mfn);
            if cached.writable {
                assert!(
                    ledger.owns(cached.mfn) && matches!(used, None | Some(Use::Written)),
                    "writable translation of a frame that is {used:?}: {cached:x?}"
                );
            }
            // An L1's own entry may have changed, the guest flushes for that; the way to it may not.
            let root =
                if cached.space.1 { ledger.user[cached.space.0] } else { ledger.kernel[cached.space.0] };
            let root = root.unwrap_or_else(|| panic!("translation without a root: {cached:x?}"));
            let now = path(memory, root, cached.page << 12, |_| ());
            assert_eq!(now, Some(cached.path), "translation by tables that are gone: {cached:x?}");
        }
    }
}

pub fn set_bits(memory: &GuestMemory, maddr: u64, bits: u64) {
    let host = memory.page(maddr).unwrap().offset + maddr % 4096;
    let mut old = memory.load::<u64>(host);
    while let Err(seen) = memory.compare_exchange(host, old, old | bits) {
        old = seen;
    }
}
