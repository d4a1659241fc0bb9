//! Which VEX operation is what legacy operation on 128 bits, and which kind of work is around it.

use trapgate_x86::op::Op;

/// Which function of this folder executes an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Not one of this folder's.
    None,
    Lanes,
    Widen,
    Shift,
    Immediate,
    Float,
    Fused,
    Half,
    Text,
    Move,
    Other,
    /// Across the halves, or with a count or selector for each lane.
    Permute,
    /// Moves of selected elements.
    Masked,
    Gather,
    /// VZEROALL and VZEROUPPER.
    Zero,
}

/// Kinds, each with its operations and the legacy ones that do the same to 128 bits.
macro_rules! table {
    ($op:expr; $($kind:ident: $($vex:ident $legacy:ident),+;)+) => {
        match $op {
            $($(Op::$vex => (Kind::$kind, Op::$legacy),)+)+
            other => (own(other), other),
        }
    };
}

/// The table, by the number of an operation.
pub(super) static TABLE: [(Kind, Op); Op::COUNT] = {
    let mut table = [(Kind::None, Op::Nop); Op::COUNT];
    let mut i = 0;
    while i < Op::COUNT {
        table[i] = entry(Op::ALL[i]);
        i += 1;
    }
    table
};

/// The kind of an operation.
pub(super) const fn kind(op: Op) -> Kind {
    entry(op).0
}

const fn entry(op: Op) -> (Kind, Op) {
    table! { op;
    // Both halves alike, by a function of two operands.
    Lanes:
        Vaesdec Aesdec, Vaesdeclast Aesdeclast, Vaesenc Aesenc, Vaesenclast Aesenclast, Vaesimc Aesimc,
        Vandnpd Andnpd, Vandnps Andnps, Vandpd Andpd, Vandps Andps, Vmovddup Movddup, Vmovshdup
        Movshdup, Vmovsldup Movsldup, Vorpd Orpd, Vorps Orps, Vpabsb Pabsb, Vpabsd Pabsd, Vpabsw Pabsw,
        Vpackssdw Packssdw, Vpacksswb Packsswb, Vpackusdw Packusdw, Vpackuswb Packuswb, Vpaddb Paddb,
        Vpaddd Paddd, Vpaddq Paddq, Vpaddsb Paddsb, Vpaddsw Paddsw, Vpaddusb Paddusb, Vpaddusw Paddusw,
        Vpaddw Paddw, Vpand Pand, Vpandn Pandn, Vpavgb Pavgb, Vpavgw Pavgw, Vpcmpeqb Pcmpeqb, Vpcmpeqd
        Pcmpeqd, Vpcmpeqq Pcmpeqq, Vpcmpeqw Pcmpeqw, Vpcmpgtb Pcmpgtb, Vpcmpgtd Pcmpgtd, Vpcmpgtq
        Pcmpgtq, Vpcmpgtw Pcmpgtw, Vphaddd Phaddd, Vphaddsw Phaddsw, Vphaddw Phaddw, Vphminposuw
        Phminposuw, Vphsubd Phsubd, Vphsubsw Phsubsw, Vphsubw Phsubw, Vpmaddubsw Pmaddubsw, Vpmaddwd
        Pmaddwd, Vpmaxsb Pmaxsb, Vpmaxsd Pmaxsd, Vpmaxsw Pmaxsw, Vpmaxub Pmaxub, Vpmaxud Pmaxud, Vpmaxuw
        Pmaxuw, Vpminsb Pminsb, Vpminsd Pminsd, Vpminsw Pminsw, Vpminub Pminub, Vpminud Pminud, Vpminuw
        Pminuw, Vpmuldq Pmuldq, Vpmulhrsw Pmulhrsw, Vpmulhuw Pmulhuw, Vpmulhw Pmulhw, Vpmulld Pmulld,
        Vpmullw Pmullw, Vpmuludq Pmuludq, Vpor Por, Vpsadbw Psadbw, Vpshufb Pshufb, Vpsignb Psignb,
        Vpsignd Psignd, Vpsignw Psignw, Vpsubb Psubb, Vpsubd Psubd, Vpsubq Psubq, Vpsubsb Psubsb,
        Vpsubsw Psubsw, Vpsubusb Psubusb, Vpsubusw Psubusw, Vpsubw Psubw, Vpunpckhbw Punpckhbw,
        Vpunpckhdq Punpckhdq, Vpunpckhqdq Punpckhqdq, Vpunpckhwd Punpckhwd, Vpunpcklbw Punpcklbw,
        Vpunpckldq Punpckldq, Vpunpcklqdq Punpcklqdq, Vpunpcklwd Punpcklwd, Vpxor Pxor, Vunpckhpd
        Unpckhpd, Vunpckhps Unpckhps, Vunpcklpd Unpcklpd, Vunpcklps Unpcklps, Vxorpd Xorpd, Vxorps
        Xorps;
    // Each half from its part of the source's low half.
    Widen:
        Vpmovsxbd Pmovsxbd, Vpmovsxbq Pmovsxbq, Vpmovsxbw Pmovsxbw, Vpmovsxdq Pmovsxdq, Vpmovsxwd
        Pmovsxwd, Vpmovsxwq Pmovsxwq, Vpmovzxbd Pmovzxbd, Vpmovzxbq Pmovzxbq, Vpmovzxbw Pmovzxbw,
        Vpmovzxdq Pmovzxdq, Vpmovzxwd Pmovzxwd, Vpmovzxwq Pmovzxwq;
    // Both halves alike, by one count.
    Shift:
        Vpslld Pslld, Vpslldq Pslldq, Vpsllq Psllq, Vpsllw Psllw, Vpsrad Psrad, Vpsraw Psraw, Vpsrld
        Psrld, Vpsrldq Psrldq, Vpsrlq Psrlq, Vpsrlw Psrlw;
    // Both halves, with an immediate.
    Immediate:
        Vaeskeygenassist Aeskeygenassist, Vblendpd Blendpd, Vblendps Blendps, Vmpsadbw Mpsadbw, Vpalignr
        Palignr, Vpblendd Blendps, Vpblendw Pblendw, Vpclmulqdq Pclmulqdq, Vpshufd Pshufd, Vpshufhw
        Pshufhw, Vpshuflw Pshuflw, Vshufpd Shufpd, Vshufps Shufps;
    // By the floating-point unit.
    Float:
        Vaddpd Addpd, Vaddps Addps, Vaddsd Addsd, Vaddss Addss, Vaddsubpd Addsubpd, Vaddsubps Addsubps,
        Vcmppd Cmppd, Vcmpps Cmpps, Vcmpsd CmpsdXmm, Vcmpss Cmpss, Vcomisd Comisd, Vcomiss Comiss,
        Vcvtdq2pd Cvtdq2pd, Vcvtdq2ps Cvtdq2ps, Vcvtpd2dq Cvtpd2dq, Vcvtpd2ps Cvtpd2ps, Vcvtps2dq
        Cvtps2dq, Vcvtps2pd Cvtps2pd, Vcvtsd2si Cvtsd2si, Vcvtsd2ss Cvtsd2ss, Vcvtsi2sd Cvtsi2sd,
        Vcvtsi2ss Cvtsi2ss, Vcvtss2sd Cvtss2sd, Vcvtss2si Cvtss2si, Vcvttpd2dq Cvttpd2dq, Vcvttps2dq
        Cvttps2dq, Vcvttsd2si Cvttsd2si, Vcvttss2si Cvttss2si, Vdivpd Divpd, Vdivps Divps, Vdivsd Divsd,
        Vdivss Divss, Vdppd Dppd, Vdpps Dpps, Vhaddpd Haddpd, Vhaddps Haddps, Vhsubpd Hsubpd, Vhsubps
        Hsubps, Vmaxpd Maxpd, Vmaxps Maxps, Vmaxsd Maxsd, Vmaxss Maxss, Vminpd Minpd, Vminps Minps,
        Vminsd Minsd, Vminss Minss, Vmulpd Mulpd, Vmulps Mulps, Vmulsd Mulsd, Vmulss Mulss, Vrcpps
        Rcpps, Vrcpss Rcpss, Vroundpd Roundpd, Vroundps Roundps, Vroundsd Roundsd, Vroundss Roundss,
        Vrsqrtps Rsqrtps, Vrsqrtss Rsqrtss, Vsqrtpd Sqrtpd, Vsqrtps Sqrtps, Vsqrtsd Sqrtsd, Vsqrtss
        Sqrtss, Vsubpd Subpd, Vsubps Subps, Vsubsd Subsd, Vsubss Subss, Vucomisd Ucomisd, Vucomiss
        Ucomiss;
    // String comparisons.
    Text:
        Vpcmpestri Pcmpestri, Vpcmpestrm Pcmpestrm, Vpcmpistri Pcmpistri, Vpcmpistrm Pcmpistrm;
    // Moves.
    Move:
        Vlddqu Lddqu, Vmaskmovdqu Maskmovdqu, Vmovapd Movapd, Vmovaps Movaps, Vmovd Movd, Vmovdqa
        Movdqa, Vmovdqu Movdqu, Vmovhlps Movhlps, Vmovhpd Movhpd, Vmovhps Movhps, Vmovlhps Movlhps,
        Vmovlpd Movlpd, Vmovlps Movlps, Vmovmskpd Movmskpd, Vmovmskps Movmskps, Vmovntdq Movntdq,
        Vmovntdqa Movntdqa, Vmovntpd Movntpd, Vmovntps Movntps, Vmovq Movq, Vmovsd MovsdXmm, Vmovss
        Movss, Vmovupd Movupd, Vmovups Movups, Vpmovmskb Pmovmskb;
    // Inserts, extracts, blends, tests and MXCSR.
    Other:
        Vblendvpd Blendvpd, Vblendvps Blendvps, Vextractps Extractps, Vinsertps Insertps, Vldmxcsr
        Ldmxcsr, Vpblendvb Pblendvb, Vpextrb Pextrb, Vpextrd Pextrd, Vpextrq Pextrq, Vpextrw Pextrw,
        Vpinsrb Pinsrb, Vpinsrd Pinsrd, Vpinsrq Pinsrq, Vpinsrw Pinsrw, Vptest Ptest, Vstmxcsr Stmxcsr;
    }
}

/// The kinds of operations that have no legacy counterpart.
const fn own(op: Op) -> Kind {
    use Op::*;
    match op {
        Vfmadd132pd | Vfmadd132ps | Vfmadd132sd | Vfmadd132ss | Vfmadd213pd | Vfmadd213ps | Vfmadd213sd
        | Vfmadd213ss | Vfmadd231pd | Vfmadd231ps | Vfmadd231sd | Vfmadd231ss | Vfmaddsub132pd
        | Vfmaddsub132ps | Vfmaddsub213pd | Vfmaddsub213ps | Vfmaddsub231pd | Vfmaddsub231ps
        | Vfmsub132pd | Vfmsub132ps | Vfmsub132sd | Vfmsub132ss | Vfmsub213pd | Vfmsub213ps | Vfmsub213sd
        | Vfmsub213ss | Vfmsub231pd | Vfmsub231ps | Vfmsub231sd | Vfmsub231ss | Vfmsubadd132pd
        | Vfmsubadd132ps | Vfmsubadd213pd | Vfmsubadd213ps | Vfmsubadd231pd | Vfmsubadd231ps
        | Vfnmadd132pd | Vfnmadd132ps | Vfnmadd132sd | Vfnmadd132ss | Vfnmadd213pd | Vfnmadd213ps
        | Vfnmadd213sd | Vfnmadd213ss | Vfnmadd231pd | Vfnmadd231ps | Vfnmadd231sd | Vfnmadd231ss
        | Vfnmsub132pd | Vfnmsub132ps | Vfnmsub132sd | Vfnmsub132ss | Vfnmsub213pd | Vfnmsub213ps
        | Vfnmsub213sd | Vfnmsub213ss | Vfnmsub231pd | Vfnmsub231ps | Vfnmsub231sd | Vfnmsub231ss => {
            Kind::Fused
        }
        Vcvtph2ps | Vcvtps2ph => Kind::Half,
        Vtestpd | Vtestps => Kind::Other,
        Vbroadcastf128 | Vbroadcasti128 | Vbroadcastsd | Vbroadcastss | Vextractf128 | Vextracti128
        | Vinsertf128 | Vinserti128 | Vpbroadcastb | Vpbroadcastd | Vpbroadcastq | Vpbroadcastw
        | Vperm2f128 | Vperm2i128 | Vpermd | Vpermilpd | Vpermilps | Vpermpd | Vpermps | Vpermq | Vpsllvd
        | Vpsllvq | Vpsravd | Vpsrlvd | Vpsrlvq => Kind::Permute,
        Vmaskmovpd | Vmaskmovps | Vpmaskmovd | Vpmaskmovq => Kind::Masked,
        Vgatherdpd | Vgatherdps | Vgatherqpd | Vgatherqps | Vpgatherdd | Vpgatherdq | Vpgatherqd
        | Vpgatherqq => Kind::Gather,
        Vzeroall | Vzeroupper => Kind::Zero,
        _ => Kind::None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::sse::{float, integer};
    use super::*;

    #[test]
    fn every_kind_has_its_functions() {
        for &op in Op::ALL {
            let (kind, legacy) = TABLE[op as usize];
            let found = match kind {
                Kind::Lanes | Kind::Widen | Kind::Shift => integer::binary(legacy).is_some(),
                Kind::Immediate => integer::with_immediate(legacy).is_some(),
                Kind::Float => float::plan(legacy).is_some(),
                _ => true,
            };
            assert!(found, "{op:?} as {legacy:?}");
            // Names agree but for one that has no legacy form of its own.
            let same =
                op.name().strip_prefix('v') == Some(legacy.name()) || op == legacy || op == Op::Vpblendd;
            assert!(same, "{op:?} as {legacy:?}");
        }
    }

    /// All VEX operations on vector registers that the decoder knows, but those of a feature that no model offers.
    #[test]
    fn no_vex_operation_is_left_out() {
        let first = Op::Vaddpd as usize;
        let unhandled: Vec<_> =
            Op::ALL[first..].iter().filter(|&&op| kind(op) == Kind::None).map(|op| op.name()).collect();
        assert_eq!(unhandled, ["vgf2p8affineinvqb", "vgf2p8affineqb", "vgf2p8mulb"]);
    }
}
