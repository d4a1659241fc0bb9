//! Three-byte opcodes, after 0F 38 and 0F 3A (Intel SDM vol. 2, tables ).

use super::Spec::*;
use super::{Row, Spec, row};
use crate::features::Features;
use crate::op::Op::{self, *};

/// An SSSE3 operation on MMX, and with 66 on XMM.
const fn ssse3(opcode: u8, op: Op) -> [Row; 2] {
    [
        row(opcode, op, [P, Q]).np().needs(Features::SSSE3),
        row(opcode, op, [V, W]).p66().needs(Features::SSSE3),
    ]
}

const fn sse41(opcode: u8, op: Op, source: Spec) -> Row {
    row(opcode, op, [V, source]).p66().needs(Features::SSE4_1)
}

const fn sse41_imm(opcode: u8, op: Op, source: Spec) -> Row {
    row(opcode, op, [V, source, Ib]).p66().needs(Features::SSE4_1)
}

pub(super) const ROWS_38: &[&[Row]] = &[
    &ssse3(0x00, Pshufb),
    &ssse3(0x01, Phaddw),
    &ssse3(0x02, Phaddd),
    &ssse3(0x03, Phaddsw),
    &ssse3(0x04, Pmaddubsw),
    &ssse3(0x05, Phsubw),
    &ssse3(0x06, Phsubd),
    &ssse3(0x07, Phsubsw),
    &ssse3(0x08, Psignb),
    &ssse3(0x09, Psignw),
    &ssse3(0x0a, Psignd),
    &ssse3(0x0b, Pmulhrsw),
    &ssse3(0x1c, Pabsb),
    &ssse3(0x1d, Pabsw),
    &ssse3(0x1e, Pabsd),
    SSE4_38,
    REST_38,
];

const SSE4_38: &[Row] = &[
    // XMM0 is the implicit third operand of the variable blends.
    sse41(0x10, Pblendvb, W),
    sse41(0x14, Blendvps, W),
    sse41(0x15, Blendvpd, W),
    sse41(0x17, Ptest, W),
    sse41(0x20, Pmovsxbw, Wq),
    sse41(0x21, Pmovsxbd, Wd),
    sse41(0x22, Pmovsxbq, Ww),
    sse41(0x23, Pmovsxwd, Wq),
    sse41(0x24, Pmovsxwq, Wd),
    sse41(0x25, Pmovsxdq, Wq),
    sse41(0x28, Pmuldq, W),
    sse41(0x29, Pcmpeqq, W),
    sse41(0x2a, Movntdqa, Mx16).mem(),
    sse41(0x2b, Packusdw, W),
    sse41(0x30, Pmovzxbw, Wq),
    sse41(0x31, Pmovzxbd, Wd),
    sse41(0x32, Pmovzxbq, Ww),
    sse41(0x33, Pmovzxwd, Wq),
    sse41(0x34, Pmovzxwq, Wd),
    sse41(0x35, Pmovzxdq, Wq),
    row(0x37, Pcmpgtq, [V, W]).p66().needs(Features::SSE4_2),
    sse41(0x38, Pminsb, W),
    sse41(0x39, Pminsd, W),
    sse41(0x3a, Pminuw, W),
    sse41(0x3b, Pminud, W),
    sse41(0x3c, Pmaxsb, W),
    sse41(0x3d, Pmaxsd, W),
    sse41(0x3e, Pmaxuw, W),
    sse41(0x3f, Pmaxud, W),
    sse41(0x40, Pmulld, W),
    sse41(0x41, Phminposuw, W),
];

const REST_38: &[Row] = &[
    row(0x82, Invpcid, [Gm, Mx16]).p66().mem().native().needs(Features::INVPCID),
    row(0xc8, Sha1nexte, [V, W]).np().needs(Features::SHA),
    row(0xc9, Sha1msg1, [V, W]).np().needs(Features::SHA),
    row(0xca, Sha1msg2, [V, W]).np().needs(Features::SHA),
    row(0xcb, Sha256rnds2, [V, W]).np().needs(Features::SHA),
    row(0xcc, Sha256msg1, [V, W]).np().needs(Features::SHA),
    row(0xcd, Sha256msg2, [V, W]).np().needs(Features::SHA),
    row(0xcf, Gf2p8mulb, [V, W]).p66().needs(Features::GFNI),
    row(0xdb, Aesimc, [V, W]).p66().needs(Features::AES),
    row(0xdc, Aesenc, [V, W]).p66().needs(Features::AES),
    row(0xdd, Aesenclast, [V, W]).p66().needs(Features::AES),
    row(0xde, Aesdec, [V, W]).p66().needs(Features::AES),
    row(0xdf, Aesdeclast, [V, W]).p66().needs(Features::AES),
    row(0xf0, Movbe, [Gv, Ev]).nfx().mem().needs(Features::MOVBE),
    row(0xf1, Movbe, [Ev, Gv]).nfx().mem().needs(Features::MOVBE),
    row(0xf0, Crc32, [Gy, Eb]).f2().byte().needs(Features::SSE4_2),
    row(0xf1, Crc32, [Gy, Ev]).f2().needs(Features::SSE4_2),
    row(0xf6, Adcx, [Gy, Ey]).p66().needs(Features::ADX),
    row(0xf6, Adox, [Gy, Ey]).f3().needs(Features::ADX),
    row(0xf8, Movdir64b, [Ga, M64b]).p66().mem().needs(Features::MOVDIR64B),
    row(0xf9, Movdiri, [My, Gy]).np().mem().needs(Features::MOVDIRI),
];

pub(super) const ROWS_3A: &[&[Row]] = &[&[
    sse41_imm(0x08, Roundps, W),
    sse41_imm(0x09, Roundpd, W),
    sse41_imm(0x0a, Roundss, Wd),
    sse41_imm(0x0b, Roundsd, Wq),
    sse41_imm(0x0c, Blendps, W),
    sse41_imm(0x0d, Blendpd, W),
    sse41_imm(0x0e, Pblendw, W),
    row(0x0f, Palignr, [P, Q, Ib]).np().needs(Features::SSSE3),
    row(0x0f, Palignr, [V, W, Ib]).p66().needs(Features::SSSE3),
    row(0x14, Pextrb, [RyMb, V, Ib]).p66().needs(Features::SSE4_1),
    row(0x15, Pextrw, [RyMw, V, Ib]).p66().needs(Features::SSE4_1),
    row(0x16, Pextrd, [Ed, V, Ib]).p66().w0().needs(Features::SSE4_1),
    row(0x16, Pextrq, [Eq, V, Ib]).p66().w1().needs(Features::SSE4_1),
    row(0x17, Extractps, [RyMd, V, Ib]).p66().needs(Features::SSE4_1),
    row(0x20, Pinsrb, [V, RyMb, Ib]).p66().needs(Features::SSE4_1),
    sse41_imm(0x21, Insertps, Wd),
    row(0x22, Pinsrd, [V, Ed, Ib]).p66().w0().needs(Features::SSE4_1),
    row(0x22, Pinsrq, [V, Eq, Ib]).p66().w1().needs(Features::SSE4_1),
    sse41_imm(0x40, Dpps, W),
    sse41_imm(0x41, Dppd, W),
    sse41_imm(0x42, Mpsadbw, W),
    row(0x44, Pclmulqdq, [V, W, Ib]).p66().needs(Features::PCLMULQDQ),
    row(0x60, Pcmpestrm, [V, W, Ib]).p66().needs(Features::SSE4_2),
    row(0x61, Pcmpestri, [V, W, Ib]).p66().needs(Features::SSE4_2),
    row(0x62, Pcmpistrm, [V, W, Ib]).p66().needs(Features::SSE4_2),
    row(0x63, Pcmpistri, [V, W, Ib]).p66().needs(Features::SSE4_2),
    row(0xcc, Sha1rnds4, [V, W, Ib]).np().needs(Features::SHA),
    row(0xce, Gf2p8affineqb, [V, W, Ib]).p66().needs(Features::GFNI),
    row(0xcf, Gf2p8affineinvqb, [V, W, Ib]).p66().needs(Features::GFNI),
    row(0xdf, Aeskeygenassist, [V, W, Ib]).p66().needs(Features::AES),
]];
