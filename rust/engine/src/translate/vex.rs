//! The VEX-encoded vector instructions that the host executes exactly as the guest's processor would (SDM vol. 2, 2.3 and
//! 2.4), and what is special about their operands. Gathers are not among them: each of their elements has a check of its own.

use trapgate_x86::insn::{Insn, Operand, Prefixes};
use trapgate_x86::op::Op;

use super::vectors::is_vector;
use crate::vector::legacy;

/// Whether an instruction may be copied: it does to both halves what a legacy instruction of the list does to an XMM register,
/// or stands in the list below, and the host has it.
pub fn is_vex(insn: &Insn) -> bool {
    let known = match legacy(insn.op) {
        Some(legacy) => is_vector(legacy),
        None => is_own(insn.op),
    };
    known && host_has(insn)
}

/// Whether a copied instruction reads or clears upper halves of YMM registers, as all of VEX do.
pub fn needs_upper(insn: &Insn) -> bool {
    insn.prefixes.contains(Prefixes::VEX)
}

/// Whether the host has what is beyond x86-64-v2. AVX, AVX2, FMA and F16C came in this order, each with the ones before.
fn host_has(insn: &Insn) -> bool {
    use std::arch::is_x86_feature_detected as has;
    let wide = insn.operands.iter().any(|operand| matches!(operand, Operand::Ymm(_)));
    let level = has!("avx") && has!("avx2") && has!("fma") && has!("f16c");
    level
        && match insn.op {
            Op::Vaesenc | Op::Vaesenclast | Op::Vaesdec | Op::Vaesdeclast if wide => has!("vaes"),
            Op::Vpclmulqdq if wide => has!("vpclmulqdq"),
            _ => true,
        }
}

/// Whether elements of the memory operand may be left out: nothing is to be seen of the page that they lie in.
pub fn is_masked(op: Op) -> bool {
    matches!(op, Op::Vmaskmovpd | Op::Vmaskmovps | Op::Vpmaskmovd | Op::Vpmaskmovq)
}

/// Whether the memory operand must be aligned to its size (SDM vol. 1, 14.9).
pub fn must_align(insn: &Insn) -> bool {
    use Op::*;
    insn.operands.iter().any(|operand| matches!(operand, Operand::Mem { .. }))
        && matches!(insn.op, Vmovapd | Vmovaps | Vmovdqa | Vmovntdq | Vmovntdqa | Vmovntpd | Vmovntps)
}

/// Instructions without a legacy counterpart.
fn is_own(op: Op) -> bool {
    use Op::*;
    matches!(
        op,
        Vbroadcastf128
            | Vbroadcasti128
            | Vbroadcastsd
            | Vbroadcastss
            | Vcvtph2ps
            | Vcvtps2ph
            | Vextractf128
            | Vextracti128
            | Vfmadd132pd
            | Vfmadd132ps
            | Vfmadd132sd
            | Vfmadd132ss
            | Vfmadd213pd
            | Vfmadd213ps
            | Vfmadd213sd
            | Vfmadd213ss
            | Vfmadd231pd
            | Vfmadd231ps
            | Vfmadd231sd
            | Vfmadd231ss
            | Vfmaddsub132pd
            | Vfmaddsub132ps
            | Vfmaddsub213pd
            | Vfmaddsub213ps
            | Vfmaddsub231pd
            | Vfmaddsub231ps
            | Vfmsub132pd
            | Vfmsub132ps
            | Vfmsub132sd
            | Vfmsub132ss
            | Vfmsub213pd
            | Vfmsub213ps
            | Vfmsub213sd
            | Vfmsub213ss
            | Vfmsub231pd
            | Vfmsub231ps
            | Vfmsub231sd
            | Vfmsub231ss
            | Vfmsubadd132pd
            | Vfmsubadd132ps
            | Vfmsubadd213pd
            | Vfmsubadd213ps
            | Vfmsubadd231pd
            | Vfmsubadd231ps
            | Vfnmadd132pd
            | Vfnmadd132ps
            | Vfnmadd132sd
            | Vfnmadd132ss
            | Vfnmadd213pd
            | Vfnmadd213ps
            | Vfnmadd213sd
            | Vfnmadd213ss
            | Vfnmadd231pd
            | Vfnmadd231ps
            | Vfnmadd231sd
            | Vfnmadd231ss
            | Vfnmsub132pd
            | Vfnmsub132ps
            | Vfnmsub132sd
            | Vfnmsub132ss
            | Vfnmsub213pd
            | Vfnmsub213ps
            | Vfnmsub213sd
            | Vfnmsub213ss
            | Vfnmsub231pd
            | Vfnmsub231ps
            | Vfnmsub231sd
            | Vfnmsub231ss
            | Vinsertf128
            | Vinserti128
            | Vmaskmovpd
            | Vmaskmovps
            | Vpbroadcastb
            | Vpbroadcastd
            | Vpbroadcastq
            | Vpbroadcastw
            | Vperm2f128
            | Vperm2i128
            | Vpermd
            | Vpermilpd
            | Vpermilps
            | Vpermpd
            | Vpermps
            | Vpermq
            | Vpmaskmovd
            | Vpmaskmovq
            | Vpsllvd
            | Vpsllvq
            | Vpsravd
            | Vpsrlvd
            | Vpsrlvq
            | Vtestpd
            | Vtestps
            | Vzeroall
            | Vzeroupper
    )
}
