//! The floating-point unit as a trait: pure functions from operands and control word to result and raised flags.
//! There is a portable implementation ([`super::soft`]) and, on x86-64 hosts, one that lets the host compute.
//!
//! Every method reports the exception flags exactly as a processor with the given masks would set them, so that the
//! callers need no knowledge of numbers: they merge the flags, see whether one is unmasked and commit or not.

use super::state::F80;

/// MXCSR bits (Intel SDM vol. 1, 10.2.3).
pub mod mxcsr {
    pub const IE: u32 = 0x01;
    pub const DE: u32 = 0x02;
    pub const ZE: u32 = 0x04;
    pub const OE: u32 = 0x08;
    pub const UE: u32 = 0x10;
    pub const PE: u32 = 0x20;
    pub const FLAGS: u32 = 0x3f;
    pub const DAZ: u32 = 0x40;
    pub const MASK_SHIFT: u32 = 7;
    pub const RC_SHIFT: u32 = 13;
    pub const FZ: u32 = 0x8000;
}

/// Which lanes an SSE operation works on: packed or scalar, single or double. Scalar results keep `a`'s other lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Ps,
    Pd,
    Ss,
    Sd,
}

impl Form {
    pub const fn double(self) -> bool {
        matches!(self, Form::Pd | Form::Sd)
    }

    pub const fn lanes(self) -> usize {
        match self {
            Form::Ps => 4,
            Form::Pd => 2,
            Form::Ss | Form::Sd => 1,
        }
    }
}

/// Operations on two operands of one format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arith {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
}

/// Fused operations on x * y and z, rounded once (SDM vol. 1, 14.5): the signs of product and addend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fused {
    /// x * y + z.
    MulAdd,
    /// x * y - z.
    MulSub,
    /// -(x * y) + z.
    NegatedMulAdd,
    /// -(x * y) - z.
    NegatedMulSub,
    /// Odd lanes add z, even ones subtract it.
    MulAddSub,
    /// Odd lanes subtract z, even ones add it.
    MulSubAdd,
}

/// The approximations with a relative error of at most 1.5 * 2^-12 (SDM vol. 2, RCPPS and RSQRTPS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Estimate {
    Reciprocal,
    ReciprocalRoot,
}

/// Conversions. Integers stand in the low bits of the source or result; `Truncated` ignores the rounding control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convert {
    DqToPs,
    DqToPd,
    PsToDq,
    PsToDqTruncated,
    PdToDq,
    PdToDqTruncated,
    PsToPd,
    PdToPs,
    SsToSd,
    SdToSs,
    Si32ToSs,
    Si64ToSs,
    Si32ToSd,
    Si64ToSd,
    SsToSi32,
    SsToSi64,
    SdToSi32,
    SdToSi64,
    SsToSi32Truncated,
    SsToSi64Truncated,
    SdToSi32Truncated,
    SdToSi64Truncated,
}

/// What an SSE operation gives: the destination and the MXCSR flags it raised. Flags that were set already may be among
/// them, unless they are unmasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SseResult {
    pub value: u128,
    pub flags: u32,
}

/// The six arithmetic operations of the x87; `Sub` is a - b, `SubReversed` b - a.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum X87Arith {
    Add,
    Mul,
    Sub,
    SubReversed,
    Div,
    DivReversed,
}

/// An x87 operand as it comes from a register or from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum X87Source {
    F80(F80),
    F32(u32),
    F64(u64),
    I16(i16),
    I32(i32),
    I64(i64),
}

/// Where FST, FIST, FISTTP and FBSTP convert to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum X87Target {
    F32,
    F64,
    I16,
    I32,
    I64,
    I16Truncated,
    I32Truncated,
    I64Truncated,
    Bcd,
}

/// Functions of ST(0) alone. `SinCos`, `PartialTangent` and `Extract` have two results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum X87Unary {
    SquareRoot,
    RoundToInteger,
    Sin,
    Cos,
    SinCos,
    PartialTangent,
    Extract,
    TwoToXMinus1,
}

/// Functions of ST(0) and ST(1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum X87Binary {
    PartialArctangent,
    YLog2X,
    YLog2XPlus1,
    PartialRemainder,
    PartialRemainder1,
    Scale,
}

/// What an x87 operation gives. `status` has the exception flags raised and the condition codes that the operation
/// defines, in FSW's bits. Remainders that are NaNs leave C0 and C3 undefined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct X87Result {
    pub value: F80,
    /// The value to push on top of `value`, where the operation pushes one.
    pub pushed: Option<F80>,
    pub status: u16,
}

/// The bytes an x87 store writes (from the first on, as many as the target has) and the status as in [`X87Result`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct X87Stored {
    pub bytes: [u8; 10],
    pub status: u16,
}

/// A floating-point unit. Implementations keep no state of the guest.
pub trait FpUnit {
    fn arith(&self, op: Arith, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult;

    fn sqrt(&self, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult;

    /// CMPPS and its kin, predicates 0 to 7, or with VEX 0 to 31; a true lane is all ones.
    fn compare(&self, predicate: u8, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult;

    /// COMISS and its kin on the lowest lane; the value is the new ZF, PF and CF in EFLAGS' bits.
    fn order(&self, quiet: bool, double: bool, a: u128, b: u128, mxcsr: u32) -> SseResult;

    /// ROUNDPS and its kin with their immediate (SDM vol. 2, figure 4-24).
    fn round(&self, control: u8, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult;

    /// Scalar conversions to floating point keep `a`'s other lanes.
    fn convert(&self, op: Convert, a: u128, b: u128, mxcsr: u32) -> SseResult;

    /// Heeds no control bit and raises no flag.
    fn estimate(&self, op: Estimate, form: Form, a: u128, b: u128) -> u128;

    /// Of several NaNs the result is the first of x, y and z. Scalar results keep z's other lanes.
    fn fused(&self, op: Fused, form: Form, x: u128, y: u128, z: u128, mxcsr: u32) -> SseResult;

    /// VCVTPH2PS of the four low lanes: denormals count whatever DAZ says, and raise nothing.
    fn half_to_single(&self, b: u128, mxcsr: u32) -> SseResult;

    /// VCVTPS2PH with its immediate, to the four low lanes: flush-to-zero does not count.
    fn single_to_half(&self, control: u8, b: u128, mxcsr: u32) -> SseResult;

    fn x87_arith(&self, op: X87Arith, a: F80, b: X87Source, fcw: u16) -> X87Result;

    /// FCOM (or with `quiet` FUCOM) of `a` with `b`: the status with C0, C2 and C3.
    fn x87_compare(&self, quiet: bool, a: F80, b: X87Source, fcw: u16) -> u16;

    /// FLD and FILD from memory formats.
    fn x87_load(&self, source: X87Source, fcw: u16) -> X87Result;

    fn x87_store(&self, target: X87Target, a: F80, fcw: u16) -> X87Stored;

    fn x87_unary(&self, op: X87Unary, a: F80, fcw: u16) -> X87Result;

    fn x87_binary(&self, op: X87Binary, st0: F80, st1: F80, fcw: u16) -> X87Result;
}
