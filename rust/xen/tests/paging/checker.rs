//! What every count must be, recomputed from the pins, the roots, the GDTs, the holds and the content of memory.
//!
//! Shares nothing with the crate but the types its inspection answers in. It also foretells: a call may succeed exactly
//! if the state with all old and all new references together is one that can be.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use trapgate_engine::memory::GuestMemory;
use trapgate_xen::paging::{DirectPaging, FrameType, Mfn, Owner};

/// What somebody relies on a frame to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// A table of a level.
    Table(u8),
    Descriptors,
    Written,
}

/// What is known of a domain from the calls that succeeded.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub ram: Range<u64>,
    pub shared: Range<u64>,
    pub m2p: u64,
    /// Owned and not given back.
    pub allocated: BTreeSet<u64>,
    /// Given back and still referred to.
    pub zombies: BTreeSet<u64>,
    pub pins: BTreeMap<u64, u8>,
    pub kernel: Vec<Option<u64>>,
    pub user: Vec<Option<u64>>,
    pub gdt: Vec<Vec<u64>>,
    pub held_writable: Vec<u64>,
    pub held_readable: Vec<u64>,
    /// What M2P must say of frames that have been named.
    pub pfns: BTreeMap<u64, u64>,
    pub maximum: u64,
}

impl Ledger {
    pub fn owns(&self, mfn: u64) -> bool {
        self.allocated.contains(&mfn) || self.zombies.contains(&mfn) || self.shared.contains(&mfn)
    }

    fn position(&self, mfn: u64) -> Option<usize> {
        if self.ram.contains(&mfn) {
            return Some((mfn - self.ram.start) as usize);
        }
        let ram = self.ram.end - self.ram.start;
        self.shared.contains(&mfn).then(|| (ram + mfn - self.shared.start) as usize)
    }

    fn all(&self) -> impl Iterator<Item = u64> {
        self.ram.clone().chain(self.shared.clone())
    }
}

/// A change that is only imagined.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Machine address and value of an entry.
    pub entry: Option<(u64, u64)>,
    /// Frames that somebody refers to besides, and as what.
    pub uses: Vec<(u64, Option<Use>)>,
}

#[derive(Clone, Debug)]
pub struct State {
    uses: Vec<Option<(Use, u32)>>,
    refs: Vec<u32>,
    tables: Vec<(u64, u8)>,
}

/// What an entry of a table of a level refers to, if it is present.
pub fn referred(entry: u64, level: u8) -> Option<(u64, Option<Use>)> {
    let mfn = (entry >> 12) & 0xff_ffff_ffff;
    match (entry & 1, level, entry & 2) {
        (0, ..) => None,
        (_, 1, 0) => Some((mfn, None)),
        (_, 1, _) => Some((mfn, Some(Use::Written))),
        _ => Some((mfn, Some(Use::Table(level - 1)))),
    }
}

/// Whether a slot of an L4 belongs to the hypervisor.
pub fn hypervisor_slot(level: u8, at: usize) -> bool {
    level == 4 && (256..272).contains(&at)
}

pub fn table(memory: &GuestMemory, mfn: u64) -> [u64; 512] {
    let mut raw = [0u8; 4096];
    memory.read(mfn << 12, &mut raw).unwrap();
    std::array::from_fn(|i| u64::from_le_bytes(raw[i * 8..i * 8 + 8].try_into().unwrap()))
}

impl State {
    /// The only state there can be, or why there can be none.
    pub fn compute(ledger: &Ledger, memory: &GuestMemory, change: &Change) -> Result<State, String> {
        let all = ledger.all().count();
        let mut state = State { uses: vec![None; all], refs: vec![0; all], tables: Vec::new() };
        for mfn in ledger.allocated.iter() {
            state.refer(ledger, *mfn, None)?;
        }
        for mfn in ledger.shared.clone() {
            state.refer(ledger, mfn, Some(Use::Written))?;
        }
        for (mfn, level) in &ledger.pins {
            state.refer(ledger, *mfn, Some(Use::Table(*level)))?;
        }
        for root in ledger.kernel.iter().chain(&ledger.user).flatten() {
            state.refer(ledger, *root, Some(Use::Table(4)))?;
        }
        for mfn in ledger.gdt.iter().flatten() {
            state.refer(ledger, *mfn, Some(Use::Descriptors))?;
        }
        for mfn in &ledger.held_writable {
            state.refer(ledger, *mfn, Some(Use::Written))?;
        }
        for mfn in &ledger.held_readable {
            state.refer(ledger, *mfn, None)?;
        }
        for (mfn, kind) in &change.uses {
            state.refer(ledger, *mfn, *kind)?;
        }
        // Tables are appended while the list is walked; each comes into it once.
        let mut next = 0;
        while let Some((mfn, level)) = state.tables.get(next).copied() {
            next += 1;
            let mut entries = table(memory, mfn);
            if let Some((maddr, value)) = change.entry.filter(|(maddr, _)| maddr >> 12 == mfn) {
                entries[(maddr as usize % 4096) / 8] = value;
            }
            for (at, entry) in entries.into_iter().enumerate() {
                if hypervisor_slot(level, at) || entry & 1 == 0 {
                    continue;
                }
                let refused = if level == 1 { 0b0_1001_1000 } else { 0b1_1001_1000 };
                if entry & refused != 0 {
                    return Err(format!(
                        "L{level} {mfn:#x}[{at}] = {entry:#x} has flags that no guest may have"
                    ));
                }
                if let Some((target, kind)) = referred(entry, level) {
                    state
                        .refer(ledger, target, kind)
                        .map_err(|e| format!("L{level} {mfn:#x}[{at}] = {entry:#x}: {e}"))?;
                }
            }
        }
        Ok(state)
    }

    fn refer(&mut self, ledger: &Ledger, mfn: u64, kind: Option<Use>) -> Result<(), String> {
        let at = ledger.position(mfn).filter(|_| ledger.owns(mfn));
        let at = at.ok_or_else(|| format!("frame {mfn:#x} is not the domain's"))?;
        self.refs[at] += 1;
        let Some(kind) = kind else { return Ok(()) };
        match &mut self.uses[at] {
            Some((now, count)) if *now == kind => *count += 1,
            Some((now, _)) => return Err(format!("frame {mfn:#x} is {now:?} and wanted as {kind:?}")),
            none => {
                *none = Some((kind, 1));
                if let Use::Table(level) = kind {
                    self.tables.push((mfn, level));
                }
            }
        }
        Ok(())
    }

    pub fn use_of(&self, ledger: &Ledger, mfn: u64) -> Option<Use> {
        self.uses[ledger.position(mfn)?].map(|(kind, _)| kind)
    }

    pub fn refs(&self, ledger: &Ledger, mfn: u64) -> u32 {
        ledger.position(mfn).map_or(0, |at| self.refs[at])
    }
}

/// A descriptor after the rules of set_gdt; None if there is no such.
pub fn descriptor(raw: u64) -> Option<u64> {
    let mut bytes = raw.to_le_bytes();
    let access = bytes[5];
    if access & 0x80 == 0 {
        return Some(raw);
    }
    let system = access & 0x10 == 0;
    match access & 0x0f {
        _ if !system => bytes[5] |= 0x60,
        0x0 => bytes[5] |= 0x60,
        0xc if bytes[4] == 0 => bytes[5] &= !0x60,
        _ => return None,
    }
    Some(u64::from_le_bytes(bytes))
}

/// Asserts that the counts are what they must be; what the TLB may hold is asserted in `tlb`.
pub fn check(ledger: &Ledger, memory: &GuestMemory, paging: &DirectPaging) -> State {
    let state = State::compute(ledger, memory, &Change::default())
        .unwrap_or_else(|why| panic!("the tables in use cannot stand: {why}"));
    let mut owned = 0;
    for mfn in ledger.all() {
        let at = ledger.position(mfn).unwrap();
        let view = paging.frame(Mfn(mfn)).unwrap();
        assert_eq!(view.refs, state.refs[at], "references of {mfn:#x}: {view:?}");
        let (kind, count) = match state.uses[at] {
            None => (view.kind, 0),
            Some((Use::Table(1), n)) => (FrameType::L1, n),
            Some((Use::Table(2), n)) => (FrameType::L2, n),
            Some((Use::Table(3), n)) => (FrameType::L3, n),
            Some((Use::Table(_), n)) => (FrameType::L4, n),
            Some((Use::Descriptors, n)) => (FrameType::Segdesc, n),
            Some((Use::Written, n)) => (FrameType::Writable, n),
        };
        assert_eq!((view.kind, view.type_count), (kind, count), "type of {mfn:#x}: {view:?}");
        assert_eq!(view.pinned, ledger.pins.contains_key(&mfn), "pin of {mfn:#x}");
        let owner = match (ledger.shared.contains(&mfn), view.refs) {
            (true, _) => Owner::Monitor,
            (false, 0) => Owner::Free,
            _ => Owner::Domain,
        };
        assert_eq!(view.owner, owner, "owner of {mfn:#x}");
        assert_eq!(view.allocated, ledger.allocated.contains(&mfn) || owner == Owner::Monitor);
        owned += u64::from(owner == Owner::Domain);
        if kind == FrameType::Segdesc && view.owner == Owner::Domain {
            for (at, desc) in table(memory, mfn).into_iter().enumerate() {
                assert_eq!(descriptor(desc), Some(desc), "descriptor {at} of {mfn:#x}");
            }
        }
    }
    assert_eq!(paging.owned_frames(), owned, "frames owned");
    assert_eq!(paging.maximum(), ledger.maximum);
    for (mfn, at) in ledger.ram.clone().zip(0..) {
        let mut raw = [0; 8];
        memory.read(ledger.m2p + at * 8, &mut raw).unwrap();
        let want = ledger.pfns.get(&mfn).copied().filter(|_| ledger.owns(mfn)).unwrap_or(!0);
        if state.refs(ledger, mfn) > 0 {
            assert_eq!(u64::from_le_bytes(raw), want, "M2P of {mfn:#x}");
        } else {
            assert_eq!(u64::from_le_bytes(raw), !0, "M2P of free {mfn:#x}");
        }
    }
    for vcpu in 0..ledger.kernel.len() {
        assert_eq!(paging.kernel_root(vcpu).map(|m| m.0), ledger.kernel[vcpu]);
        assert_eq!(paging.user_root(vcpu).map(|m| m.0), ledger.user[vcpu]);
        assert_eq!(paging.gdt(vcpu).iter().map(|m| m.0).collect::<Vec<_>>(), ledger.gdt[vcpu]);
    }
    state
}
