//! The x87 control instructions: control and status word, environment and whole-state images in their four formats
//! (Intel SDM vol. 1, 8.1.10, figures 8-9 to 8-12).

use trapgate_x86::insn::{Insn, Operand};
use trapgate_x86::op::Op;

use super::super::interface::{Control, Operands};
use super::super::operand::unexpected;
use super::super::state::{F80, X87State, fsw};

/// The format of an environment image.
#[derive(Clone, Copy)]
struct Format {
    /// 32-bit fields instead of 16-bit ones.
    wide: bool,
    protected: bool,
}

impl Format {
    fn of(insn: &Insn, control: &Control) -> Format {
        Format { wide: insn.opsize != 2, protected: control.protected }
    }

    const fn len(self) -> usize {
        if self.wide { 28 } else { 14 }
    }
}

/// FNCLEX, FNINIT, FNSTCW, FNSTSW, FNSTENV and FNSAVE, which do not look for pending exceptions.
pub(super) fn without_wait<O: Operands>(
    x87: &mut X87State,
    control: &Control,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let format = Format::of(insn, control);
    match insn.op {
        Op::Fnclex => x87.fsw &= fsw::TOP | fsw::CONDITIONS,
        Op::Fninit => x87.init(),
        Op::Fnstcw => ops.store(0, &x87.fcw.to_le_bytes())?,
        Op::Fnstsw => match insn.operands[0] {
            Operand::Gpr { reg, .. } => ops.set_gpr(reg, x87.fsw.into(), 2),
            _ => ops.store(0, &x87.fsw.to_le_bytes())?,
        },
        Op::Fnstenv => {
            ops.store(0, &environment(x87, format)[..format.len()])?;
            x87.set_fcw(x87.fcw | fsw::EXCEPTIONS);
        }
        Op::Fnsave => {
            let mut image = [0; 108];
            let len = format.len();
            image[..len].copy_from_slice(&environment(x87, format)[..len]);
            for i in 0..8 {
                let at = len + 10 * usize::from(i);
                image[at..at + 10].copy_from_slice(&x87.st(i).to_bytes());
            }
            ops.store(0, &image[..len + 80])?;
            x87.init();
        }
        _ => return Err(unexpected()),
    }
    Ok(())
}

/// FLDCW, FLDENV and FRSTOR.
pub(super) fn load<O: Operands>(
    x87: &mut X87State,
    control: &Control,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let format = Format::of(insn, control);
    let len = format.len();
    match insn.op {
        Op::Fldcw => {
            let value = ops.load_u16()?;
            x87.set_fcw(value);
        }
        Op::Fldenv => {
            let mut image = [0; 28];
            ops.load(0, &mut image[..len])?;
            set_environment(x87, control, format, &image);
        }
        Op::Frstor => {
            let mut image = [0; 108];
            ops.load(0, &mut image[..len + 80])?;
            set_environment(x87, control, format, &image);
            for i in 0..8 {
                let at = len + 10 * usize::from(i);
                let physical = x87.physical(i);
                x87.regs[physical] = F80::from_bytes(std::array::from_fn(|j| image[at + j]));
            }
        }
        _ => return Err(unexpected()),
    }
    Ok(())
}

/// The environment image; the 16-bit formats use its first 14 bytes.
fn environment(x87: &X87State, format: Format) -> [u8; 28] {
    let (fip, fdp, fop) = (x87.fip as u32, x87.fdp as u32, u32::from(x87.fop));
    // Real-address mode has linear pointers of 32 or 20 bits.
    let linear = |selector: u16, offset: u32| (u32::from(selector) << 4).wrapping_add(offset);
    let (ip, dp) = (linear(x87.fcs, fip), linear(x87.fds, fdp));
    let words = [x87.fcw, x87.fsw, x87.full_tags()].map(u32::from);
    let pointers = match (format.wide, format.protected) {
        (true, true) => [fip, u32::from(x87.fcs) | fop << 16, fdp, u32::from(x87.fds) | 0xffff_0000],
        (true, false) => [ip | 0xffff_0000, (ip >> 16) << 12 | fop, dp | 0xffff_0000, (dp >> 16) << 12],
        (false, true) => [fip, x87.fcs.into(), fdp, x87.fds.into()],
        (false, false) => [ip, (ip >> 16) << 12 | fop, dp, (dp >> 16) << 12],
    };
    let mut image = [0; 28];
    if format.wide {
        // The upper halves of the word fields are ones.
        let words = words.map(|word| word | 0xffff_0000);
        for (slot, value) in image.chunks_exact_mut(4).zip(words.into_iter().chain(pointers)) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
    } else {
        for (slot, value) in image.chunks_exact_mut(2).zip(words.into_iter().chain(pointers)) {
            slot.copy_from_slice(&(value as u16).to_le_bytes());
        }
    }
    image
}

fn set_environment(x87: &mut X87State, control: &Control, format: Format, image: &[u8]) {
    let field = |i: usize| {
        if format.wide {
            u32::from_le_bytes(std::array::from_fn(|j| image[4 * i + j]))
        } else {
            u16::from_le_bytes(std::array::from_fn(|j| image[2 * i + j])).into()
        }
    };
    x87.fsw = field(1) as u16;
    x87.set_full_tags(field(2) as u16);
    let (mut fcs, mut fds) = (0, 0);
    if format.protected {
        (x87.fip, x87.fdp) = (field(3).into(), field(5).into());
        (fcs, fds) = (field(4) as u16, field(6) as u16);
        // The 16-bit format has no opcode: it is loaded as zero.
        x87.fop = (field(4) >> 16) as u16 & 0x7ff;
    } else {
        let upper = |value: u32| (value >> 12 & 0xffff) << 16;
        x87.fip = (field(3) & 0xffff | upper(field(4))).into();
        x87.fdp = (field(5) & 0xffff | upper(field(6))).into();
        x87.fop = field(4) as u16 & 0x7ff;
    }
    (x87.fcs, x87.fds) = if control.no_fcs_fds { (0, 0) } else { (fcs, fds) };
    x87.set_fcw(field(0) as u16);
}
