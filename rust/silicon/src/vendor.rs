//! What AMD's processors do that Intel's, which the model follows, do not, though the manuals leave it open or say it of
//! one maker only. docs/testing-silicon.md has the list.
//!
//! A rule is asked where an outcome differs. It says what AMD's processor must have left, mostly by running another
//! case on the engine, and that is compared again, as strictly; so a rule excuses one outcome and not an instruction.
//! No rule applies on another maker's processor.

pub use trapgate_engine::host::AMD;

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, MemorySize, Mnemonic, OpKind, Register,
};
use trapgate_x86::exception::Vector;

use crate::case::{Case, Mode, Outcome, RSP, State, fx};
use crate::compare::{ES, Undefined, difference};
use crate::guest::Guest;
use crate::space::{CODE, PAGE, WINDOW};
use crate::values::flag;

const RCX: usize = 1;
const RSI: usize = 6;
/// FCW: underflow is masked.
const UM: u16 = 0x10;
/// A fetch in user mode from a page that is not there.
const FETCH: u64 = 0x14;

/// What AMD's processors leave of this case, and the name of the rule that says so.
fn expected(
    guest: &mut Guest,
    case: &Case,
    insn: &Instruction,
    silicon: &Outcome,
    ours: &Outcome,
) -> Option<(&'static str, Outcome)> {
    if !*AMD {
        return None;
    }
    let rule = Rule { case, insn, silicon, ours };
    use Mnemonic::*;
    let (name, outcome) = match insn.mnemonic() {
        Loope | Loopne if rule.repeat().is_some() => ("loop with a repeat prefix", rule.repeated_loop(guest)),
        _ if rule.is_near_branch() => ("near branch of 16 bits", rule.branch()),
        Push if rule.pushes_segment() => ("push of a segment register", rule.push_segment()),
        Reservednop if rule.opcode() == [0x0f, 0x0d] => ("0F 0D with a register", rule.undefined_opcode()),
        Ud0 | Ud1 => ("UD0 and UD1 without ModRM", rule.undefined_opcode_at_the_end()),
        Cmpsb | Cmpsw | Cmpsd | Cmpsq if rule.silicon.trap.address != rule.ours.trap.address => {
            ("source of CMPS first", rule.source_first())
        }
        Cmpsb | Cmpsw | Cmpsd | Cmpsq | Scasb | Scasw | Scasd | Scasq => {
            ("flags of an interrupted repetition", rule.interrupted(guest))
        }
        Call => ("call to a bad address", rule.bad_call()),
        Bound => ("both bounds first", rule.bounds()),
        Fst | Fstp | Fist | Fistp | Fisttp | Fbstp => ("address of an x87 store first", rule.x87_store()),
        Fscale | Fprem | Fprem1 => ("underflow of an unchanged denormal", rule.rounding(guest)),
        Dpps | Dppd | Vdpps | Vdppd => ("one sum for all lanes", rule.dot(guest)),
        _ if insn.op_code().is_save_restore() && silicon.trap.vector != ours.trap.vector => {
            ("alignment before the stack segment", rule.misaligned())
        }
        _ if insn.op_code().is_save_restore() => ("x87 pointers and MXCSR_MASK", rule.image(guest)),
        _ => return None,
    };
    Some((name, outcome?))
}

/// The rule that makes this outcome, which differs from ours, the one of this maker's processors.
pub fn excuse(
    guest: &mut Guest,
    case: &Case,
    insn: &Instruction,
    undefined: Undefined,
    silicon: &Outcome,
    ours: &Outcome,
) -> Option<&'static str> {
    if let Some((rule, expected)) = expected(guest, case, insn, silicon, ours)
        && difference(case, undefined, silicon, &expected).is_none()
    {
        return Some(rule);
    }
    let outcome = guest.run(&without_pointers(case)?);
    difference(case, undefined, silicon, &outcome).is_none().then_some(LOST)
}

/// Whether the x87 pointers were lost on the way to an instruction that shows them.
pub const LOST: &str = "x87 pointers lost with a switch of context";

/// The case with the x87 pointers that it has after a switch of context: AMD's processors neither save nor keep them then
/// while no exception is pending.
pub fn without_pointers(case: &Case) -> Option<Case> {
    let mut other = *case;
    other.state.fx[fx::FOP..fx::MXCSR].fill(0);
    (*AMD && case.state.fsw() & ES == 0).then_some(other)
}

/// Whether a block leaves an instruction out on AMD's processors, because what follows from a rule would flow on.
/// `pointers` says whether an instruction before has set the x87 pointers, `fcw` is the control word.
pub fn spoils_block(insn: &Instruction, pointers: bool, fcw: u16) -> bool {
    use Mnemonic::*;
    *AMD && match insn.mnemonic() {
        // Selectors, opcode and data pointer of the last instruction are stored, which the model has not.
        Fnstenv | Fstenv => pointers,
        Fscale | Fprem | Fprem1 => fcw & UM == 0,
        Reservednop => register_0f0d(insn.code()),
        _ => false,
    }
}

fn register_0f0d(code: Code) -> bool {
    use Code::*;
    matches!(code, Reservednop_rm16_r16_0F0D | Reservednop_rm32_r32_0F0D | Reservednop_rm64_r64_0F0D)
}

/// The lane, and its bytes, that sums in the order in which AMD's processors sum for all: (p0 + p1) + (p2 + p3).
pub fn summing_lane(mnemonic: Mnemonic) -> Option<(usize, usize)> {
    match mnemonic {
        Mnemonic::Dpps | Mnemonic::Vdpps => Some((1, 4)),
        Mnemonic::Dppd | Mnemonic::Vdppd => Some((0, 8)),
        _ => None,
    }
}

struct Rule<'a> {
    case: &'a Case,
    insn: &'a Instruction,
    silicon: &'a Outcome,
    ours: &'a Outcome,
}

impl Rule<'_> {
    fn start(&self) -> u64 {
        self.case.state.rip
    }

    fn silicon_is(&self, vectors: &[Vector]) -> bool {
        vectors.iter().any(|&vector| self.silicon.trap.vector == vector as u64)
    }

    /// The processor's fault, with everything as it was before.
    fn untouched(&self) -> Outcome {
        let mut outcome =
            Outcome { state: self.case.state, trap: self.silicon.trap, window: self.case.window };
        outcome.state.rflags |= flag::RF;
        outcome
    }

    fn prefixes(&self) -> &[u8] {
        let rex = |byte: &u8| self.case.mode == Mode::Long && byte & 0xf0 == 0x40;
        let prefix = |byte: &u8| {
            matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3) || rex(byte)
        };
        let code = self.case.code();
        &code[..code.iter().take_while(|byte| prefix(byte)).count()]
    }

    /// The first two bytes after the prefixes; zero stands for one that is not there.
    fn opcode(&self) -> [u8; 2] {
        let code = &self.case.code()[self.prefixes().len()..];
        [0, 1].map(|i| code.get(i).copied().unwrap_or(0))
    }

    fn repeat(&self) -> Option<u8> {
        self.prefixes().iter().copied().rfind(|byte| matches!(byte, 0xf2 | 0xf3))
    }

    /// The address of the memory operand, and its size.
    fn operand(&self) -> Option<(u64, u64)> {
        let (bits, state) = (self.case.mode.bits(), &self.case.state);
        let insn = Decoder::with_ip(bits, self.case.code(), state.rip, DecoderOptions::NONE).decode();
        let n = (0..insn.op_count()).find(|&n| insn.op_kind(n) == OpKind::Memory)?;
        let value = |register: Register, _, _| {
            if register.is_segment_register() {
                return Some(0);
            }
            let value = state.gpr[register.full_register().number()];
            Some(if register.size() == 8 { value } else { value & ((1 << (8 * register.size())) - 1) })
        };
        let size = (insn.memory_size().size() as u64).max(1);
        Some((insn.virtual_address(n, 0, value)?, size))
    }

    /// Whether the processor's fault is one of accessing these bytes.
    fn faults_at(&self, at: u64, size: u64) -> bool {
        match self.silicon_is(&[Vector::Pf]) {
            true => self.silicon.trap.address.wrapping_sub(at) < size,
            false => self.silicon_is(&[Vector::Gp, Vector::Ss]),
        }
    }

    /// F2 and F3 choose the condition, whatever the opcode says.
    fn repeated_loop(&self, guest: &mut Guest) -> Option<Outcome> {
        let mut other = *self.case;
        let at = self.prefixes().len();
        other.code[at] = if self.repeat()? == 0xf3 { 0xe1 } else { 0xe0 };
        Some(guest.run(&other))
    }

    /// In 64-bit mode 66 makes RIP, displacement and return address 16 bits wide; Intel's processors ignore it.
    fn is_near_branch(&self) -> bool {
        use FlowControl::*;
        self.case.mode == Mode::Long
            && self.prefixes().contains(&0x66)
            && matches!(
                self.insn.flow_control(),
                ConditionalBranch | UnconditionalBranch | IndirectBranch | Call | IndirectCall | Return
            )
    }

    fn branch(&self) -> Option<Outcome> {
        let (code, rsp) = (self.case.code(), self.case.state.gpr[RSP]);
        let calls = matches!(self.insn.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
        let returns = self.insn.flow_control() == FlowControl::Return;
        if calls
            && self.silicon.state.rip == self.start()
            && self.silicon_is(&[Vector::Pf, Vector::Gp, Vector::Ss])
        {
            return self.faults_at(rsp.wrapping_sub(2), 2).then(|| self.untouched());
        }
        let opcode = self.opcode();
        let wide = matches!(opcode, [0xe8 | 0xe9, _] | [0x0f, 0x80..=0x8f]);
        let short = matches!(opcode, [0x70..=0x7f | 0xe0..=0xe3 | 0xeb, _]);
        let length = code.len() - if wide { 2 } else { 0 };
        let next = self.start() + length as u64;
        let taken = self.silicon_is(&[Vector::Pf])
            && self.silicon.trap.error == FETCH
            && self.silicon.trap.address == self.silicon.state.rip
            && self.silicon.state.rip < 1 << 16;
        let mut outcome = *self.ours;
        outcome.trap = self.silicon.trap;
        if !taken {
            // Two bytes of the displacement are the next instruction, and do what they do.
            let beyond = wide && self.silicon.state.rip.wrapping_sub(next) <= 3;
            return beyond.then_some(*self.silicon);
        }
        let displacement = match code[..length] {
            [.., low, high] if wide => Some(i16::from_le_bytes([low, high])),
            [.., byte] if short => Some(i16::from(byte as i8)),
            _ => None,
        };
        let target = displacement
            .map_or(self.silicon.state.rip, |by| u64::from(next.wrapping_add_signed(by.into()) as u16));
        outcome.window = self.case.window;
        outcome.state.rip = target;
        outcome.state.rflags = self.case.state.rflags | flag::RF;
        outcome.state.gpr[RSP] = rsp;
        if calls {
            outcome.state.gpr[RSP] = rsp.wrapping_sub(2);
            self.poke(&mut outcome, rsp.wrapping_sub(2), &(next as u16).to_le_bytes());
        } else if returns {
            let more = if self.insn.op_count() == 1 { self.insn.immediate16() } else { 0 };
            outcome.state.gpr[RSP] = rsp.wrapping_add(2 + u64::from(more));
        }
        Some(outcome)
    }

    /// Writes what of the bytes lies in the window.
    fn poke(&self, outcome: &mut Outcome, at: u64, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            let at = at.wrapping_add(i as u64).wrapping_sub(self.case.window_at);
            if at < WINDOW as u64 {
                outcome.window[at as usize] = byte;
            }
        }
    }

    fn pushes_segment(&self) -> bool {
        self.case.mode == Mode::Compatibility
            && self.insn.op0_kind() == OpKind::Register
            && self.insn.op0_register().is_segment_register()
    }

    /// All four bytes are written, the upper two with zeros; Intel's processors leave them.
    fn push_segment(&self) -> Option<Outcome> {
        let at = u64::from((self.case.state.gpr[RSP] as u32).wrapping_sub(4));
        if self.silicon.state.rip == self.start() && !self.silicon_is(&[Vector::Bp]) {
            return self.faults_at(at, 4).then(|| self.untouched());
        }
        let mut outcome = *self.ours;
        self.poke(&mut outcome, at + 2, &[0; 2]);
        Some(outcome)
    }

    /// PREFETCH has no register form, and is not a reserved NOP.
    fn undefined_opcode(&self) -> Option<Outcome> {
        self.silicon_is(&[Vector::Ud]).then(|| self.untouched())
    }

    /// The opcode is the whole instruction: what would follow is not fetched.
    fn undefined_opcode_at_the_end(&self) -> Option<Outcome> {
        let opcode_end = self.start() + self.prefixes().len() as u64 + 2;
        (self.silicon_is(&[Vector::Ud]) && opcode_end <= CODE + PAGE && self.ours.trap.error == FETCH)
            .then(|| self.untouched())
    }

    /// Of the two operands that fault, the source does so first.
    fn source_first(&self) -> Option<Outcome> {
        let (mask, size) = match self.insn.op0_kind() {
            OpKind::MemorySegSI => (0xffff, 8),
            OpKind::MemorySegESI => (0xffff_ffff, 8),
            _ => (u64::MAX, 8),
        };
        let at = self.ours.state.gpr[RSI] & mask;
        let both = self.ours.state.rip == self.start() && self.silicon.state.rip == self.start();
        let outcome = Outcome { trap: self.silicon.trap, ..*self.ours };
        (both && self.faults_at(at, size)).then_some(outcome)
    }

    /// Status flags are those of the last comparison; Intel's processors put those of before back, as the SDM says.
    fn interrupted(&self, guest: &mut Guest) -> Option<Outcome> {
        if self.silicon.state.rip != self.start() || self.repeat().is_none() {
            return None;
        }
        let mut other = *self.case;
        let done = self.case.state.gpr[RCX].wrapping_sub(self.silicon.state.gpr[RCX]);
        other.state.gpr[RCX] = done;
        let flags = guest.run(&other).state.rflags & flag::STATUS;
        let mut outcome = *self.ours;
        outcome.state.rflags = outcome.state.rflags & !flag::STATUS | flags;
        (done != 0).then_some(outcome)
    }

    /// The target is checked before the return address is pushed.
    fn bad_call(&self) -> Option<Outcome> {
        (self.silicon_is(&[Vector::Gp]) && self.ours.trap.vector == Vector::Gp as u64)
            .then_some(Outcome { window: self.case.window, ..*self.ours })
    }

    /// The upper bound is read even if the lower one decides.
    fn bounds(&self) -> Option<Outcome> {
        let (at, size) = self.operand()?;
        (self.ours.trap.vector == Vector::Br as u64 && self.faults_at(at, size)).then(|| self.untouched())
    }

    /// The store is checked even if an unmasked exception keeps it from being made.
    fn x87_store(&self) -> Option<Outcome> {
        let (at, size) = self.operand()?;
        let excepted = self.case.state.fsw() & ES == 0 && self.ours.state.fsw() & ES != 0;
        (excepted && self.faults_at(at, size)).then(|| self.untouched())
    }

    /// FSCALE by zero, FPREM and FPREM1 by infinity round like any other scale and remainder, so that an unmasked underflow
    /// is signalled; Intel's give the operand back.
    fn rounding(&self, guest: &mut Guest) -> Option<Outcome> {
        const ST1: usize = fx::ST + 16;
        let value = |state: &State| -> [u8; 10] { std::array::from_fn(|i| state.fx[ST1 + i]) };
        let before = value(&self.case.state);
        let mut magnitude = before;
        magnitude[9] &= 0x7f;
        let instead = match (self.insn.mnemonic(), magnitude) {
            (Mnemonic::Fscale, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) => [0, 0, 0, 0, 0, 0, 0, 0x80, 0xfe, 0x3f],
            (Mnemonic::Fprem | Mnemonic::Fprem1, [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f]) => {
                [0, 0, 0, 0, 0, 0, 0, 0x80, 0xfe, 0x7f]
            }
            _ => return None,
        };
        let mut other = *self.case;
        other.state.fx[ST1..ST1 + 10].copy_from_slice(&instead);
        let mut outcome = guest.run(&other);
        outcome.state.fx[ST1..ST1 + 10].copy_from_slice(&before);
        Some(outcome)
    }

    /// Every lane has the same sum; on Intel's, each begins with its own product, so that another of several NaNs wins.
    fn dot(&self, guest: &mut Guest) -> Option<Outcome> {
        let (lane, width) = summing_lane(self.insn.mnemonic())?;
        let immediate = self.case.code_len as usize - 1;
        let wanted = self.case.code[immediate];
        let mut other = *self.case;
        other.code[immediate] = wanted & 0xf0 | 1 << lane;
        let n = self.insn.op0_register().number();
        let sums = guest.run(&other).state;
        let mask = u128::MAX >> (128 - 8 * width);
        let lanes = (0..16 / width).filter(|i| wanted >> i & 1 != 0);
        let spread = |sum: u128| {
            let sum = sum >> (8 * width * lane) & mask;
            lanes.clone().fold(0, |all, i| all | sum << (8 * width * i))
        };
        let mut outcome = *self.ours;
        outcome.state.set_xmm(n, spread(sums.xmm(n)));
        if self.insn.op0_register().is_ymm() {
            outcome.state.ymm_high[n] = spread(sums.ymm_high[n]);
        }
        Some(outcome)
    }

    /// A misaligned operand is #GP before an address that is not canonical is #SS.
    fn misaligned(&self) -> Option<Outcome> {
        let (at, _) = self.operand()?;
        let mut outcome = *self.ours;
        outcome.trap.vector = Vector::Gp as u64;
        let align =
            if matches!(self.insn.memory_size(), MemorySize::Fxsave_512Byte | MemorySize::Fxsave64_512Byte) {
                16
            } else {
                64
            };
        (self.ours.trap.vector == Vector::Ss as u64 && at % align != 0).then_some(outcome)
    }

    /// The x87 pointers are stored as zeros while no exception is pending, and MXCSR_MASK has bit 17.
    fn image(&self, guest: &mut Guest) -> Option<Outcome> {
        let mut outcome = guest.run(&without_pointers(self.case).unwrap_or(*self.case));
        let (at, _) = self.operand()?;
        let mask = at.wrapping_add(fx::MXCSR_MASK as u64).wrapping_sub(self.case.window_at) as usize;
        let mask = mask..mask.saturating_add(4);
        if let (Some(theirs), Some(ours)) =
            (self.silicon.window.get(mask.clone()), outcome.window.get_mut(mask))
            && ours == 0xffff_u32.to_le_bytes()
            && theirs == 0x2_ffff_u32.to_le_bytes()
        {
            ours.copy_from_slice(theirs);
        }
        Some(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::LOW;

    /// PUSH ES in 32-bit code: zeros above the selector are a rule of AMD's processors, anything else is a difference.
    #[test]
    fn a_rule_excuses_one_outcome() {
        let mut case = Case::ZERO;
        case.mode = Mode::Compatibility;
        case.state.rip = CODE + 0x100;
        case.state.rflags = 0x202;
        case.state.gpr[RSP] = LOW + 0x80;
        case.window_at = LOW;
        case.window.fill(0x55);
        (case.code[0], case.code_len) = (0x06, 1);
        let insn = Decoder::new(32, case.code(), DecoderOptions::NONE).decode();
        let mut guest = Guest::new();
        let ours = guest.run(&case);
        assert_eq!(ours.window[0x7c..0x80], [0x2b, 0, 0x55, 0x55]);
        let mut excuse = |above: [u8; 2]| {
            let mut silicon = ours;
            silicon.window[0x7e..0x80].copy_from_slice(&above);
            excuse(&mut guest, &case, &insn, Undefined::default(), &silicon, &ours).is_some()
        };
        assert_eq!(excuse([0, 0]), *AMD);
        assert!(!excuse([0, 1]) && !excuse([0x55, 0]));
    }
}
