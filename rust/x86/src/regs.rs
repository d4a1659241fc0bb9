//! Bits of the architectural registers, named as the manual names them (Intel SDM vol. 1, 3.4.3; vol. 3, 2.5, 2.2.1, 2.6, 19.2;
//! vol. 1, 8.1 and 10.2.3). Plain integers: the executors keep registers as integers and test single bits.

/// RFLAGS (SDM vol. 1, figure 3-8).
pub mod rflags {
    pub const CF: u64 = 1 << 0;
    /// Bit 1 always reads as one.
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const IOPL_SHIFT: u32 = 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;

    /// The six flags that arithmetic writes.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
    /// Every bit that is implemented, [`FIXED`] left out.
    pub const ALL: u64 = STATUS | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
}

/// CR0 (SDM vol. 3, 2.5).
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    /// Reads as one since the Pentium 4.
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;

    pub const ALL: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

/// CR3 outside the table's address (SDM vol. 3, 2.5 and 4.10.1).
pub mod cr3 {
    pub const PWT: u64 = 1 << 3;
    pub const PCD: u64 = 1 << 4;
    /// The PCID while CR4.PCIDE is one.
    pub const PCID: u64 = 0xfff;
    /// In the operand of MOV to CR3 with CR4.PCIDE: do not invalidate. Never stored.
    pub const NO_FLUSH: u64 = 1 << 63;
}

/// CR4 (SDM vol. 3, 2.5).
pub mod cr4 {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const VMXE: u64 = 1 << 13;
    pub const SMXE: u64 = 1 << 14;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const KL: u64 = 1 << 19;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
    pub const CET: u64 = 1 << 23;
    pub const PKS: u64 = 1 << 24;
}

/// CR8 (SDM vol. 3, 11.8.6).
pub mod cr8 {
    /// The task-priority class; all other bits are reserved.
    pub const TPR: u64 = 0xf;
}

/// IA32_EFER (SDM vol. 3, 2.2.1).
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    /// Read-only status: LME and CR0.PG.
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;

    pub const ALL: u64 = SCE | LME | LMA | NXE;
}

/// XCR0 (SDM vol. 1, 13.3).
pub mod xcr0 {
    /// Always one.
    pub const X87: u64 = 1 << 0;
    pub const SSE: u64 = 1 << 1;
    pub const AVX: u64 = 1 << 2;
    pub const OPMASK: u64 = 1 << 5;
    pub const ZMM_HI256: u64 = 1 << 6;
    pub const HI16_ZMM: u64 = 1 << 7;
    pub const PKRU: u64 = 1 << 9;
}

/// DR6 (SDM vol. 3, 19.2.3).
pub mod dr6 {
    pub const B0: u64 = 1 << 0;
    pub const B1: u64 = 1 << 1;
    pub const B2: u64 = 1 << 2;
    pub const B3: u64 = 1 << 3;
    pub const BD: u64 = 1 << 13;
    pub const BS: u64 = 1 << 14;
    pub const BT: u64 = 1 << 15;

    /// Breakpoint conditions, one bit each.
    pub const B: u64 = B0 | B1 | B2 | B3;
    /// Value after reset: the bits that read as one without bus-lock detection and RTM.
    pub const RESET: u64 = 0xffff_0ff0;
    /// Bits that software can change on a processor that offers neither.
    pub const WRITABLE: u64 = B | BD | BS | BT;
}

/// DR7 (SDM vol. 3, 19.2.4).
pub mod dr7 {
    pub const LE: u64 = 1 << 8;
    pub const GE: u64 = 1 << 9;
    pub const GD: u64 = 1 << 13;

    /// Value after reset: bit 10 always reads as one.
    pub const RESET: u64 = 1 << 10;
    /// Bits that software can change without RTM.
    pub const WRITABLE: u64 = 0xffff_23ff;

    /// L0/G0 to L3/G3: the two enable bits of breakpoint `n`.
    pub const fn enables(n: u32) -> u64 {
        3 << (2 * n)
    }

    /// R/W0 to R/W3: when breakpoint `n` strikes (0 execution, 1 write, 2 I/O, 3 read or write).
    pub const fn kind(dr7: u64, n: u32) -> u64 {
        (dr7 >> (16 + 4 * n)) & 3
    }

    /// Length of breakpoint `n` in bytes (LEN0 to LEN3: 0, 1, 3, 2 stand for 1, 2, 4, 8).
    pub const fn length(dr7: u64, n: u32) -> u64 {
        match (dr7 >> (18 + 4 * n)) & 3 {
            0 => 1,
            1 => 2,
            3 => 4,
            _ => 8,
        }
    }
}

/// MXCSR (SDM vol. 1, 10.2.3).
pub mod mxcsr {
    pub const IE: u32 = 1 << 0;
    pub const DE: u32 = 1 << 1;
    pub const ZE: u32 = 1 << 2;
    pub const OE: u32 = 1 << 3;
    pub const UE: u32 = 1 << 4;
    pub const PE: u32 = 1 << 5;
    pub const DAZ: u32 = 1 << 6;
    pub const IM: u32 = 1 << 7;
    pub const DM: u32 = 1 << 8;
    pub const ZM: u32 = 1 << 9;
    pub const OM: u32 = 1 << 10;
    pub const UM: u32 = 1 << 11;
    pub const PM: u32 = 1 << 12;
    pub const RC: u32 = 3 << 13;
    pub const FTZ: u32 = 1 << 15;

    pub const FLAGS: u32 = IE | DE | ZE | OE | UE | PE;
    pub const MASKS: u32 = IM | DM | ZM | OM | UM | PM;
    pub const RESET: u32 = MASKS;
    /// MXCSR_MASK as FXSAVE stores it; setting any other bit is #GP.
    pub const WRITABLE: u32 = 0xffff;
}

/// x87 control word (SDM vol. 1, 8.1.5).
pub mod fcw {
    pub const IM: u16 = 1 << 0;
    pub const DM: u16 = 1 << 1;
    pub const ZM: u16 = 1 << 2;
    pub const OM: u16 = 1 << 3;
    pub const UM: u16 = 1 << 4;
    pub const PM: u16 = 1 << 5;
    pub const PC: u16 = 3 << 8;
    pub const RC: u16 = 3 << 10;
    pub const X: u16 = 1 << 12;

    pub const MASKS: u16 = IM | DM | ZM | OM | UM | PM;
    /// Value after FNINIT. Bit 6 always reads as one.
    pub const FNINIT: u16 = 0x037f;
    /// Value after power-up and RESET (SDM vol. 3, table 10-1).
    pub const RESET: u16 = 0x0040;
}

/// x87 status word (SDM vol. 1, 8.1.3).
pub mod fsw {
    pub const IE: u16 = 1 << 0;
    pub const DE: u16 = 1 << 1;
    pub const ZE: u16 = 1 << 2;
    pub const OE: u16 = 1 << 3;
    pub const UE: u16 = 1 << 4;
    pub const PE: u16 = 1 << 5;
    pub const SF: u16 = 1 << 6;
    pub const ES: u16 = 1 << 7;
    pub const C0: u16 = 1 << 8;
    pub const C1: u16 = 1 << 9;
    pub const C2: u16 = 1 << 10;
    pub const TOP: u16 = 7 << 11;
    pub const TOP_SHIFT: u32 = 11;
    pub const C3: u16 = 1 << 14;
    pub const B: u16 = 1 << 15;

    pub const EXCEPTIONS: u16 = IE | DE | ZE | OE | UE | PE;
}

/// Error code of #PF (SDM vol. 3, 4.7).
pub mod pf {
    pub const P: u32 = 1 << 0;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const RSVD: u32 = 1 << 3;
    pub const I: u32 = 1 << 4;
    pub const PK: u32 = 1 << 5;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dr7_fields_unpack() {
        // L1, R/W1 = 3, LEN1 = 2 (8 bytes); R/W0 = 1, LEN0 = 3 (4 bytes).
        let value = dr7::RESET | 1 << 2 | 3 << 20 | 2 << 22 | 1 << 16 | 3 << 18;
        assert_eq!(value & dr7::enables(1), 1 << 2);
        assert_eq!((dr7::kind(value, 1), dr7::length(value, 1)), (3, 8));
        assert_eq!((dr7::kind(value, 0), dr7::length(value, 0)), (1, 4));
        assert_eq!((dr7::kind(value, 3), dr7::length(value, 3)), (0, 1));
    }

    #[test]
    fn reset_values_agree_with_the_masks() {
        assert_eq!(dr6::RESET & dr6::WRITABLE, 0);
        assert_eq!(dr7::RESET & dr7::WRITABLE, 0);
        assert_eq!(mxcsr::RESET, 0x1f80);
        assert_eq!(rflags::ALL, 0x003f_7fd5);
    }
}
