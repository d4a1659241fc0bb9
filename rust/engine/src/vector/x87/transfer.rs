//! Loads, stores, exchanges, conditional moves and constants of the x87 (Intel SDM vol. 1, 8.3.3 and 8.3.4).

use trapgate_x86::insn::{Insn, Operand};
use trapgate_x86::op::Op;

use super::super::fp::{FpUnit, X87Source, X87Target};
use super::super::interface::{Operands, eflags};
use super::super::operand::unexpected;
use super::super::state::{F80, X87State, fsw};
use super::last_st;

/// FLD, FILD and FBLD.
pub(super) fn load<O: Operands, F: FpUnit>(
    x87: &mut X87State,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let source = match (insn.op, insn.operands[0]) {
        (Op::Fld, Operand::St(i)) => {
            load_register(x87, i);
            return Ok(());
        }
        (Op::Fld, Operand::Mem { size: 4 }) => X87Source::F32(ops.load_u32()?),
        (Op::Fld, Operand::Mem { size: 8 }) => X87Source::F64(ops.load_u64()?),
        (Op::Fild, Operand::Mem { size: 2 }) => X87Source::I16(ops.load_u16()? as i16),
        (Op::Fild, Operand::Mem { size: 4 }) => X87Source::I32(ops.load_u32()? as i32),
        (Op::Fild, Operand::Mem { size: 8 }) => X87Source::I64(ops.load_u64()? as i64),
        (op, Operand::Mem { size: 10 }) => {
            let mut bytes = [0; 10];
            ops.load(0, &mut bytes)?;
            X87Source::F80(if op == Op::Fbld { from_bcd(bytes) } else { F80::from_bytes(bytes) })
        }
        _ => return Err(unexpected()),
    };
    if x87.is_full() {
        if x87.overflow() {
            x87.push(F80::INDEFINITE);
        }
        return Ok(());
    }
    let result = fp.x87_load(source, x87.fcw);
    x87.merge(result.status);
    // An unmasked denormal exception does not keep the value from being loaded.
    if result.status & !x87.fcw & fsw::IE == 0 {
        x87.push(result.value);
    }
    Ok(())
}

/// FLD ST(i).
fn load_register(x87: &mut X87State, i: u8) {
    let masked = if x87.is_empty(i) {
        x87.underflow()
    } else if x87.is_full() {
        x87.overflow()
    } else {
        let value = x87.st(i);
        x87.merge(0);
        x87.push(value);
        return;
    };
    if masked {
        x87.push(F80::INDEFINITE);
    }
}

/// Eighteen packed decimal digits and a sign, exactly (SDM vol. 1, 4.7). Digits above 9 count as what they weigh.
fn from_bcd(bytes: [u8; 10]) -> F80 {
    let digits = bytes[..9].iter().rev();
    let magnitude = digits.fold(0u64, |value, &byte| {
        value.wrapping_mul(100).wrapping_add(u64::from(byte >> 4) * 10 + u64::from(byte & 15))
    });
    let sign = u16::from(bytes[9] & 0x80) << 8;
    match magnitude.leading_zeros() {
        64 => F80::new(sign, 0),
        zeros => F80::new(sign | (0x3fff + 63 - zeros as u16), magnitude << zeros),
    }
}

/// FST, FIST, FISTTP, FBSTP and their popping forms.
pub(super) fn store<O: Operands, F: FpUnit>(
    x87: &mut X87State,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
    pop: bool,
) -> Result<(), O::Fault> {
    let size = match insn.operands[0] {
        Operand::St(i) => {
            store_register(x87, i, pop);
            return Ok(());
        }
        Operand::Mem { size } => size,
        _ => return Err(unexpected()),
    };
    let target = match (insn.op, size) {
        (Op::Fst | Op::Fstp, 4) => Some(X87Target::F32),
        (Op::Fst | Op::Fstp, 8) => Some(X87Target::F64),
        (Op::Fstp, 10) => None,
        (Op::Fist | Op::Fistp, 2) => Some(X87Target::I16),
        (Op::Fist | Op::Fistp, 4) => Some(X87Target::I32),
        (Op::Fistp, 8) => Some(X87Target::I64),
        (Op::Fisttp, 2) => Some(X87Target::I16Truncated),
        (Op::Fisttp, 4) => Some(X87Target::I32Truncated),
        (Op::Fisttp, 8) => Some(X87Target::I64Truncated),
        (Op::Fbstp, 10) => Some(X87Target::Bcd),
        _ => return Err(unexpected()),
    };
    // An empty register stores the indefinite value of the target's format, beside the stack fault.
    let empty = x87.is_empty(0);
    let value = if empty { F80::INDEFINITE } else { x87.st(0) };
    let (bytes, status) = match target {
        None => (value.to_bytes(), 0),
        Some(target) => {
            let stored = fp.x87_store(target, value, x87.fcw);
            (stored.bytes, stored.status)
        }
    };
    let status = if empty { fsw::IE | fsw::SF } else { status };
    let stores = x87.stores(status);
    if stores {
        ops.store(0, &bytes[..usize::from(size.min(10))])?;
    }
    x87.merge(status);
    if stores && pop {
        x87.pop();
    }
    Ok(())
}

/// FST ST(i) and FSTP ST(i).
fn store_register(x87: &mut X87State, i: u8, pop: bool) {
    let value = if !x87.is_empty(0) {
        x87.merge(0);
        x87.st(0)
    } else if x87.underflow() {
        F80::INDEFINITE
    } else {
        return;
    };
    x87.set_st(i, value);
    if pop {
        x87.pop();
    }
}

/// FXCH. Empty registers first take the indefinite value.
pub(super) fn exchange(x87: &mut X87State, i: u8) {
    let (empty0, empty_i) = (x87.is_empty(0), x87.is_empty(i));
    let proceeds = if empty0 || empty_i { x87.underflow() } else { x87.merge(0) };
    if proceeds {
        let a = if empty0 { F80::INDEFINITE } else { x87.st(0) };
        let b = if empty_i { F80::INDEFINITE } else { x87.st(i) };
        x87.set_st(0, b);
        x87.set_st(i, a);
    }
}

/// FCHS and FABS, which change the sign alone, of NaNs too.
pub(super) fn sign(x87: &mut X87State, map: fn(F80) -> F80) {
    if !x87.is_empty(0) {
        x87.merge(0);
        x87.set_st(0, map(x87.st(0)));
    } else if x87.underflow() {
        x87.set_st(0, F80::INDEFINITE);
    }
}

/// FCMOVcc.
pub(super) fn conditional_move<O: Operands>(
    x87: &mut X87State,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let i = last_st(insn)?;
    if x87.is_empty(0) || x87.is_empty(i) {
        if x87.underflow() {
            x87.set_st(0, F80::INDEFINITE);
        }
        return Ok(());
    }
    let flags = ops.flags();
    let holds = match insn.cond & 0xe {
        2 => flags & eflags::CF != 0,
        4 => flags & eflags::ZF != 0,
        6 => flags & (eflags::CF | eflags::ZF) != 0,
        10 => flags & eflags::PF != 0,
        _ => return Err(unexpected()),
    };
    if holds != (insn.cond & 1 != 0) {
        x87.set_st(0, x87.st(i));
    }
    Ok(())
}

/// FLD1 and its kin: the constants as 66 bits would round by the rounding control (SDM vol. 1, 8.3.8).
pub(super) fn constant(x87: &mut X87State, op: Op) {
    if x87.is_full() {
        if x87.overflow() {
            x87.push(F80::INDEFINITE);
        }
        return;
    }
    let rounding = x87.fcw >> 10 & 3;
    // Values truncated, and whether the nearest value is the next one.
    let (exponent, significand, nearest_is_up) = match op {
        Op::Fld1 => (0x3fff, 1 << 63, None),
        Op::Fldl2t => (0x4000, 0xd49a_784b_cd1b_8afe, Some(false)),
        Op::Fldl2e => (0x3fff, 0xb8aa_3b29_5c17_f0bb, Some(true)),
        Op::Fldpi => (0x4000, 0xc90f_daa2_2168_c234, Some(true)),
        Op::Fldlg2 => (0x3ffd, 0x9a20_9a84_fbcf_f798, Some(true)),
        Op::Fldln2 => (0x3ffe, 0xb172_17f7_d1cf_79ab, Some(true)),
        _ => (0, 0, None),
    };
    let up = match (nearest_is_up, rounding) {
        (None, _) => false,
        (Some(nearest_is_up), 0) => nearest_is_up,
        (Some(_), rounding) => rounding == 2,
    };
    x87.merge(0);
    x87.push(F80::new(exponent, significand + u64::from(up)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_digits() {
        let mut bytes = [0; 10];
        assert_eq!(from_bcd(bytes), F80::ZERO);
        (bytes[0], bytes[9]) = (0x01, 0x80);
        assert_eq!(from_bcd(bytes), F80::ONE.negate());
        assert_eq!(
            from_bcd([0x99, 0x99, 0x99, 0x99, 0x99, 0x99, 0x99, 0x99, 0x99, 0]).exponent(),
            0x3fff + 59
        );
    }
}
