//! Any traffic to ports, device memory and the local APIC's MSRs of a whole PC board: no chip panics, none wants to be
//! called again and again at one time, and each can be saved and reset in whatever state it is.

use std::sync::Arc;

use trapgate_machine::boot::{Decompression, Protocol};
use trapgate_machine::{ClockKind, Config, Machine, Payload};
use trapgate_x86::insn::Bits;
use trapgate_x86::model::X86_64_V2;

use super::Input;
use crate::guest::Guest;

/// Operations at most in one run.
const MOST: usize = 500;

/// A list of operations.
pub fn run(data: &[u8]) {
    let mut machine = machine();
    let mut input = Input::new(data);
    let mut now = 0;
    for _ in 0..MOST {
        if input.is_empty() {
            break;
        }
        operation(&mut machine, &mut input, &mut now);
    }
    let board = Arc::clone(machine.pc().expect("the machine is a PC"));
    assert_eq!(board.save(), board.save(), "saving changes nothing");
    wait(&mut machine, &mut now);
    board.reset(now);
    let _ = machine.digest();
}

fn machine() -> Machine {
    // The code is never run.
    let guest = Guest::code(Bits::B64, &[0xf4]);
    let config = Config {
        memory: guest.memory,
        model: X86_64_V2,
        clock: ClockKind::Virtual,
        seed: 1,
        debug_console: true,
        debug_exit: true,
        epoch_seconds: 1_700_000_000,
    };
    let payload = Payload {
        kernel: &guest.kernel,
        initrd: None,
        command_line: "",
        protocol: Protocol::Auto,
        decompression: Decompression::Host,
    };
    Machine::new(&config, &payload).expect("a machine of 4 MiB with one small kernel")
}

/// What a halted processor does with what has been left behind: takes interrupts, and lets time pass to the next deadline.
/// (The machine's own run loop would start at time zero, and chips never see time run backwards.)
fn wait(machine: &mut Machine, now: &mut u64) {
    for _ in 0..100 {
        let platform = machine.cpu_mut().platform_mut();
        if let Some(interrupt) = platform.pending(*now, true, true) {
            platform.acknowledge(*now, interrupt);
            platform.mmio_write(*now, 0xfee0_00b0, 4, 0);
            platform.port_write(*now, 0xa0, 1, 0x20);
            platform.port_write(*now, 0x20, 1, 0x20);
        } else if let Some(next) = machine.board().deadline() {
            *now = next.max(*now);
            serve(machine, *now);
        } else {
            break;
        }
    }
}

/// Whatever is due by now is done, once and for all.
fn serve(machine: &Machine, now: u64) {
    machine.board().advance(now);
    let next = machine.board().deadline();
    assert!(next.is_none_or(|next| next > now), "due at {next:?} after being served at {now}");
}

fn operation(machine: &mut Machine, input: &mut Input<'_>, now: &mut u64) {
    let kind = input.u8();
    let size = [1, 2, 4, 8][usize::from(kind >> 6)];
    let platform = machine.cpu_mut().platform_mut();
    match kind & 15 {
        0..=2 => {
            platform.port_read(*now, port(input), size.min(4));
        }
        3..=6 => platform.port_write(*now, port(input), size.min(4), input.u32()),
        7 => {
            platform.mmio_read(*now, address(input), size);
        }
        8..=10 => platform.mmio_write(*now, address(input), size, input.u64()),
        11 => {
            platform.msr_read(*now, msr(input));
            platform.msr_write(*now, msr(input), input.u64());
        }
        12 => {
            let value = input.u8();
            platform.set_tpr(*now, value & 15);
            assert_eq!(platform.tpr(), value & 15);
        }
        13 => match platform.pending(*now, true, true) {
            Some(interrupt) => drop(platform.acknowledge(*now, interrupt)),
            None => assert_eq!(platform.pending(*now, true, false), None),
        },
        _ => {
            *now = now.saturating_add(u64::from(input.u32()) << (kind >> 4 & 7));
            serve(machine, *now);
        }
    }
}

/// Mostly where something is.
fn port(input: &mut Input<'_>) -> u16 {
    const BASES: [u16; 16] = [
        0x20, 0xa0, 0x40, 0x60, 0x61, 0x64, 0x70, 0x3f8, 0x2f8, 0x600, 0xcf8, 0xcfc, 0x4d0, 0x00, 0xc0, 0x80,
    ];
    let choice = input.u8();
    if choice & 0x80 != 0 { input.u16() } else { BASES[usize::from(choice & 15)] + u16::from(choice >> 4) }
}

fn address(input: &mut Input<'_>) -> u64 {
    const BASES: [u64; 4] = [0xfec0_0000, 0xfed0_0000, 0xfee0_0000, 0xe000_0000];
    let choice = input.u8();
    let offset = u64::from(input.u16());
    match choice {
        0xff => input.u64(),
        // Registers of the APICs are 16 bytes apart.
        0..=0x7f => BASES[usize::from(choice & 3)] + (offset & 0xff0),
        _ => BASES[usize::from(choice & 3)] + offset,
    }
}

fn msr(input: &mut Input<'_>) -> u32 {
    let choice = input.u8();
    match choice {
        0 => 0x1b,
        1 => 0x6e0,
        2 => input.u32(),
        _ => 0x800 + u32::from(choice),
    }
}
