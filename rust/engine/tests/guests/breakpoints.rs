//! The debug registers: breakpoints on code, data and ports, and access to the registers themselves (SDM vol. 3, 19.2 and
//! 19.3).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trapgate_x86::regs::{cr4, dr6, dr7, pf, rflags};

use crate::common::*;
use crate::steps::{step, stepped};

// ---- code breakpoints ----

fn arm(g: &mut Guest, n: usize, address: u64, kind: u64, len: u64) {
    g.cpu().dr[n] = address;
    let cpu = g.cpu();
    cpu.dr7 = cpu.dr7 | dr7::RESET | 1 << (2 * n) | kind << (16 + 4 * n) | len << (18 + 4 * n);
    cpu.flush_tlb();
}

#[test]
fn a_code_breakpoint_faults_before_its_instruction_and_rf_passes_it() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        a.nop()?;
        a.inc(eax)?;
        a.inc(eax)?;
        a.hlt()
    });
    arm(&mut g, 1, code.at(2), 0, 0);
    let e = g.expect(1);
    assert_eq!((e.rip, e.count, g.reg(RAX), g.cpu().dr6), (code.at(2), 2, 1, dr6::RESET | dr6::B1));
    assert_eq!(e.rflags & rflags::RF, 0, "pushed clear for this one fault");
    // Without RF it strikes again.
    let e = g.expect(1);
    assert_eq!((e.rip, g.reg(RAX)), (code.at(2), 1));
    g.return_flags(&e, e.rflags | rflags::RF);
    g.expect_halt();
    assert_eq!((g.reg(RAX), g.rflags() & rflags::RF), (2, 0));
}

#[test]
fn rf_lasts_for_one_instruction_even_if_that_is_a_jump_to_itself() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 3)?;
        a.set_label(&mut again)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    arm(&mut g, 0, code.at(1), 0, 0);
    for left in [3, 2, 1] {
        let e = g.expect(1);
        assert_eq!((e.rip, g.reg(RCX)), (code.at(1), left));
        g.return_flags(&e, e.rflags | rflags::RF);
    }
    g.expect_halt();
}

#[test]
fn a_code_breakpoint_strikes_at_the_first_byte_only_and_only_if_enabled() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        a.mov(eax, 1)?;
        a.mov(ebx, 2)?;
        a.hlt()
    });
    arm(&mut g, 0, code.at(1) + 1, 0, 0);
    g.cpu().dr[1] = code.at(1);
    g.expect_halt();
    assert_eq!(g.cpu().dr6, dr6::RESET);
}

#[test]
fn a_code_breakpoint_is_at_a_linear_address() {
    let mut g = Guest::protected();
    let selector = g.free_descriptor(0, descriptor(0x1000, 0xfffff, 0x9b, 0xc));
    g.load_bits(32, CODE, CODE - 0x1000, |a| {
        a.nop()?;
        a.nop()
    });
    g.set_ring(selector, DATA0, STACK);
    g.cpu().rip = CODE - 0x1000;
    arm(&mut g, 2, CODE + 1, 0, 0);
    let e = g.expect(1);
    assert_eq!((e.rip, g.cpu().dr6), (CODE - 0x1000 + 1, dr6::RESET | dr6::B2));
}

#[test]
fn a_code_breakpoint_on_a_repetition_strikes_once_even_if_it_is_interrupted() {
    let mut g = Guest::long();
    g.flag(rflags::IF);
    let code = g.program(|a| {
        a.mov(ecx, 6)?;
        a.mov(edi, DATA as u32)?;
        a.rep().stosb()?;
        a.hlt()
    });
    arm(&mut g, 0, code.at(2), 0, 0);
    let e = g.expect(1);
    assert_eq!(g.reg(RCX), 6);
    g.return_flags(&e, e.rflags | rflags::RF);
    g.at_count(g.count() + 1 + 2, Line::Vector(0x41));
    let e = g.expect(0x41);
    assert_eq!((e.rip, g.reg(RCX)), (code.at(2), 4));
    g.expect_halt();
}

#[test]
fn an_exception_pushes_rf_so_that_its_instruction_is_not_broken_on_again() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        a.mov(rax, qword_ptr(0x5000_0000))?;
        a.hlt()
    });
    g.map(0x5000_0000, 0, 0);
    arm(&mut g, 0, code.start, 0, 0);
    let e = g.expect(1);
    g.return_flags(&e, e.rflags | rflags::RF);
    g.expect_page_fault(0x5000_0000, 0);
    g.put(g.pte(0x5000_0000), DATA | P);
    g.expect_halt();
}

#[test]
fn rf_is_not_in_what_pushf_stores_and_popf_clears_it() {
    let mut g = Guest::long();
    let frame = [CODE + 0x100, CODE64.into(), rflags::FIXED | rflags::RF, STACK, DATA0.into()];
    for (n, word) in frame.into_iter().enumerate() {
        g.put(STACK - 40 + 8 * n as u64, word);
    }
    g.set_reg(RSP, STACK - 40);
    g.load(CODE + 0x100, |a| {
        a.pushfq()?;
        a.hlt()
    });
    g.program(|a| a.iretq());
    g.expect_halt();
    assert_eq!(g.get::<u64>(STACK - 8), rflags::FIXED);
}

// ---- data breakpoints ----

/// Watches `len` (0, 1, 3, 2 for 1, 2, 4, 8 bytes) at `address` and runs one access; whether it trapped.
fn strikes(
    address: u64,
    kind: u64,
    len: u64,
    access: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> bool {
    let mut g = Guest::long();
    let code = g.program(|a| {
        access(a)?;
        a.nop()?;
        a.hlt()
    });
    arm(&mut g, 3, address, kind, len);
    match g.go() {
        Stop::Halted => false,
        Stop::Event(e) if e.vector == 1 => {
            assert_eq!((e.rip, g.cpu().dr6), (code.at(1), dr6::RESET | dr6::B3));
            g.expect_halt();
            true
        }
        other => panic!("{other:x?}"),
    }
}

#[test]
fn data_breakpoints_cover_their_length_wherever_an_access_overlaps_it() {
    for (len, bytes) in [(0u64, 1u64), (1, 2), (3, 4), (2, 8)] {
        // The address is rounded down to the length.
        for within in [0, bytes - 1] {
            for start in 0..24u64 {
                for size in [1u64, 2, 4, 8, 16] {
                    let watched = DATA + 8 + within;
                    let at = DATA + start;
                    let overlap = at < DATA + 8 + bytes && DATA + 8 < at + size;
                    let hit = strikes(watched, 1, len, |a| match size {
                        1 => a.mov(byte_ptr(at), al),
                        2 => a.mov(word_ptr(at), ax),
                        4 => a.mov(dword_ptr(at), eax),
                        8 => a.mov(qword_ptr(at), rax),
                        _ => a.movups(xmmword_ptr(at), xmm0),
                    });
                    assert_eq!(hit, overlap, "{bytes} bytes, {within} inside, {size} at {start}");
                }
            }
        }
    }
}

#[test]
fn reads_strike_read_write_breakpoints_only() {
    let reads: &[Insn] = &[
        |a| a.mov(eax, dword_ptr(DATA)),
        |a| a.cmp(byte_ptr(DATA + 3), 1),
        |a| a.push(qword_ptr(DATA)),
        |a| a.movups(xmm0, xmmword_ptr(DATA - 13)),
        |a| a.bt(dword_ptr(DATA), 3),
        |a| {
            a.lea(rsi, qword_ptr(DATA))?;
            a.db(&[0xac])
        },
    ];
    let writes: &[Insn] = &[
        |a| a.mov(dword_ptr(DATA), eax),
        |a| a.inc(byte_ptr(DATA + 3)),
        |a| a.lock().cmpxchg(dword_ptr(DATA), ecx),
        |a| a.xchg(dword_ptr(DATA), ecx),
        |a| a.movups(xmmword_ptr(DATA - 13), xmm0),
    ];
    for (n, insn) in reads.iter().enumerate() {
        // One with two instructions traps behind the second.
        if n < 5 {
            assert!(strikes(DATA, 3, 3, insn), "read {n}");
        }
        assert!(!strikes(DATA, 1, 3, insn), "read {n}");
    }
    for (n, insn) in writes.iter().enumerate() {
        assert!(strikes(DATA, 3, 3, insn), "write {n}");
        assert!(strikes(DATA, 1, 3, insn), "write {n}");
    }
    assert!(!strikes(DATA, 3, 3, |a| a.mov(eax, dword_ptr(DATA + 4))));
    assert!(!strikes(DATA, 3, 3, |a| a.lea(rax, qword_ptr(DATA))));
}

#[test]
fn stack_accesses_strike() {
    for insn in
        [(|a: &mut CodeAssembler| a.push(rax)) as Insn, |a| a.pushfq(), |a| a.enter(0, 0), |a| a.push(5)]
    {
        assert!(strikes(STACK - 8, 1, 2, insn));
    }
    assert!(strikes(STACK, 3, 2, |a| a.pop(rax)));
}

#[test]
fn a_breakpoint_across_a_page_boundary_is_met_from_both_sides() {
    for at in [DATA + 0xffc, DATA + 0xffe, DATA + 0xfff] {
        assert!(strikes(DATA + 0x1000, 1, 3, |a| a.mov(qword_ptr(at), rax)), "{at:#x}");
        assert!(strikes(DATA + 0xff8, 1, 2, |a| a.mov(qword_ptr(at), rax)), "{at:#x}");
    }
}

#[test]
fn several_breakpoints_met_at_once_are_all_in_dr6() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        a.mov(rax, qword_ptr(DATA))?;
        a.mov(qword_ptr(DATA), rax)?;
        a.hlt()
    });
    arm(&mut g, 0, DATA, 1, 0);
    arm(&mut g, 1, DATA + 4, 3, 3);
    arm(&mut g, 2, DATA + 2, 1, 1);
    arm(&mut g, 3, DATA + 8, 1, 0);
    assert_eq!((g.expect(1).rip, g.cpu().dr6), (code.at(1), dr6::RESET | dr6::B1));
    let e = g.expect(1);
    assert_eq!((e.rip, g.cpu().dr6), (code.at(2), dr6::RESET | dr6::B0 | dr6::B1 | dr6::B2));
}

#[test]
fn a_data_breakpoint_and_a_single_step_make_one_trap() {
    let (mut g, code) = stepped(|a| {
        a.mov(dword_ptr(DATA), eax)?;
        a.hlt()
    });
    arm(&mut g, 0, DATA, 1, 0);
    let e = g.expect(1);
    assert_eq!((e.rip, g.cpu().dr6), (code.at(1), dr6::RESET | dr6::B0 | dr6::BS));
}

#[test]
fn a_data_breakpoint_in_a_repetition_traps_after_its_iteration() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        a.mov(ecx, 100)?;
        a.mov(edi, DATA as u32)?;
        a.rep().stosb()?;
        a.hlt()
    });
    arm(&mut g, 0, DATA + 40, 1, 1);
    for left in [59, 58] {
        let e = g.expect(1);
        assert_eq!((e.rip, g.reg(RCX)), (code.at(2), left));
        assert_ne!(e.rflags & rflags::RF, 0);
    }
    g.expect_halt();
}

#[test]
fn an_instruction_that_faults_after_a_data_access_does_not_trap() {
    let mut g = Guest::long();
    g.map(0x5000_0000, 0, 0);
    g.set_reg(RSP, 0x5000_0008);
    g.change_gate(14, |gate| gate.ist = 1);
    g.change_gate(1, |gate| gate.ist = 1);
    let code = g.program(|a| {
        a.push(qword_ptr(DATA))?;
        a.hlt()
    });
    arm(&mut g, 0, DATA, 3, 3);
    g.expect_page_fault(0x5000_0000, pf::W);
    g.put(g.pte(0x5000_0000), (DATA + 0x1000) | P | W);
    assert_eq!(g.expect(1).rip, code.at(1));
    g.expect_halt();
}

#[test]
fn fetches_do_not_strike_data_breakpoints() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        a.nop()?;
        a.hlt()
    });
    arm(&mut g, 0, code.start, 3, 3);
    g.expect_halt();
}

// ---- ports ----

#[test]
fn ports_strike_with_de_after_the_instruction() {
    for (de, port, size, hit) in [
        (true, 0x60u16, 1, true),
        (true, 0x61, 1, true),
        (true, 0x62, 1, false),
        (true, 0x5e, 4, true),
        (true, 0x5c, 4, false),
        (false, 0x60, 1, false),
    ] {
        for out in [false, true] {
            let mut g = Guest::long();
            g.set_reg(RDX, port.into());
            g.cpu().cr4 |= if de { cr4::DE } else { 0 };
            let code = g.program(|a| {
                match (out, size) {
                    (false, 1) => a.in_(al, dx)?,
                    (false, _) => a.in_(eax, dx)?,
                    (true, 1) => a.out(dx, al)?,
                    (true, _) => a.out(dx, eax)?,
                }
                a.hlt()
            });
            arm(&mut g, 0, 0x60, 2, 1);
            match g.go() {
                Stop::Event(e) => {
                    assert_eq!((e.vector, e.rip), (1, code.at(1)));
                    assert!(hit, "{port:#x} of {size}, DE {de}");
                    assert_eq!(g.cpu().dr6, dr6::RESET | dr6::B0);
                }
                other => assert!(!hit && other == Stop::Halted, "{port:#x} of {size}, DE {de}"),
            }
            assert_eq!(g.board().ports.len(), 1);
        }
    }
}

#[test]
fn repeated_output_strikes_after_each_iteration() {
    let mut g = Guest::long();
    g.cpu().cr4 |= cr4::DE;
    g.set_reg(RDX, 0x60);
    g.set_reg(RSI, DATA);
    g.set_reg(RCX, 3);
    let code = g.program(|a| {
        a.rep().outsb()?;
        a.hlt()
    });
    arm(&mut g, 0, 0x60, 2, 0);
    for (left, at) in [(2, 0), (1, 0), (0, 1)] {
        let e = g.expect(1);
        assert_eq!((e.rip, g.reg(RCX)), (code.at(at), left));
    }
    g.expect_halt();
}

// ---- the registers themselves ----

#[test]
fn general_detect_faults_before_any_access_and_is_off_in_the_handler() {
    let table: &[Insn] =
        &[|a| a.mov(rax, dr0), |a| a.mov(dr3, rax), |a| a.mov(rax, dr6), |a| a.mov(dr7, rax)];
    for insn in table {
        let mut g = Guest::long();
        g.cpu().dr7 |= dr7::GD;
        g.set_reg(RAX, 0x400);
        let code = g.program(|a| {
            insn(a)?;
            a.hlt()
        });
        let e = g.expect(1);
        assert_eq!((e.rip, e.count, e.rflags & rflags::RF), (code.start, 0, rflags::RF));
        assert_eq!((g.cpu().dr6, g.cpu().dr7), (dr6::RESET | dr6::BD, dr7::RESET));
        // Off now, the instruction goes through.
        g.expect_halt();
    }
}

#[test]
fn dr4_and_dr5_are_aliases_without_de_and_undefined_with_it() {
    let mut g = Guest::long();
    g.program(|a| {
        a.mov(eax, 0xffff_0ff1u32)?;
        a.mov(dr4, rax)?;
        a.mov(rbx, dr6)?;
        a.mov(rcx, dr5)?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.reg(RBX), g.reg(RCX)), (0xffff_0ff1, dr7::RESET));
    for insn in [(|a: &mut CodeAssembler| a.mov(dr4, rax)) as Insn, |a| a.mov(rax, dr5)] {
        let mut g = Guest::long();
        g.cpu().cr4 |= cr4::DE;
        g.program(insn);
        g.expect(6);
    }
}

#[test]
fn fixed_bits_of_dr6_and_dr7_stay_and_upper_halves_are_gp() {
    let mut g = Guest::long();
    g.program(|a| {
        a.xor(eax, eax)?;
        a.mov(dr6, rax)?;
        a.mov(rbx, dr6)?;
        a.mov(dr7, rax)?;
        a.mov(rcx, dr7)?;
        a.mov(eax, 0xffff_ffffu32)?;
        a.mov(dr6, rax)?;
        a.mov(rsi, dr6)?;
        a.mov(rax, 0x1_0000_0000u64)?;
        a.mov(dr3, rax)?;
        a.mov(rdi, dr3)?;
        a.mov(dr6, rax)
    });
    let e = g.expect(13);
    assert_eq!((e.error, e.count), (Some(0), 11));
    assert_eq!((g.reg(RBX), g.reg(RCX)), (dr6::RESET, dr7::RESET));
    assert_eq!((g.reg(RSI), g.reg(RDI)), (dr6::RESET | dr6::WRITABLE, 0x1_0000_0000));
    let mut g = Guest::long();
    g.set_reg(RAX, 0x8000_0000_0000_0000);
    g.program(|a| a.mov(dr7, rax));
    g.expect(13);
}

#[test]
fn dr6_bits_stay_until_software_clears_them() {
    let (mut g, _) = stepped(|a| {
        a.nop()?;
        a.int1()
    });
    step(&mut g);
    g.expect(1);
    assert_eq!(g.cpu().dr6, dr6::RESET | dr6::BS, "INT1 adds nothing and clears nothing");
}

#[test]
fn a_guest_that_sets_its_own_watchpoint_meets_it() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        a.mov(qword_ptr(DATA), rax)?;
        a.mov(eax, DATA as u32)?;
        a.mov(dr0, rax)?;
        a.mov(eax, 0xd_0401u32)?;
        a.mov(dr7, rax)?;
        a.mov(qword_ptr(DATA), rax)?;
        a.xor(eax, eax)?;
        a.mov(dr7, rax)?;
        a.mov(qword_ptr(DATA), rax)?;
        a.hlt()
    });
    assert_eq!(g.expect(1).rip, code.at(6));
    g.expect_halt();
}

// ---- the ends of the address space ----

#[test]
fn a_data_breakpoint_in_the_last_page_strikes() {
    const LAST: u64 = 0xffff_ffff_ffff_f000;
    // Breakpoint, its length's code, access.
    let cases = [
        (LAST, 2, LAST, true),
        (LAST + 0xff8, 2, LAST + 0xfff - 3, true),
        (LAST + 0xfff, 0, LAST + 0xffc, true),
        (LAST + 0xff8, 2, LAST + 0xff4, false),
        (LAST + 0xffe, 1, LAST + 0xffc, true),
        // An access that goes on at 0.
        (LAST + 0xfff, 0, LAST + 0xffe, true),
        (0, 0, LAST + 0xffe, true),
        (2, 0, LAST + 0xffe, false),
    ];
    for (at, len, access, hit) in cases {
        let mut g = Guest::long();
        g.map(LAST, DATA, P | W);
        let code = g.program(|a| {
            a.mov(dword_ptr(rsi), eax)?;
            a.mov(dword_ptr(rsi), eax)?;
            a.hlt()
        });
        g.set_reg(RSI, access);
        arm(&mut g, 0, at, 1, len);
        if hit {
            for n in 1..=2 {
                assert_eq!(g.expect(1).rip, code.at(n), "{at:#x} {access:#x}");
            }
        }
        g.expect_halt();
    }
}

#[test]
fn a_data_breakpoint_in_the_last_page_of_32_bit_memory_strikes() {
    // Nothing is there, and nobody minds.
    let mut g = Guest::protected();
    let code = g.program(|a| {
        a.mov(dword_ptr(esi), eax)?;
        a.hlt()
    });
    g.set_reg(RSI, 0xffff_fffc);
    arm(&mut g, 0, 0xffff_ffff, 1, 0);
    assert_eq!(g.expect(1).rip, code.at(1));
    g.expect_halt();
}
