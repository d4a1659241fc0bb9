//! The x87 escapes D8 to DF (Intel SDM vol. 2, A.5). Encodings that the manual leaves out but every processor executes
//! (FSTP and FXCH aliases, FFREEP) are listed as what they do; FNENI, FNDISI and FNSETPM are no-operations since the 387.

use super::Spec::*;
use super::{Row, Spec, row};
use crate::features::Features;
use crate::op::Op::{self, *};

/// A memory form.
const fn m(opcode: u8, n: u8, op: Op, spec: Spec) -> Row {
    row(opcode, op, [spec]).slash(n).mem().needs(Features::FPU)
}

/// A register form with any ST(i).
const fn st<const N: usize>(opcode: u8, n: u8, op: Op, specs: [Spec; N]) -> Row {
    row(opcode, op, specs).slash(n).reg().needs(Features::FPU)
}

/// A register form that is one encoding, written as its second byte.
const fn one<const N: usize>(opcode: u8, second: u8, op: Op, specs: [Spec; N]) -> Row {
    row(opcode, op, specs).slash(second >> 3 & 7).rm(second & 7).reg().needs(Features::FPU)
}

/// The eight arithmetic operations on memory.
const fn arithmetic(opcode: u8, ops: [Op; 8], spec: Spec) -> [Row; 8] {
    [
        m(opcode, 0, ops[0], spec),
        m(opcode, 1, ops[1], spec),
        m(opcode, 2, ops[2], spec),
        m(opcode, 3, ops[3], spec),
        m(opcode, 4, ops[4], spec),
        m(opcode, 5, ops[5], spec),
        m(opcode, 6, ops[6], spec),
        m(opcode, 7, ops[7], spec),
    ]
}

const FLOAT: [Op; 8] = [Fadd, Fmul, Fcom, Fcomp, Fsub, Fsubr, Fdiv, Fdivr];
const INTEGER: [Op; 8] = [Fiadd, Fimul, Ficom, Ficomp, Fisub, Fisubr, Fidiv, Fidivr];

pub(super) const ROWS: &[&[Row]] = &[
    &arithmetic(0xd8, FLOAT, Md),
    &arithmetic(0xda, INTEGER, Md),
    &arithmetic(0xdc, FLOAT, Mq),
    &arithmetic(0xde, INTEGER, Mw),
    MEMORY,
    REGISTER,
];

const MEMORY: &[Row] = &[
    m(0xd9, 0, Fld, Md),
    m(0xd9, 2, Fst, Md),
    m(0xd9, 3, Fstp, Md),
    m(0xd9, 4, Fldenv, Menv),
    m(0xd9, 5, Fldcw, Mw),
    m(0xd9, 6, Fnstenv, Menv),
    m(0xd9, 7, Fnstcw, Mw),
    m(0xdb, 0, Fild, Md),
    m(0xdb, 1, Fisttp, Md).needs(Features::SSE3),
    m(0xdb, 2, Fist, Md),
    m(0xdb, 3, Fistp, Md),
    m(0xdb, 5, Fld, Mt),
    m(0xdb, 7, Fstp, Mt),
    m(0xdd, 0, Fld, Mq),
    m(0xdd, 1, Fisttp, Mq).needs(Features::SSE3),
    m(0xdd, 2, Fst, Mq),
    m(0xdd, 3, Fstp, Mq),
    m(0xdd, 4, Frstor, Mstate),
    m(0xdd, 6, Fnsave, Mstate),
    m(0xdd, 7, Fnstsw, Mw),
    m(0xdf, 0, Fild, Mw),
    m(0xdf, 1, Fisttp, Mw).needs(Features::SSE3),
    m(0xdf, 2, Fist, Mw),
    m(0xdf, 3, Fistp, Mw),
    m(0xdf, 4, Fbld, Mt),
    m(0xdf, 5, Fild, Mq),
    m(0xdf, 6, Fbstp, Mt),
    m(0xdf, 7, Fistp, Mq),
];

const REGISTER: &[Row] = &[
    st(0xd8, 0, Fadd, [St0, StI]),
    st(0xd8, 1, Fmul, [St0, StI]),
    st(0xd8, 2, Fcom, [StI]),
    st(0xd8, 3, Fcomp, [StI]),
    st(0xd8, 4, Fsub, [St0, StI]),
    st(0xd8, 5, Fsubr, [St0, StI]),
    st(0xd8, 6, Fdiv, [St0, StI]),
    st(0xd8, 7, Fdivr, [St0, StI]),
    st(0xd9, 0, Fld, [StI]),
    st(0xd9, 1, Fxch, [StI]),
    one(0xd9, 0xd0, Fnop, []),
    // FSTPNCE: FSTP that does not report an empty register.
    st(0xd9, 3, Fstp, [StI]),
    one(0xd9, 0xe0, Fchs, []),
    one(0xd9, 0xe1, Fabs, []),
    one(0xd9, 0xe4, Ftst, []),
    one(0xd9, 0xe5, Fxam, []),
    one(0xd9, 0xe8, Fld1, []),
    one(0xd9, 0xe9, Fldl2t, []),
    one(0xd9, 0xea, Fldl2e, []),
    one(0xd9, 0xeb, Fldpi, []),
    one(0xd9, 0xec, Fldlg2, []),
    one(0xd9, 0xed, Fldln2, []),
    one(0xd9, 0xee, Fldz, []),
    one(0xd9, 0xf0, F2xm1, []),
    one(0xd9, 0xf1, Fyl2x, []),
    one(0xd9, 0xf2, Fptan, []),
    one(0xd9, 0xf3, Fpatan, []),
    one(0xd9, 0xf4, Fxtract, []),
    one(0xd9, 0xf5, Fprem1, []),
    one(0xd9, 0xf6, Fdecstp, []),
    one(0xd9, 0xf7, Fincstp, []),
    one(0xd9, 0xf8, Fprem, []),
    one(0xd9, 0xf9, Fyl2xp1, []),
    one(0xd9, 0xfa, Fsqrt, []),
    one(0xd9, 0xfb, Fsincos, []),
    one(0xd9, 0xfc, Frndint, []),
    one(0xd9, 0xfd, Fscale, []),
    one(0xd9, 0xfe, Fsin, []),
    one(0xd9, 0xff, Fcos, []),
    st(0xda, 0, Fcmovcc, [St0, StI]).fcond().needs(Features::CMOV),
    st(0xda, 1, Fcmovcc, [St0, StI]).fcond().needs(Features::CMOV),
    st(0xda, 2, Fcmovcc, [St0, StI]).fcond().needs(Features::CMOV),
    st(0xda, 3, Fcmovcc, [St0, StI]).fcond().needs(Features::CMOV),
    one(0xda, 0xe9, Fucompp, []),
    st(0xdb, 0, Fcmovcc, [St0, StI]).fcond().needs(Features::CMOV),
    st(0xdb, 1, Fcmovcc, [St0, StI]).fcond().needs(Features::CMOV),
    st(0xdb, 2, Fcmovcc, [St0, StI]).fcond().needs(Features::CMOV),
    st(0xdb, 3, Fcmovcc, [St0, StI]).fcond().needs(Features::CMOV),
    one(0xdb, 0xe0, Fneni, []),
    one(0xdb, 0xe1, Fndisi, []),
    one(0xdb, 0xe2, Fnclex, []),
    one(0xdb, 0xe3, Fninit, []),
    one(0xdb, 0xe4, Fnsetpm, []),
    st(0xdb, 5, Fucomi, [St0, StI]).needs(Features::CMOV),
    st(0xdb, 6, Fcomi, [St0, StI]).needs(Features::CMOV),
    st(0xdc, 0, Fadd, [StI, St0]),
    st(0xdc, 1, Fmul, [StI, St0]),
    st(0xdc, 2, Fcom, [StI]),
    st(0xdc, 3, Fcomp, [StI]),
    st(0xdc, 4, Fsubr, [StI, St0]),
    st(0xdc, 5, Fsub, [StI, St0]),
    st(0xdc, 6, Fdivr, [StI, St0]),
    st(0xdc, 7, Fdiv, [StI, St0]),
    st(0xdd, 0, Ffree, [StI]),
    st(0xdd, 1, Fxch, [StI]),
    st(0xdd, 2, Fst, [StI]),
    st(0xdd, 3, Fstp, [StI]),
    st(0xdd, 4, Fucom, [StI]),
    st(0xdd, 5, Fucomp, [StI]),
    st(0xde, 0, Faddp, [StI, St0]),
    st(0xde, 1, Fmulp, [StI, St0]),
    st(0xde, 2, Fcomp, [StI]),
    one(0xde, 0xd9, Fcompp, []),
    st(0xde, 4, Fsubrp, [StI, St0]),
    st(0xde, 5, Fsubp, [StI, St0]),
    st(0xde, 6, Fdivrp, [StI, St0]),
    st(0xde, 7, Fdivp, [StI, St0]),
    st(0xdf, 0, Ffreep, [StI]),
    st(0xdf, 1, Fxch, [StI]),
    st(0xdf, 2, Fstp, [StI]),
    st(0xdf, 3, Fstp, [StI]),
    one(0xdf, 0xe0, Fnstsw, [Ax]),
    st(0xdf, 5, Fucomip, [St0, StI]).needs(Features::CMOV),
    st(0xdf, 6, Fcomip, [St0, StI]).needs(Features::CMOV),
];
