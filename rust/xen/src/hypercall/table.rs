//! The table of hypercalls: what each number is called, and what becomes of it now (xen/include/public/xen.h).
//!
//! Rows may be changed by any thread while the guest runs; each call looks at its row anew.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::Waiting;

/// One more than the highest number (48 is `mca`, the first of the architecture's own).
pub const NUMBERS: usize = 49;

macro_rules! calls {
    ($($number:literal $variant:ident $name:literal $first:expr;)*) => {
        /// A hypercall that has a number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Name { $($variant),* }

        impl Name {
            /// Number, name and what becomes of it at first.
            const ALL: &[(u32, Name, Disposition)] = &[$(($number, Name::$variant, $first)),*];

            /// The name in Xen's headers, without its prefix.
            pub fn text(self) -> &'static str {
                match self { $(Name::$variant => $name),* }
            }
        }
    };
}

const NATIVE: Disposition = Disposition::Native;
/// For the control domain only.
const PERM: Disposition = Disposition::Errno(1);
const NOSYS: Disposition = Disposition::Errno(38);

calls! {
    0 SetTrapTable "set_trap_table" NATIVE;
    1 MmuUpdate "mmu_update" NATIVE;
    2 SetGdt "set_gdt" NATIVE;
    3 StackSwitch "stack_switch" NATIVE;
    4 SetCallbacks "set_callbacks" NATIVE;
    5 FpuTaskswitch "fpu_taskswitch" NATIVE;
    6 SchedOpCompat "sched_op_compat" NOSYS;
    7 PlatformOp "platform_op" PERM;
    8 SetDebugreg "set_debugreg" NATIVE;
    9 GetDebugreg "get_debugreg" NATIVE;
    10 UpdateDescriptor "update_descriptor" NATIVE;
    12 MemoryOp "memory_op" NATIVE;
    13 Multicall "multicall" NATIVE;
    14 UpdateVaMapping "update_va_mapping" NATIVE;
    15 SetTimerOp "set_timer_op" NATIVE;
    16 EventChannelOpCompat "event_channel_op_compat" NOSYS;
    17 XenVersion "xen_version" NATIVE;
    18 ConsoleIo "console_io" NATIVE;
    19 PhysdevOpCompat "physdev_op_compat" NOSYS;
    20 GrantTableOp "grant_table_op" NATIVE;
    21 VmAssist "vm_assist" NATIVE;
    22 UpdateVaMappingOtherdomain "update_va_mapping_otherdomain" NOSYS;
    23 Iret "iret" NATIVE;
    24 VcpuOp "vcpu_op" NATIVE;
    25 SetSegmentBase "set_segment_base" NATIVE;
    26 MmuextOp "mmuext_op" NATIVE;
    27 XsmOp "xsm_op" NOSYS;
    28 NmiOp "nmi_op" NATIVE;
    29 SchedOp "sched_op" NATIVE;
    30 CallbackOp "callback_op" NATIVE;
    31 XenoprofOp "xenoprof_op" NOSYS;
    32 EventChannelOp "event_channel_op" NATIVE;
    33 PhysdevOp "physdev_op" NATIVE;
    34 HvmOp "hvm_op" NOSYS;
    35 Sysctl "sysctl" PERM;
    36 Domctl "domctl" PERM;
    37 KexecOp "kexec_op" NOSYS;
    38 TmemOp "tmem_op" NOSYS;
    39 ArgoOp "argo_op" NOSYS;
    40 XenpmuOp "xenpmu_op" NOSYS;
    41 DmOp "dm_op" NOSYS;
    42 HypfsOp "hypfs_op" NOSYS;
    48 Mca "mca" PERM;
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// A handler of ours.
    Native,
    /// A handler outside the vCPU.
    Outside,
    /// The guest gets this error number (as a negative).
    Errno(u16),
}

impl Disposition {
    fn pack(self) -> u64 {
        match self {
            Self::Native => 0,
            Self::Outside => 1,
            Self::Errno(code) => 2 | u64::from(code) << 8,
        }
    }

    fn unpack(packed: u64) -> Self {
        match packed & 0xff {
            0 => Self::Native,
            1 => Self::Outside,
            _ => Self::Errno((packed >> 8) as u16),
        }
    }
}

/// Number of iret.
const IRET: usize = 23;

/// One call in so many is timed: reading the clock takes longer than a short call.
const SAMPLE: u64 = 32;

/// A row: the call, what becomes of it, and what was seen of it.
#[derive(Debug)]
pub struct Row {
    pub number: u32,
    pub name: Name,
    disposition: AtomicU64,
    calls: AtomicU64,
    /// Those that came to no handler, since translated code did what they are for.
    in_place: AtomicU64,
    /// Nanoseconds of the calls that were timed, and how many these were.
    timed: AtomicU64,
    samples: AtomicU64,
}

/// A row's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    pub calls: u64,
    /// Nanoseconds in handlers of ours, estimated from a sample of the calls.
    pub nanoseconds: u64,
}

impl Row {
    pub fn disposition(&self) -> Disposition {
        Disposition::unpack(self.disposition.load(Ordering::Relaxed))
    }

    pub fn set_disposition(&self, disposition: Disposition) {
        self.disposition.store(disposition.pack(), Ordering::Relaxed);
    }

    /// Counts a call; the moment it begins if it is to be timed.
    pub(super) fn begin(&self) -> Option<Instant> {
        // Only one thread makes calls of a domain: a plain load and store would be enough, and cost the same.
        let calls = self.calls.load(Ordering::Relaxed).wrapping_add(1);
        self.calls.store(calls, Ordering::Relaxed);
        (calls.wrapping_sub(self.in_place.load(Ordering::Relaxed)) % SAMPLE == 1).then(Instant::now)
    }

    pub(super) fn end(&self, begun: Option<Instant>) {
        if let Some(begun) = begun {
            self.timed.fetch_add(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
            self.samples.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn counters(&self) -> Counters {
        let calls = self.calls.load(Ordering::Relaxed);
        let (timed, samples) = (self.timed.load(Ordering::Relaxed), self.samples.load(Ordering::Relaxed));
        let handled = calls.saturating_sub(self.in_place.load(Ordering::Relaxed));
        let nanoseconds = (u128::from(timed) * u128::from(handled) / u128::from(samples.max(1))) as u64;
        Counters { calls, nanoseconds }
    }
}

/// The table of a domain.
#[derive(Debug)]
pub struct Table {
    rows: [Option<Row>; NUMBERS],
    waiting: Mutex<Option<Waiting>>,
    /// Calls with numbers that nothing has.
    unknown: AtomicU64,
    trapped_stores: AtomicU64,
}

impl Default for Table {
    fn default() -> Self {
        let mut rows = [const { None }; NUMBERS];
        for &(number, name, first) in Name::ALL {
            rows[number as usize] = Some(Row {
                number,
                name,
                disposition: AtomicU64::new(first.pack()),
                calls: AtomicU64::new(0),
                in_place: AtomicU64::new(0),
                timed: AtomicU64::new(0),
                samples: AtomicU64::new(0),
            });
        }
        Table {
            rows,
            waiting: Mutex::default(),
            unknown: AtomicU64::new(0),
            trapped_stores: AtomicU64::new(0),
        }
    }
}

impl Table {
    /// The row of a number.
    pub fn row(&self, number: u64) -> Option<&Row> {
        let row = usize::try_from(number).ok().and_then(|n| self.rows.get(n)).and_then(Option::as_ref);
        if row.is_none() {
            self.unknown.fetch_add(1, Ordering::Relaxed);
        }
        row
    }

    /// All rows, by number.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().flatten()
    }

    /// Calls with numbers that nothing has.
    pub fn unknown(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }

    /// What becomes of iret now, as a number that is zero while it is native.
    pub(crate) fn disposition_of_iret(&self) -> Option<&AtomicU64> {
        self.rows[IRET].as_ref().map(|row| &row.disposition)
    }

    /// Translated code has made so many calls of iret.
    pub(crate) fn note_returns(&self, calls: u64) {
        for counter in self.rows[IRET].iter().flat_map(|row| [&row.calls, &row.in_place]) {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(calls), Ordering::Relaxed);
        }
    }

    /// Stores to live page tables that were carried out for the guest.
    pub fn trapped_stores(&self) -> u64 {
        self.trapped_stores.load(Ordering::Relaxed)
    }

    pub(crate) fn note_trapped_store(&self) {
        let stores = self.trapped_stores.load(Ordering::Relaxed).wrapping_add(1);
        self.trapped_stores.store(stores, Ordering::Relaxed);
    }

    pub(super) fn wait(&self, waiting: Waiting) {
        *self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(waiting);
    }

    /// Takes the call whose handler is outside.
    pub fn take_waiting(&self) -> Option<Waiting> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}
