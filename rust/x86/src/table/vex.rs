//! VEX encodings (Intel SDM vol. 2, tables, entries marked v; chapter 3 to 5 for L and W).

use super::Spec::*;
use super::{Row, Spec, row};
use crate::features::Features;
use crate::op::Op::{self, *};

const AVX: Features = Features::AVX;
const AVX2: Features = Features::AVX2;

/// Both vector lengths, offered together.
const fn float<const N: usize>(opcode: u8, op: Op, specs: [Spec; N]) -> Row {
    row(opcode, op, specs).lig().needs(AVX)
}

/// Packed single and double: pp none, 66.
const fn packed<const N: usize>(opcode: u8, [ps, pd]: [Op; 2], specs: [Spec; N]) -> [Row; 2] {
    [float(opcode, ps, specs).np(), float(opcode, pd, specs).p66()]
}

/// Scalar single and double: pp F3, F2; L is ignored.
const fn scalar<const N: usize>(
    opcode: u8,
    [ss, sd]: [Op; 2],
    single: [Spec; N],
    double: [Spec; N],
) -> [Row; 2] {
    [float(opcode, ss, single).f3(), float(opcode, sd, double).f2()]
}

/// The arithmetic pattern of packed and scalar operations.
const fn arithmetic(opcode: u8, [ps, pd, ss, sd]: [Op; 4]) -> [Row; 4] {
    let ([ps, pd], [ss, sd]) =
        (packed(opcode, [ps, pd], [Vx, Hx, Wx]), scalar(opcode, [ss, sd], [V, H, Wd], [V, H, Wq]));
    [ps, pd, ss, sd]
}

/// An integer operation: 128 bits came with AVX, 256 with AVX2.
const fn integer<const N: usize>(opcode: u8, op: Op, specs: [Spec; N]) -> [Row; 2] {
    [row(opcode, op, specs).p66().needs(AVX), row(opcode, op, specs).p66().l1().needs(AVX2)]
}

/// The commonest shape of [`integer`].
const fn int(opcode: u8, op: Op) -> [Row; 2] {
    integer(opcode, op, [Vx, Hx, Wx])
}

/// A shift by an immediate.
const fn shift(opcode: u8, n: u8, op: Op) -> [Row; 2] {
    let [short, long] = integer(opcode, op, [Hx, Wx, Ib]);
    [short.slash(n).reg(), long.slash(n).reg()]
}

/// 128 bits, 66.
const fn xmm<const N: usize>(opcode: u8, op: Op, specs: [Spec; N]) -> Row {
    row(opcode, op, specs).p66().needs(AVX)
}

/// 256 bits, 66, W0.
const fn ymm<const N: usize>(opcode: u8, op: Op, specs: [Spec; N], since: Features) -> Row {
    row(opcode, op, specs).p66().l1().w0().needs(since)
}

/// Both lengths, 66, of AVX2.
const fn avx2<const N: usize>(opcode: u8, op: Op, specs: [Spec; N]) -> Row {
    row(opcode, op, specs).p66().lig().needs(AVX2)
}

/// Fused multiply-add in one operand order: packed at `opcode`, scalar at the next; W chooses double.
const fn fused(opcode: u8, [ps, pd, ss, sd]: [Op; 4]) -> [Row; 4] {
    let ([packed_s, packed_d], [scalar_s, scalar_d]) =
        (fused_packed(opcode, [ps, pd]), [row(opcode + 1, ss, [V, H, Wd]), row(opcode + 1, sd, [V, H, Wq])]);
    [
        packed_s,
        packed_d,
        scalar_s.p66().lig().w0().needs(Features::FMA),
        scalar_d.p66().lig().w1().needs(Features::FMA),
    ]
}

const fn fused_packed(opcode: u8, [ps, pd]: [Op; 2]) -> [Row; 2] {
    [
        row(opcode, ps, [Vx, Hx, Wx]).p66().lig().w0().needs(Features::FMA),
        row(opcode, pd, [Vx, Hx, Wx]).p66().lig().w1().needs(Features::FMA),
    ]
}

/// An AES round: 128 bits came with AES, 256 with VAES.
const fn aes(opcode: u8, op: Op) -> [Row; 2] {
    [
        xmm(opcode, op, [Vx, Hx, Wx]).needs(Features::AES),
        xmm(opcode, op, [Vx, Hx, Wx]).l1().needs(Features::VAES),
    ]
}

pub(super) const ROWS_0F: &[&[Row]] = &[
    MOVES_0F,
    CONVERSIONS_0F,
    REST_0F,
    &arithmetic(0x58, [Vaddps, Vaddpd, Vaddss, Vaddsd]),
    &arithmetic(0x59, [Vmulps, Vmulpd, Vmulss, Vmulsd]),
    &arithmetic(0x5c, [Vsubps, Vsubpd, Vsubss, Vsubsd]),
    &arithmetic(0x5d, [Vminps, Vminpd, Vminss, Vminsd]),
    &arithmetic(0x5e, [Vdivps, Vdivpd, Vdivss, Vdivsd]),
    &arithmetic(0x5f, [Vmaxps, Vmaxpd, Vmaxss, Vmaxsd]),
    &packed(0x51, [Vsqrtps, Vsqrtpd], [Vx, Wx]),
    &scalar(0x51, [Vsqrtss, Vsqrtsd], [V, H, Wd], [V, H, Wq]),
    &packed(0x14, [Vunpcklps, Vunpcklpd], [Vx, Hx, Wx]),
    &packed(0x15, [Vunpckhps, Vunpckhpd], [Vx, Hx, Wx]),
    &packed(0x54, [Vandps, Vandpd], [Vx, Hx, Wx]),
    &packed(0x55, [Vandnps, Vandnpd], [Vx, Hx, Wx]),
    &packed(0x56, [Vorps, Vorpd], [Vx, Hx, Wx]),
    &packed(0x57, [Vxorps, Vxorpd], [Vx, Hx, Wx]),
    &int(0x60, Vpunpcklbw),
    &int(0x61, Vpunpcklwd),
    &int(0x62, Vpunpckldq),
    &int(0x63, Vpacksswb),
    &int(0x64, Vpcmpgtb),
    &int(0x65, Vpcmpgtw),
    &int(0x66, Vpcmpgtd),
    &int(0x67, Vpackuswb),
    &int(0x68, Vpunpckhbw),
    &int(0x69, Vpunpckhwd),
    &int(0x6a, Vpunpckhdq),
    &int(0x6b, Vpackssdw),
    &int(0x6c, Vpunpcklqdq),
    &int(0x6d, Vpunpckhqdq),
    &int(0x74, Vpcmpeqb),
    &int(0x75, Vpcmpeqw),
    &int(0x76, Vpcmpeqd),
    &int(0xd4, Vpaddq),
    &int(0xd5, Vpmullw),
    &int(0xd8, Vpsubusb),
    &int(0xd9, Vpsubusw),
    &int(0xda, Vpminub),
    &int(0xdb, Vpand),
    &int(0xdc, Vpaddusb),
    &int(0xdd, Vpaddusw),
    &int(0xde, Vpmaxub),
    &int(0xdf, Vpandn),
    &int(0xe0, Vpavgb),
    &int(0xe3, Vpavgw),
    &int(0xe4, Vpmulhuw),
    &int(0xe5, Vpmulhw),
    &int(0xe8, Vpsubsb),
    &int(0xe9, Vpsubsw),
    &int(0xea, Vpminsw),
    &int(0xeb, Vpor),
    &int(0xec, Vpaddsb),
    &int(0xed, Vpaddsw),
    &int(0xee, Vpmaxsw),
    &int(0xef, Vpxor),
    &int(0xf4, Vpmuludq),
    &int(0xf5, Vpmaddwd),
    &int(0xf6, Vpsadbw),
    &int(0xf8, Vpsubb),
    &int(0xf9, Vpsubw),
    &int(0xfa, Vpsubd),
    &int(0xfb, Vpsubq),
    &int(0xfc, Vpaddb),
    &int(0xfd, Vpaddw),
    &int(0xfe, Vpaddd),
    &integer(0xd1, Vpsrlw, [Vx, Hx, W]),
    &integer(0xd2, Vpsrld, [Vx, Hx, W]),
    &integer(0xd3, Vpsrlq, [Vx, Hx, W]),
    &integer(0xe1, Vpsraw, [Vx, Hx, W]),
    &integer(0xe2, Vpsrad, [Vx, Hx, W]),
    &integer(0xf1, Vpsllw, [Vx, Hx, W]),
    &integer(0xf2, Vpslld, [Vx, Hx, W]),
    &integer(0xf3, Vpsllq, [Vx, Hx, W]),
    &integer(0x70, Vpshufd, [Vx, Wx, Ib]),
    &shift(0x71, 2, Vpsrlw),
    &shift(0x71, 4, Vpsraw),
    &shift(0x71, 6, Vpsllw),
    &shift(0x72, 2, Vpsrld),
    &shift(0x72, 4, Vpsrad),
    &shift(0x72, 6, Vpslld),
    &shift(0x73, 2, Vpsrlq),
    &shift(0x73, 3, Vpsrldq),
    &shift(0x73, 6, Vpsllq),
    &shift(0x73, 7, Vpslldq),
];

const MOVES_0F: &[Row] = &[
    float(0x10, Vmovups, [Vx, Wx]).np(),
    float(0x10, Vmovupd, [Vx, Wx]).p66(),
    float(0x10, Vmovss, [V, Md]).f3().mem(),
    float(0x10, Vmovss, [V, H, W]).f3().reg(),
    float(0x10, Vmovsd, [V, Mq]).f2().mem(),
    float(0x10, Vmovsd, [V, H, W]).f2().reg(),
    float(0x11, Vmovups, [Wx, Vx]).np(),
    float(0x11, Vmovupd, [Wx, Vx]).p66(),
    float(0x11, Vmovss, [Md, V]).f3().mem(),
    float(0x11, Vmovss, [W, H, V]).f3().reg(),
    float(0x11, Vmovsd, [Mq, V]).f2().mem(),
    float(0x11, Vmovsd, [W, H, V]).f2().reg(),
    row(0x12, Vmovlps, [V, H, Mq]).np().mem().needs(AVX),
    row(0x12, Vmovhlps, [V, H, W]).np().reg().needs(AVX),
    xmm(0x12, Vmovlpd, [V, H, Mq]).mem(),
    float(0x12, Vmovsldup, [Vx, Wx]).f3(),
    float(0x12, Vmovddup, [Vx, Wdup]).f2(),
    row(0x13, Vmovlps, [Mq, V]).np().mem().needs(AVX),
    xmm(0x13, Vmovlpd, [Mq, V]).mem(),
    row(0x16, Vmovhps, [V, H, Mq]).np().mem().needs(AVX),
    row(0x16, Vmovlhps, [V, H, W]).np().reg().needs(AVX),
    xmm(0x16, Vmovhpd, [V, H, Mq]).mem(),
    float(0x16, Vmovshdup, [Vx, Wx]).f3(),
    row(0x17, Vmovhps, [Mq, V]).np().mem().needs(AVX),
    xmm(0x17, Vmovhpd, [Mq, V]).mem(),
    float(0x28, Vmovaps, [Vx, Wx]).np(),
    float(0x28, Vmovapd, [Vx, Wx]).p66(),
    float(0x29, Vmovaps, [Wx, Vx]).np(),
    float(0x29, Vmovapd, [Wx, Vx]).p66(),
    float(0x2b, Vmovntps, [Mx, Vx]).np().mem(),
    float(0x2b, Vmovntpd, [Mx, Vx]).p66().mem(),
    float(0x50, Vmovmskps, [Gy, Wx]).np().reg(),
    float(0x50, Vmovmskpd, [Gy, Wx]).p66().reg(),
    // Outside 64-bit mode W is ignored.
    xmm(0x6e, Vmovq, [V, Eq]).w1().only64(),
    xmm(0x6e, Vmovd, [V, Ed]),
    float(0x6f, Vmovdqa, [Vx, Wx]).p66(),
    float(0x6f, Vmovdqu, [Vx, Wx]).f3(),
    xmm(0x7e, Vmovq, [Eq, V]).w1().only64(),
    xmm(0x7e, Vmovd, [Ed, V]),
    row(0x7e, Vmovq, [V, Wq]).f3().needs(AVX),
    float(0x7f, Vmovdqa, [Wx, Vx]).p66(),
    float(0x7f, Vmovdqu, [Wx, Vx]).f3(),
    xmm(0xd6, Vmovq, [Wq, V]),
    xmm(0xd7, Vpmovmskb, [Gy, Wx]).reg(),
    xmm(0xd7, Vpmovmskb, [Gy, Wx]).l1().reg().needs(AVX2),
    float(0xe7, Vmovntdq, [Mx, Vx]).p66().mem(),
    float(0xf0, Vlddqu, [Vx, Mx]).f2().mem(),
    xmm(0xf7, Vmaskmovdqu, [V, W]).reg(),
];

const CONVERSIONS_0F: &[Row] = &[
    float(0x2a, Vcvtsi2ss, [V, H, Ey]).f3(),
    float(0x2a, Vcvtsi2sd, [V, H, Ey]).f2(),
    float(0x2c, Vcvttss2si, [Gy, Wd]).f3(),
    float(0x2c, Vcvttsd2si, [Gy, Wq]).f2(),
    float(0x2d, Vcvtss2si, [Gy, Wd]).f3(),
    float(0x2d, Vcvtsd2si, [Gy, Wq]).f2(),
    float(0x5a, Vcvtps2pd, [Vx, Wh]).np(),
    float(0x5a, Vcvtpd2ps, [V, Wx]).p66(),
    float(0x5a, Vcvtss2sd, [V, H, Wd]).f3(),
    float(0x5a, Vcvtsd2ss, [V, H, Wq]).f2(),
    float(0x5b, Vcvtdq2ps, [Vx, Wx]).np(),
    float(0x5b, Vcvtps2dq, [Vx, Wx]).p66(),
    float(0x5b, Vcvttps2dq, [Vx, Wx]).f3(),
    float(0xe6, Vcvttpd2dq, [V, Wx]).p66(),
    float(0xe6, Vcvtdq2pd, [Vx, Wh]).f3(),
    float(0xe6, Vcvtpd2dq, [V, Wx]).f2(),
];

const REST_0F: &[Row] = &[
    float(0x2e, Vucomiss, [V, Wd]).np(),
    float(0x2e, Vucomisd, [V, Wq]).p66(),
    float(0x2f, Vcomiss, [V, Wd]).np(),
    float(0x2f, Vcomisd, [V, Wq]).p66(),
    float(0x52, Vrsqrtps, [Vx, Wx]).np(),
    float(0x52, Vrsqrtss, [V, H, Wd]).f3(),
    float(0x53, Vrcpps, [Vx, Wx]).np(),
    float(0x53, Vrcpss, [V, H, Wd]).f3(),
    row(0x70, Vpshufhw, [Vx, Wx, Ib]).f3().needs(AVX),
    row(0x70, Vpshufhw, [Vx, Wx, Ib]).f3().l1().needs(AVX2),
    row(0x70, Vpshuflw, [Vx, Wx, Ib]).f2().needs(AVX),
    row(0x70, Vpshuflw, [Vx, Wx, Ib]).f2().l1().needs(AVX2),
    row(0x77, Vzeroupper, []).np().needs(AVX),
    row(0x77, Vzeroall, []).np().l1().needs(AVX),
    float(0x7c, Vhaddpd, [Vx, Hx, Wx]).p66(),
    float(0x7c, Vhaddps, [Vx, Hx, Wx]).f2(),
    float(0x7d, Vhsubpd, [Vx, Hx, Wx]).p66(),
    float(0x7d, Vhsubps, [Vx, Hx, Wx]).f2(),
    row(0xae, Vldmxcsr, [Md]).np().slash(2).mem().needs(AVX),
    row(0xae, Vstmxcsr, [Md]).np().slash(3).mem().needs(AVX),
    float(0xc2, Vcmpps, [Vx, Hx, Wx, Ib]).np(),
    float(0xc2, Vcmppd, [Vx, Hx, Wx, Ib]).p66(),
    float(0xc2, Vcmpss, [V, H, Wd, Ib]).f3(),
    float(0xc2, Vcmpsd, [V, H, Wq, Ib]).f2(),
    xmm(0xc4, Vpinsrw, [V, H, RyMw, Ib]),
    xmm(0xc5, Vpextrw, [Gy, W, Ib]).reg(),
    float(0xc6, Vshufps, [Vx, Hx, Wx, Ib]).np(),
    float(0xc6, Vshufpd, [Vx, Hx, Wx, Ib]).p66(),
    float(0xd0, Vaddsubpd, [Vx, Hx, Wx]).p66(),
    float(0xd0, Vaddsubps, [Vx, Hx, Wx]).f2(),
];

pub(super) const ROWS_0F38: &[&[Row]] = &[
    REST_0F38,
    GENERAL_0F38,
    &int(0x00, Vpshufb),
    &int(0x01, Vphaddw),
    &int(0x02, Vphaddd),
    &int(0x03, Vphaddsw),
    &int(0x04, Vpmaddubsw),
    &int(0x05, Vphsubw),
    &int(0x06, Vphsubd),
    &int(0x07, Vphsubsw),
    &int(0x08, Vpsignb),
    &int(0x09, Vpsignw),
    &int(0x0a, Vpsignd),
    &int(0x0b, Vpmulhrsw),
    &int(0x28, Vpmuldq),
    &int(0x29, Vpcmpeqq),
    &int(0x2b, Vpackusdw),
    &int(0x37, Vpcmpgtq),
    &int(0x38, Vpminsb),
    &int(0x39, Vpminsd),
    &int(0x3a, Vpminuw),
    &int(0x3b, Vpminud),
    &int(0x3c, Vpmaxsb),
    &int(0x3d, Vpmaxsd),
    &int(0x3e, Vpmaxuw),
    &int(0x3f, Vpmaxud),
    &int(0x40, Vpmulld),
    &integer(0x1c, Vpabsb, [Vx, Wx]),
    &integer(0x1d, Vpabsw, [Vx, Wx]),
    &integer(0x1e, Vpabsd, [Vx, Wx]),
    &integer(0x20, Vpmovsxbw, [Vx, Wh]),
    &integer(0x21, Vpmovsxbd, [Vx, Wf]),
    &integer(0x22, Vpmovsxbq, [Vx, We]),
    &integer(0x23, Vpmovsxwd, [Vx, Wh]),
    &integer(0x24, Vpmovsxwq, [Vx, Wf]),
    &integer(0x25, Vpmovsxdq, [Vx, Wh]),
    &integer(0x30, Vpmovzxbw, [Vx, Wh]),
    &integer(0x31, Vpmovzxbd, [Vx, Wf]),
    &integer(0x32, Vpmovzxbq, [Vx, We]),
    &integer(0x33, Vpmovzxwd, [Vx, Wh]),
    &integer(0x34, Vpmovzxwq, [Vx, Wf]),
    &integer(0x35, Vpmovzxdq, [Vx, Wh]),
    &fused_packed(0x96, [Vfmaddsub132ps, Vfmaddsub132pd]),
    &fused_packed(0x97, [Vfmsubadd132ps, Vfmsubadd132pd]),
    &fused(0x98, [Vfmadd132ps, Vfmadd132pd, Vfmadd132ss, Vfmadd132sd]),
    &fused(0x9a, [Vfmsub132ps, Vfmsub132pd, Vfmsub132ss, Vfmsub132sd]),
    &fused(0x9c, [Vfnmadd132ps, Vfnmadd132pd, Vfnmadd132ss, Vfnmadd132sd]),
    &fused(0x9e, [Vfnmsub132ps, Vfnmsub132pd, Vfnmsub132ss, Vfnmsub132sd]),
    &fused_packed(0xa6, [Vfmaddsub213ps, Vfmaddsub213pd]),
    &fused_packed(0xa7, [Vfmsubadd213ps, Vfmsubadd213pd]),
    &fused(0xa8, [Vfmadd213ps, Vfmadd213pd, Vfmadd213ss, Vfmadd213sd]),
    &fused(0xaa, [Vfmsub213ps, Vfmsub213pd, Vfmsub213ss, Vfmsub213sd]),
    &fused(0xac, [Vfnmadd213ps, Vfnmadd213pd, Vfnmadd213ss, Vfnmadd213sd]),
    &fused(0xae, [Vfnmsub213ps, Vfnmsub213pd, Vfnmsub213ss, Vfnmsub213sd]),
    &fused_packed(0xb6, [Vfmaddsub231ps, Vfmaddsub231pd]),
    &fused_packed(0xb7, [Vfmsubadd231ps, Vfmsubadd231pd]),
    &fused(0xb8, [Vfmadd231ps, Vfmadd231pd, Vfmadd231ss, Vfmadd231sd]),
    &fused(0xba, [Vfmsub231ps, Vfmsub231pd, Vfmsub231ss, Vfmsub231sd]),
    &fused(0xbc, [Vfnmadd231ps, Vfnmadd231pd, Vfnmadd231ss, Vfnmadd231sd]),
    &fused(0xbe, [Vfnmsub231ps, Vfnmsub231pd, Vfnmsub231ss, Vfnmsub231sd]),
    &aes(0xdc, Vaesenc),
    &aes(0xdd, Vaesenclast),
    &aes(0xde, Vaesdec),
    &aes(0xdf, Vaesdeclast),
];

const REST_0F38: &[Row] = &[
    float(0x0c, Vpermilps, [Vx, Hx, Wx]).p66().w0(),
    float(0x0d, Vpermilpd, [Vx, Hx, Wx]).p66().w0(),
    float(0x0e, Vtestps, [Vx, Wx]).p66().w0(),
    float(0x0f, Vtestpd, [Vx, Wx]).p66().w0(),
    row(0x13, Vcvtph2ps, [Vx, Wh]).p66().lig().w0().needs(Features::F16C),
    ymm(0x16, Vpermps, [Vy, Hy, Wy], AVX2),
    float(0x17, Vptest, [Vx, Wx]).p66(),
    // From a register they came with AVX2.
    float(0x18, Vbroadcastss, [Vx, Md]).p66().w0().mem(),
    avx2(0x18, Vbroadcastss, [Vx, W]).w0().reg(),
    ymm(0x19, Vbroadcastsd, [Vy, Mq], AVX).mem(),
    ymm(0x19, Vbroadcastsd, [Vy, W], AVX2).reg(),
    ymm(0x1a, Vbroadcastf128, [Vy, Mx16], AVX).mem(),
    xmm(0x2a, Vmovntdqa, [Vx, Mx]).mem(),
    xmm(0x2a, Vmovntdqa, [Vx, Mx]).l1().mem().needs(AVX2),
    float(0x2c, Vmaskmovps, [Vx, Hx, Mx]).p66().w0().mem(),
    float(0x2d, Vmaskmovpd, [Vx, Hx, Mx]).p66().w0().mem(),
    float(0x2e, Vmaskmovps, [Mx, Hx, Vx]).p66().w0().mem(),
    float(0x2f, Vmaskmovpd, [Mx, Hx, Vx]).p66().w0().mem(),
    ymm(0x36, Vpermd, [Vy, Hy, Wy], AVX2),
    xmm(0x41, Vphminposuw, [V, W]),
    avx2(0x45, Vpsrlvd, [Vx, Hx, Wx]).w0(),
    avx2(0x45, Vpsrlvq, [Vx, Hx, Wx]).w1(),
    avx2(0x46, Vpsravd, [Vx, Hx, Wx]).w0(),
    avx2(0x47, Vpsllvd, [Vx, Hx, Wx]).w0(),
    avx2(0x47, Vpsllvq, [Vx, Hx, Wx]).w1(),
    avx2(0x58, Vpbroadcastd, [Vx, Wd]).w0(),
    avx2(0x59, Vpbroadcastq, [Vx, Wq]).w0(),
    ymm(0x5a, Vbroadcasti128, [Vy, Mx16], AVX2).mem(),
    avx2(0x78, Vpbroadcastb, [Vx, Wb]).w0(),
    avx2(0x79, Vpbroadcastw, [Vx, Ww]).w0(),
    avx2(0x8c, Vpmaskmovd, [Vx, Hx, Mx]).w0().mem(),
    avx2(0x8c, Vpmaskmovq, [Vx, Hx, Mx]).w1().mem(),
    avx2(0x8e, Vpmaskmovd, [Mx, Hx, Vx]).w0().mem(),
    avx2(0x8e, Vpmaskmovq, [Mx, Hx, Vx]).w1().mem(),
    avx2(0x90, Vpgatherdd, [Vx, VsibD, Hx]).w0().mem().gather(),
    avx2(0x90, Vpgatherdq, [Vx, VsibQ, Hx]).w1().mem().gather(),
    avx2(0x91, Vpgatherqd, [V, VsibD, H]).w0().mem().gather(),
    avx2(0x91, Vpgatherqq, [Vx, VsibQ, Hx]).w1().mem().gather(),
    avx2(0x92, Vgatherdps, [Vx, VsibD, Hx]).w0().mem().gather(),
    avx2(0x92, Vgatherdpd, [Vx, VsibQ, Hx]).w1().mem().gather(),
    avx2(0x93, Vgatherqps, [V, VsibD, H]).w0().mem().gather(),
    avx2(0x93, Vgatherqpd, [Vx, VsibQ, Hx]).w1().mem().gather(),
    float(0xcf, Vgf2p8mulb, [Vx, Hx, Wx]).p66().w0().needs(Features::GFNI),
    xmm(0xdb, Vaesimc, [V, W]).needs(Features::AES),
];

/// General registers: BMI1 and BMI2. W chooses 64 bits in 64-bit mode and is ignored elsewhere.
const GENERAL_0F38: &[Row] = &[
    row(0xf2, Andn, [Gy, By, Ey]).np().needs(Features::BMI1),
    row(0xf3, Blsr, [By, Ey]).np().slash(1).needs(Features::BMI1),
    row(0xf3, Blsmsk, [By, Ey]).np().slash(2).needs(Features::BMI1),
    row(0xf3, Blsi, [By, Ey]).np().slash(3).needs(Features::BMI1),
    row(0xf5, Bzhi, [Gy, Ey, By]).np().needs(Features::BMI2),
    row(0xf5, Pext, [Gy, By, Ey]).f3().needs(Features::BMI2),
    row(0xf5, Pdep, [Gy, By, Ey]).f2().needs(Features::BMI2),
    row(0xf6, Mulx, [Gy, By, Ey]).f2().needs(Features::BMI2),
    row(0xf7, Bextr, [Gy, Ey, By]).np().needs(Features::BMI1),
    row(0xf7, Shlx, [Gy, Ey, By]).p66().needs(Features::BMI2),
    row(0xf7, Sarx, [Gy, Ey, By]).f3().needs(Features::BMI2),
    row(0xf7, Shrx, [Gy, Ey, By]).f2().needs(Features::BMI2),
];

pub(super) const ROWS_0F3A: &[&[Row]] = &[
    REST_0F3A,
    &integer(0x0e, Vpblendw, [Vx, Hx, Wx, Ib]),
    &integer(0x0f, Vpalignr, [Vx, Hx, Wx, Ib]),
    &integer(0x42, Vmpsadbw, [Vx, Hx, Wx, Ib]),
];

const REST_0F3A: &[Row] = &[
    ymm(0x00, Vpermq, [Vy, Wy, Ib], AVX2).w1(),
    ymm(0x01, Vpermpd, [Vy, Wy, Ib], AVX2).w1(),
    avx2(0x02, Vpblendd, [Vx, Hx, Wx, Ib]).w0(),
    float(0x04, Vpermilps, [Vx, Wx, Ib]).p66().w0(),
    float(0x05, Vpermilpd, [Vx, Wx, Ib]).p66().w0(),
    ymm(0x06, Vperm2f128, [Vy, Hy, Wy, Ib], AVX),
    float(0x08, Vroundps, [Vx, Wx, Ib]).p66(),
    float(0x09, Vroundpd, [Vx, Wx, Ib]).p66(),
    float(0x0a, Vroundss, [V, H, Wd, Ib]).p66(),
    float(0x0b, Vroundsd, [V, H, Wq, Ib]).p66(),
    float(0x0c, Vblendps, [Vx, Hx, Wx, Ib]).p66(),
    float(0x0d, Vblendpd, [Vx, Hx, Wx, Ib]).p66(),
    xmm(0x14, Vpextrb, [RyMb, V, Ib]),
    xmm(0x15, Vpextrw, [RyMw, V, Ib]),
    xmm(0x16, Vpextrq, [Eq, V, Ib]).w1().only64(),
    xmm(0x16, Vpextrd, [Ed, V, Ib]),
    xmm(0x17, Vextractps, [RyMd, V, Ib]),
    ymm(0x18, Vinsertf128, [Vy, Hy, W, Ib], AVX),
    ymm(0x19, Vextractf128, [W, Vy, Ib], AVX),
    row(0x1d, Vcvtps2ph, [Wh, Vx, Ib]).p66().lig().w0().needs(Features::F16C),
    xmm(0x20, Vpinsrb, [V, H, RyMb, Ib]),
    xmm(0x21, Vinsertps, [V, H, Wd, Ib]),
    xmm(0x22, Vpinsrq, [V, H, Eq, Ib]).w1().only64(),
    xmm(0x22, Vpinsrd, [V, H, Ed, Ib]),
    ymm(0x38, Vinserti128, [Vy, Hy, W, Ib], AVX2),
    ymm(0x39, Vextracti128, [W, Vy, Ib], AVX2),
    float(0x40, Vdpps, [Vx, Hx, Wx, Ib]).p66(),
    xmm(0x41, Vdppd, [V, H, W, Ib]),
    xmm(0x44, Vpclmulqdq, [Vx, Hx, Wx, Ib]).needs(Features::PCLMULQDQ),
    xmm(0x44, Vpclmulqdq, [Vx, Hx, Wx, Ib]).l1().needs(Features::VPCLMULQDQ),
    ymm(0x46, Vperm2i128, [Vy, Hy, Wy, Ib], AVX2),
    float(0x4a, Vblendvps, [Vx, Hx, Wx, Lx]).p66().w0(),
    float(0x4b, Vblendvpd, [Vx, Hx, Wx, Lx]).p66().w0(),
    xmm(0x4c, Vpblendvb, [Vx, Hx, Wx, Lx]).w0(),
    xmm(0x4c, Vpblendvb, [Vx, Hx, Wx, Lx]).w0().l1().needs(AVX2),
    xmm(0x60, Vpcmpestrm, [V, W, Ib]),
    xmm(0x61, Vpcmpestri, [V, W, Ib]),
    xmm(0x62, Vpcmpistrm, [V, W, Ib]),
    xmm(0x63, Vpcmpistri, [V, W, Ib]),
    float(0xce, Vgf2p8affineqb, [Vx, Hx, Wx, Ib]).p66().w1().needs(Features::GFNI),
    float(0xcf, Vgf2p8affineinvqb, [Vx, Hx, Wx, Ib]).p66().w1().needs(Features::GFNI),
    xmm(0xdf, Vaeskeygenassist, [V, W, Ib]).needs(Features::AES),
    row(0xf0, Rorx, [Gy, Ey, Ib]).f2().needs(Features::BMI2),
];
