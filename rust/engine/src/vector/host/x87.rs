//! x87 operations run on the host, one assembly block each: clear the flags, push the operands, load the guest's control
//! word, operate, read status and flags, put the host's control word back, pop the results. Exceptions may be unmasked
//! meanwhile: an x87 exception is reported by the next waiting instruction, and none comes before FNCLEX.

use std::arch::asm;

use super::super::fp::{X87Arith, X87Binary, X87Result, X87Source, X87Stored, X87Target, X87Unary};
use super::super::state::{F80, fsw};

/// What a block reads and writes; the offsets stand in the assembly.
#[repr(C)]
struct Frame {
    /// 0: the first operand.
    a: [u8; 16],
    /// 16: the second operand in its own format.
    b: [u8; 16],
    /// 32: the result, or the top of the stack where there are two.
    result: [u8; 16],
    /// 48: what lay below the top.
    below: [u8; 16],
    /// 64, 66, 68: control words and the status.
    host: u16,
    guest: u16,
    status: u16,
    /// 70: the control word that FNINIT sets: everything masked.
    masked: u16,
}

impl Frame {
    fn new(fcw: u16) -> Frame {
        let none = [0; 16];
        Frame { a: none, b: none, result: none, below: none, host: 0, guest: fcw, status: 0, masked: 0x037f }
    }

    fn a(mut self, value: F80) -> Frame {
        self.a[..10].copy_from_slice(&value.to_bytes());
        self
    }

    fn b(mut self, value: F80) -> Frame {
        self.b[..10].copy_from_slice(&value.to_bytes());
        self
    }

    fn b_bytes(mut self, bytes: &[u8]) -> Frame {
        self.b[..bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The exception flags and the condition codes that the operation defines; the others are what they were before.
    fn status(&self, codes: u16) -> u16 {
        self.status & (fsw::EXCEPTIONS | codes)
    }

    fn bytes(&self, from: [u8; 16]) -> [u8; 10] {
        std::array::from_fn(|i| from[i])
    }

    fn result(&self, codes: u16) -> X87Result {
        X87Result {
            value: F80::from_bytes(self.bytes(self.result)),
            pushed: None,
            status: self.status(codes),
        }
    }

    /// The result of an operation that may have pushed a second value: TOP, 0 after FNINIT, tells how deep the stack is.
    fn results(&self, depth_without: u16, codes: u16) -> X87Result {
        let depth = 0u16.wrapping_sub(self.status >> fsw::TOP_SHIFT) & 7;
        if depth > depth_without {
            let (top, below) = (self.bytes(self.result), self.bytes(self.below));
            X87Result {
                value: F80::from_bytes(below),
                pushed: Some(F80::from_bytes(top)),
                status: self.status(codes),
            }
        } else {
            self.result(codes)
        }
    }
}

/// What comparisons define.
const CODES: u16 = fsw::C0 | fsw::C2 | fsw::C3;

/// Runs `$operation`, which leaves the stack with as many values as `$before` pushed, between control words, and then
/// `$after`, which empties it.
macro_rules! block {
    ($frame:ident, [$($before:literal),*], $operation:literal, [$($after:literal),*]) => {
        // SAFETY: the block touches `$frame` through the one register and the x87 unit, whose registers are all declared
        // clobbered, so the stack is empty on entry; it is empty on exit, and the control word is the host's again. The
        // status flags of the unit are not preserved and not claimed to be.
        unsafe {
            asm!("fnclex", "fnstcw word ptr [{f} + 64]", "fldcw word ptr [{f} + 70]", $($before,)*
                "fldcw word ptr [{f} + 66]", $operation, "fnstsw word ptr [{f} + 68]", "fnclex",
                "fldcw word ptr [{f} + 70]", $($after,)* "fldcw word ptr [{f} + 64]",
                f = in(reg) &mut $frame,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                out("mm0") _, out("mm1") _, out("mm2") _, out("mm3") _,
                out("mm4") _, out("mm5") _, out("mm6") _, out("mm7") _, options(nostack));
        }
    };
}

/// An operation on ST(0) that keeps the stack's depth.
macro_rules! on_top {
    ($frame:expr, $operation:literal) => {{
        let mut frame = $frame;
        block!(frame, ["fld tbyte ptr [{f}]"], $operation, ["fstp tbyte ptr [{f} + 32]"]);
        frame
    }};
}

/// An operation on ST(0) and ST(1) that keeps the stack's depth.
macro_rules! on_two {
    ($frame:expr, $operation:literal) => {{
        let mut frame = $frame;
        block!(
            frame,
            ["fld tbyte ptr [{f} + 16]", "fld tbyte ptr [{f}]"],
            $operation,
            ["fstp tbyte ptr [{f} + 32]", "fstp st(0)"]
        );
        frame
    }};
}

/// An operation that may push or pop: TOP starts from 0, and FNINIT empties the stack.
macro_rules! of_any_depth {
    ($frame:expr, [$($before:literal),*], $operation:literal) => {{
        let mut frame = $frame;
        block!(frame, ["fninit", $($before),*], $operation,
            ["fstp tbyte ptr [{f} + 32]", "fstp tbyte ptr [{f} + 48]", "fninit"]);
        frame
    }};
}

/// The forms of an operation with its source in ST(1) and in memory.
macro_rules! sources {
    ($a:expr, $b:expr, $fcw:expr, $reg:literal $f32:literal $f64:literal $i16:literal $i32:literal) => {{
        let frame = Frame::new($fcw).a($a);
        match $b {
            X87Source::F80(value) => on_two!(frame.b(value), $reg),
            X87Source::F32(value) => on_top!(frame.b_bytes(&value.to_le_bytes()), $f32),
            X87Source::F64(value) => on_top!(frame.b_bytes(&value.to_le_bytes()), $f64),
            X87Source::I16(value) => on_top!(frame.b_bytes(&value.to_le_bytes()), $i16),
            X87Source::I32(value) => on_top!(frame.b_bytes(&value.to_le_bytes()), $i32),
            // No instruction has this form; the value fits the register exactly.
            X87Source::I64(value) => on_two!(frame.b(load(X87Source::I64(value), $fcw).value), $reg),
        }
    }};
}

pub(super) fn arith(op: X87Arith, a: F80, b: X87Source, fcw: u16) -> X87Result {
    let frame = match op {
        X87Arith::Add => {
            sources!(a, b, fcw, "fadd st(0), st(1)" "fadd dword ptr [{f} + 16]" "fadd qword ptr [{f} + 16]"
            "fiadd word ptr [{f} + 16]" "fiadd dword ptr [{f} + 16]")
        }
        X87Arith::Mul => {
            sources!(a, b, fcw, "fmul st(0), st(1)" "fmul dword ptr [{f} + 16]" "fmul qword ptr [{f} + 16]"
            "fimul word ptr [{f} + 16]" "fimul dword ptr [{f} + 16]")
        }
        X87Arith::Sub => {
            sources!(a, b, fcw, "fsub st(0), st(1)" "fsub dword ptr [{f} + 16]" "fsub qword ptr [{f} + 16]"
            "fisub word ptr [{f} + 16]" "fisub dword ptr [{f} + 16]")
        }
        X87Arith::SubReversed => sources!(a, b, fcw, "fsubr st(0), st(1)" "fsubr dword ptr [{f} + 16]"
            "fsubr qword ptr [{f} + 16]" "fisubr word ptr [{f} + 16]" "fisubr dword ptr [{f} + 16]"),
        X87Arith::Div => {
            sources!(a, b, fcw, "fdiv st(0), st(1)" "fdiv dword ptr [{f} + 16]" "fdiv qword ptr [{f} + 16]"
            "fidiv word ptr [{f} + 16]" "fidiv dword ptr [{f} + 16]")
        }
        X87Arith::DivReversed => sources!(a, b, fcw, "fdivr st(0), st(1)" "fdivr dword ptr [{f} + 16]"
            "fdivr qword ptr [{f} + 16]" "fidivr word ptr [{f} + 16]" "fidivr dword ptr [{f} + 16]"),
    };
    frame.result(fsw::C1)
}

pub(super) fn compare(quiet: bool, a: F80, b: X87Source, fcw: u16) -> u16 {
    if quiet && let X87Source::F80(value) = b {
        return on_two!(Frame::new(fcw).a(a).b(value), "fucom st(1)").status(CODES);
    }
    let frame = sources!(a, b, fcw, "fcom st(1)" "fcom dword ptr [{f} + 16]" "fcom qword ptr [{f} + 16]"
        "ficom word ptr [{f} + 16]" "ficom dword ptr [{f} + 16]");
    frame.status(CODES)
}

pub(super) fn load(source: X87Source, fcw: u16) -> X87Result {
    macro_rules! from_memory {
        ($value:expr, $insn:literal) => {{
            let mut frame = Frame::new(fcw).b_bytes(&$value.to_le_bytes());
            block!(frame, ["fninit"], $insn, ["fstp tbyte ptr [{f} + 32]", "fninit"]);
            frame.result(fsw::C1)
        }};
    }
    match source {
        X87Source::F80(value) => X87Result { value, pushed: None, status: 0 },
        X87Source::F32(value) => from_memory!(value, "fld dword ptr [{f} + 16]"),
        X87Source::F64(value) => from_memory!(value, "fld qword ptr [{f} + 16]"),
        X87Source::I16(value) => from_memory!(value, "fild word ptr [{f} + 16]"),
        X87Source::I32(value) => from_memory!(value, "fild dword ptr [{f} + 16]"),
        X87Source::I64(value) => from_memory!(value, "fild qword ptr [{f} + 16]"),
    }
}

/// The operation stores at 48; the value stays on the stack if an exception is unmasked, so FNINIT empties it.
pub(super) fn store(target: X87Target, a: F80, fcw: u16) -> X87Stored {
    macro_rules! to_memory {
        ($insn:literal) => {{
            let mut frame = Frame::new(fcw).a(a);
            block!(frame, ["fninit", "fld tbyte ptr [{f}]"], $insn, ["fninit"]);
            X87Stored { bytes: frame.bytes(frame.below), status: frame.status(fsw::C1) }
        }};
    }
    match target {
        X87Target::F32 => to_memory!("fst dword ptr [{f} + 48]"),
        X87Target::F64 => to_memory!("fst qword ptr [{f} + 48]"),
        X87Target::I16 => to_memory!("fist word ptr [{f} + 48]"),
        X87Target::I32 => to_memory!("fist dword ptr [{f} + 48]"),
        X87Target::I64 => to_memory!("fistp qword ptr [{f} + 48]"),
        X87Target::I16Truncated => truncated(a, fcw, X87Target::I16),
        X87Target::I32Truncated => truncated(a, fcw, X87Target::I32),
        X87Target::I64Truncated => truncated(a, fcw, X87Target::I64),
        X87Target::Bcd => to_memory!("fbstp tbyte ptr [{f} + 48]"),
    }
}

/// FISTTP is FISTP with the rounding control at truncate, but C1 is always clear (SDM vol. 2, FISTTP).
fn truncated(a: F80, fcw: u16, target: X87Target) -> X87Stored {
    let stored = store(target, a, fcw | 0x0c00);
    X87Stored { status: stored.status & !fsw::C1, ..stored }
}

pub(super) fn unary(op: X87Unary, a: F80, fcw: u16) -> X87Result {
    let frame = Frame::new(fcw).a(a);
    match op {
        X87Unary::SquareRoot => on_top!(frame, "fsqrt").result(fsw::C1),
        X87Unary::RoundToInteger => on_top!(frame, "frndint").result(fsw::C1),
        X87Unary::Sin => on_top!(frame, "fsin").result(fsw::C1 | fsw::C2),
        X87Unary::Cos => on_top!(frame, "fcos").result(fsw::C1 | fsw::C2),
        X87Unary::TwoToXMinus1 => on_top!(frame, "f2xm1").result(fsw::C1),
        X87Unary::SinCos => {
            of_any_depth!(frame, ["fld tbyte ptr [{f}]"], "fsincos").results(1, fsw::C1 | fsw::C2)
        }
        X87Unary::PartialTangent => {
            of_any_depth!(frame, ["fld tbyte ptr [{f}]"], "fptan").results(1, fsw::C1 | fsw::C2)
        }
        X87Unary::Extract => of_any_depth!(frame, ["fld tbyte ptr [{f}]"], "fxtract").results(1, fsw::C1),
    }
}

pub(super) fn binary(op: X87Binary, st0: F80, st1: F80, fcw: u16) -> X87Result {
    let frame = Frame::new(fcw).a(st0).b(st1);
    macro_rules! popping {
        ($insn:literal) => {{
            let frame = of_any_depth!(frame, ["fld tbyte ptr [{f} + 16]", "fld tbyte ptr [{f}]"], $insn);
            frame.result(fsw::C1)
        }};
    }
    match op {
        X87Binary::PartialArctangent => popping!("fpatan"),
        X87Binary::YLog2X => popping!("fyl2x"),
        X87Binary::YLog2XPlus1 => popping!("fyl2xp1"),
        X87Binary::PartialRemainder => on_two!(frame, "fprem").result(fsw::CONDITIONS),
        X87Binary::PartialRemainder1 => on_two!(frame, "fprem1").result(fsw::CONDITIONS),
        X87Binary::Scale => on_two!(frame, "fscale").result(fsw::C1),
    }
}
