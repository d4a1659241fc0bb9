//! Execution of x87, MMX, SSE to SSE4.2 with AES, PCLMULQDQ and CRC32, AVX to AVX2 with FMA and F16C, and the instructions
//! that save and restore their state: one function, [`execute`], over registers ([`VectorState`]), mode ([`Control`]), operands ([`Operands`]) and a
//! floating-point unit ([`FpUnit`]).
//!
//! Checks come in the architecture's order (Intel SDM vol. 3, 6.9 and vol. 2, exception classes): #UD, #NM, a pending
//! x87 exception, alignment, the memory access itself, and last the instruction's own floating-point exceptions. When
//! [`execute`] returns a fault, registers and memory are as before; only an unmasked SIMD exception leaves its flags in
//! MXCSR. Rust's own floating-point operators are never applied to a guest's value.
//!
//! Model choices, to which CPUID must agree: leaf 7 EBX bits 6 and 13 through [`Control`]; FOP changes only with an
//! unmasked exception (as IA32_MISC_ENABLE\[2\] = 0 says); MXCSR_MASK is FFFFh; the XSAVE area is 576 bytes, with
//! AVX state 832.

mod avx;
mod fp;
#[cfg(target_arch = "x86_64")]
mod host;
mod interface;
#[cfg(test)]
mod mock;
mod native;
mod operand;
mod save;
mod soft;
mod sse;
mod state;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_avx;
mod x87;

use trapgate_x86::insn::Insn;
use trapgate_x86::op::Op;

pub use fp::{
    Arith, Convert, Estimate, Form, FpUnit, Fused, SseResult, X87Arith, X87Binary, X87Result, X87Source,
    X87Stored, X87Target, X87Unary,
};
#[cfg(target_arch = "x86_64")]
pub use host::HostFp;
pub use interface::{
    CR0_EM, CR0_MP, CR0_TS, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE, Control, Operands, VectorException,
    XCR0_AVX, XCR0_SSE, XCR0_X87, eflags,
};
pub use native::NativeFp;
pub use soft::SoftFp;
pub use state::{F80, MXCSR_MASK, MXCSR_RESET, VectorState, X87State, fsw};

/// Which module executes an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    None,
    Move,
    Binary,
    Immediate,
    Other,
    Float,
    String,
    Crc,
    Save,
    X87,
    Vex,
}

/// The class of every operation, by its number.
static CLASSES: [Class; Op::COUNT] = {
    let mut classes = [Class::None; Op::COUNT];
    let mut i = 0;
    while i < Op::COUNT {
        classes[i] = classify(Op::ALL[i]);
        i += 1;
    }
    classes
};

const fn classify(op: Op) -> Class {
    use Op::*;
    match op {
        Lddqu | Maskmovdqu | Maskmovq | Movapd | Movaps | Movd | Movdq2q | Movdqa | Movdqu | Movhlps
        | Movhpd | Movhps | Movlhps | Movlpd | Movlps | Movmskpd | Movmskps | Movntdq | Movntdqa | Movnti
        | Movntpd | Movntps | Movntq | Movq | Movq2dq | MovsdXmm | Movss | Movupd | Movups | Pmovmskb => {
            Class::Move
        }
        Aesdec | Aesdeclast | Aesenc | Aesenclast | Aesimc | Andnpd | Andnps | Andpd | Andps | Movddup
        | Movshdup | Movsldup | Orpd | Orps | Pabsb | Pabsd | Pabsw | Packssdw | Packsswb | Packusdw
        | Packuswb | Paddb | Paddd | Paddq | Paddsb | Paddsw | Paddusb | Paddusw | Paddw | Pand | Pandn
        | Pavgb | Pavgw | Pcmpeqb | Pcmpeqd | Pcmpeqq | Pcmpeqw | Pcmpgtb | Pcmpgtd | Pcmpgtq | Pcmpgtw
        | Phaddd | Phaddsw | Phaddw | Phminposuw | Phsubd | Phsubsw | Phsubw | Pmaddubsw | Pmaddwd
        | Pmaxsb | Pmaxsd | Pmaxsw | Pmaxub | Pmaxud | Pmaxuw | Pminsb | Pminsd | Pminsw | Pminub
        | Pminud | Pminuw | Pmovsxbd | Pmovsxbq | Pmovsxbw | Pmovsxdq | Pmovsxwd | Pmovsxwq | Pmovzxbd
        | Pmovzxbq | Pmovzxbw | Pmovzxdq | Pmovzxwd | Pmovzxwq | Pmuldq | Pmulhrsw | Pmulhuw | Pmulhw
        | Pmulld | Pmullw | Pmuludq | Por | Psadbw | Pshufb | Psignb | Psignd | Psignw | Pslld | Pslldq
        | Psllq | Psllw | Psrad | Psraw | Psrld | Psrldq | Psrlq | Psrlw | Psubb | Psubd | Psubq | Psubsb
        | Psubsw | Psubusb | Psubusw | Psubw | Punpckhbw | Punpckhdq | Punpckhqdq | Punpckhwd | Punpcklbw
        | Punpckldq | Punpcklqdq | Punpcklwd | Pxor | Unpckhpd | Unpckhps | Unpcklpd | Unpcklps | Xorpd
        | Xorps => Class::Binary,
        Aeskeygenassist | Blendpd | Blendps | Mpsadbw | Palignr | Pblendw | Pclmulqdq | Pshufd | Pshufhw
        | Pshuflw | Pshufw | Shufpd | Shufps => Class::Immediate,
        Blendvpd | Blendvps | Extractps | Insertps | Pblendvb | Pextrb | Pextrd | Pextrq | Pextrw
        | Pinsrb | Pinsrd | Pinsrq | Pinsrw | Ptest => Class::Other,
        Addpd | Addps | Addsd | Addss | Addsubpd | Addsubps | Cmppd | Cmpps | CmpsdXmm | Cmpss | Comisd
        | Comiss | Cvtdq2pd | Cvtdq2ps | Cvtpd2dq | Cvtpd2pi | Cvtpd2ps | Cvtpi2pd | Cvtpi2ps | Cvtps2dq
        | Cvtps2pd | Cvtps2pi | Cvtsd2si | Cvtsd2ss | Cvtsi2sd | Cvtsi2ss | Cvtss2sd | Cvtss2si
        | Cvttpd2dq | Cvttpd2pi | Cvttps2dq | Cvttps2pi | Cvttsd2si | Cvttss2si | Divpd | Divps | Divsd
        | Divss | Dppd | Dpps | Haddpd | Haddps | Hsubpd | Hsubps | Maxpd | Maxps | Maxsd | Maxss | Minpd
        | Minps | Minsd | Minss | Mulpd | Mulps | Mulsd | Mulss | Rcpps | Rcpss | Roundpd | Roundps
        | Roundsd | Roundss | Rsqrtps | Rsqrtss | Sqrtpd | Sqrtps | Sqrtsd | Sqrtss | Subpd | Subps
        | Subsd | Subss | Ucomisd | Ucomiss => Class::Float,
        Pcmpestri | Pcmpestrm | Pcmpistri | Pcmpistrm => Class::String,
        Crc32 => Class::Crc,
        Fxrstor | Fxsave | Ldmxcsr | Stmxcsr | Xgetbv | Xrstor | Xsave | Xsavec | Xsaveopt => Class::Save,
        Emms | F2xm1 | Fabs | Fadd | Faddp | Fbld | Fbstp | Fchs | Fcmovcc | Fcom | Fcomi | Fcomip
        | Fcomp | Fcompp | Fcos | Fdecstp | Fdiv | Fdivp | Fdivr | Fdivrp | Ffree | Ffreep | Fiadd
        | Ficom | Ficomp | Fidiv | Fidivr | Fild | Fimul | Fincstp | Fist | Fistp | Fisttp | Fisub
        | Fisubr | Fld | Fld1 | Fldcw | Fldenv | Fldl2e | Fldl2t | Fldlg2 | Fldln2 | Fldpi | Fldz | Fmul
        | Fmulp | Fnclex | Fndisi | Fneni | Fninit | Fnop | Fnsave | Fnsetpm | Fnstcw | Fnstenv | Fnstsw
        | Fpatan | Fprem | Fprem1 | Fptan | Frndint | Frstor | Fscale | Fsin | Fsincos | Fsqrt | Fst
        | Fstp | Fsub | Fsubp | Fsubr | Fsubrp | Ftst | Fucom | Fucomi | Fucomip | Fucomp | Fucompp
        | Fwait | Fxam | Fxch | Fxtract | Fyl2x | Fyl2xp1 => Class::X87,
        _ if avx::handles(op) => Class::Vex,
        _ => Class::None,
    }
}

/// Whether the memory operand's index is a vector register.
#[inline(always)]
pub fn is_gather(op: Op) -> bool {
    avx::is_gather(op)
}

/// Whether [`execute`] takes an operation.
#[inline(always)]
pub fn is_vector(op: Op) -> bool {
    CLASSES[op as usize] != Class::None
}

/// The legacy operation that does to 128 bits what a VEX operation does to each half, if there is one.
pub fn legacy(op: Op) -> Option<Op> {
    avx::legacy(op)
}

/// Executes one instruction. RIP and the counting of instructions are the caller's.
pub fn execute<O: Operands, F: FpUnit>(
    state: &mut VectorState,
    control: &Control,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    match CLASSES[insn.op as usize] {
        Class::Move => sse::moves::execute(state, control, insn, ops),
        Class::Binary => sse::integer::execute_binary(state, control, insn, ops),
        Class::Immediate => sse::integer::execute_immediate(state, control, insn, ops),
        Class::Other => sse::integer::execute_other(state, control, insn, ops),
        Class::Float => sse::float::execute(state, control, fp, insn, ops),
        Class::String => sse::strings::execute(state, control, insn, ops),
        Class::Crc => sse::crypto::crc32(state, insn, ops),
        Class::Save => save::execute(state, control, insn, ops),
        Class::X87 => x87::execute(state, control, fp, insn, ops),
        Class::Vex => avx::execute(state, control, fp, insn, ops),
        Class::None => Err(VectorException::InvalidOpcode.into()),
    }
}
