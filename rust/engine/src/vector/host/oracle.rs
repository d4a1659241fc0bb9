//! The silicon oracle for vector instructions: every encoding of the opcode maps that [`super::super::execute`] takes is
//! run on the host's processor and here, from the same random state, and all registers, flags and memory are compared.

use trapgate_x86::decode::decode;
use trapgate_x86::features::Features;
use trapgate_x86::insn::{Bits, Insn, Operand};
use trapgate_x86::op::Op;

use super::super::sample::Random;
use super::super::state::{MXCSR_MASK, fsw};
use super::super::{Control, FpUnit, Operands, VectorException, VectorState, eflags, execute, is_vector};
use super::HostFp;
use super::silicon::{Context, Page};

/// The memory operand's surroundings.
#[repr(C, align(64))]
#[derive(Clone, PartialEq)]
struct Memory([u8; 256]);

/// Operands over plain arrays. The effective address is the start of `memory`.
struct Mock {
    gpr: [u64; 16],
    flags: u64,
    memory: Memory,
    address: u64,
    rip: u64,
    opcode: u16,
}

impl Operands for Mock {
    type Fault = VectorException;

    fn load(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), VectorException> {
        buffer.copy_from_slice(&self.memory.0[offset as usize..offset as usize + buffer.len()]);
        Ok(())
    }

    fn store(&mut self, offset: u64, bytes: &[u8]) -> Result<(), VectorException> {
        self.memory.0[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn check_store(&mut self, offset: u64, len: u64) -> Result<(), VectorException> {
        assert!(offset + len <= 256);
        Ok(())
    }

    fn linear_address(&self) -> u64 {
        self.address
    }

    fn data_pointer(&self) -> (u16, u64) {
        (0x2b, self.address)
    }

    fn instruction_pointer(&self) -> (u16, u64) {
        (0x33, self.rip)
    }

    fn x87_opcode(&self) -> u16 {
        self.opcode
    }

    fn gpr(&self, reg: u8) -> u64 {
        self.gpr[usize::from(reg)]
    }

    fn set_gpr(&mut self, reg: u8, value: u64, size: u8) {
        let slot = &mut self.gpr[usize::from(reg)];
        *slot = match size {
            1 => *slot & !0xff | value & 0xff,
            2 => *slot & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    fn flags(&self) -> u64 {
        self.flags
    }

    fn set_status_flags(&mut self, value: u64) {
        self.flags = self.flags & !eflags::STATUS | value & eflags::STATUS;
    }
}

/// The state as an FXSAVE64 image.
fn to_image(state: &VectorState) -> [u8; 512] {
    let mut image = [0; 512];
    let x87 = &state.x87;
    image[0..2].copy_from_slice(&x87.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&x87.fsw.to_le_bytes());
    image[4] = x87.tags;
    image[6..8].copy_from_slice(&x87.fop.to_le_bytes());
    image[8..16].copy_from_slice(&x87.fip.to_le_bytes());
    image[16..24].copy_from_slice(&x87.fdp.to_le_bytes());
    image[24..28].copy_from_slice(&state.mxcsr.to_le_bytes());
    image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    for i in 0..8 {
        let at = 32 + 16 * usize::from(i);
        image[at..at + 10].copy_from_slice(&x87.st(i).to_bytes());
    }
    for (i, xmm) in state.xmm.iter().enumerate() {
        image[160 + 16 * i..176 + 16 * i].copy_from_slice(&xmm.to_le_bytes());
    }
    image
}

/// A memory operand is `[rsi]`; MASKMOVDQU's is `[rdi]`, which is the same.
const RSI: usize = 6;
const RDI: usize = 7;

struct Oracle {
    page: Page,
    random: Random,
    /// Instructions compared, by operation.
    compared: Vec<u32>,
    failures: Vec<String>,
}

impl Oracle {
    fn new() -> Oracle {
        Oracle {
            page: Page::new(),
            random: Random::new(1),
            compared: vec![0; Op::COUNT],
            failures: Vec::new(),
        }
    }

    /// A state with plausible values; no x87 exception is pending.
    fn state(&mut self) -> VectorState {
        let random = &mut self.random;
        let mut state = VectorState::reset();
        state.xmm = std::array::from_fn(|_| random.vector());
        state.mxcsr = 0x1f80 | random.bits() as u32 & 0xe07f;
        state.x87.regs = std::array::from_fn(|_| random.f80());
        state.x87.tags = match random.bits() & 3 {
            0 => random.bits() as u8,
            1 => 0,
            _ => 0xff >> (random.bits() & 3) as u8,
        };
        state.x87.fsw = random.bits() as u16 & (fsw::TOP | fsw::CONDITIONS | fsw::SF);
        if random.bits() & 1 != 0 {
            // A stack that is not full, where pushes succeed.
            let top = state.x87.top();
            state.x87.tags = 0x1fu8.rotate_left(u32::from(top));
        }
        state.x87.set_fcw(match random.bits() & 3 {
            0 => random.bits() as u16,
            _ => random.bits() as u16 & 0x0f00 | 0x3f,
        });
        state.x87.fsw |= random.bits() as u16 & state.x87.fcw & fsw::EXCEPTIONS;
        state
    }

    fn memory(&mut self, op: Op) -> Memory {
        let mut memory = Memory([0; 256]);
        for slot in memory.0.chunks_exact_mut(16) {
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
        self.page.place(&bytes[..usize::from(insn.len)]);
        for _ in 0..times {
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
            let mut mock = Mock { gpr, flags, memory: memory.clone(), address, rip, opcode };
            // SAFETY: the memory operand is `memory`; the instruction is one that `is_vector` names, of which none
            // transfers control; `state` has no pending x87 exception and all SSE exceptions masked.
            unsafe { context.run(&self.page) };
            // The processor wrote through the address.
            let silicon_memory = std::hint::black_box(&mut memory).clone();
            let outcome = execute(&mut state, &Control::LONG, unit, insn, &mut mock);
            self.compared[insn.op as usize] += 1;
            let mut differences = Vec::new();
            if outcome.is_err() {
                differences.push(format!("fault {outcome:?}"));
            }
            let image = to_image(&state);
            for (name, range) in FIELDS {
                if image[range.clone()] != context.fx[range.clone()] {
                    let (ours, theirs) = (hex(&image[range.clone()]), hex(&context.fx[range.clone()]));
                    let old = hex(&to_image(&before.0)[range.clone()]);
                    differences.push(format!("{name}: {old} -> silicon {theirs}, ours {ours}"));
                }
            }
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
        assert!(
            self.failures.is_empty(),
            "{} encodings differ:\n{}",
            self.failures.len(),
            self.failures.join("\n")
        );
        assert!(operations >= least, "only {operations} operations were compared");
    }
}

/// Parts of the image with names for messages; bytes 28 to 31 are constant.
const FIELDS: [(&str, std::ops::Range<usize>); 33] = [
    ("fcw", 0..2),
    ("fsw", 2..4),
    ("tags", 4..5),
    ("fop", 6..8),
    ("fip", 8..16),
    ("fdp", 16..24),
    ("mxcsr", 24..28),
    ("st0", 32..42),
    ("st1", 48..58),
    ("st2", 64..74),
    ("st3", 80..90),
    ("st4", 96..106),
    ("st5", 112..122),
    ("st6", 128..138),
    ("st7", 144..154),
    ("xmm0", 160..176),
    ("xmm1", 176..192),
    ("xmm2", 192..208),
    ("xmm3", 208..224),
    ("xmm4", 224..240),
    ("xmm5", 240..256),
    ("xmm6", 256..272),
    ("xmm7", 272..288),
    ("xmm8", 288..304),
    ("xmm9", 304..320),
    ("xmm10", 320..336),
    ("xmm11", 336..352),
    ("xmm12", 352..368),
    ("xmm13", 368..384),
    ("xmm14", 384..400),
    ("xmm15", 400..416),
    ("mask", 28..32),
    ("tag pad", 5..6),
];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect()
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
    all_sse(&mut oracle, &HostFp::new(), |_| true, 24);
    oracle.finish(259);
}

#[test]
fn x87_agrees_with_the_processor() {
    let mut oracle = Oracle::new();
    all_x87(&mut oracle, &HostFp::new(), |_| true, 400);
    oracle.finish(83);
}
