//! Where operands and branches go: registers and displacements such that an address comes out as wanted.

use iced_x86::{Mnemonic, OpCodeOperandKind, OpKind};

use crate::case::{Mode, RSP};
use crate::prepare::{Access, Maker, RBX, RCX, RDI, RSI, accesses};
use crate::space::{CODE, LOW, PAGE, WRITABLE};

/// Sign-extends from a number of bytes.
fn extend(value: u64, width: u32) -> u64 {
    let up = 64 - 8 * width;
    ((value << up) as i64 >> up) as u64
}

impl Maker<'_> {
    /// Makes the ModRM operand's address what it is to be, by a register's value or the displacement.
    pub fn solve(&mut self) -> Option<()> {
        let mask = u64::MAX >> (64 - 8 * self.width);
        let limit = if self.case.mode == Mode::Long { u64::MAX } else { u64::from(u32::MAX) };
        // What lies above an address in a register must not matter.
        let noise = self.random.bits() & !mask & limit;
        self.add_noise(mask, noise);
        let Some(form) = self.form else { return Some(()) };
        if !accesses(&self.insn, true).contains(&Access::Operand) {
            let anywhere = form.base.is_some() || form.index.is_some();
            self.target = if anywhere { self.random.integer() } else { LOW + self.random.below(PAGE) };
        }
        let target = self.target & mask;
        let gpr = &mut self.case.state.gpr;
        let scale = u64::from(form.scale);
        let fixed = |n: usize| self.pinned >> n & 1 != 0;
        let displacement = match (form.base, form.index) {
            (None, None) => target,
            (Some(base), Some(index)) if base == index => {
                if fixed(base) {
                    return None;
                }
                gpr[base] = (target / (1 + scale)) | noise;
                target % (1 + scale)
            }
            (Some(base), index) if fixed(base) => {
                let index = index.map_or(0, |n| gpr[n].wrapping_mul(scale));
                target.wrapping_sub(gpr[base]).wrapping_sub(index)
            }
            (Some(base), index) => {
                let displacement = match form.displacement {
                    0 => 0,
                    1 => self.random.bits() as i8 as u64,
                    _ => self.random.integer() as i32 as u64,
                };
                let index = index.map_or(0, |n| gpr[n].wrapping_mul(scale));
                gpr[base] = target.wrapping_sub(index).wrapping_sub(displacement) & mask | noise;
                displacement
            }
            (None, Some(index)) if fixed(index) => target.wrapping_sub(gpr[index].wrapping_mul(scale)),
            (None, Some(index)) => {
                let displacement = self.random.bits() as i8 as u64;
                let value = (target.wrapping_sub(displacement) & mask) / scale;
                gpr[index] = value | noise;
                target.wrapping_sub(value.wrapping_mul(scale))
            }
        };
        let displacement = extend(displacement, self.width);
        let absolute = form.base.is_none() && form.index.is_none();
        if !absolute && extend(displacement, 4) != displacement {
            return None;
        }
        let size = match form.displacement {
            0 if displacement == 0 => 0,
            0 | 1 if extend(displacement, 1) == displacement => 1,
            _ => self.width,
        };
        self.insn.set_memory_displ_size(size);
        self.insn.set_memory_displacement64(displacement & mask);
        Some(())
    }

    /// Above the addresses and counts that are no ModRM operand's.
    fn add_noise(&mut self, mask: u64, noise: u64) {
        let string = self.insn.is_string_instruction();
        let implicit = string || self.insn.mnemonic() == Mnemonic::Xlatb || self.form.is_none();
        for n in [RSI, RDI, RBX, RCX] {
            if self.pinned >> n & 1 != 0 && implicit || string && n == RCX {
                let value = &mut self.case.state.gpr[n];
                *value = *value & mask | noise;
            }
        }
    }

    fn near_kind(&self) -> Option<OpKind> {
        let kinds = [OpKind::NearBranch16, OpKind::NearBranch32, OpKind::NearBranch64];
        let first = if self.insn.op_count() > 0 { self.insn.op0_kind() } else { OpKind::Register };
        kinds.contains(&first).then_some(first)
    }

    /// Gives branches a target: mostly in the code page, where an INT3 waits.
    pub fn branch(&mut self) {
        use OpCodeOperandKind::{br16_1, br32_1, br64_1};
        if let Some(kind) = self.near_kind() {
            let short = matches!(self.insn.op_code().op_kind(0), br16_1 | br32_1 | br64_1);
            let target = self.code_target(short);
            match kind {
                OpKind::NearBranch16 => self.insn.set_near_branch16(target as u16),
                OpKind::NearBranch32 => self.insn.set_near_branch32(target as u32),
                _ => self.insn.set_near_branch64(target),
            }
            return;
        }
        match self.insn.mnemonic() {
            Mnemonic::Jmp | Mnemonic::Call => {
                let target = self.code_target(false);
                self.set_operand(0, target);
            }
            Mnemonic::Ret => {
                let target = self.code_target(false);
                let at = self.case.state.gpr[RSP];
                self.poke(at, &target.to_le_bytes());
            }
            _ => {}
        }
    }

    fn code_target(&mut self, short: bool) -> u64 {
        let rip = self.case.state.rip;
        if short {
            return rip
                .wrapping_add(self.random.pick(&[16, 60, 100]) + self.random.below(20))
                .wrapping_sub(self.random.pick(&[0, 0, 140]));
        }
        let anywhere = self.near_kind().is_none() && self.case.mode == Mode::Long;
        match self.random.below(12) {
            0 => CODE + PAGE + self.random.below(PAGE),
            1 => LOW + self.random.below(WRITABLE),
            2 if anywhere => self.random.pick(&[1 << 47, 1 << 63, 0x7fff_ffff_ffff_ffff]),
            3..=6 => CODE + self.random.below(0x700),
            _ => CODE + 0x900 + self.random.below(0x6f0),
        }
    }
}
