//! What stands between vector code and the virtual processor around it: the mode bits that decide whether an
//! instruction may run, the exceptions it can raise, and the way to memory, general registers and flags.

use trapgate_x86::insn::Bits;

pub const CR0_MP: u64 = 1 << 1;
pub const CR0_EM: u64 = 1 << 2;
pub const CR0_TS: u64 = 1 << 3;
pub const CR4_OSFXSR: u64 = 1 << 9;
pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
pub const CR4_OSXSAVE: u64 = 1 << 18;

/// State components of XCR0 that [`super::VectorState`] holds: x87, SSE and AVX (SDM vol. 1, 13.1).
pub const XCR0_X87: u64 = 1;
pub const XCR0_SSE: u64 = 2;
pub const XCR0_AVX: u64 = 4;

/// EFLAGS bits.
pub mod eflags {
    pub const CF: u64 = 0x001;
    pub const PF: u64 = 0x004;
    pub const AF: u64 = 0x010;
    pub const ZF: u64 = 0x040;
    pub const SF: u64 = 0x080;
    pub const OF: u64 = 0x800;
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

/// The parts of the processor's mode and model that vector instructions depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    pub cr0: u64,
    pub cr4: u64,
    pub xcr0: u64,
    pub bits: Bits,
    /// Protected mode but not virtual-8086: decides the form of FNSTENV and FNSAVE images.
    pub protected: bool,
    /// CPUID.7.0:EBX\[6\]: FDP and FDS change only with an unmasked x87 exception.
    pub fdp_exception_only: bool,
    /// CPUID.7.0:EBX\[13\]: FCS and FDS are not kept and are saved as zero.
    pub no_fcs_fds: bool,
    /// CPUID.0Dh.1:EAX\[2\]: XGETBV takes 1 in ECX as well. CPUID shows it together with the compacted format.
    pub xgetbv_1: bool,
}

impl Control {
    /// 64-bit protected mode with everything enabled and the pointer behaviour of current Intel processors.
    pub const LONG: Control = Control {
        cr0: 0x8000_0033,
        cr4: CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE,
        xcr0: XCR0_X87 | XCR0_SSE,
        bits: Bits::B64,
        protected: true,
        fdp_exception_only: true,
        no_fcs_fds: true,
        xgetbv_1: true,
    };

    /// Whether SSE instructions may run: #UD before #NM (SDM vol. 3, 14.1).
    #[inline(always)]
    pub(super) fn check_sse(&self) -> Result<(), VectorException> {
        if self.cr0 & (CR0_EM | CR0_TS) == 0 && self.cr4 & CR4_OSFXSR != 0 {
            return Ok(());
        }
        let invalid = self.cr0 & CR0_EM != 0 || self.cr4 & CR4_OSFXSR == 0;
        Err(if invalid { VectorException::InvalidOpcode } else { VectorException::DeviceNotAvailable })
    }

    /// Whether VEX instructions on vector registers may run; CR0.EM and CR4.OSFXSR do not count (SDM vol. 2, 2.4.1 and 2.7).
    #[inline(always)]
    pub(super) fn check_avx(&self) -> Result<(), VectorException> {
        let state = XCR0_SSE | XCR0_AVX;
        if self.cr4 & CR4_OSXSAVE == 0 || self.xcr0 & state != state || !self.protected {
            return Err(VectorException::InvalidOpcode);
        }
        if self.cr0 & CR0_TS == 0 { Ok(()) } else { Err(VectorException::DeviceNotAvailable) }
    }

    /// Whether MMX instructions may run (SDM vol. 3, 12.1); a pending x87 exception comes after this.
    #[inline(always)]
    pub(super) fn check_mmx(&self) -> Result<(), VectorException> {
        match self.cr0 & (CR0_EM | CR0_TS) {
            0 => Ok(()),
            CR0_TS => Err(VectorException::DeviceNotAvailable),
            _ => Err(VectorException::InvalidOpcode),
        }
    }

    /// Whether x87 instructions other than FWAIT may run (SDM vol. 3, 2.5, table 2-2).
    #[inline(always)]
    pub(super) fn check_x87(&self) -> Result<(), VectorException> {
        if self.cr0 & (CR0_EM | CR0_TS) == 0 { Ok(()) } else { Err(VectorException::DeviceNotAvailable) }
    }

    /// Whether the XSAVE feature set may be used: #UD, and for all but XGETBV #NM (SDM vol. 1, 13.5).
    pub(super) fn check_xsave(&self, state_access: bool) -> Result<(), VectorException> {
        if self.cr4 & CR4_OSXSAVE == 0 {
            return Err(VectorException::InvalidOpcode);
        }
        if state_access && self.cr0 & CR0_TS != 0 {
            return Err(VectorException::DeviceNotAvailable);
        }
        Ok(())
    }

    /// The exception that reports an unmasked SIMD floating-point exception (SDM vol. 3, 6.15, interrupt 19).
    pub(super) fn simd_exception(&self) -> VectorException {
        if self.cr4 & CR4_OSXMMEXCPT != 0 {
            VectorException::SimdError
        } else {
            VectorException::InvalidOpcode
        }
    }
}

/// An exception that vector code itself detects; memory faults are the implementer's of [`Operands`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum VectorException {
    #[error("#UD")]
    InvalidOpcode,
    #[error("#NM")]
    DeviceNotAvailable,
    /// A pending unmasked x87 exception. With CR0.NE clear the processor reports it through FERR# instead.
    #[error("#MF")]
    FpuError,
    #[error("#XM")]
    SimdError,
    /// With error code 0: misaligned operand, reserved bit, bad header.
    #[error("#GP(0)")]
    GeneralProtection,
}

/// How an instruction reaches memory, general registers and flags.
///
/// Memory operands are the bytes from the instruction's effective address on; `offset` counts from there, within the
/// rules of the operand's segment and address size. For MASKMOVQ and MASKMOVDQU that address is DS:rDI (or the overriding
/// segment), for gathers it is that of an element with index zero. A load or store is checked as a whole before any byte moves.
pub trait Operands {
    /// What the virtual processor raises.
    type Fault: From<VectorException>;

    fn load(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Self::Fault>;

    fn store(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Self::Fault>;

    /// Raises what a store of `len` bytes would raise, and stores nothing.
    fn check_store(&mut self, offset: u64, len: u64) -> Result<(), Self::Fault>;

    /// The linear address of the memory operand: alignment is a matter of linear addresses.
    fn linear_address(&self) -> u64;

    /// Selector and offset of the memory operand, for FDS and FDP.
    fn data_pointer(&self) -> (u16, u64);

    /// CS selector and offset of this instruction's first byte (prefixes included), for FCS and FIP.
    fn instruction_pointer(&self) -> (u16, u64);

    /// The low three bits of this x87 instruction's first opcode byte and its second byte (FOP). Asked for rarely.
    fn x87_opcode(&self) -> u16;

    /// All 64 bits of general register `reg`.
    fn gpr(&self, reg: u8) -> u64;

    /// Writes `size` bytes of general register `reg` by the rules of the mode: 4 clears the upper half, 2 and 1 keep it.
    fn set_gpr(&mut self, reg: u8, value: u64, size: u8);

    /// EFLAGS, of which the status flags are used.
    fn flags(&self) -> u64;

    /// Replaces the status flags ([`eflags::STATUS`]) by the bits of `value`.
    fn set_status_flags(&mut self, value: u64);

    #[inline(always)]
    fn load_u16(&mut self) -> Result<u16, Self::Fault> {
        let mut bytes = [0; 2];
        self.load(0, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    #[inline(always)]
    fn load_u32(&mut self) -> Result<u32, Self::Fault> {
        let mut bytes = [0; 4];
        self.load(0, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    #[inline(always)]
    fn load_u64(&mut self) -> Result<u64, Self::Fault> {
        let mut bytes = [0; 8];
        self.load(0, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    #[inline(always)]
    fn load_u128(&mut self) -> Result<u128, Self::Fault> {
        let mut bytes = [0; 16];
        self.load(0, &mut bytes)?;
        Ok(u128::from_le_bytes(bytes))
    }
}
