//! Test support: what AMD's processors leave that Intel's, which the model follows, do not. Each rule names its bits,
//! is checked (the processor must have left exactly what the rule says) and is counted; none applies on other hosts.
//! docs/testing-silicon.md lists them.

pub(super) use crate::host::AMD;
use std::arch::x86_64::__cpuid;
use std::sync::LazyLock;

use trapgate_x86::insn::{Insn, Operand};
use trapgate_x86::op::Op;

use super::super::fp::X87Binary;
use super::super::mock::Mock;
use super::super::state::{F80, MXCSR_MASK, VectorState, fsw};
use super::super::{Control, SoftFp, execute};

/// Where FXSAVE images have the three x87 pointers, the mask, and the first XMM register.
const FSW_AT: usize = 2;
const POINTERS: [std::ops::Range<usize>; 3] = [6..8, 8..16, 16..24];
pub(super) const MASK: std::ops::Range<usize> = 28..32;
const XMM_AT: usize = 160;

/// How often each rule applied.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// MXCSR_MASK with the misaligned-exception mask, bit 17 (CPUID.80000001:ECX\[7\]).
    pub(super) mask: u32,
    /// FOP, FIP and FDP, which FXSAVE and XSAVE store as zeros while no exception is pending.
    pub(super) pointers: u32,
    /// DPPS and DPPD, whose lanes all have the one sum (p0 + p1) + (p2 + p3), while on Intel's each lane begins with its
    /// own product: another of several NaNs wins.
    pub(super) dot: u32,
    /// FSCALE by zero, and FPREM and FPREM1 by infinity, of a denormal: they round it as any other result, so that an
    /// unmasked underflow is signalled, while Intel's give the operand back.
    pub(super) rounding: u32,
}

impl Counts {
    /// Gives the mask of an image, if it is the one that this processor has, the model's value.
    pub(super) fn mask(&mut self, silicon: &mut [u8]) {
        static MISALIGNED: LazyLock<bool> = LazyLock::new(|| {
            *AMD && __cpuid(0x8000_0000).eax >= 0x8000_0001 && __cpuid(0x8000_0001).ecx & 1 << 7 != 0
        });
        if *MISALIGNED && silicon[MASK] == (MXCSR_MASK | 1 << 17).to_le_bytes() {
            silicon[MASK].copy_from_slice(&MXCSR_MASK.to_le_bytes());
            self.mask += 1;
        }
    }

    /// Gives pointers that are not stored the model's values.
    pub(super) fn pointers(&mut self, silicon: &mut [u8], ours: &[u8]) {
        let pending = u16::from_le_bytes([silicon[FSW_AT], silicon[FSW_AT + 1]]) & fsw::ES != 0;
        for range in POINTERS {
            let zero = silicon[range.clone()].iter().all(|&byte| byte == 0);
            if *AMD && !pending && zero && silicon[range.clone()] != ours[range.clone()] {
                silicon[range.clone()].copy_from_slice(&ours[range]);
                self.pointers += 1;
            }
        }
    }

    /// Gives the destination of DPPS or DPPD the model's value, if all its lanes are what one of them is, or was to be:
    /// the one that sums in the order in which AMD's processors do. `before` and `mock` are the state before.
    pub(super) fn dot(
        &mut self,
        insn: &Insn,
        before: &VectorState,
        mock: &mut Mock,
        silicon: &mut [u8],
        ours: &[u8],
    ) {
        // Lanes, their width, and the lane.
        let (lanes, width, lane) = match insn.op {
            Op::Dpps => (4, 4, 1),
            Op::Dppd => (2, 8, 0),
            _ => return,
        };
        let Operand::Xmm(n) = insn.operands[0] else { return };
        let at = XMM_AT + 16 * usize::from(n);
        if !*AMD || silicon[at..at + 16] == ours[at..at + 16] {
            return;
        }
        let (mut state, mut second) = (before.clone(), *insn);
        second.imm = second.imm & 0xf0 | 1 << lane;
        if execute(&mut state, &Control::LONG, &SoftFp, &second, mock).is_err() {
            return;
        }
        let result = state.xmm[usize::from(n)].to_le_bytes();
        let sum = &result[lane * width..(lane + 1) * width];
        let expected = (0..lanes)
            .flat_map(|i| sum.iter().map(move |&byte| if insn.imm >> i & 1 != 0 { byte } else { 0 }));
        if expected.eq(silicon[at..at + 16].iter().copied()) {
            silicon[at..at + 16].copy_from_slice(&ours[at..at + 16]);
            self.dot += 1;
        }
    }

    /// The second operand with which the model's FSCALE, FPREM or FPREM1 does what AMD's does with `b`: a scale that is no
    /// scaling but rounds, a finite divisor beyond every denormal. Asked for where the results with `b` differ.
    pub(super) fn rounding(&mut self, op: X87Binary, b: F80) -> Option<F80> {
        const INFINITY: F80 = F80::new(0x7fff, 1 << 63);
        let instead = match op {
            X87Binary::Scale if b.abs() == F80::ZERO => F80::new(0x3ffe, 1 << 63),
            X87Binary::PartialRemainder | X87Binary::PartialRemainder1 if b.abs() == INFINITY => {
                F80::new(0x7ffe, 1 << 63)
            }
            _ => return None,
        };
        self.rounding += u32::from(*AMD);
        AMD.then_some(instead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_cover_what_they_name() {
        let (mut counts, ours) = (Counts::default(), [0x5a; 512]);
        // A pointer that is neither zero nor the model's stays a difference, and so do zeros with an exception pending.
        for (at, value) in [(8, 1), (FSW_AT, fsw::ES as u8)] {
            let mut silicon = [0; 512];
            silicon[at] = value;
            counts.pointers(&mut silicon, &ours);
            assert_eq!(silicon[8], if at == 8 { value } else { 0 });
        }
        // Another bit of the mask, and an operand that the rule does not speak of.
        let mut silicon = [0; 512];
        silicon[MASK].copy_from_slice(&0x6_ffff_u32.to_le_bytes());
        counts.mask(&mut silicon);
        assert_eq!((silicon[MASK.start + 2], counts.mask), (6, 0));
        assert_eq!(counts.rounding(X87Binary::Scale, F80::ONE), None);
        assert_eq!(counts.rounding(X87Binary::PartialRemainder, F80::INDEFINITE), None);
        assert_eq!(counts.rounding, 0);
    }
}
