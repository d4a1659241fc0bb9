//! Every encoding that a CPU model has in a mode, one sample each by operand size and by register or memory form: what tests
//! of the executors are generated from.

use crate::decode::{choose, decode_layout};
use crate::features::Features;
use crate::insn::{Bits, Insn, Operand, Prefixes};
use crate::layout::{Layout, MAX_LENGTH};
use crate::op::Op;
use crate::table::{Map, ROWS, Row, flag, state};

/// A sample of one encoding. Registers, addresses and immediates can be varied by means of the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodingForm {
    code: [u8; MAX_LENGTH],
    /// The memory form of an encoding that names memory by ModRM, or an absolute offset.
    pub memory: bool,
    pub layout: Layout,
    pub insn: Insn,
}

impl EncodingForm {
    pub fn bytes(&self) -> &[u8] {
        &self.code[..usize::from(self.layout.len)]
    }
}

/// Every encoding that exists with `features` in `bits`-wide code. LOCK and REP are variants of their own.
pub fn encodings(features: &Features, bits: Bits) -> Vec<EncodingForm> {
    let mut forms: Vec<EncodingForm> = Vec::new();
    for row in &ROWS {
        for opcode in (0..row.span).map(|n| row.opcode + n) {
            let first = forms.len();
            for sample in samples(row, opcode, bits) {
                let Some(form) = read(&sample, row, bits, features) else { continue };
                if !forms[first..].iter().any(|other| same(other, &form, row)) {
                    forms.push(form);
                }
            }
        }
    }
    forms
}

/// The sample as an instruction, if it is this row's.
fn read(sample: &[u8], row: &'static Row, bits: Bits, features: &Features) -> Option<EncodingForm> {
    let layout = Layout::scan(sample, bits).ok()?;
    if !std::ptr::eq(choose(&layout, features).ok()?, row) {
        return None;
    }
    let insn = decode_layout(sample, &layout, features).ok()?;
    let mut code = [0; MAX_LENGTH];
    let length = usize::from(layout.len);
    code[..length].copy_from_slice(sample.get(..length)?);
    let memory = insn.operands.iter().any(|operand| matches!(operand, Operand::Mem { .. }));
    Some(EncodingForm { code, memory, layout, insn })
}

/// Whether two samples of a row differ only in prefixes without effect.
fn same(a: &EncodingForm, b: &EncodingForm, row: &Row) -> bool {
    let plain = |form: &EncodingForm| {
        let mut insn = form.insn;
        insn.len = 0;
        insn.prefixes &= Prefixes::LOCK
            | if is_string(row.op) { Prefixes::REP | Prefixes::REPNE } else { Prefixes::empty() };
        if !size_matters(row.op) {
            insn.opsize = 0;
        }
        insn
    };
    plain(a) == plain(b)
}

fn is_string(op: Op) -> bool {
    matches!(op, Op::Movs | Op::Cmps | Op::Stos | Op::Lods | Op::Scas | Op::Ins | Op::Outs)
}

/// Whether the operand size changes what is done though no operand shows it.
fn size_matters(op: Op) -> bool {
    use Op::*;
    is_string(op)
        || matches!(
            op,
            Cbw | Cwd
                | Push
                | Pop
                | Pushf
                | Popf
                | Pusha
                | Popa
                | Enter
                | Leave
                | Call
                | CallFar
                | Jmp
                | JmpFar
                | Jcc
                | Jrcxz
                | Loop
                | Loope
                | Loopne
                | Ret
                | RetFar
                | Iret
                | Sysret
                | Sysexit
                | Lgdt
                | Lidt
                | Fxsave
                | Fxrstor
                | Xsave
                | Xsaveopt
                | Xsavec
                | Xsaves
                | Xrstor
                | Xrstors
        )
}

/// Byte strings for a row: prefixes that it accepts, both sizes of W, both forms.
fn samples(row: &Row, opcode: u8, bits: Bits) -> Vec<Vec<u8>> {
    let mut samples = Vec::new();
    for form in forms(row, bits) {
        let tail = [form, vec![0x12, 0x34, 0x56, 0x78, 0x1a, 0x2b, 0x3c, 0x4d]].concat();
        if row.map >= Map::Vex0f {
            vex_samples(row, opcode, bits, &tail, &mut samples);
            continue;
        }
        let escape: &[u8] = match row.map {
            Map::M0f => &[0x0f],
            Map::M0f38 => &[0x0f, 0x38],
            Map::M0f3a => &[0x0f, 0x3a],
            _ => &[],
        };
        let rexes: &[&[u8]] = if bits == Bits::B64 { &[&[], &[0x48]] } else { &[&[]] };
        let locks: &[&[u8]] = if row.has_flag(flag::LOCK) { &[&[], &[0xf0]] } else { &[&[]] };
        let prefixes: [(u64, &[u8]); 6] = [
            (state::NP, &[]),
            (state::P66, &[0x66]),
            (state::PF3, &[0xf3]),
            (state::PF2, &[0xf2]),
            (state::PF3, &[0x66, 0xf3]),
            (state::PF2, &[0x66, 0xf2]),
        ];
        for (_, prefix) in prefixes.iter().filter(|(pp, _)| row.accept & pp != 0) {
            for rex in rexes {
                for lock in locks {
                    samples.push([lock, *prefix, *rex, escape, &[opcode], &tail].concat());
                }
            }
        }
    }
    samples
}

fn vex_samples(row: &Row, opcode: u8, bits: Bits, tail: &[u8], samples: &mut Vec<Vec<u8>>) {
    let map = row.map as u8 - Map::Vex0f as u8 + 1;
    let vvvv: u8 = if row.accept & state::V1 != 0 { 6 } else { 0 };
    for pp in (0..4u8).filter(|pp| row.accept & 1 << pp != 0) {
        for w in 0..2u8 {
            for l in 0..2u8 {
                // REX.R, X, B inverted are ones: registers 0 to 7.
                let head = [0xc4, 0xe0 | map, w << 7 | (!vvvv & 0xf) << 3 | l << 2 | pp, opcode];
                // A vector index needs a SIB byte, which 16-bit addresses lack.
                let wide: &[u8] = if bits == Bits::B16 && row.has_flag(flag::GATHER) { &[0x67] } else { &[] };
                samples.push([wide, &head, tail].concat());
            }
        }
    }
}

/// ModRM (and SIB) for the register and the memory form; empty where there is none.
fn forms(row: &Row, bits: Bits) -> Vec<Vec<u8>> {
    let has_modrm = crate::table::ATTRIBUTES[row.map as usize][usize::from(row.opcode)]
        & crate::table::attribute::MODRM
        != 0;
    if !has_modrm {
        return vec![vec![]];
    }
    let choose = |group: u64, shift: u32, any: u8| {
        let bits = (row.accept & group) >> shift;
        if bits == 0xff { any } else { bits.trailing_zeros() as u8 }
    };
    // Control register 0 exists, 1 does not.
    let reg = choose(state::SLASH, state::SLASH_SHIFT, if row.has_flag(flag::MODREG) { 0 } else { 1 });
    let rm = choose(state::RM, state::RM_SHIFT, 2);
    let mut forms = Vec::new();
    if row.accept & state::REG != 0 {
        forms.push(vec![0xc0 | reg << 3 | rm]);
    }
    if row.accept & state::MEM != 0 {
        if row.has_flag(flag::GATHER) {
            // [rbx + xmm5 * 4]
            forms.push(vec![reg << 3 | 4, 2 << 6 | 5 << 3 | 3]);
        } else {
            // [rbx]; with 16-bit addresses [bx].
            forms.push(vec![reg << 3 | if bits == Bits::B16 { 7 } else { 3 }]);
        }
    }
    forms
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::X86_64_V2;
    use std::collections::BTreeSet;

    fn ops(features: &Features, bits: Bits) -> BTreeSet<Op> {
        encodings(features, bits).iter().map(|form| form.insn.op).collect()
    }

    #[test]
    fn every_operation_has_an_encoding() {
        let all = Features::all();
        let found = &ops(&all, Bits::B64) | &ops(&all, Bits::B32);
        let missing: Vec<_> = Op::ALL.iter().filter(|op| !found.contains(op)).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert_eq!(ops(&all, Bits::B16), ops(&all, Bits::B32));
    }

    #[test]
    fn samples_decode_as_themselves_and_differ() {
        for bits in [Bits::B16, Bits::B32, Bits::B64] {
            let forms = encodings(&X86_64_V2.features, bits);
            for form in &forms {
                assert_eq!(crate::decode::decode(form.bytes(), bits, &X86_64_V2.features), Ok(form.insn));
            }
            let distinct: BTreeSet<_> = forms.iter().map(|form| form.bytes().to_vec()).collect();
            assert_eq!(distinct.len(), forms.len());
        }
    }

    #[test]
    fn forms_and_sizes_are_all_there() {
        let forms = encodings(&X86_64_V2.features, Bits::B64);
        let of = |op: Op| forms.iter().filter(move |form| form.insn.op == op);
        // 00, 02, 80: two forms; 01, 03, 81, 83: three sizes and two forms; 04; 05: three sizes.
        assert_eq!(
            of(Op::Add).filter(|form| !form.insn.prefixes.contains(Prefixes::LOCK)).count(),
            3 * 2 + 4 * 6 + 1 + 3
        );
        assert_eq!(of(Op::Movs).count(), 4 * 3, "four sizes; plain, REP, REPNE");
        assert_eq!(of(Op::Cmpxchg16b).count(), 2, "with and without LOCK");
        assert_eq!(of(Op::Jcc).count(), 32);
        assert!(of(Op::Vaddps).next().is_none() && of(Op::Pusha).next().is_none());
    }
}
