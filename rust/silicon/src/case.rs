//! One experiment: the state before, the code, and what became of it. Plain data, since it is shared with the child
//! process that runs it.

use trapgate_x86::insn::Bits;

use crate::space::{CODE_MAX, WINDOW};

/// Bytes of an FXSAVE image that hold state (SDM vol. 1, 10.5.1).
pub const FX: usize = 416;

/// RSP among the general registers.
pub const RSP: usize = 4;

/// Registers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// General registers by encoding.
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// x87, MMX and SSE registers as FXSAVE64 writes them.
    pub fx: [u8; FX],
    /// Upper halves of the YMM registers.
    pub ymm_high: [u128; 16],
}

/// How the code ended. Every case ends with an exception, at the latest the #BP that surrounds the code.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    pub vector: u64,
    /// Error code, where the vector has one.
    pub error: u64,
    /// CR2, for #PF.
    pub address: u64,
}

/// What the code segment says.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// 64-bit mode.
    Long = 0,
    /// Compatibility mode: 32-bit code with flat segments under a 64-bit kernel.
    Compatibility = 1,
}

impl Mode {
    /// Width of code and of addresses.
    pub fn bits(self) -> u32 {
        match self {
            Mode::Long => 64,
            Mode::Compatibility => 32,
        }
    }

    /// Bytes of an address without 67.
    pub fn address(self) -> u32 {
        self.bits() / 8
    }

    /// As our decoder has it.
    pub fn decoder(self) -> Bits {
        match self {
            Mode::Long => Bits::B64,
            Mode::Compatibility => Bits::B32,
        }
    }

    /// General, or vector, registers that code can name.
    pub fn registers(self) -> u64 {
        match self {
            Mode::Long => 16,
            Mode::Compatibility => 8,
        }
    }
}

/// Selectors as Linux has them: user code by mode, user data. The guest has the same, since programs can see them.
pub mod selector {
    pub const CODE64: u16 = 0x33;
    pub const CODE32: u16 = 0x23;
    pub const DATA: u16 = 0x2b;
}

/// What to run.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub mode: Mode,
    pub state: State,
    /// The code's first `code_len` bytes lie at `state.rip`.
    pub code: [u8; CODE_MAX],
    pub code_len: u64,
    /// Linear address and content of the window.
    pub window_at: u64,
    pub window: [u8; WINDOW],
}

/// What became of it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub state: State,
    pub trap: Trap,
    pub window: [u8; WINDOW],
}

/// Vectors above those of the processor: ends that are none.
pub mod end {
    /// The case ran for too long.
    pub const HUNG: u64 = 0x100;
    /// The processor shut down or entered a state that the engine does not run.
    pub const LOST: u64 = 0x101;
    /// Memory outside the window was changed.
    pub const STRAY: u64 = 0x102;
    /// The child process died.
    pub const DIED: u64 = 0x103;
}

impl State {
    pub const ZERO: State = State { gpr: [0; 16], rip: 0, rflags: 0, fx: [0; FX], ymm_high: [0; 16] };

    pub fn fx_u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.fx[at], self.fx[at + 1]])
    }

    pub fn set_fx_u16(&mut self, at: usize, value: u16) {
        self.fx[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    pub fn fcw(&self) -> u16 {
        self.fx_u16(fx::FCW)
    }

    pub fn fsw(&self) -> u16 {
        self.fx_u16(fx::FSW)
    }

    pub fn mxcsr(&self) -> u32 {
        u32::from(self.fx_u16(fx::MXCSR)) | u32::from(self.fx_u16(fx::MXCSR + 2)) << 16
    }

    pub fn set_mxcsr(&mut self, value: u32) {
        self.fx[fx::MXCSR..fx::MXCSR + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub fn xmm(&self, n: usize) -> u128 {
        let at = fx::XMM + 16 * n;
        self.fx[at..at + 16].iter().rev().fold(0, |value, byte| value << 8 | u128::from(*byte))
    }

    pub fn set_xmm(&mut self, n: usize, value: u128) {
        let at = fx::XMM + 16 * n;
        self.fx[at..at + 16].copy_from_slice(&value.to_le_bytes());
    }
}

/// Offsets in the image.
pub mod fx {
    pub const FCW: usize = 0;
    pub const FSW: usize = 2;
    /// The abridged tag word.
    pub const FTW: usize = 4;
    pub const FOP: usize = 6;
    pub const FIP: usize = 8;
    pub const FDP: usize = 16;
    pub const MXCSR: usize = 24;
    pub const MXCSR_MASK: usize = 28;
    /// ST(0), or MM0; the others follow every 16 bytes.
    pub const ST: usize = 32;
    pub const XMM: usize = 160;
}

impl Case {
    pub const ZERO: Case = Case {
        mode: Mode::Long,
        state: State::ZERO,
        code: [0; CODE_MAX],
        code_len: 0,
        window_at: 0,
        window: [0; WINDOW],
    };

    pub fn code(&self) -> &[u8] {
        &self.code[..self.code_len as usize]
    }
}

impl Outcome {
    pub const ZERO: Outcome =
        Outcome { state: State::ZERO, trap: Trap { vector: 0, error: 0, address: 0 }, window: [0; WINDOW] };
}
