//! Any bytes as the doings of a para-virtual kernel: hypercalls with wild numbers and arguments, stores to its page tables,
//! garbage in its rings. Whatever it is, the domain goes on or ends, and no page table is left that allows what it must not.

use std::sync::Arc;

use trapgate_machine::{ClockKind, Config, Exit, Limits, Machine, ParaPayload};
use trapgate_x86::model::X86_64_V3;
use trapgate_xen::Domain;
use trapgate_xen::paging::{FrameType, Mfn};

use super::{Input, Noise};
use crate::guest::para_kernel;

/// Operations that one input can ask for.
const MOST: usize = 300;
/// Instructions that one operation may take.
const STEPS: u64 = 40;

/// First address of the kernel's mapping, of its code, and of the data that calls point to.
const BASE: u64 = 0xffff_ffff_8000_0000;
const CODE: u64 = BASE + 0x1_0000;
const DATA: u64 = BASE + 0x1_1000;
const DATA_BYTES: u64 = 0x4000;

/// Pieces of code that an operation can run, each ended by a jump to itself: SYSCALL, stores of several kinds, privileged and
/// undefined instructions, and those of the extended state.
const PIECES: [&[u8]; 22] = [
    &[0x0f, 0x05],
    &[0x48, 0x89, 0x07],
    &[0x48, 0x87, 0x07],
    &[0xf0, 0x48, 0x21, 0x07],
    &[0xf0, 0x48, 0x0f, 0xb3, 0x37],
    &[0xf0, 0x48, 0x0f, 0xb1, 0x37],
    &[0x66, 0x89, 0x07],
    &[0xf3, 0x48, 0xab],
    &[0x0f, 0x11, 0x07],
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x0f, 0x22, 0xd8],
    &[0x0f, 0x0b],
    &[0xcd, 0x80],
    &[0x8e, 0xe8],
    &[0x50, 0xff, 0x37, 0x8f, 0x07],
    &[0x0f, 0x22, 0xe0],
    &[0x0f, 0x01, 0xd1],
    &[0x0f, 0xae, 0x27],
    &[0x0f, 0xae, 0x2f],
    &[0xc5, 0xfc, 0x11, 0x07],
    &[0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0xa2],
];
const PIECE: usize = 16;

/// Operations, one after the other.
pub fn run(data: &[u8]) {
    let mut machine = machine();
    let mut input = Input::new(data);
    for _ in 0..MOST {
        if input.is_empty() || machine.domain().is_none_or(|domain| domain.ended().is_some()) {
            break;
        }
        operation(&mut machine, &mut input);
    }
    if let Some(domain) = machine.domain() {
        check(domain);
    }
    let _ = machine.digest();
}

fn machine() -> Machine {
    let mut code = vec![0x90; PIECES.len() * PIECE];
    for (place, piece) in code.chunks_exact_mut(PIECE).zip(PIECES) {
        place[..piece.len()].copy_from_slice(piece);
        place[piece.len()..piece.len() + 2].copy_from_slice(&[0xeb, 0xfe]);
    }
    code.resize(0x1000 + DATA_BYTES as usize, 0);
    let config = Config {
        memory: 6 << 20,
        model: X86_64_V3,
        clock: ClockKind::Virtual,
        seed: 1,
        debug_console: false,
        debug_exit: false,
        epoch_seconds: 1_700_000_000,
    };
    let payload = ParaPayload {
        kernel: &para_kernel(&code),
        initrd: None,
        command_line: "",
        domid: 3,
        maximum_memory: 8 << 20,
    };
    Machine::new_para(&config, &payload).expect("a domain of 6 MiB with one small kernel")
}

fn operation(machine: &mut Machine, input: &mut Input<'_>) {
    match input.u8() % 8 {
        0..=3 => call(machine, input),
        4 => execute(machine, input),
        5 | 6 => {
            let at = DATA + u64::from(input.u16()) % (DATA_BYTES / 8) * 8;
            let word = value(machine, input);
            let _ = machine.cpu_mut().copy_out(at, &word.to_le_bytes());
        }
        _ => ring(machine, input),
    }
}

/// A hypercall as the guest makes it.
fn call(machine: &mut Machine, input: &mut Input<'_>) {
    let number = if input.u8() % 16 == 0 { input.u64() } else { u64::from(input.u8() % 52) };
    let args: [u64; 5] = std::array::from_fn(|_| argument(machine, input));
    let cpu = machine.cpu_mut();
    cpu.regs[0] = number;
    [cpu.regs[7], cpu.regs[6], cpu.regs[2], cpu.regs[10], cpu.regs[8]] = args;
    go(machine, CODE);
}

fn execute(machine: &mut Machine, input: &mut Input<'_>) {
    let piece = usize::from(input.u8()) % PIECES.len();
    let values: [u64; 4] = std::array::from_fn(|_| argument(machine, input));
    let cpu = machine.cpu_mut();
    (cpu.regs[0], cpu.regs[7], cpu.regs[6], cpu.regs[1]) = (values[0], values[1], values[2], values[3] % 600);
    go(machine, CODE + (piece * PIECE) as u64);
}

/// Runs a piece of code, and whatever it leads to, for a while.
fn go(machine: &mut Machine, rip: u64) {
    machine.cpu_mut().rip = rip;
    let limits = Limits { count: Some(machine.count() + STEPS), ..Limits::default() };
    for _ in 0..4 {
        match machine.run(&limits) {
            Exit::Doorbell => {
                let board = machine.board().xen_pv().map(Arc::clone);
                board.into_iter().for_each(|board| drop(board.take_doorbells()));
            }
            _ => break,
        }
    }
    machine.cpu_mut().halted = false;
}

/// Garbage in the rings, and a notification.
fn ring(machine: &mut Machine, input: &mut Input<'_>) {
    let Some(board) = machine.board().xen_pv().map(Arc::clone) else { return };
    let page = if input.u8() % 2 == 0 { board.start.store } else { board.start.console };
    let at = page.maddr() + u64::from(input.u16() % 0xc20 / 4 * 4);
    let _ = machine.cpu().memory().write(at, &input.u32().to_le_bytes());
    machine.console().send(&[input.u8()]);
    let port = input.u8() % 6;
    let _ = machine.cpu_mut().copy_out(DATA, &u32::from(port).to_le_bytes());
    let cpu = machine.cpu_mut();
    (cpu.regs[0], cpu.regs[7], cpu.regs[6]) = (32, 4, DATA);
    go(machine, CODE);
}

/// An argument: a pointer, a small number, or a value as it might stand in memory.
fn argument(machine: &Machine, input: &mut Input<'_>) -> u64 {
    match input.u8() % 6 {
        0 | 1 => DATA + u64::from(input.u16()) % (DATA_BYTES / 8) * 8,
        2 => u64::from(input.u8() % 32),
        3 => 0x7ff0,
        4 => BASE + u64::from(input.u16() % 512) * 4096,
        _ => value(machine, input),
    }
}

/// A page-table entry, a frame, a count, or anything.
fn value(machine: &Machine, input: &mut Input<'_>) -> u64 {
    let Some(domain) = machine.domain() else { return 0 };
    let layout = &domain.layout;
    let frames = layout.grants.end - layout.ram.start;
    let kind = input.u8();
    // Page tables and their neighbours are where it gets interesting.
    let near = domain.paging().kernel_root(0).map_or(0, |root| root.0 - layout.ram.start);
    let frame = match kind % 4 {
        0 => near + u64::from(input.u8() % 8),
        1 => u64::from(input.u16()) % frames,
        _ => u64::from(input.u8()),
    };
    let mfn = layout.ram.start + frame;
    let flags = [0x67, 0x25, 0x27, 0x23, 0x21, 0x61, 0x00, 0xe3, 1 << 63 | 0x23];
    match kind >> 2 & 7 {
        0..=2 => mfn << 12 | input.pick(&flags),
        3 => mfn,
        4 => (mfn << 12) + u64::from(input.u16() % 512) * 8 + u64::from(input.u8() % 4),
        5 => u64::from(input.u16()),
        6 => BASE + u64::from(input.u16() % 512) * 4096,
        _ => input.u64(),
    }
}

/// No live page table has an entry that it must not have.
fn check(domain: &Domain) {
    let paging = domain.paging();
    let live = |mfn: u64| paging.frame(Mfn(mfn)).filter(|frame| frame.type_count > 0);
    let is_table = |kind| matches!(kind, FrameType::L1 | FrameType::L2 | FrameType::L3 | FrameType::L4);
    let mut entry = [0; 8];
    for mfn in domain.layout.ram.clone() {
        let Some(table) = live(mfn).filter(|frame| is_table(frame.kind)) else { continue };
        for index in (0..512).filter(|i| table.kind != FrameType::L4 || !(256..272).contains(i)) {
            if domain.memory().read(mfn * 4096 + index * 8, &mut entry).is_err() {
                continue;
            }
            let entry = u64::from_le_bytes(entry);
            if entry & 1 == 0 {
                continue;
            }
            let target = entry >> 12 & 0xff_ffff_ffff;
            let frame = paging
                .frame(Mfn(target))
                .unwrap_or_else(|| panic!("{mfn:#x}[{index}] leads out: {entry:#x}"));
            assert!(frame.refs > 0, "{mfn:#x}[{index}] names a frame that nothing holds: {entry:#x}");
            if table.kind == FrameType::L1 && entry & 2 != 0 {
                let kind = live(target).map(|frame| frame.kind);
                let bad = kind.is_some_and(|kind| is_table(kind) || kind == FrameType::Segdesc);
                assert!(!bad, "{mfn:#x}[{index}] makes a {kind:?} writable: {entry:#x}");
            }
        }
    }
}

/// Programs that begin well.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut noise = Noise(0x5eed);
    (0..6).map(|n| [vec![n], noise.bytes(700)].concat()).collect()
}
