//! Which operand of an instruction stands in which field of its encoding: what an executor needs that copies an instruction
//! and renames its registers.

use crate::decode::{build, choose};
use crate::features::Features;
use crate::insn::{DecodeError, Insn};
use crate::layout::Layout;
use crate::table::{Row, Spec};

/// Fields that name a register, each with the index of its operand in [`Insn::operands`]. Operands that no field names (AL,
/// CL, DX, ST0, immediates) are in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Slots {
    /// ModRM.reg.
    pub reg: Option<u8>,
    /// ModRM.rm, register or memory.
    pub rm: Option<u8>,
    /// VEX.vvvv.
    pub vvvv: Option<u8>,
    /// The low three bits of the opcode.
    pub low: Option<u8>,
    /// Bits 7 to 4 of the immediate.
    pub is4: Option<u8>,
}

/// [`crate::decode::decode_layout`] with the place of every operand.
pub fn decode_slots(
    bytes: &[u8],
    layout: &Layout,
    features: &Features,
) -> Result<(Insn, Slots), DecodeError> {
    let row = choose(layout, features)?;
    Ok((build(bytes, layout, row), slots(row)))
}

fn slots(row: &Row) -> Slots {
    use Spec::*;
    let mut slots = Slots::default();
    for (n, spec) in (0..).zip(row.specs) {
        let slot = match spec {
            Gb | Gw | Gv | Gy | Gm | Ga | P | V | Vx | Vy | Sw | Cr | Dr => &mut slots.reg,
            Eb | Ew | Ed | Eq | Ev | Ey | Ez | RvMw | RyMb | RyMw | RyMd | Rm | M | Mb | Mw | Md | Mq
            | Mt | Mx16 | Mp | Ma | Ms | Menv | Mstate | Mfx | M64b | My | StI | Q | Qd | W | Wq | Wd
            | Ww | Wb | Wx | Mx | Wy | Wh | Wf | We | Wdup | VsibD | VsibQ => &mut slots.rm,
            By | H | Hx | Hy => &mut slots.vvvv,
            Zb | Zv => &mut slots.low,
            Lx => &mut slots.is4,
            None | Al | Ax | RAx | Cl | Dx | Ob | Ov | One | Ib | Ibs | Iw | Iz | Iv | Ib2 | Jb | Jz | Jo
            | Ap | Es | Cs | Ss | Ds | Fs | Gs | St0 => continue,
        };
        *slot = Some(n);
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::insn::Bits;

    fn of(bytes: &[u8]) -> Slots {
        let layout = Layout::scan(bytes, Bits::B64).unwrap();
        decode_slots(bytes, &layout, &Features::all()).unwrap().1
    }

    #[test]
    fn operands_are_found_in_their_fields() {
        assert_eq!(
            of(&[0x01, 0xc8]),
            Slots { reg: Some(1), rm: Some(0), ..Slots::default() },
            "add eax, ecx"
        );
        assert_eq!(
            of(&[0x48, 0xc7, 0xc0, 0, 0, 0, 0]),
            Slots { rm: Some(0), ..Slots::default() },
            "mov rax, imm"
        );
        assert_eq!(of(&[0xd3, 0xe2]), Slots { rm: Some(0), ..Slots::default() }, "shl edx, cl");
        assert_eq!(of(&[0x41, 0x54]), Slots { low: Some(0), ..Slots::default() }, "push r12");
        assert_eq!(of(&[0x48, 0xab]), Slots::default(), "stosq");
        assert_eq!(of(&[0x0f, 0x58, 0x00]), Slots { reg: Some(0), rm: Some(1), ..Slots::default() }, "addps");
        let three = Slots { reg: Some(0), vvvv: Some(1), rm: Some(2), ..Slots::default() };
        assert_eq!(of(&[0xc5, 0xf0, 0x58, 0xc2]), three, "vaddps");
        assert_eq!(of(&[0xc4, 0xe2, 0x70, 0xf2, 0xc2]), three, "andn");
    }
}
