//! Any bytes as a kernel's code: the machine ends in a typed exit or runs on, the same way with and without the
//! interpreter's short cuts.

use trapgate_machine::{Exit, Limits, Machine};
use trapgate_x86::insn::Bits;

use super::{Input, Noise};
use crate::guest::Guest;
use crate::registers::Registers;

/// Instructions that are run at most.
const MOST: u64 = 3_000;

/// Width, a seed for the registers, and code.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let bits = input.pick(&[Bits::B64, Bits::B32]);
    let noise = Noise(u64::from(input.u16()));
    let guest = Guest::code(bits, if input.is_empty() { &[0xf4] } else { input.rest() });
    let start = || {
        let mut machine = guest.machine().expect("a machine of 4 MiB with one small kernel");
        scatter(&mut machine, noise.clone());
        machine
    };
    let (mut normal, mut paranoid) = (start(), start());
    paranoid.set_paranoid(true);
    let exits = (finish(&mut normal), finish(&mut paranoid));
    let registers = (Registers::of(normal.cpu_mut()), Registers::of(paranoid.cpu_mut()));
    assert_eq!(exits, (exits.1, exits.1), "normal / paranoid");
    assert_eq!(registers.0, registers.1, "normal / paranoid");
    assert_eq!(normal.digest(), paranoid.digest(), "memory or devices differ");
}

/// Registers that point into RAM, to devices, or nowhere.
fn scatter(machine: &mut Machine, mut noise: Noise) {
    for reg in 0..16 {
        let value = noise.bits();
        machine.cpu_mut().regs[reg] = match value >> 60 {
            0..=7 => value & 0x3f_ffff,
            8 | 9 => 0xfee0_0000 | value & 0xfff,
            10 => 0xfec0_0000 | value & 0x10,
            11 => value & 0xffff_ffff,
            _ => value & 0xff,
        };
    }
}

/// Runs until the machine ends or has run enough; virtual time ends every halt.
fn finish(machine: &mut Machine) -> Option<Exit> {
    let exit = machine.run(&Limits { count: Some(MOST), ..Limits::default() });
    (exit != Exit::CountReached).then_some(exit)
}

/// Programs that touch what is delicate.
pub fn seeds() -> Vec<Vec<u8>> {
    let codes: [&[u8]; 6] = [
        // A store into the running block, and back.
        &[0xc6, 0x05, 1, 0, 0, 0, 0x90, 0xb0, 1, 0xeb, 0xf5],
        // Strings over everything.
        &[0xf3, 0xa4, 0xf3, 0xab, 0xf2, 0xae, 0xeb, 0xf8],
        // Ports and control registers.
        &[0xee, 0xec, 0x0f, 0x20, 0xc0, 0x0f, 0x22, 0xc0, 0x0f, 0x22, 0xe0, 0xeb, 0xf2],
        // Interrupts on and halted.
        &[0xfb, 0xf4, 0xfa, 0xf4],
        // MSRs and CPUID.
        &[0x0f, 0xa2, 0x0f, 0x32, 0x0f, 0x30, 0x0f, 0x31],
        // SSE and x87.
        &[0x0f, 0x28, 0xc1, 0xd9, 0xe8, 0xdb, 0x3f, 0x0f, 0xae, 0x07],
    ];
    codes.iter().flat_map(|code| (0..2).map(|bits| [&[bits, 1, 0], *code].concat())).collect()
}
