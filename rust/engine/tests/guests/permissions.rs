//! What hangs on bits of control registers: FSGSBASE, RDTSC, ports, alignment, SMAP, UMIP (SDM vol. 3, 2.5 and 4.6; vol. 1,
//! 19.5).

use iced_x86::code_asm::*;
use trapgate_x86::features::Features;
use trapgate_x86::model::X86_64_V2;
use trapgate_x86::regs::{cr0, cr4, pf, rflags};

use crate::common::*;

// ---- permissions ----

#[test]
fn fsgsbase_needs_its_bit_and_64_bit_mode() {
    let mut g = Guest::long();
    g.program(|a| a.rdfsbase(rax));
    g.expect(6);
    let mut g = Guest::long();
    g.cpu().cr4 |= cr4::FSGSBASE;
    g.set_reg(RAX, 0xffff_8000_0000_1234);
    g.set_reg(RBX, 0xffff_ffff_8765_4321);
    g.user_program(|a| {
        a.wrfsbase(rax)?;
        a.wrgsbase(ebx)?;
        a.rdfsbase(rcx)?;
        a.rdgsbase(rdx)?;
        a.rdfsbase(esi)?;
        a.ud2()
    });
    g.expect(6);
    assert_eq!([RCX, RDX, RSI].map(|n| g.reg(n)), [0xffff_8000_0000_1234, 0x8765_4321, 0x1234]);
    let mut g = Guest::long();
    g.cpu().cr4 |= cr4::FSGSBASE;
    g.set_reg(RAX, 0x8000_0000_0000);
    assert!(refused(&mut g, |a| a.wrgsbase(rax)));
    let mut g = Guest::long();
    g.cpu().cr4 |= cr4::FSGSBASE;
    g.set_ring(CODE32, DATA0, STACK);
    g.poke(CODE, &[0xf3, 0x0f, 0xae, 0xc0]);
    g.cpu().rip = CODE;
    g.expect(6);
}

#[test]
fn rdtsc_is_for_all_until_tsd() {
    for (tsd, user, gp) in [(false, true, false), (true, true, true), (true, false, false)] {
        for insn in [(|a: &mut CodeAssembler| a.rdtsc()) as Insn, |a| a.rdtscp()] {
            let mut g = Guest::long();
            g.cpu().cr4 |= if tsd { cr4::TSD } else { 0 };
            if user {
                g.enter_user(USER_CODE);
            }
            g.program(|a| {
                insn(a)?;
                a.ud2()
            });
            g.expect(if gp { 13 } else { 6 });
        }
    }
}

#[test]
fn there_are_no_performance_counters_to_read() {
    let mut g = Guest::long();
    assert!(refused(&mut g, |a| a.rdpmc()));
    let mut g = Guest::long();
    g.cpu().cr4 |= cr4::PCE;
    g.user_program(|a| a.rdpmc());
    assert_eq!(g.expect(13).error, Some(0));
}

#[test]
fn ports_are_allowed_by_iopl_or_by_every_bit_of_the_bitmap() {
    // IOPL, bitmap offset, task limit, clear bits (port numbers), port, size, allowed.
    type Case = (u64, u16, u32, &'static [u16], u16, u64, bool);
    let table: [Case; 13] = [
        (3, 0x68, 0x67, &[], 0x60, 4, true),
        (2, 0x68, 0x67, &[], 0x60, 1, false),
        (0, 0x68, 0x2068, &[0x60], 0x60, 1, true),
        (0, 0x68, 0x2068, &[0x60], 0x61, 1, false),
        (0, 0x68, 0x2068, &[0x60], 0x60, 2, false),
        (0, 0x68, 0x2068, &[0x60, 0x61], 0x60, 2, true),
        // Across a byte of the map.
        (0, 0x68, 0x2068, &[0x66, 0x67, 0x68, 0x69], 0x66, 4, true),
        (0, 0x68, 0x2068, &[0x66, 0x67, 0x68], 0x66, 4, false),
        // The byte behind must lie inside the limit too.
        (0, 0x68, 0x68 + 0x0d, &[0x60], 0x60, 1, true),
        (0, 0x68, 0x68 + 0x0c, &[0x60], 0x60, 1, false),
        (0, 0x68, 0x66, &[0x60], 0x60, 1, false),
        (0, 0xffff, 0x2068, &[0x60], 0x60, 1, false),
        (0, 0x80, 0x2068, &[0x60], 0x60, 1, true),
    ];
    for (n, (iopl, map, limit, clear, port, size, allowed)) in table.into_iter().enumerate() {
        for out in [false, true] {
            let mut g = Guest::long();
            // A task with room for a whole map.
            let task = 0x30_0000;
            g.poke(task, &g.peek(TSS, 0x68));
            g.put::<u16>(task + 0x66, map);
            g.poke(task + 0x68, &[0xff; 0x2100]);
            for bit in clear {
                let at = task + u64::from(map) + u64::from(bit / 8);
                if map != 0xffff {
                    g.put::<u8>(at, g.get::<u8>(at) & !(1 << (bit % 8)));
                }
            }
            g.cpu().tr.base = task;
            g.cpu().tr.limit = limit;
            g.set_reg(RDX, port.into());
            g.user_program(|a| {
                match (out, size) {
                    (false, 1) => a.in_(al, dx)?,
                    (false, 2) => a.in_(ax, dx)?,
                    (false, _) => a.in_(eax, dx)?,
                    (true, 1) => a.out(dx, al)?,
                    (true, 2) => a.out(dx, ax)?,
                    (true, _) => a.out(dx, eax)?,
                }
                a.ud2()
            });
            g.flag(iopl << rflags::IOPL_SHIFT);
            let e = g.expect(if allowed { 6 } else { 13 });
            assert_eq!(e.count, u64::from(allowed), "case {n}");
            assert_eq!(g.board().ports.len(), usize::from(allowed), "case {n}");
        }
    }
}

/// Accesses of RSI, and the size to which they must be aligned.
const ACCESSES: [(Insn, u64); 12] = [
    (|a| a.mov(al, byte_ptr(rsi)), 1),
    (|a| a.mov(ax, word_ptr(rsi)), 2),
    (|a| a.mov(eax, dword_ptr(rsi)), 4),
    (|a| a.mov(rax, qword_ptr(rsi)), 8),
    (|a| a.mov(qword_ptr(rsi), rax), 8),
    (|a| a.add(dword_ptr(rsi), eax), 4),
    (|a| a.lock().add(dword_ptr(rsi), eax), 4),
    (|a| a.xchg(qword_ptr(rsi), rax), 8),
    (|a| a.cmp(word_ptr(rsi), 1), 2),
    (|a| a.lodsd(), 4),
    (|a| a.push(word_ptr(rsi)), 2),
    (|a| a.lock().cmpxchg8b(qword_ptr(rsi)), 8),
];

#[test]
fn alignment_is_checked_in_ring_3_with_am_and_ac_only() {
    for (am, ac, user) in [(true, true, true), (true, false, true), (false, true, true), (true, true, false)]
    {
        for (n, (access, size)) in ACCESSES.iter().enumerate() {
            for offset in 0..8 {
                let mut g = Guest::long();
                g.cpu().cr0 |= if am { cr0::AM } else { 0 };
                if user {
                    g.enter_user(USER_CODE);
                }
                g.set_reg(RSI, DATA + offset);
                let code = g.program(|a| {
                    // The page is known, by an access that is aligned, before it matters.
                    a.mov(r8, qword_ptr(DATA))?;
                    access(a)?;
                    a.ud2()
                });
                g.flag(if ac { rflags::AC } else { 0 });
                let fault = am && ac && user && offset % size != 0;
                let e = g.expect(if fault { 17 } else { 6 });
                assert_eq!(e.rip, code.at(if fault { 1 } else { 2 }), "access {n} at {offset}");
                if fault {
                    assert_eq!(e.error, Some(0));
                }
            }
        }
    }
}

#[test]
fn alignment_checks_begin_and_end_with_popf() {
    let mut g = Guest::long();
    g.cpu().cr0 |= cr0::AM;
    g.set_reg(RSI, DATA + 1);
    let code = g.user_program(|a| {
        a.mov(eax, dword_ptr(rsi))?;
        a.push(rflags::AC as i32 | 2)?;
        a.popfq()?;
        a.mov(eax, dword_ptr(rsi))?;
        a.push(2)?;
        a.popfq()?;
        a.mov(eax, dword_ptr(rsi))?;
        a.ud2()
    });
    let e = g.expect(17);
    assert_eq!(e.rip, code.at(3));
    g.return_to(&e, code.at(4));
    assert_eq!(g.expect(6).rip, code.at(7));
}

#[test]
fn smap_keeps_the_kernel_from_user_pages_unless_ac_is_set() {
    let mut model = X86_64_V2;
    model.features |= Features::SMAP;
    let mut g = Guest::with_model(model);
    g.program(|a| {
        a.mov(rax, cr4)?;
        a.or(rax, cr4::SMAP as i32)?;
        a.mov(cr4, rax)?;
        a.stac()?;
        a.mov(eax, dword_ptr(DATA))?;
        a.mov(dword_ptr(DATA), eax)?;
        a.clac()?;
        a.mov(eax, dword_ptr(DATA))?;
        a.hlt()
    });
    // The page that runs is the kernel's own.
    g.map(CODE, CODE, P | W);
    let e = g.expect_page_fault(DATA, pf::P);
    g.return_flags(&e, e.rflags | rflags::AC);
    g.expect_halt();
    // The processor's own accesses from ring 3 are not the user's: descriptors and the task stay readable.
    let mut g = Guest::with_model(model);
    g.cpu().cr4 |= cr4::SMAP;
    g.user_program(|a| a.int3());
    g.change_gate(3, |gate| gate.access |= 0x60);
    g.expect(3);
}

#[test]
fn umip_keeps_table_addresses_from_ring_3() {
    let mut model = X86_64_V2;
    model.features |= Features::UMIP;
    let table: [Insn; 5] =
        [|a| a.sgdt(ptr(DATA)), |a| a.sidt(ptr(DATA)), |a| a.sldt(eax), |a| a.str(eax), |a| a.smsw(eax)];
    for (n, insn) in table.into_iter().enumerate() {
        for user in [false, true] {
            let mut g = Guest::with_model(model);
            g.cpu().cr4 |= cr4::UMIP;
            if user {
                g.enter_user(USER_CODE);
            }
            g.program(|a| {
                insn(a)?;
                a.ud2()
            });
            g.expect(if user { 13 } else { 6 });
            assert_eq!(g.get::<u64>(DATA) != 0, !user && n < 2, "instruction {n}");
        }
    }
}

#[test]
fn smsw_and_lmsw_see_the_low_bits_and_pe_stays() {
    let mut g = Guest::long();
    g.program(|a| {
        a.mov(eax, 0xe)?;
        a.lmsw(ax)?;
        a.smsw(rbx)?;
        a.smsw(cx)?;
        a.clts()?;
        a.hlt()
    });
    g.set_reg(RCX, 0xffff_ffff_ffff_ffff);
    g.expect_halt();
    assert_eq!(g.reg(RBX) & 0xf, 0xf, "PE stays set");
    assert_eq!(g.reg(RBX) & cr0::PG, cr0::PG);
    assert_eq!(g.reg(RCX) >> 16, 0xffff_ffff_ffff);
    assert_eq!(g.cpu().cr0 & 0xf, 7, "CLTS");
}
