//! Random bytes as code, in every mode and ring: nothing panics or hangs, and an instruction that faults has changed
//! nothing but memory.

use crate::common::*;
use trapgate_engine::mmu::inspect::walk_steps;
use trapgate_engine::state::Segment;
use trapgate_engine::{Exit, Vcpu};
use trapgate_x86::regs::{cr0, rflags};

/// What a fault leaves as it was.
#[derive(Clone, Debug, PartialEq)]
struct Before {
    rip: u64,
    count: u64,
    regs: [u64; 16],
    seg: [Segment; 6],
    flags: u64,
    tables: [Segment; 2],
    control: [u64; 4],
    cpl: u8,
    vector: String,
}

fn before(cpu: &mut Vcpu) -> Before {
    let vector = format!("{:?}", cpu.vector());
    Before {
        rip: cpu.rip,
        count: cpu.count,
        regs: std::array::from_fn(|n| cpu.regs[n]),
        seg: cpu.seg,
        flags: cpu.rflags() & !rflags::RF,
        tables: [cpu.ldtr, cpu.tr],
        control: [cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer],
        cpl: cpu.cpl,
        vector,
    }
}

/// A prefix or two, an opcode, and bytes that often make a memory operand.
fn instruction(noise: &mut Noise) -> Vec<u8> {
    const PREFIXES: [u8; 14] =
        [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x48, 0x44, 0x41];
    let mut bytes = Vec::new();
    while noise.below(3) == 0 {
        bytes.push(PREFIXES[noise.below(14) as usize]);
    }
    match noise.below(8) {
        0..=2 => bytes.push(0x0f),
        3 => bytes.extend([0x0f, [0x38, 0x3a][noise.below(2) as usize]]),
        _ => {}
    }
    bytes.extend(noise.next().to_le_bytes());
    bytes.extend(noise.next().to_le_bytes());
    bytes
}

/// An address or a number that makes trouble.
fn value(noise: &mut Noise) -> u64 {
    let near = noise.below(32);
    match noise.below(10) {
        0 => near,
        1 => near.wrapping_neg(),
        2 => DATA + near,
        3 => DATA + 0x1000 - near,
        // The end of what is mapped, of 32-bit memory, of the canonical halves.
        4 => RAM + 0x20_0000 - near,
        5 => 0x1_0000_0000 - near,
        6 => 0x8000_0000_0000 - near,
        7 => 0xffff_7fff_ffff_fff0 + near,
        8 => noise.next() & 0xffff_ffff,
        _ => noise.next(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Long(u16, u16),
    Protected(u16, u16),
}

const KINDS: [Kind; 7] = [
    Kind::Long(USER64, DATA3),
    Kind::Long(CODE64, DATA0),
    Kind::Long(USER32, DATA3),
    Kind::Long(CODE32, DATA0),
    Kind::Protected(USER32, DATA3),
    Kind::Protected(CODE32, DATA0),
    Kind::Protected(CODE16, DATA0),
];

fn guest(kind: Kind, noise: &mut Noise) -> Guest {
    let mut g = match kind {
        Kind::Long(..) => Guest::long(),
        Kind::Protected(..) => Guest::protected(),
    };
    let (Kind::Long(cs, ss) | Kind::Protected(cs, ss)) = kind;
    if let Kind::Long(..) = kind {
        for vector in 0..=255 {
            g.change_gate(vector, |gate| gate.ist = 1);
        }
    }
    if noise.below(4) == 0 {
        g.cpu().cr0 |= cr0::AM;
        g.flag(rflags::AC);
    }
    if noise.below(4) == 0 {
        g.flag(rflags::NT);
    }
    if noise.below(4) == 0 {
        g.flag(rflags::IOPL);
    }
    g.set_ring(cs, ss, STACK);
    g
}

/// Guests that the test makes; each runs a hundred instructions.
const ROUNDS: usize = 700;

#[test]
fn random_bytes_do_no_harm_and_faults_change_nothing() {
    let mut noise = Noise(0x1234_5678_9abc_def1);
    let (mut faults, mut exits) = (0, 0);
    for round in 0..ROUNDS {
        let kind = KINDS[round % KINDS.len()];
        let mut g = guest(kind, &mut noise);
        let (Kind::Long(cs, ss) | Kind::Protected(cs, ss)) = kind;
        let stack = if cs & 3 == 3 { USER_STACK } else { STACK };
        let base = if cs == CODE16 { USER_STACK - 0x8_8000 } else { USER_CODE };
        for _ in 0..100 {
            let at = base + 0xff0 + noise.below(16);
            let code = instruction(&mut noise);
            g.poke(at, &code);
            g.set_ring(cs, ss, stack);
            // No 64-bit values where there is no such code.
            let width = if let Kind::Long(..) = kind { u64::MAX } else { u64::from(u32::MAX) };
            for n in (0..16).filter(|n| *n != RSP) {
                g.set_reg(n, value(&mut noise) & width);
            }
            if noise.below(8) == 0 {
                g.set_reg(RSP, value(&mut noise) & width);
            }
            g.cpu().rip = at;
            g.cpu().halted = false;
            let was = before(g.cpu());
            if !matches!(g.step(), Exit::Budget | Exit::Halted) {
                exits += 1;
                break;
            }
            if !g.cpu().halted {
                continue;
            }
            // The frame is read only if ring 0 has left the harness its stack.
            let frame = g.reg(RSP);
            let own = (IST1 - 48..IST1).contains(&frame) || (STACK0 - 48..STACK0).contains(&frame);
            let paging = g.cpu().paging();
            let place = walk_steps(&g.memory, &paging, frame).result;
            if !own || place.is_err() || place.is_ok_and(|place| place.gpa != frame) {
                continue;
            }
            let Stop::Event(e) = g.halted() else { continue };
            let fault = e.vector < 32 && !matches!(e.vector, 1..=4) && e.count == was.count;
            if !fault || e.rip != was.rip {
                continue;
            }
            faults += 1;
            let mut now = before(g.cpu());
            // What the delivery itself changed stands in the frame.
            (now.rip, now.count, now.regs[RSP]) = (e.rip, e.count, e.rsp);
            now.flags = e.rflags & !rflags::RF;
            (now.seg[1], now.seg[2], now.cpl) = (was.seg[1], was.seg[2], was.cpl);
            assert_eq!((e.cs, e.ss), (was.seg[1].selector, was.seg[2].selector), "{code:x?} {kind:?}");
            if e.vector == 19 {
                now.vector.clone_from(&was.vector);
            }
            assert_eq!(now, was, "{code:x?} {kind:?} {e:x?}");
        }
    }
    assert!(faults > ROUNDS * 20, "{faults} faults, {exits} exits");
}
