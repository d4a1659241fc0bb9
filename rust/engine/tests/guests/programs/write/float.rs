//! Pieces of x87 and MMX instructions: control words, values, what is done with them, and images of the state.

use super::*;

impl Writer {
    pub(super) fn float(&mut self) {
        match self.below(12) {
            0 => self.insn(&[0xdb, 0xe3]),     // fninit
            1..=4 => self.insn(&[0xdb, 0xe2]), // fnclex
            5 => self.insn(&[0x0f, 0x77]),     // emms
            _ => {}
        }
        if self.one_in(4) {
            self.control_word();
        }
        let (cell, again) = (self.cell() as u32, self.label());
        self.bind(again);
        for _ in 0..1 + self.below(8) {
            match self.below(8) {
                0..=2 => self.plain_float(),
                3..=6 => self.any_float(),
                _ => self.random(false, false),
            }
        }
        if self.one_in(3) {
            if self.undefined != 0 {
                self.define();
            }
            // DEC [cell]; JNS.
            self.insn(&[&[0xff, 0x0c, 0x25][..], &cell.to_le_bytes()].concat());
            self.insn(&[0x0f, 0x89, 0, 0, 0, 0]);
            self.refer(Field::Relative, again, 0);
        }
    }

    /// FLDCW of any rounding and precision, now and then with an exception unmasked.
    fn control_word(&mut self) {
        let unmasked = if self.one_in(4) { 1 << self.below(6) } else { 0 };
        let word = 0x7f & !unmasked | (self.below(16) as u32) << 8;
        self.store_word(SCRATCH, word);
        self.insn(&[&[0xd9, 0x2c, 0x25][..], &(SCRATCH as u32).to_le_bytes()].concat());
    }

    /// What compilers make: loads, stores and arithmetic at fixed addresses.
    fn plain_float(&mut self) {
        let at = ((DATA + self.below(2) * 0x1000 + self.below(0x1f0) * 8) as u32).to_le_bytes();
        let memory: &[[u8; 2]] = &[
            [0xdd, 0], // fld qword
            [0xdd, 3], // fstp qword
            [0xd9, 0], // fld dword
            [0xd9, 2], // fst dword
            [0xdb, 0], // fild dword
            [0xdf, 7], // fistp qword
            [0xdb, 5], // fld tbyte
            [0xdb, 7], // fstp tbyte
            [0xdc, 1], // fmul qword
            [0xdc, 0], // fadd qword
            [0xdc, 3], // fcomp qword
        ];
        let registers: &[[u8; 2]] = &[
            [0xd9, 0xe8], // fld1
            [0xd9, 0xeb], // fldpi
            [0xde, 0xc1], // faddp
            [0xde, 0xc9], // fmulp
            [0xd9, 0xc9], // fxch
            [0xdb, 0xf1], // fcomi
            [0xdf, 0xe0], // fnstsw ax
            [0xd9, 0xfa], // fsqrt
            [0x9b, 0x90], // fwait; nop
            [0xdd, 0xd8], // fstp st(0)
            [0xd9, 0xe0], // fchs
            [0xdf, 0xe9], // fucomip
        ];
        if self.one_in(2) {
            let [opcode, extension] = self.pick(memory);
            self.insn(&[&[opcode, modrm(0, extension, 4), 0x25][..], &at].concat());
        } else {
            let [first, second] = self.pick(registers);
            if first == 0x9b {
                self.insn(&[first]);
                self.insn(&[second]);
            } else {
                self.insn(&[first, second]);
            }
        }
    }

    /// Any instruction of the x87 or on MMX registers.
    fn any_float(&mut self) {
        for _ in 0..400 {
            let memory = self.one_in(2);
            let mut bytes = Vec::with_capacity(24);
            if memory && self.one_in(8) {
                bytes.push(0x64);
            }
            let offset = match bytes.len() {
                0 => self.place(),
                _ => self.place().wrapping_sub(FS),
            };
            if self.one_in(6) {
                let prefix = self.pick(&[0x66, 0xf3, 0xf2]);
                bytes.push(prefix);
            }
            let mut rex = if self.one_in(2) { 0 } else { 0x40 | self.below(16) as u8 };
            let rex_at = bytes.len();
            let x87 = self.one_in(2);
            let opcode: &[u8] = match (x87, self.below(8)) {
                (true, n) => &[0xd8 + n as u8],
                (_, 0) => &[0x0f, 0x38, self.noise.next() as u8],
                (_, 1) => &[0x0f, 0x3a, 0x0f],
                // FXSAVE and its kin.
                (_, 2) if memory && self.one_in(8) => &[0x0f, 0xae],
                _ => &[0x0f, self.noise.next() as u8],
            };
            let reg = self.below(8) as u8;
            let (mut tail, mut setup, mut relative) = (Vec::new(), Vec::new(), None);
            if memory {
                let bits = self.operand(reg, offset, false, &mut tail, &mut setup, &mut relative);
                rex = if bits != 0 || rex != 0 { (rex | 0x40) & 0x4c | bits } else { 0 };
            } else {
                tail.push(modrm(3, reg, self.below(8) as u8));
            }
            tail.push(self.noise.next() as u8);
            if rex != 0 {
                bytes.insert(rex_at, rex);
            }
            bytes.extend_from_slice(opcode);
            let tail_at = bytes.len();
            bytes.extend_from_slice(&tail);
            let Ok(insn) = decode(&bytes, Bits::B64, &self.features) else { continue };
            let has = insn.operands.iter().any(|operand| matches!(operand, Operand::Mem { .. }));
            if has != memory
                || !is_float(&insn)
                || u64::from(flag_use(&insn).read) & self.undefined != 0
                || insn.operands.contains(&Operand::Gpr { reg: 4, size: insn.opsize })
            {
                continue;
            }
            bytes.truncate(usize::from(insn.len));
            return self.place_insn(bytes, offset, &setup, relative.map(|at| tail_at + at));
        }
    }
}

/// Whether an instruction has to do with the x87 state: all but what stores anywhere.
fn is_float(insn: &Insn) -> bool {
    let mmx = |operand: &Operand| matches!(operand, Operand::Mmx(_) | Operand::St(_));
    let name = format!("{:?}", insn.op);
    name.starts_with('F')
        || name.starts_with("Emms")
        || insn.operands.iter().any(mmx) && insn.op != Op::Maskmovq
}
