//! The silicon oracle for vector instructions: every encoding of the opcode maps that [`super::super::execute`] takes is
//! run on the host's processor and here, from the same random state, and all registers, flags and memory are compared.

use trapgate_x86::decode::decode;
use trapgate_x86::features::Features;
use trapgate_x86::insn::{Bits, Insn, Operand};
use trapgate_x86::op::Op;

use super::super::fp::X87Binary;
use super::super::mock::{Memory, Mock};
use super::super::sse;
use super::super::{Control, FpUnit, SoftFp, VectorException, VectorState, eflags, execute, is_vector};
use super::HostFp;
use super::image::{hex, image_differences, random_state, to_image};
use super::sample::Random;
use super::silicon::{Context, Page, catch_sigfpe};
use super::vendor::Counts;

/// A memory operand is `[rsi]`; MASKMOVDQU's is `[rdi]`, which is the same.
const RSI: usize = 6;
const RDI: usize = 7;

struct Oracle {
    /// Whether SSE exceptions may be unmasked.
    unmasked: bool,
    page: Page,
    random: Random,
    /// Instructions compared, by operation.
    compared: Vec<u32>,
    /// Differences that follow from who made the processor.
    vendor: Counts,
    failures: Vec<String>,
}

impl Oracle {
    fn new() -> Oracle {
        Oracle {
            unmasked: false,
            page: Page::new(),
            random: Random::new(1),
            compared: vec![0; Op::COUNT],
            vendor: Counts::default(),
            failures: Vec::new(),
        }
    }

    fn state(&mut self) -> VectorState {
        let mut state = random_state(&mut self.random);
        if self.unmasked {
            state.mxcsr ^= self.random.bits() as u32 & 0x1f80;
        }
        state
    }

    fn memory(&mut self, op: Op) -> Memory {
        let mut memory = Memory([0; 2048]);
        for slot in memory.0[..256].chunks_exact_mut(16) {
            slot.copy_from_slice(&self.random.vector().to_le_bytes());
        }
        match op {
            Op::Ldmxcsr => memory.0[2..4].fill(0),
            Op::Fld | Op::Frstor if self.random.bits() & 1 == 0 => {
                memory.0[..10].copy_from_slice(&self.random.f80().to_bytes());
            }
            _ => {}
        }
        memory
    }

    /// Compares `times` executions of the instruction at the start of `bytes`.
    fn check(&mut self, bytes: &[u8], insn: &Insn, unit: &impl FpUnit, times: u32) {
        for _ in 0..times {
            self.page.place(&bytes[..usize::from(insn.len)]);
            let mut state = self.state();
            let mut memory = self.memory(insn.op);
            let address = &raw const memory as u64;
            let mut gpr: [u64; 16] = std::array::from_fn(|_| self.random.integer());
            (gpr[RSI], gpr[RDI]) = (address, address);
            let mut context = Context::new();
            (context.fx, context.gpr) = (to_image(&state), gpr);
            let flags = self.random.bits() & eflags::STATUS | 0x202;
            context.flags = flags;
            let before = (state.clone(), gpr, flags, memory.clone());
            let first = bytes.iter().position(|b| matches!(b, 0xd8..=0xdf)).unwrap_or(0);
            let opcode = u16::from(bytes[first] & 7) << 8 | u16::from(bytes[first + 1]);
            let rip = self.page.address();
            let mut mock = Mock { gpr, flags, address, rip, opcode, ..Mock::new(memory.clone()) };
            // SAFETY: the memory operand is `memory`; the instruction is one that `is_vector` names, of which none
            // transfers control; `state` has no pending x87 exception and all SSE exceptions masked.
            unsafe { context.run(&self.page) };
            // The processor wrote through the address.
            let silicon_memory = std::hint::black_box(&mut memory).clone();
            let mut outcome = execute(&mut state, &Control::LONG, unit, insn, &mut mock);
            self.compared[insn.op as usize] += 1;
            let mut silicon = context.fx;
            self.vendor.mask(&mut silicon);
            let mut again = Mock { gpr, flags, address, rip, opcode, ..Mock::new(before.3.clone()) };
            self.vendor.dot(insn, &before.0, &mut again, &mut silicon, &to_image(&state));
            let is_result = |d: &String| d.starts_with("st0") || d.starts_with("fsw");
            let (st1, divisor) = (before.0.x87.physical(1), before.0.x87.st(1));
            if let Some(op) = binary(insn.op)
                && image_differences(&silicon, &silicon, &to_image(&state)).iter().any(is_result)
                && let Some(instead) = self.vendor.rounding(op, divisor)
            {
                state = before.0.clone();
                state.x87.regs[st1] = instead;
                outcome = execute(&mut state, &Control::LONG, unit, insn, &mut mock);
                state.x87.regs[st1] = divisor;
            }
            self.vendor.pointers(&mut silicon, &to_image(&state));
            let mut differences = Vec::new();
            let expected = if self.page.trapped() { Err(VectorException::SimdError.into()) } else { Ok(()) };
            if outcome != expected {
                differences.push(format!("silicon {expected:?}, ours {outcome:?}"));
            }
            differences.extend(image_differences(&to_image(&before.0), &silicon, &to_image(&state)));
            for i in (0..16).filter(|&i| mock.gpr[i] != context.gpr[i] && i != 4) {
                differences.push(format!("r{i}: silicon {:#x}, ours {:#x}", context.gpr[i], mock.gpr[i]));
            }
            if (mock.flags ^ context.flags) & eflags::STATUS != 0 {
                differences.push(format!("flags: silicon {:#x}, ours {:#x}", context.flags, mock.flags));
            }
            if mock.memory != silicon_memory {
                let (theirs, ours) = (hex(&silicon_memory.0[..128]), hex(&mock.memory.0[..128]));
                differences.push(format!("memory: silicon {theirs}\n            ours {ours}"));
            }
            if !differences.is_empty() {
                let x87 = &before.0.x87;
                self.failures.push(format!(
                    "{:?} {} {:?} fcw {:#x} fsw {:#x} tags {:#x} mxcsr {:#x} flags {:#x} mem {}\n    {}",
                    insn.op,
                    hex(&bytes[..usize::from(insn.len)]),
                    &insn.operands[..2],
                    x87.fcw,
                    x87.fsw,
                    x87.tags,
                    before.0.mxcsr,
                    before.2,
                    hex(&before.3.0[..16]),
                    differences.join("\n    ")
                ));
                return;
            }
        }
    }

    fn finish(self, least: usize) {
        let operations = self.compared.iter().filter(|&&n| n > 0).count();
        println!("{operations} operations, {} instructions compared", self.compared.iter().sum::<u32>());
        println!("by maker: {:?}", self.vendor);
        assert!(
            self.failures.is_empty(),
            "{} encodings differ:\n{}",
            self.failures.len(),
            self.failures.join("\n")
        );
        assert!(operations >= least, "only {operations} operations were compared");
    }
}

/// The x87 operations of two operands with exact results.
fn binary(op: Op) -> Option<X87Binary> {
    match op {
        Op::Fscale => Some(X87Binary::Scale),
        Op::Fprem => Some(X87Binary::PartialRemainder),
        Op::Fprem1 => Some(X87Binary::PartialRemainder1),
        _ => None,
    }
}

/// What the test does not run: images that must be well formed, which have tests of their own.
fn skipped(insn: &Insn) -> bool {
    let rsp = |operand: &Operand| matches!(operand, Operand::Gpr { reg: 4, .. });
    matches!(
        insn.op,
        Op::Fxrstor | Op::Fxsave | Op::Xrstor | Op::Xsave | Op::Xsaveopt | Op::Xsavec | Op::Xgetbv
    ) || insn.operands.iter().any(rsp)
}

fn check_encoding(
    oracle: &mut Oracle,
    bytes: &[u8],
    unit: &impl FpUnit,
    wanted: impl Fn(Op) -> bool,
    times: u32,
) {
    if let Ok(insn) = decode(bytes, Bits::B64, &Features::all())
        && is_vector(insn.op)
        && wanted(insn.op)
        && !skipped(&insn)
    {
        oracle.check(bytes, &insn, unit, times);
    }
}

/// The operations that can raise SSE exceptions.
fn is_float(op: Op) -> bool {
    sse::float::handles(op)
}

/// All opcodes of the 0F, 0F38 and 0F3A maps with each mandatory prefix and REX.W, register and memory forms.
fn all_sse(oracle: &mut Oracle, unit: &impl FpUnit, wanted: impl Fn(Op) -> bool, times: u32) {
    let modrms = (0..8).flat_map(|reg| [0xc1 | reg << 3, 0x06 | reg << 3]).chain([0xc0, 0xdb, 0xd3]);
    for modrm in modrms.collect::<Vec<u8>>() {
        for prefix in [None, Some(0x66), Some(0xf3), Some(0xf2)] {
            for rex in [None, Some(0x48), Some(0x45)] {
                // REX.B would change the memory operand's base.
                if rex == Some(0x45) && modrm < 0xc0 {
                    continue;
                }
                for map in [&[0x0f][..], &[0x0f, 0x38], &[0x0f, 0x3a]] {
                    let escapes = |opcode: &u8| map.len() == 1 && matches!(opcode, 0x38 | 0x3a);
                    for opcode in (0..=255u8).filter(|opcode| !escapes(opcode)) {
                        let mut bytes: Vec<u8> = prefix.into_iter().chain(rex).collect();
                        bytes.extend_from_slice(map);
                        bytes.extend([opcode, modrm, oracle.random.bits() as u8, 0, 0, 0, 0]);
                        check_encoding(oracle, &bytes, unit, &wanted, times);
                    }
                }
            }
        }
    }
}

/// All x87 opcodes, memory forms at `[rsi]`, with and without the operand-size prefix.
fn all_x87(oracle: &mut Oracle, unit: &impl FpUnit, wanted: impl Fn(Op) -> bool, times: u32) {
    for opcode in 0xd8..=0xdfu8 {
        for modrm in (0xc0..=0xff).chain((0..8).map(|reg| reg << 3 | 6)) {
            // D9 D8+i, undocumented, is FSTP ST(i) but copies empty registers with their tags.
            if opcode == 0xd9 && modrm & 0xf8 == 0xd8 {
                continue;
            }
            check_encoding(oracle, &[opcode, modrm, 0, 0], unit, &wanted, times);
            if modrm < 0xc0 {
                check_encoding(oracle, &[0x66, opcode, modrm, 0, 0], unit, &wanted, times);
            }
        }
    }
}

#[test]
fn sse_and_mmx_agree_with_the_processor() {
    let mut oracle = Oracle::new();
    all_sse(&mut oracle, &HostFp, |_| true, 24);
    oracle.finish(259);
}

#[test]
fn x87_agrees_with_the_processor() {
    let mut oracle = Oracle::new();
    all_x87(&mut oracle, &HostFp, |_| true, 400);
    oracle.finish(83);
}

/// The portable unit under the same test, but for what it is only near in.
#[test]
fn the_portable_unit_agrees_with_the_processor() {
    use Op::*;
    let mut oracle = Oracle::new();
    let exact = |op| !matches!(op, Rcpps | Rcpss | Rsqrtps | Rsqrtss);
    all_sse(&mut oracle, &SoftFp, exact, 4);
    let exact = |op| !matches!(op, F2xm1 | Fcos | Fpatan | Fptan | Fsin | Fsincos | Fyl2x | Fyl2xp1);
    all_x87(&mut oracle, &SoftFp, exact, 100);
    oracle.finish(330);
}

/// With exceptions unmasked the same instructions trap, and leave the same flags and operands.
#[test]
fn unmasked_sse_exceptions_agree_with_the_processor() {
    catch_sigfpe();
    let mut oracle = Oracle { unmasked: true, ..Oracle::new() };
    all_sse(&mut oracle, &HostFp, is_float, 40);
    oracle.finish(74);
}
