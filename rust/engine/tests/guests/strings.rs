//! String instructions and their repetition: how far one got when a page was missing or an interrupt came, what it counts,
//! overlaps, directions, address sizes and segments (SDM vol. 2, REP; vol. 1, 7.3.9).

use iced_x86::code_asm::*;
use trapgate_engine::Exit;
use trapgate_x86::regs::{pf, rflags};

use crate::common::*;

/// Two pages that lie apart in memory, the second of which tests take away.
const FROM: u64 = 0x1_0000_0000;
const TO: u64 = 0x2_0000_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
    Ins,
    Outs,
}
use Kind::*;

const KINDS: [Kind; 7] = [Movs, Stos, Lods, Cmps, Scas, Ins, Outs];

impl Kind {
    fn reads(self) -> bool {
        matches!(self, Movs | Lods | Cmps | Outs)
    }
    fn uses_destination(self) -> bool {
        !matches!(self, Lods | Outs)
    }
    fn writes(self) -> bool {
        matches!(self, Movs | Stos | Ins)
    }
    fn on_ports(self) -> bool {
        matches!(self, Ins | Outs)
    }

    /// The instruction with F3 before it, by its bytes (SDM vol. 2).
    fn bytes(self, width: u64) -> Vec<u8> {
        let opcode = match self {
            Movs => 0xa4,
            Stos => 0xaa,
            Lods => 0xac,
            Cmps => 0xa6,
            Scas => 0xae,
            Ins => 0x6c,
            Outs => 0x6e,
        };
        let mut bytes = vec![0xf3];
        match width {
            2 => bytes.insert(0, 0x66),
            8 => bytes.push(0x48),
            _ => {}
        }
        bytes.push(opcode | u8::from(width > 1));
        bytes
    }
}

/// Both pages at both ends, all bytes equal so that comparisons go on; RCX is `count`.
fn guest(count: u64) -> Guest {
    let mut g = Guest::long();
    for (at, gpa) in [(FROM, DATA), (TO, DATA + 0x8000)] {
        g.map(at, gpa, P | W);
        g.map(at + 0x1000, gpa + 0x3000, P | W);
        g.map(at - 0x1000, gpa + 0x5000, P | W);
    }
    g.poke(DATA, &[0x11; 0x1_0000]);
    g.set_reg(RAX, 0x1111_1111_1111_1111);
    g.set_reg(RCX, count);
    g.set_reg(RDX, 0x77);
    g.change_gate(14, |gate| gate.ist = 1);
    g
}

fn start(g: &mut Guest, kind: Kind, width: u64) {
    let mut code = kind.bytes(width);
    code.push(0xf4);
    g.poke(CODE, &code);
    g.cpu().rip = CODE;
}

/// One run into a missing page: the element that touches it, and nothing of it, must not have been done.
fn into_missing(kind: Kind, width: u64, source: bool, down: bool, inside: u64) {
    let what = format!("{kind:?} of {width}, source {source}, down {down}, {inside} bytes before");
    let mut g = guest(0x1000);
    let (base, missing) = if source { (FROM, RSI) } else { (TO, RDI) };
    // The other end starts where it will not reach the end of its page.
    g.set_reg(RSI, FROM + 0x400);
    g.set_reg(RDI, TO + 0x400);
    let start_at = if down { base + inside - width } else { base + 0x1000 - inside };
    g.set_reg(missing, start_at);
    let gone = if down { base - 0x1000 } else { base + 0x1000 };
    g.put::<u64>(g.pte(gone), 0);
    if down {
        g.flag(rflags::DF);
    }
    start(&mut g, kind, width);
    let done = inside / width;
    let partial = inside % width != 0;
    let write = !source && kind.writes();
    // An element half in the missing page faults at the page's first byte, one wholly in it at its own.
    let at = match (down, partial) {
        (false, _) => gone,
        (true, _) => start_at.wrapping_sub(done * width),
    };
    let e = g.expect(14);
    assert_eq!((e.cr2, e.error), (at, Some(u64::from(if write { pf::W } else { 0 }))), "{what}");
    assert_eq!((e.rip, e.count), (CODE, done), "{what}");
    assert_eq!(g.reg(RCX), 0x1000 - done, "{what}");
    let step = if down { (done * width).wrapping_neg() } else { done * width };
    assert_eq!(g.reg(missing), start_at.wrapping_add(step), "{what}");
    let (other, other_base) = if source { (RDI, TO) } else { (RSI, FROM) };
    let moves = if source { kind.uses_destination() } else { kind.reads() };
    let want = (other_base + 0x400).wrapping_add(if moves { step } else { 0 });
    assert_eq!(g.reg(other), want, "{what}");
    if kind.on_ports() {
        assert_eq!(g.board().ports.len() as u64, done, "{what}: no port access for an element that faults");
    }
}

#[test]
fn a_repetition_into_a_missing_page_stops_exactly_there() {
    for kind in KINDS {
        for width in [1, 2, 4, 8] {
            if width == 8 && kind.on_ports() {
                continue;
            }
            for source in [false, true] {
                if if source { !kind.reads() } else { !kind.uses_destination() } {
                    continue;
                }
                for down in [false, true] {
                    for inside in [0, 1, 3, 4, 7, 8, 16, 31, 64, 100, 0x200] {
                        // Downwards, half elements would start in the missing page; whole ones are enough there.
                        let inside = if down { inside / width * width } else { inside };
                        into_missing(kind, width, source, down, inside);
                    }
                }
            }
        }
    }
}

#[test]
fn a_repetition_goes_on_after_its_page_has_come() {
    for width in [1u64, 2, 4, 8] {
        let mut g = guest(0x900 / width);
        let bytes: Vec<u8> = (0..0x900u32).map(|n| (n * 7 + 3) as u8).collect();
        g.poke(DATA + 0x600, &bytes[..0xa00 - 0x100]);
        g.set_reg(RSI, FROM + 0x600);
        g.set_reg(RDI, TO + 0xf00);
        g.put::<u64>(g.pte(TO + 0x1000), 0);
        start(&mut g, Movs, width);
        let e = g.expect_page_fault(TO + 0x1000, pf::W);
        assert_eq!(e.count, 0x100 / width);
        assert_eq!(e.rflags & rflags::RF, rflags::RF);
        g.put::<u64>(g.pte(TO + 0x1000), (DATA + 0xb000) | P | W);
        g.expect_halt();
        assert_eq!(g.count(), 0x900 / width + 3 + 1, "the stub takes three, HLT one");
        let mut seen = g.peek(DATA + 0x8f00, 0x100);
        seen.extend(g.peek(DATA + 0xb000, 0x800));
        assert_eq!(seen, bytes);
        assert_eq!((g.reg(RCX), g.reg(RSI), g.reg(RDI)), (0, FROM + 0xf00, TO + 0x1800));
    }
}

#[test]
fn comparisons_that_fault_show_the_flags_from_before_however_the_run_was_parted() {
    for kind in [Cmps, Scas] {
        for stop_at in 0..4 {
            let mut g = guest(0x100);
            g.set_reg(RSI, FROM);
            g.set_reg(RDI, TO + 0xffc);
            g.put::<u64>(g.pte(TO + 0x1000), 0);
            g.flag(rflags::CF | rflags::OF);
            start(&mut g, kind, 1);
            g.run_until(stop_at);
            let e = g.expect_page_fault(TO + 0x1000, 0);
            assert_eq!((e.rflags & rflags::STATUS, e.count), (rflags::CF | rflags::OF, 4), "{kind:?}");
        }
    }
}

#[test]
fn a_count_of_zero_touches_nothing_and_counts_one() {
    for kind in KINDS {
        let mut g = guest(0);
        g.set_reg(RSI, 0x5000_0000);
        g.set_reg(RDI, 0x8000_0000_0000);
        let flags = g.rflags();
        start(&mut g, kind, 4);
        g.expect_halt();
        assert_eq!((g.count(), g.rflags()), (2, flags), "{kind:?}");
        assert_eq!((g.reg(RSI), g.reg(RDI)), (0x5000_0000, 0x8000_0000_0000));
    }
}

#[test]
fn repe_and_repne_end_at_the_first_difference_or_match() {
    for kind in [Cmps, Scas] {
        for (equal, place) in [(true, 5u64), (false, 9)] {
            let mut g = guest(20);
            g.set_reg(RSI, FROM);
            g.set_reg(RDI, TO);
            // All but one place differ for REPNE, only one does for REPE.
            let fill = if equal { 0x11 } else { 0x22 };
            g.poke(DATA + 0x8000, &[fill; 64]);
            g.poke(DATA + 0x8000 + place, &[0x33 - fill]);
            let mut code = kind.bytes(1);
            code[0] = if equal { 0xf3 } else { 0xf2 };
            code.push(0xf4);
            g.poke(CODE, &code);
            g.cpu().rip = CODE;
            g.expect_halt();
            assert_eq!((g.reg(RCX), g.reg(RDI)), (20 - place - 1, TO + place + 1), "{kind:?} {equal}");
            assert_eq!(g.count(), place + 1 + 1);
            assert_eq!(g.rflags() & rflags::ZF != 0, !equal);
        }
    }
}

/// What a move does, byte by byte.
fn model(memory: &mut [u8], mut from: i64, mut to: i64, width: i64, count: i64, down: bool) {
    for _ in 0..count {
        let element: Vec<u8> = (0..width).map(|n| memory[(from + n) as usize]).collect();
        for (n, byte) in element.into_iter().enumerate() {
            memory[to as usize + n] = byte;
        }
        let step = if down { -width } else { width };
        from += step;
        to += step;
    }
}

#[test]
fn overlapping_moves_repeat_what_they_wrote() {
    for width in [1i64, 2, 4, 8] {
        for distance in [-17, -8, -4, -3, -2, -1, 0, 1, 2, 3, 4, 7, 8, 9, 16, 31, 64] {
            for down in [false, true] {
                let count = 40;
                let mut g = guest(count as u64);
                let mut bytes: Vec<u8> = (0..0x1000u32).map(|n| (n * 13 + (n >> 8)) as u8).collect();
                g.poke(DATA, &bytes);
                let from = 0x800;
                g.set_reg(RSI, FROM + from as u64);
                g.set_reg(RDI, (FROM + from as u64).wrapping_add_signed(distance));
                if down {
                    g.flag(rflags::DF);
                }
                start(&mut g, Movs, width as u64);
                g.expect_halt();
                model(&mut bytes, from, from + distance, width, count, down);
                assert_eq!(g.peek(DATA, 0x1000), bytes, "width {width}, distance {distance}, down {down}");
                assert_eq!(g.count(), count as u64 + 1);
            }
        }
    }
}

#[test]
fn overlapping_moves_through_an_alias_repeat_what_they_wrote() {
    let mut g = guest(64);
    let mut bytes: Vec<u8> = (0..0x1000u32).map(|n| (n * 13) as u8).collect();
    g.poke(DATA, &bytes);
    g.map(TO, DATA, P | W);
    g.set_reg(RSI, FROM + 0x100);
    g.set_reg(RDI, TO + 0x103);
    start(&mut g, Movs, 1);
    g.expect_halt();
    model(&mut bytes, 0x100, 0x103, 1, 64, false);
    assert_eq!(g.peek(DATA, 0x1000), bytes);
}

#[test]
fn an_interrupt_between_iterations_finds_exact_registers_and_the_rest_follows() {
    for kind in KINDS {
        for at in [1u64, 2, 5, 17, 29, 30] {
            let mut g = guest(30);
            g.set_reg(RSI, FROM + 0xff0);
            g.set_reg(RDI, TO + 0xff0);
            g.board().inputs.extend([0x11; 100]);
            g.flag(rflags::IF);
            g.at_count(at, Line::Vector(0x41));
            start(&mut g, kind, 1);
            let e = g.expect(0x41);
            let last = at == 30;
            let rip = if last { CODE + 2 } else { CODE };
            assert_eq!((e.rip, e.count, g.reg(RCX)), (rip, at, 30 - at), "{kind:?} at {at}");
            if kind.reads() {
                assert_eq!(g.reg(RSI), FROM + 0xff0 + at, "{kind:?} at {at}");
            }
            if kind.uses_destination() {
                assert_eq!(g.reg(RDI), TO + 0xff0 + at, "{kind:?} at {at}");
            }
            // RF is set where the repetition is not over (SDM vol. 3, 19.3.1.1).
            assert_eq!(e.rflags & rflags::RF != 0, !last, "{kind:?} at {at}");
            g.expect_halt();
            assert_eq!((g.reg(RCX), g.count()), (0, 30 + 2 + 1), "{kind:?} at {at}");
            assert_eq!(g.rflags() & rflags::RF, 0, "{kind:?} at {at}");
        }
    }
}

#[test]
fn the_budget_ends_a_repetition_anywhere() {
    for kind in KINDS {
        let mut g = guest(40);
        g.set_reg(RSI, FROM + 0xfe8);
        g.set_reg(RDI, TO + 0xfe0);
        start(&mut g, kind, 2);
        for n in 1..=40 {
            assert_eq!(g.step(), Exit::Budget);
            assert_eq!((g.count(), g.reg(RCX)), (n, 40 - n), "{kind:?}");
            assert_eq!(g.rip() == CODE, n < 40, "{kind:?} after {n}");
        }
        g.expect_halt();
    }
}

#[test]
fn the_32_bit_address_size_uses_ecx_esi_and_edi() {
    for kind in KINDS {
        let mut g = guest(0xffff_ffff_0000_0003);
        g.set_reg(RSI, 0xffff_ffff_0000_0000 | DATA);
        g.set_reg(RDI, 0xffff_ffff_0000_0000 | (DATA + 0x100));
        let mut code = vec![0x67];
        code.extend(kind.bytes(4));
        code.push(0xf4);
        g.poke(CODE, &code);
        g.cpu().rip = CODE;
        g.expect_halt();
        assert_eq!((g.reg(RCX), g.count()), (0, 4), "{kind:?}");
        if kind.reads() {
            assert_eq!(g.reg(RSI), DATA + 12, "{kind:?}");
        }
        if kind.uses_destination() {
            assert_eq!(g.reg(RDI), DATA + 0x100 + 12, "{kind:?}");
        }
    }
}

#[test]
fn each_iteration_on_device_memory_is_an_access_with_its_own_count() {
    let mut g = guest(3);
    g.map(TO, DEVICE, P | W);
    g.set_reg(RDI, TO);
    start(&mut g, Stos, 4);
    g.expect_halt();
    let seen: Vec<_> = g.board().mmio.iter().map(|m| (m.count, m.at - DEVICE, m.size)).collect();
    assert_eq!(seen, [(0, 0, 4), (1, 4, 4), (2, 8, 4)]);
}

#[test]
fn each_iteration_on_a_port_is_an_access_with_its_own_count() {
    let mut g = guest(3);
    g.board().inputs.extend([0xa1, 0xa2, 0xa3]);
    g.set_reg(RDI, TO);
    start(&mut g, Ins, 2);
    g.expect_halt();
    assert_eq!(g.peek(DATA + 0x8000, 6), [0xa1, 0, 0xa2, 0, 0xa3, 0]);
    let seen: Vec<_> = g.board().ports.iter().map(|m| (m.count, m.at, m.size, m.written)).collect();
    assert_eq!(seen, [(0, 0x77, 2, None), (1, 0x77, 2, None), (2, 0x77, 2, None)]);
}

#[test]
fn a_repetition_that_overwrites_itself_runs_the_new_bytes() {
    // STOSB over its own first byte turns F3 AA into 90 AA: one STOSB follows.
    let mut g = guest(5);
    g.set_reg(RDI, CODE);
    g.set_reg(RAX, 0x90);
    g.load(CODE + 2, |a| a.hlt());
    start(&mut g, Stos, 1);
    assert_eq!(g.step(), Exit::Budget);
    assert_eq!((g.rip(), g.reg(RCX)), (CODE, 4));
    assert_eq!(g.peek(CODE, 2), [0x90, 0xaa]);
    g.step();
    assert_eq!((g.rip(), g.count()), (CODE + 1, 2));
}

/// 32-bit code with a segment of `limit` bytes at DATA in a register; everything else is flat.
fn limited(limit: u32, load: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Guest {
    let mut g = Guest::protected();
    let selector = g.free_descriptor(0, descriptor(DATA as u32, limit - 1, 0x93, 4));
    g.set_reg(RAX, u64::from(selector));
    g.set_reg(RCX, 0x100);
    g.set_reg(RSI, 0);
    g.set_reg(RDI, 0);
    g.program(|a| {
        load(a)?;
        a.hlt()
    });
    g
}

#[test]
fn a_repetition_stops_at_the_limit_of_es() {
    let mut g = limited(0x22, |a| {
        a.mov(es, eax)?;
        a.rep().stosb()
    });
    let e = g.expect(13);
    assert_eq!((e.error, g.reg(RCX), g.reg(RDI), e.count), (Some(0), 0x100 - 0x22, 0x22, 1 + 0x22));
    assert_eq!(g.peek(DATA + 0x21, 2), [0x60, 0]);
}

#[test]
fn a_repetition_stops_at_the_limit_of_an_overriding_segment() {
    // FS with ES flat: MOVS fs:[esi].
    let mut g = limited(0x23, |a| {
        a.mov(fs, eax)?;
        a.mov(edi, DATA as u32 + 0x1000)?;
        a.db(&[0x64, 0xf3, 0xa4])
    });
    let e = g.expect(13);
    assert_eq!((e.error, g.reg(RCX), g.reg(RSI), e.count), (Some(0), 0x100 - 0x23, 0x23, 2 + 0x23));
}

#[test]
fn a_repetition_stops_at_a_limit_in_compatibility_mode_too() {
    let mut g = Guest::long();
    let selector = g.free_descriptor(0, descriptor(DATA as u32, 0x1f, 0x93, 4));
    g.set_ring(CODE32, DATA0, STACK);
    g.set_reg(RAX, u64::from(selector));
    g.set_reg(RCX, 0x100);
    g.program(|a| {
        a.mov(es, eax)?;
        a.rep().stosd()
    });
    let e = g.expect(13);
    assert_eq!((e.error, g.reg(RCX), g.reg(RDI), e.count), (Some(0), 0x100 - 8, 0x20, 1 + 8));
}

#[test]
fn a_repetition_with_16_bit_addresses_wraps_at_64_kib() {
    let mut g = Guest::protected();
    let selector = g.free_descriptor(0, descriptor(DATA as u32, 0xffff, 0x93, 4));
    g.set_reg(RAX, u64::from(selector));
    g.set_reg(RCX, 0xabcd_0008);
    g.set_reg(RDI, 0xabcd_fffc);
    g.program(|a| {
        a.mov(es, eax)?;
        a.db(&[0x67, 0xf3, 0xaa])?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.reg(RCX), g.reg(RDI)), (0xabcd_0000, 0xabcd_0004));
    assert_eq!(g.peek(DATA + 0xfffc, 4), [0x60; 4]);
    assert_eq!(g.peek(DATA, 6), [0x60, 0x60, 0x60, 0x60, 0, 0]);
}

#[test]
fn ins_to_a_misaligned_place_faults_before_the_port_is_read() {
    use trapgate_x86::regs::cr0;
    for repeat in [false, true] {
        let mut g = Guest::long();
        g.cpu().cr0 |= cr0::AM;
        g.flag(rflags::AC | rflags::IOPL);
        let code = g.user_program(|a| if repeat { a.rep().insd() } else { a.insd() });
        g.set_reg(RDI, DATA + 2);
        g.set_reg(RCX, 3);
        let e = g.expect(17);
        assert_eq!((e.rip, e.error), (code.start, Some(0)));
        assert_eq!(g.board().ports.len(), 0);
    }
}
