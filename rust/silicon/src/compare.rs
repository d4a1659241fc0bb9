//! What must be equal: the first difference between the processor's outcome and ours, undefined results left out.

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::LazyLock;

use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use trapgate_x86::decode::decode;
use trapgate_x86::exception::Vector;
use trapgate_x86::flags::{FlagUse, flag_use};

use crate::MODEL;
use crate::case::{Case, Mode, Outcome, RSP, State, fx};
use crate::space::PAGE;
use crate::values::flag;
use crate::vendor::AMD;

/// RFLAGS bits that are compared: all but TF, which stays clear, and those that say nothing in user mode.
const FLAGS: u64 = flag::STATUS | flag::DF | flag::IF | flag::NT | flag::RF | flag::ID | 2;

/// What the comparison leaves out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Undefined {
    /// Bits of RFLAGS.
    pub flags: u64,
    /// The destination: a general register, or memory.
    pub destination: Option<Destination>,
    /// Upper halves of rCX, rSI and rDI: a repeated string instruction with 32-bit addresses that did not do anything
    /// may have written them or not.
    pub upper: bool,
    /// A fault of an instruction that accesses memory in several steps: which bytes have been written, and which of
    /// the operand's addresses is reported.
    pub steps: bool,
    /// A fault of POPA: the registers that have been loaded already.
    pub loads: bool,
    /// A fault of an MMX instruction: processors enter MMX before a store can fault.
    pub mmx: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    Register(usize),
    Memory,
}

/// Whether the processor stopped at the instruction at `start` before it was complete; it has then changed nothing, and
/// what it leaves undefined does not matter. FWAIT before another instruction counts as its prefix.
fn faulted(start: u64, length: u64, silicon: &Outcome) -> bool {
    silicon.state.rip.wrapping_sub(start) < length && silicon.trap.vector != Vector::Bp as u64
}

/// What an instruction leaves undefined in this state (SDM vol. 2, the instructions' own pages).
pub fn undefined(case: &Case, insn: &Instruction, silicon: &Outcome) -> Undefined {
    if faulted(case.state.rip, case.code_len, silicon) {
        return Undefined { upper: idle(case, insn, silicon), ..fault(insn) };
    }
    let Ok(ours) = decode(case.code(), case.mode.decoder(), &MODEL.features) else {
        return Undefined::default();
    };
    let mut result = Undefined { flags: u64::from(flag_use(&ours).undefined), ..Undefined::default() };
    result.upper = idle(case, insn, silicon);
    use Mnemonic::*;
    if matches!(insn.mnemonic(), Rol | Ror | Rcl | Rcr | Shl | Sal | Shr | Sar | Shld | Shrd) {
        let last = insn.op_count() - 1;
        let by_cl = insn.op_kind(last) == OpKind::Register;
        let count = if by_cl { case.state.gpr[1] } else { u64::from(insn.immediate8()) };
        shift(&mut result, insn, count & if ours.opsize == 8 { 63 } else { 31 }, 8 * u64::from(ours.opsize));
    }
    result
}

/// What is undefined after a fault of an instruction.
pub fn fault(insn: &Instruction) -> Undefined {
    let mmx =
        (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_mm());
    let loads = matches!(insn.mnemonic(), Mnemonic::Popa | Mnemonic::Popad);
    Undefined { steps: in_steps(insn), loads, mmx, ..Undefined::default() }
}

fn idle(case: &Case, insn: &Instruction, silicon: &Outcome) -> bool {
    let kinds = (0..insn.op_count()).map(|n| insn.op_kind(n));
    let narrow = |kind| case.mode == Mode::Long && matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI);
    (insn.has_rep_prefix() || insn.has_repne_prefix())
        && kinds.into_iter().any(narrow)
        && silicon.state.gpr[1] as u32 == case.state.gpr[1] as u32
}

fn in_steps(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let environment = matches!(insn.mnemonic(), Fldenv | Frstor | Fnstenv | Fstenv | Fnsave | Fsave);
    environment
        || insn.op_code().is_save_restore()
        || matches!(
            insn.mnemonic(),
            Maskmovq | Maskmovdqu | Vmaskmovdqu | Fbstp | Enter | Pusha | Pushad | Popa | Popad | Bound
        )
        || insn.code() == Code::Fstp_m80fp
}

/// By the masked count of a shift or rotate, for an operand of `bits`.
fn shift(result: &mut Undefined, insn: &Instruction, count: u64, bits: u64) {
    use Mnemonic::*;
    match count {
        0 => result.flags = 0,
        1 => result.flags &= !flag::OF,
        _ if matches!(insn.mnemonic(), Shld | Shrd) && count > bits => {
            result.flags |= flag::STATUS;
            result.destination = Some(match insn.op0_kind() {
                OpKind::Register => Destination::Register(insn.op0_register().number()),
                _ => Destination::Memory,
            });
        }
        // The bit shifted out last is no bit of the operand.
        _ if matches!(insn.mnemonic(), Shl | Sal | Shr) && count >= bits => result.flags |= flag::CF,
        _ => {}
    }
}

/// Undefined flags after an instruction, from those before.
pub fn after(undefined: u64, flags: FlagUse) -> u64 {
    undefined & !u64::from(flags.killed()) | u64::from(flags.undefined)
}

/// Whether this host keeps the x87 pointers as the model does: FOP, FIP and FDP of the last instruction that raised an
/// unmasked exception, and no selectors (CPUID.7.0:EBX\[6\] and \[13\]). AMD's processors
/// are [`difference`]'s own matter.
static POINTERS: LazyLock<bool> = LazyLock::new(|| {
    let intel = __cpuid(0).ebx == u32::from_le_bytes(*b"Genu");
    intel && __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx & (1 << 6 | 1 << 13) == 1 << 6 | 1 << 13
});

/// FSW: an unmasked exception is pending.
pub(crate) const ES: u16 = 0x80;

/// The first difference, or `None`.
pub fn difference(case: &Case, undefined: Undefined, silicon: &Outcome, ours: &Outcome) -> Option<String> {
    // Compatibility mode leaves upper halves undefined, and R8 to R15 unseen.
    let upper = match (case.mode, undefined.upper) {
        (Mode::Compatibility, _) => u16::MAX,
        (_, true) => 1 << 1 | 1 << 6 | 1 << 7,
        _ => 0,
    };
    let flags = FLAGS & !undefined.flags;
    let (silicon, mut ours) = (*silicon, *ours);
    match undefined.destination {
        Some(Destination::Register(n)) => ours.state.gpr[n] = silicon.state.gpr[n],
        Some(Destination::Memory) => ours.window = silicon.window,
        None => {}
    }
    if undefined.steps {
        // The page, or the next one where neither is there.
        let page = |outcome: &Outcome| outcome.trap.address / PAGE;
        if page(&silicon).wrapping_sub(page(&ours)) <= 1 {
            ours.trap.address = silicon.trap.address;
        }
        ours.window = silicon.window;
    }
    if undefined.loads {
        let rsp = ours.state.gpr[RSP];
        ours.state.gpr = silicon.state.gpr;
        ours.state.gpr[RSP] = rsp;
    }
    if undefined.mmx {
        enter_mmx(&silicon.state, &mut ours.state);
    }
    let pointers = &silicon.state.fx[fx::FOP..fx::MXCSR];
    let unknown = if !*AMD {
        if *POINTERS { fx::FOP..fx::FOP } else { fx::FOP..fx::MXCSR }
    } else if silicon.state.fsw() & ES == 0 && pointers.iter().all(|&byte| byte == 0) {
        // Zeros are saved while no exception is pending.
        fx::FOP..fx::MXCSR
    } else {
        // With one pending, the data pointer can be that of an instruction before.
        fx::FDP..fx::MXCSR
    };
    ours.state.fx[unknown.clone()].copy_from_slice(&silicon.state.fx[unknown]);
    trap(&silicon, &ours)
        .or_else(|| registers(&silicon.state, &ours.state, upper))
        .or_else(|| hex("rflags", silicon.state.rflags & flags, ours.state.rflags & flags))
        .or_else(|| image(&silicon.state, &ours.state))
        .or_else(|| upper_halves(&silicon.state, &ours.state))
        .or_else(|| memory(case, &silicon, &ours))
}

/// Gives our state the processor's TOP and tags; registers stay, so that the stack turns.
fn enter_mmx(silicon: &State, ours: &mut State) {
    let (theirs, old) = (usize::from(silicon.fsw() >> 11 & 7), usize::from(ours.fsw() >> 11 & 7));
    let before = *ours;
    for i in 0..8 {
        let from = fx::ST + 16 * ((theirs + i).wrapping_sub(old) & 7);
        ours.fx[fx::ST + 16 * i..][..16].copy_from_slice(&before.fx[from..from + 16]);
    }
    ours.set_fx_u16(fx::FSW, ours.fsw() & !(7 << 11) | silicon.fsw() & 7 << 11);
    ours.fx[fx::FTW] = silicon.fx[fx::FTW];
}

fn hex(name: &str, silicon: u64, ours: u64) -> Option<String> {
    (silicon != ours).then(|| format!("{name}: silicon {silicon:#x}, ours {ours:#x}"))
}

fn trap(silicon: &Outcome, ours: &Outcome) -> Option<String> {
    let (s, o) = (&silicon.trap, &ours.trap);
    let has_error = Vector::from_number(s.vector as u8).is_some_and(Vector::has_error_code);
    hex("vector", s.vector, o.vector)
        .or_else(|| hex("rip", silicon.state.rip, ours.state.rip))
        .or_else(|| if has_error { hex("error code", s.error, o.error) } else { None })
        .or_else(|| if s.vector == Vector::Pf as u64 { hex("cr2", s.address, o.address) } else { None })
}

/// Names of the general registers by encoding.
pub const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Of the registers in `low`, only the low halves count.
fn registers(silicon: &State, ours: &State, low: u16) -> Option<String> {
    (0..16).find_map(|n| {
        let mask = if low >> n & 1 != 0 { u64::from(u32::MAX) } else { u64::MAX };
        hex(NAMES[n], silicon.gpr[n] & mask, ours.gpr[n] & mask)
    })
}

/// Bytes of FIP and FDP that are compared: processors make loaded ones canonical, at 48 or at 57 bits.
const POINTER: usize = 6;

/// Parts of the FXSAVE image by name; MXCSR_MASK and the bytes between the parts are no state.
const FIELDS: [(&str, usize, usize); 7] = [
    ("fcw", fx::FCW, 2),
    ("fsw", fx::FSW, 2),
    ("tags", fx::FTW, 1),
    ("fop", fx::FOP, 2),
    ("fip", fx::FIP, POINTER),
    ("fdp", fx::FDP, POINTER),
    ("mxcsr", fx::MXCSR, 4),
];

fn image(silicon: &State, ours: &State) -> Option<String> {
    if silicon.fx == ours.fx {
        return None;
    }
    let registers = (0..8).map(|n| (format!("st{n}"), fx::ST + 16 * n, 10));
    let xmm = (0..16).map(|n| (format!("xmm{n}"), fx::XMM + 16 * n, 16));
    let fields = FIELDS.iter().map(|&(name, at, size)| (name.to_owned(), at, size));
    fields.chain(registers).chain(xmm).find_map(|(name, at, size)| {
        let (s, o) = (&silicon.fx[at..at + size], &ours.fx[at..at + size]);
        (s != o).then(|| format!("{name}: silicon {}, ours {}", number(s), number(o)))
    })
}

/// Upper halves of the YMM registers.
fn upper_halves(silicon: &State, ours: &State) -> Option<String> {
    let n = (0..16).find(|&n| silicon.ymm_high[n] != ours.ymm_high[n])?;
    Some(format!("ymm{n}h: silicon {:#034x}, ours {:#034x}", silicon.ymm_high[n], ours.ymm_high[n]))
}

/// Little-endian bytes as one number.
pub fn number(bytes: &[u8]) -> String {
    bytes.iter().rev().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn memory(case: &Case, silicon: &Outcome, ours: &Outcome) -> Option<String> {
    let at = silicon.window.iter().zip(&ours.window).position(|(s, o)| s != o)?;
    let end = (at + 16).min(silicon.window.len());
    let (s, o) = (number(&silicon.window[at..end]), number(&ours.window[at..end]));
    Some(format!("[{:#x}]: silicon {s}, ours {o}", case.window_at + at as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::FX;

    fn outcome() -> Outcome {
        let mut outcome = Outcome::ZERO;
        outcome.trap.vector = Vector::Pf as u64;
        outcome
    }

    /// Changes one thing and expects the difference to name it.
    fn expect(name: &str, change: impl Fn(&mut Outcome)) {
        let mut ours = outcome();
        change(&mut ours);
        let found = difference(&Case::ZERO, Undefined::default(), &outcome(), &ours);
        assert!(found.as_ref().is_some_and(|found| found.starts_with(name)), "{name}: {found:?}");
    }

    #[test]
    fn every_part_of_an_outcome_counts() {
        assert_eq!(difference(&Case::ZERO, Undefined::default(), &outcome(), &outcome()), None);
        expect("vector", |o| o.trap.vector = 13);
        expect("error code", |o| o.trap.error ^= 2);
        expect("cr2", |o| o.trap.address ^= 1);
        expect("rip", |o| o.state.rip ^= 1);
        expect("r15", |o| o.state.gpr[15] ^= 1 << 63);
        expect("rflags", |o| o.state.rflags ^= flag::AF);
        expect("fsw", |o| o.state.fx[fx::FSW] ^= 1);
        expect("st7", |o| o.state.fx[fx::ST + 16 * 7 + 9] ^= 0x80);
        expect("ymm15h", |o| o.state.ymm_high[15] ^= 1 << 127);
        expect("xmm15", |o| o.state.fx[FX - 1] ^= 0x80);
        expect("[", |o| o.window[2047] ^= 1);
    }

    #[test]
    fn undefined_flags_do_not_count() {
        let mut ours = outcome();
        ours.state.rflags ^= flag::AF;
        let undefined = Undefined { flags: flag::AF, ..Undefined::default() };
        assert_eq!(difference(&Case::ZERO, undefined, &outcome(), &ours), None);
    }
}
