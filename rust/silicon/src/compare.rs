//! What must be equal: the first difference between the processor's outcome and ours, undefined results left out.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use trapgate_x86::decode::decode;
use trapgate_x86::exception::Vector;
use trapgate_x86::flags::{FlagUse, flag_use};
use trapgate_x86::insn::Bits;
use trapgate_x86::model::X86_64_V2;

use crate::case::{Case, Outcome, State, fx};
use crate::space::PAGE;
use crate::values::flag;

/// RFLAGS bits that are compared: all but TF, which stays clear, and those that say nothing in user mode.
const FLAGS: u64 = flag::STATUS | flag::DF | flag::IF | flag::NT | flag::RF | flag::ID | 2;

/// What the comparison leaves out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Undefined {
    /// Bits of RFLAGS.
    pub flags: u64,
    /// The first operand, a general register or memory.
    pub destination: bool,
    /// Upper halves of rCX, rSI and rDI: a repeated string instruction with 32-bit addresses that did not do anything
    /// may have written them or not.
    pub upper: bool,
    /// The instruction accesses memory in several steps: after a fault, which bytes have been written and which of the
    /// operand's addresses is reported.
    pub steps: bool,
    /// The instruction belongs to MMX, which processors enter before a store can fault.
    pub mmx: bool,
}

/// The condition of a flag after an instruction, by what it does to flags.
pub fn after(undefined: u64, flags: FlagUse) -> u64 {
    undefined & !u64::from(flags.killed()) | u64::from(flags.undefined)
}

/// What an instruction leaves undefined in this state (SDM vol. 2, the instructions' own pages).
pub fn undefined(case: &Case, insn: &Instruction) -> Undefined {
    let Ok(ours) = decode(case.code(), Bits::B64, &X86_64_V2.features) else { return Undefined::default() };
    let mut result = Undefined { flags: u64::from(flag_use(&ours).undefined), ..Undefined::default() };
    result.upper = insn.is_string_instruction()
        && ours.addrsize == 4
        && (insn.has_rep_prefix() || insn.has_repne_prefix());
    use Mnemonic::*;
    result.steps = matches!(
        insn.mnemonic(),
        Fldenv
            | Frstor
            | Fnstenv
            | Fstenv
            | Fnsave
            | Fsave
            | Fxsave
            | Fxsave64
            | Fxrstor
            | Fxrstor64
            | Xsave
            | Xsave64
            | Xsaveopt
            | Xsaveopt64
            | Xrstor
            | Xrstor64
            | Maskmovq
            | Maskmovdqu
            | Fbstp
            | Enter
    ) || insn.code() == Code::Fstp_m80fp;
    result.mmx =
        (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_mm());
    let rotate = matches!(insn.mnemonic(), Rol | Ror | Rcl | Rcr);
    if rotate || matches!(insn.mnemonic(), Shl | Sal | Shr | Sar | Shld | Shrd) {
        let last = insn.op_count() - 1;
        let by_cl = insn.op_kind(last) == OpKind::Register;
        let count = if by_cl { case.state.gpr[1] } else { u64::from(insn.immediate8()) };
        let count = count & if ours.opsize == 8 { 63 } else { 31 };
        let bits = 8 * u64::from(ours.opsize);
        let double = matches!(insn.mnemonic(), Shld | Shrd);
        match count {
            0 => result.flags = 0,
            1 => result.flags &= !flag::OF,
            _ if double && count > bits => {
                result.flags |= flag::STATUS;
                result.destination = true;
            }
            // The bit shifted out last is no bit of the operand.
            _ if matches!(insn.mnemonic(), Shl | Sal | Shr) && count >= bits => result.flags |= flag::CF,
            _ => {}
        }
    }
    result
}

/// The first difference, or `None`.
pub fn difference(case: &Case, undefined: Undefined, silicon: &Outcome, ours: &Outcome) -> Option<String> {
    // An instruction that faulted has changed nothing; what it leaves undefined does not matter.
    // FWAIT before another instruction counts as its prefix.
    let inside = silicon.state.rip.wrapping_sub(case.state.rip) < case.code_len;
    let faulted = inside && silicon.trap.vector != Vector::Bp as u64;
    let flags = if faulted { FLAGS } else { FLAGS & !undefined.flags };
    let idle = undefined.upper && silicon.state.gpr[1] as u32 == case.state.gpr[1] as u32;
    let upper = if idle { 1 << 1 | 1 << 6 | 1 << 7 } else { 0 };
    let (mut silicon, mut ours) = (*silicon, *ours);
    if faulted && undefined.steps {
        silicon.trap.address &= !(PAGE - 1);
        ours.trap.address &= !(PAGE - 1);
        ours.window = silicon.window;
    }
    if faulted && undefined.mmx {
        enter_mmx(&silicon.state, &mut ours.state);
    }
    trap(&silicon, &ours)
        .or_else(|| registers(&silicon.state, &ours.state, upper))
        .or_else(|| hex("rflags", silicon.state.rflags & flags, ours.state.rflags & flags))
        .or_else(|| image(&silicon.state, &ours.state))
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

/// Parts of the FXSAVE image by name; MXCSR_MASK and the bytes between the parts are no state.
const FIELDS: [(&str, usize, usize); 7] = [
    ("fcw", fx::FCW, 2),
    ("fsw", fx::FSW, 2),
    ("tags", fx::FTW, 1),
    ("fop", fx::FOP, 2),
    ("fip", fx::FIP, 8),
    ("fdp", fx::FDP, 8),
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
