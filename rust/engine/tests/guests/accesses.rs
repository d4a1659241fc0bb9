//! Accessed and dirty flags (SDM vol. 3, 4.8), read-modify-writes to pages that may not be written, accesses across pages,
//! and page tables in strange places.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trapgate_x86::regs::{cr0, pf};

use crate::common::*;

const VA: u64 = 0x1_0000_0000;
/// Bits that software may use in an entry: 9 to 11 and 52 to 58.
const IGNORED: u64 = 0x07f0_0000_0000_0e00;

fn mapped(flags: u64) -> Guest {
    let mut g = Guest::long();
    g.map(VA, DATA, flags);
    g.set_reg(RSI, VA);
    g
}

/// The four entries of VA, root first.
fn path(g: &Guest) -> [u64; 4] {
    [4, 3, 2, 1].map(|level| g.get(g.entry_at(VA, level)))
}

#[test]
fn a_read_sets_accessed_on_all_levels_and_no_dirty_flag() {
    let mut g = mapped(P | W | IGNORED);
    let before = path(&g);
    g.program(|a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!(path(&g), before.map(|entry| entry | ACCESSED));
}

#[test]
fn a_fetch_sets_accessed_and_no_dirty_flag() {
    let mut g = mapped(P | W);
    let before = path(&g);
    g.poke(DATA, &[0xf4]);
    g.cpu().rip = VA;
    g.expect_halt();
    assert_eq!(path(&g), before.map(|entry| entry | ACCESSED));
}

#[test]
fn a_write_sets_the_dirty_flag_in_the_leaf_only() {
    let mut g = mapped(P | W | IGNORED);
    let before = path(&g);
    g.program(|a| {
        a.mov(qword_ptr(rsi), rax)?;
        a.hlt()
    });
    g.expect_halt();
    let mut want = before.map(|entry| entry | ACCESSED);
    want[3] |= DIRTY;
    assert_eq!(path(&g), want);
}

#[test]
fn a_write_after_a_read_sets_the_dirty_flag_though_the_page_is_cached() {
    let mut g = mapped(P | W);
    let pte = g.pte(VA);
    let code = g.program(|a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(rbx, qword_ptr(pte))?;
        a.mov(qword_ptr(rsi), rax)?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!(g.rip(), code.end);
    assert_eq!(g.reg(RBX), DATA | P | W | ACCESSED);
    assert_eq!(g.get::<u64>(pte), DATA | P | W | ACCESSED | DIRTY);
}

#[test]
fn cleared_flags_are_set_again_after_invlpg() {
    let mut g = mapped(P | W);
    let pte = g.pte(VA);
    g.program(|a| {
        a.mov(qword_ptr(rsi), rax)?;
        a.and(qword_ptr(pte), !(ACCESSED | DIRTY) as i32)?;
        a.invlpg(ptr(rsi))?;
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(rbx, qword_ptr(pte))?;
        a.mov(qword_ptr(rsi), rax)?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!(g.reg(RBX), DATA | P | W | ACCESSED);
    assert_eq!(g.get::<u64>(pte), DATA | P | W | ACCESSED | DIRTY);
}

#[test]
fn a_large_page_has_its_flags_in_the_directory() {
    let mut g = Guest::long();
    g.map_level(VA, 0x40_0000, 2, P | W);
    let entry = g.entry_at(VA, 2);
    g.set_reg(RSI, VA + 0x12_3456);
    g.program(|a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(rbx, qword_ptr(entry))?;
        a.mov(byte_ptr(rsi), 1)?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!(g.reg(RBX), 0x40_0000 | P | W | PS | ACCESSED);
    assert_eq!(g.get::<u64>(entry), 0x40_0000 | P | W | PS | ACCESSED | DIRTY);
}

#[test]
fn a_write_that_faults_sets_no_dirty_flag_and_a_forbidden_read_no_accessed_flag() {
    let mut g = mapped(P);
    let before = g.get::<u64>(g.pte(VA));
    g.program(|a| a.mov(qword_ptr(rsi), rax));
    g.expect_page_fault(VA, pf::P | pf::W);
    assert_eq!(g.get::<u64>(g.pte(VA)) & DIRTY, 0);

    let mut g = mapped(P | W);
    g.user_program(|a| a.mov(rax, qword_ptr(rsi)));
    g.expect_page_fault(VA, pf::P | pf::U);
    assert_eq!(g.get::<u64>(g.pte(VA)), before | W);
}

#[test]
fn without_wp_the_supervisor_writes_read_only_pages_and_makes_them_dirty() {
    let mut g = mapped(P);
    g.cpu().cr0 &= !cr0::WP;
    g.program(|a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(dword_ptr(rsi), 7)?;
        a.mov(rax, cr0)?;
        a.or(rax, cr0::WP as i32)?;
        a.mov(cr0, rax)?;
        a.mov(dword_ptr(rsi), 8)?;
        a.hlt()
    });
    g.expect_page_fault(VA, pf::P | pf::W);
    assert_eq!((g.get::<u32>(DATA), g.get::<u64>(g.pte(VA)) & DIRTY), (7, DIRTY));
}

type Insn = (&'static str, fn(&mut CodeAssembler) -> Result<(), IcedError>);

/// Instructions that read and write [RSI].
const MODIFY: &[Insn] = &[
    ("add", |a| a.add(qword_ptr(rsi), rbx)),
    ("adc imm", |a| a.adc(dword_ptr(rsi), 1)),
    ("inc", |a| a.inc(qword_ptr(rsi))),
    ("neg", |a| a.neg(word_ptr(rsi))),
    ("not", |a| a.not(byte_ptr(rsi))),
    ("shl", |a| a.shl(qword_ptr(rsi), 3)),
    ("rcr cl", |a| a.rcr(dword_ptr(rsi), cl)),
    ("shld", |a| a.shld(qword_ptr(rsi), rbx, 3)),
    ("xchg", |a| a.xchg(qword_ptr(rsi), rbx)),
    ("xadd", |a| a.xadd(qword_ptr(rsi), rbx)),
    ("bts", |a| a.bts(qword_ptr(rsi), 3)),
    ("btr reg", |a| a.btr(dword_ptr(rsi), ecx)),
    ("failing cmpxchg", |a| a.cmpxchg(qword_ptr(rsi), rbx)),
    ("cmpxchg that swaps", |a| a.cmpxchg(byte_ptr(rsi), bl)),
    ("failing cmpxchg8b", |a| a.cmpxchg8b(qword_ptr(rsi))),
    ("failing cmpxchg16b", |a| a.cmpxchg16b(xmmword_ptr(rsi))),
    ("lock add", |a| a.lock().add(qword_ptr(rsi), rbx)),
    ("lock dec", |a| a.lock().dec(byte_ptr(rsi))),
    ("lock failing cmpxchg", |a| a.lock().cmpxchg(qword_ptr(rsi), rbx)),
    ("lock failing cmpxchg16b", |a| a.lock().cmpxchg16b(xmmword_ptr(rsi))),
    ("setnz", |a| a.setnz(byte_ptr(rsi))),
    ("pop", |a| a.pop(qword_ptr(rsi))),
];

/// The guest with one of them, all registers and the memory told apart.
fn modifier(insn: &Insn, flags: u64) -> (Guest, Vec<u8>) {
    let mut g = mapped(flags);
    let bytes: Vec<u8> = (0..32u8).map(|n| n ^ 0xa5).collect();
    g.poke(DATA, &bytes);
    for n in [RAX, RBX, RCX, RDX] {
        g.set_reg(n, (0x0101_0101_0101_0100 * (n as u64 + 1)) | 0xa5);
    }
    g.set_reg(RCX, 5);
    g.program(insn.1);
    (g, bytes)
}

#[test]
fn a_read_modify_write_of_a_read_only_page_is_a_write_fault_that_changes_nothing() {
    for insn in MODIFY {
        for cached in [false, true] {
            let (mut g, bytes) = modifier(insn, P);
            if cached {
                // A read before makes the page known.
                let at = g.rip();
                g.load(CODE + 0x100, |a| {
                    a.mov(r8, qword_ptr(rsi))?;
                    a.jmp(at)
                });
                g.cpu().rip = CODE + 0x100;
            }
            let (regs, flags) = (g.cpu().regs[..8].to_vec(), g.rflags());
            let e = g.expect_page_fault(VA, pf::P | pf::W);
            assert_eq!(e.rsp, STACK, "{}", insn.0);
            g.set_reg(RSP, STACK);
            assert_eq!(g.cpu().regs[..8], regs[..], "{}", insn.0);
            assert_eq!(e.rflags & 0x8d5, flags & 0x8d5, "{}", insn.0);
            assert_eq!(g.peek(DATA, 32), bytes, "{}", insn.0);
        }
    }
}

#[test]
fn a_read_modify_write_of_an_absent_page_is_a_write_fault() {
    for insn in MODIFY {
        let (mut g, _) = modifier(insn, 0);
        g.expect_page_fault(VA, pf::W);
    }
}

#[test]
fn a_failing_cmpxchg_writes_and_so_makes_the_page_dirty() {
    for insn in MODIFY {
        let (mut g, bytes) = modifier(insn, P | W);
        assert_eq!(g.step(), trapgate_engine::Exit::Budget, "{}", insn.0);
        assert_eq!(g.get::<u64>(g.pte(VA)), DATA | P | W | ACCESSED | DIRTY, "{}", insn.0);
        if insn.0.contains("failing") {
            assert_eq!(g.peek(DATA, 32), bytes, "{}", insn.0);
        }
    }
}

/// Stores that lie across the end of VA's page when RSI is 4 below it (RSP too, plus 8, for those that push).
const STORES: &[Insn] = &[
    ("mov", |a| a.mov(qword_ptr(rsi), rbx)),
    ("movups", |a| a.movups(xmmword_ptr(rsi), xmm0)),
    ("movq", |a| a.movq(qword_ptr(rsi), xmm0)),
    ("add", |a| a.add(qword_ptr(rsi), rbx)),
    ("lock xadd", |a| a.lock().xadd(qword_ptr(rsi), rbx)),
    ("xchg", |a| a.xchg(qword_ptr(rsi), rbx)),
    ("stosq", |a| a.stosq()),
    ("push", |a| a.push(rbx)),
    ("call", |a| a.call(rbx)),
    ("fst", |a| a.fstp(qword_ptr(rsi))),
    ("enter", |a| a.enter(0, 0)),
];

fn crossing(insn: &Insn, second: u64) -> Guest {
    let mut g = mapped(P | W);
    g.map(VA + 0x1000, DATA + 0x3000, second);
    g.poke(DATA + 0xff0, &[0x11; 16]);
    g.poke(DATA + 0x3000, &[0x22; 16]);
    g.set_reg(RSI, VA + 0xffc);
    g.set_reg(RDI, VA + 0xffc);
    if matches!(insn.0, "push" | "call" | "enter") {
        g.set_reg(RSP, VA + 0x1004);
    }
    g.set_reg(RBX, CODE);
    g.program(|a| {
        if insn.0 == "fst" {
            a.fninit()?;
            a.fld1()?;
        }
        (insn.1)(a)?;
        a.hlt()
    });
    // The handler needs a stack of its own.
    g.change_gate(14, |gate| gate.ist = 1);
    g
}

#[test]
fn a_store_across_pages_writes_nothing_if_the_second_is_absent_or_read_only() {
    for insn in STORES {
        for (second, error) in [(0, pf::W), (P, pf::P | pf::W)] {
            let mut g = crossing(insn, second);
            let before = (g.reg(RSP), g.reg(RDI), g.reg(RBX));
            let e = g.expect_page_fault(VA + 0x1000, error);
            assert_eq!((e.rsp, g.reg(RDI), g.reg(RBX)), before, "{}", insn.0);
            assert_eq!(g.peek(DATA + 0xff0, 16), [0x11; 16], "{}", insn.0);
            assert_eq!(g.peek(DATA + 0x3000, 16), [0x22; 16], "{}", insn.0);
        }
    }
}

#[test]
fn a_store_across_pages_goes_on_after_the_fault_is_mended() {
    for insn in &STORES[..3] {
        let mut g = crossing(insn, 0);
        g.set_reg(RBX, 0x8877_6655_4433_2211);
        g.program(|a| {
            a.movq(xmm0, rbx)?;
            a.punpcklqdq(xmm0, xmm0)?;
            (insn.1)(a)?;
            a.hlt()
        });
        g.expect_page_fault(VA + 0x1000, pf::W);
        g.put(g.pte(VA + 0x1000), (DATA + 0x3000) | P | W);
        g.expect_halt();
        assert_eq!(g.get::<u32>(DATA + 0xffc), 0x4433_2211, "{}", insn.0);
        assert_eq!(g.get::<u32>(DATA + 0x3000), 0x8877_6655, "{}", insn.0);
        assert_eq!(g.get::<u64>(g.pte(VA + 0x1000)) & DIRTY, DIRTY);
    }
}

#[test]
fn an_access_across_pages_names_the_byte_that_faults() {
    let mut g = mapped(P | W);
    g.map(VA + 0x1000, 0, 0);
    g.set_reg(RSI, VA + 0xffd);
    g.program(|a| a.mov(eax, dword_ptr(rsi)));
    g.expect_page_fault(VA + 0x1000, 0);

    let mut g = mapped(0);
    g.map(VA + 0x1000, 0, 0);
    g.set_reg(RSI, VA + 0xffd);
    g.program(|a| a.mov(dword_ptr(rsi), eax));
    g.expect_page_fault(VA + 0xffd, pf::W);
}

#[test]
fn an_access_that_is_not_canonical_is_gp_or_ss() {
    for (address, stack, vector) in [
        (0x8000_0000_0000, false, 13),
        (0x7fff_ffff_fffc, false, 13),
        (0xffff_7fff_ffff_ffff, false, 13),
        (0x8000_0000_0000, true, 12),
        (0xffff_7fff_ffff_fff0, true, 12),
    ] {
        let mut g = Guest::long();
        // The page below the hole is there, so that only the canonical check can fail.
        g.map(0x7fff_ffff_f000, DATA, P | W);
        g.set_reg(RSI, address);
        g.set_reg(RBP, address);
        g.program(|a| if stack { a.mov(rax, qword_ptr(rbp)) } else { a.mov(rax, qword_ptr(rsi)) });
        assert_eq!(g.expect(vector).error, Some(0), "{address:#x}");
    }
}

#[test]
fn tables_in_device_memory_read_as_ones_and_fault_as_reserved() {
    let mut g = mapped(P | W);
    g.put(g.entry_at(VA, 2), DEVICE | P | W);
    g.program(|a| a.mov(rax, qword_ptr(rsi)));
    g.expect_page_fault(VA, pf::P | pf::RSVD);
    assert!(g.board().mmio.is_empty(), "the walker does not touch devices");
}

#[test]
fn a_root_outside_memory_shuts_the_processor_down() {
    for root in [DEVICE, 0xff_ffff_f000, RAM + 0x100_0000] {
        let mut g = Guest::long();
        g.program(|a| {
            a.mov(rax, root)?;
            a.mov(cr3, rax)?;
            a.hlt()
        });
        assert!(matches!(g.go(), Stop::Exit(trapgate_engine::Exit::TripleFault { vector: 14, .. })));
    }
}

#[test]
fn tables_in_rom_translate_but_keep_their_flags() {
    let mut g = mapped(P | W);
    g.put(ROM, DATA | P | W);
    g.put(g.entry_at(VA, 2), ROM | P | W);
    g.set_reg(RAX, 0x5a);
    g.program(|a| {
        a.mov(qword_ptr(rsi), rax)?;
        a.mov(rbx, qword_ptr(rsi))?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.reg(RBX), g.get::<u64>(ROM)), (0x5a, DATA | P | W));
}

#[test]
fn writes_to_rom_are_dropped() {
    let mut g = Guest::long();
    g.put(ROM, 0x1234u64);
    g.set_reg(RSI, ROM);
    g.program(|a| {
        a.mov(dword_ptr(rsi), 7)?;
        a.lock().inc(qword_ptr(rsi))?;
        a.mov(rdi, rsi)?;
        a.mov(ecx, 8)?;
        a.rep().stosb()?;
        a.mov(rax, qword_ptr(rsi))?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.reg(RAX), g.get::<u64>(ROM)), (0x1234, 0x1234));
}

#[test]
fn device_memory_is_read_and_written_once_each_with_its_own_count() {
    let mut g = mapped(P | W);
    g.map(VA, DEVICE, P | W);
    g.board().registers.insert(DEVICE + 8, 0x1234_5678);
    g.program(|a| {
        a.nop()?;
        a.mov(eax, dword_ptr(rsi + 8))?;
        a.mov(word_ptr(rsi + 2), ax)?;
        a.inc(byte_ptr(rsi + 8))?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!(g.reg(RAX), 0x1234_5678);
    let seen: Vec<_> = g.board().mmio.iter().map(|m| (m.count, m.at - DEVICE, m.size, m.written)).collect();
    assert_eq!(seen, [(1, 8, 4, None), (2, 2, 2, Some(0x5678)), (3, 8, 1, None), (3, 8, 1, Some(0x79))]);
}

#[test]
fn a_push_across_two_pages_reaches_both() {
    // The page before the stack's is another one than the one before it in memory.
    let (low, high) = (DATA, DATA + 0x1000);
    let mut g = Guest::long();
    g.map(low, DATA + 0x8000, P | W);
    g.map(high, DATA + 0x3000, P | W);
    g.program(|a| {
        a.mov(rsp, high + 0x10)?;
        a.push(rax)?;
        a.mov(rsp, high + 3)?;
        a.mov(rax, 0x8877_6655_4433_2211u64)?;
        a.push(rax)?;
        a.pop(rcx)?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!(g.reg(RCX), 0x8877_6655_4433_2211);
    assert_eq!(g.peek(DATA + 0x8ff8, 8), [0, 0, 0, 0x11, 0x22, 0x33, 0x44, 0x55]);
    assert_eq!(g.peek(DATA + 0x3000, 4), [0x66, 0x77, 0x88, 0]);
    assert_eq!(g.peek(DATA + 0x2ff8, 8), [0; 8]);
}
