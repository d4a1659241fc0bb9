//! What translated code finds behind RSP: the guest registers that have no host register, counters, masks, the inline TLB
//! and the table of indirect targets. Below it lies the stack that RSP is for the host while translated code runs.

use std::mem::offset_of;

use super::asm::{Address, RSP, at};

/// Entries of the TLB in each privilege view.
pub const TLB_SIZE: usize = 1 << 16;
/// Slots of the table of indirect targets in each view.
pub const JUMPS: usize = 1 << 16;
/// Slots that say whether a page of code is where links into it expect it; number 0 is never set.
pub const PAIRS: usize = 1 << 14;
/// Slots for page offsets that several accesses of a unit share.
pub const GROUPS: usize = 16;

/// Counters of rounds of loops.
pub const TRIPS: usize = 64;

/// Added to the budget: while it lasts the counter is at least this, and shifting out a page's offset leaves something that
/// JRCXZ can test.
pub const BUDGET_BIAS: u64 = 1 << 12;

/// RSP is this far below the context, so that its low six bits are 12: RSP is then the count by which SHRX turns an address
/// into a page number, without a register or memory for it.
pub const BELOW: i32 = 52;

/// The TLB of one privilege view, an array for each field: the index is the low sixteen bits of the page number, which MOVZX
/// cuts out, so that 256 MiB in a row, and arrays any power of two below that apart, do not get into each other's way.
///
/// The tags are minus the page's linear address, so that adding an address inside it gives the offset in the page.
#[repr(C)]
#[derive(Debug)]
pub struct View {
    pub minus_read: [u64; TLB_SIZE],
    pub minus_write: [u64; TLB_SIZE],
    /// Host address minus linear address.
    pub delta: [u64; TLB_SIZE],
}

/// The tag of an index while it holds nothing. Zero is the tag of page 0, which an address that leads elsewhere cannot match, so
/// fresh memory is empty; but for the first index, and the last, from whose end an operand wraps to address 0. Those hold the tag
/// of a page that belongs to an index far away.
pub const fn empty(index: usize) -> u64 {
    if index == 0 || index == TLB_SIZE - 1 { ((TLB_SIZE as u64 / 2) << 12).wrapping_neg() } else { 0 }
}

/// The block itself; offsets up to 127 are one byte in an instruction.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Context {
    /// Guest R8 to R11.
    pub resident: [u64; 4],
    /// Instructions that may still be completed, plus [`BUDGET_BIAS`].
    pub budget: u64,
    /// Tag and delta of the page that the stack was last on, with the right to write.
    pub minus_stack: u64,
    pub stack_delta: u64,
    /// Not zero while the guest's vector registers are in the host's.
    pub vector: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    /// Which exit was taken.
    pub exit: u64,
    /// Address bits above a page and below 16, for operands that must be aligned.
    pub aligned_mask: u64,
    /// The same with those below 32.
    pub wide_mask: u64,
    /// Address bits above a page and below 8: those of a stack slot that cannot cross.
    pub slot_mask: u64,

    /// Not zero while the guest's IF is set.
    pub interrupts: u64,
    /// Not zero while no interrupt waits for IF.
    pub quiet: u64,
    /// RFLAGS without the arithmetic flags and IF.
    pub other_flags: u64,
    /// Bits of the host's RFLAGS that are the guest's: the arithmetic ones.
    pub arithmetic_mask: u64,
    pub kernel_gs_base: u64,
    /// Not zero while DF is set.
    pub direction: u64,
    /// CR0, CR2, CR3 and CR4 for reading, by number.
    pub control: [u64; 5],
    /// Selectors of ES, CS, SS, DS, FS and GS for reading.
    pub selectors: [u64; 6],

    /// Not zero while SYSCALL and SYSRET may be done here.
    pub system_calls: u64,
    /// Where SYSCALL goes, and the flags that it keeps.
    pub call_target: u64,
    pub call_mask: u64,
    /// CS and SS that SYSCALL loads, and those of SYSRET.
    pub call_selectors: [u64; 4],
    /// By which instruction privilege has changed since the vCPU was told, or zero.
    pub loaded: u64,
    /// SYSCALL and SYSRET that were done since the vCPU was told.
    pub called: u64,
    pub returned: u64,
    /// Of a para-virtual guest: the host address of the byte that says whether an event is pending, behind which is the one
    /// that masks them.
    pub events: u64,
    /// Linear address of the frame by which SYSCALL enters the kernel.
    pub call_frame: u64,
    /// Host address of what is zero while the iret hypercall may be done here, or zero.
    pub iret_row: u64,
    /// Not zero while programs may read the time-stamp counter.
    pub open_clock: u64,
    pub tsc_aux: u64,
    /// Not zero while the bases of FS and GS may be read and written.
    pub base_access: u64,

    /// Tag and delta of the page that the stack was last on in the view that is not in use.
    pub other_minus: u64,
    pub other_delta: u64,
    /// The same of the page that the supervisor's stack was on before: entries of a kernel change stacks to and fro.
    pub former_minus: u64,
    pub former_delta: u64,
    /// Not zero while `xmm` and `mxcsr`, or the host's registers, hold what the vCPU's vector state is to become, and
    /// instructions may use them.
    pub lent: u64,
    /// Not zero while the upper halves of the guest's YMM registers are in the host's, besides the lower ones.
    pub upper: u64,
    /// Not zero while `upper_halves`, or the host's registers, hold what the vCPU's are to become, and VEX instructions may
    /// use them.
    pub lent_upper: u64,
    /// Not zero while the upper halves are all zero, whatever stands in `upper_halves`.
    pub zero_upper: u64,

    /// Instructions that might be completed when the code was entered.
    pub granted: u64,
    /// Stack pointer of the caller in Rust.
    pub host_rsp: u64,
    /// Where the vCPU keeps its general registers.
    pub registers: u64,
    /// Target of an indirect branch that left; where a helper that was called goes on.
    pub target: u64,
    /// Where code and thunks put general registers for a while, by number.
    pub gpr: [u64; 16],
    /// OF in bit 0; SF, ZF, AF, PF and CF in bits 8 to 15 as LAHF gives them.
    pub flags: u64,
    pub groups: [u64; GROUPS],
    /// Delta of the source's page while REP MOVS looks for the destination's.
    pub source_delta: u64,
    /// Iterations that a loop may run without checks.
    pub iterations: u64,
    /// Rounds of plain loops until their heads are tried, by a hash of the loop.
    pub trips: [u64; TRIPS],
    /// What these are when a loop is entered.
    pub first_trips: [u64; TRIPS],
    /// Rounds that the next failure of a head costs.
    pub patience: [u64; TRIPS],
    pub mxcsr: u32,
    pub host_mxcsr: u32,
    /// What the helpers need; set for each entry.
    pub session: u64,
    pub xmm: [[u64; 2]; 16],
    pub upper_halves: [[u64; 2]; 16],
    pub fpu: super::fpu::Fpu,
    /// What an access to the stack reaches while no page is known for it: see `forget_stack`.
    pub pit: [u8; 4096],
    pub pairs: [u8; PAIRS],
    pub tlb: [View; 2],
    pub jumps: [[u64; JUMPS]; 2],
}

/// The operand `[rsp + offset of a field]`.
macro_rules! field {
    ($($name:tt)+) => { $crate::translate::context::at_offset(std::mem::offset_of!($crate::translate::context::Context, $($name)+)) };
}
pub(crate) use field;

pub const fn at_offset(offset: usize) -> Address {
    at(RSP, offset as i32 + BELOW)
}

/// Operand offsets of the arrays of a view's TLB.
pub const fn tlb_offset(user: bool) -> i32 {
    (offset_of!(Context, tlb) + user as usize * size_of::<View>()) as i32 + BELOW
}

pub const MINUS_READ: i32 = offset_of!(View, minus_read) as i32;
pub const MINUS_WRITE: i32 = offset_of!(View, minus_write) as i32;
pub const DELTA: i32 = offset_of!(View, delta) as i32;

/// Offset of a view's table of indirect targets.
pub const fn jumps_offset(user: bool) -> i32 {
    (offset_of!(Context, jumps) + user as usize * size_of::<[u64; JUMPS]>()) as i32 + BELOW
}

/// Where a guest register is while translated code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Host(u8),
    /// Index into [`Context::resident`].
    Slot(u8),
}

/// RCX, R10 and R11 of the host are the translator's: JRCXZ is the one conditional jump that needs no flags. RSP is the
/// host's. Of the guest's, R8 to R11 are those that code uses least (measured), so they live in memory.
pub const fn place(guest: u8) -> Place {
    match guest {
        1 => Place::Host(8),
        4 => Place::Host(9),
        8..=11 => Place::Slot(guest - 8),
        _ => Place::Host(guest),
    }
}

/// Whether a register lives in memory; what is no register does not.
pub const fn is_resident(guest: u8) -> bool {
    guest < 16 && matches!(place(guest), Place::Slot(_))
}

/// The operand of a register that lives in memory.
pub const fn slot(n: u8) -> Address {
    at_offset(offset_of!(Context, resident) + 8 * n as usize)
}

/// The operand of the place where a general register is put for a while.
pub const fn saved(n: u8) -> Address {
    at_offset(offset_of!(Context, gpr) + 8 * n as usize)
}

impl Context {
    /// Index of the TLB entry of an address: what the code computes by SHRX and MOVZX.
    pub fn index(linear: u64) -> usize {
        (linear >> 12) as usize & (TLB_SIZE - 1)
    }

    /// Index of the slot of an indirect target.
    pub fn jump(rip: u64) -> usize {
        rip as usize & (JUMPS - 1)
    }
}

const _: () = assert!((4096 - BELOW) % 64 == 12);
