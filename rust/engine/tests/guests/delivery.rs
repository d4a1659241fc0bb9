//! Delivery of exceptions and interrupts through the 64-bit IDT (SDM vol. 3, 6.12 to 6.15): frames and stacks, error codes,
//! faults on the way, double and triple faults, NMI.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trapgate_engine::Exit;
use trapgate_x86::regs::{pf, rflags};

use crate::common::*;

const ABSENT: u64 = 0x5000_0000;

fn int80(g: &mut Guest) -> Code {
    g.program(|a| {
        a.nop()?;
        a.int(0x80)?;
        a.hlt()
    })
}

#[test]
fn the_frame_lies_on_an_aligned_stack_with_rf_set_for_a_fault() {
    for below in 0..17 {
        let mut g = Guest::long();
        g.set_reg(RSP, STACK - below);
        g.flag(rflags::CF | rflags::IF | rflags::DF);
        g.program(|a| a.ud2());
        let e = g.expect(6);
        assert_eq!((e.frame, e.rsp), (((STACK - below) & !15) - 40, STACK - below));
        let before = rflags::FIXED | rflags::CF | rflags::IF | rflags::DF;
        assert_eq!(e.rflags, before | rflags::RF);
        assert_eq!(g.rflags(), before & !rflags::IF);
    }
}

#[test]
fn an_error_code_lies_below_the_same_frame() {
    let mut g = Guest::long();
    g.set_reg(RSP, STACK - 8);
    g.program(|a| a.mov(rax, qword_ptr(ABSENT)));
    let e = g.expect_page_fault(ABSENT, 0);
    assert_eq!((e.frame, e.rsp), (STACK - 16 - 48, STACK - 8));
}

#[test]
fn trap_gates_leave_interrupts_on_and_both_clear_tf_and_nt() {
    for (access, kept) in [(0x8e, 0), (0x8f, rflags::IF)] {
        let mut g = Guest::long();
        g.change_gate(0x80, |gate| gate.access = access);
        g.flag(rflags::IF | rflags::NT | rflags::AC | rflags::ID);
        int80(&mut g);
        let e = g.expect(0x80);
        assert_eq!(e.rflags & (rflags::IF | rflags::NT), rflags::IF | rflags::NT);
        assert_eq!(g.rflags(), rflags::FIXED | rflags::AC | rflags::ID | kept);
    }
}

#[test]
fn from_ring_3_the_stack_is_rsp0_and_ss_is_null() {
    let mut g = Guest::long();
    let code = g.user_program(|a| a.ud2());
    let e = g.expect(6);
    assert_eq!((e.rip, e.cs, e.ss, e.rsp), (code.start, USER64, DATA3, USER_STACK));
    assert_eq!((e.frame, e.cpl), (STACK0 - 40, 0));
    assert_eq!((g.cpu().seg[1].selector, g.cpu().seg[2].selector), (CODE64, 0));
}

#[test]
fn an_ist_entry_is_used_at_any_privilege_and_leaves_ss_at_the_same_one() {
    let mut g = Guest::long();
    g.change_gate(6, |gate| gate.ist = 1);
    g.program(|a| a.ud2());
    assert_eq!(g.expect(6).frame, IST1 - 40);
    assert_eq!(g.cpu().seg[2].selector, DATA0);

    let mut g = Guest::long();
    g.change_gate(6, |gate| gate.ist = 2);
    g.user_program(|a| a.ud2());
    assert_eq!(g.expect(6).frame, IST2 - 40);
    assert_eq!(g.cpu().seg[2].selector, 0);
}

#[test]
fn int_n_returns_behind_itself_and_counts_one() {
    let mut g = Guest::long();
    let code = int80(&mut g);
    let e = g.expect(0x80);
    assert_eq!((e.rip, e.count, e.rflags & rflags::RF), (code.at(2), 2, 0));
    g.expect_halt();
}

#[test]
fn int_n_from_ring_3_needs_a_gate_that_allows_it() {
    for (dpl, vector) in [(0, 13), (2, 13), (3, 0x80)] {
        let mut g = Guest::long();
        g.change_gate(0x80, |gate| gate.access = 0x8e | dpl << 5);
        let code = g.user_program(|a| {
            a.nop()?;
            a.int(0x80)
        });
        let e = g.expect(vector);
        if vector == 13 {
            assert_eq!((e.error, e.rip, e.count), (Some(0x80 * 8 + 2), code.at(1), 1));
            assert_eq!(e.rflags & rflags::RF, rflags::RF);
        } else {
            assert_eq!((e.rip, e.count), (code.end, 2));
        }
    }
}

#[test]
fn int3_checks_the_gate_but_int1_does_not() {
    let mut g = Guest::long();
    let code = g.user_program(|a| a.int3());
    let e = g.expect(13);
    assert_eq!((e.error, e.rip), (Some(3 * 8 + 2), code.start));

    let mut g = Guest::long();
    let code = g.user_program(|a| a.int1());
    let e = g.expect(1);
    assert_eq!((e.rip, e.rflags & rflags::RF), (code.end, 0));
}

/// What is wrong with the gate of a vector, and what it gives: vector and error code without EXT.
type Defect = (fn(&mut Guest, u8), u8, fn(u8) -> u64);

const DEFECTS: &[Defect] = &[
    (|g, v| g.change_gate(v, |gate| gate.access &= 0x7f), 11, |v| u64::from(v) * 8 + 2),
    (|g, v| g.change_gate(v, |gate| gate.access = 0x8c), 13, |v| u64::from(v) * 8 + 2),
    (|g, v| g.change_gate(v, |gate| gate.access = 0x85), 13, |v| u64::from(v) * 8 + 2),
    (|g, v| g.change_gate(v, |gate| gate.access = 0x9e), 13, |v| u64::from(v) * 8 + 2),
    (|g, v| g.change_gate(v, |gate| gate.access = 0), 13, |v| u64::from(v) * 8 + 2),
    (|g, v| g.cpu().idtr.limit = u16::from(v) * 16 + 14, 13, |v| u64::from(v) * 8 + 2),
    (|g, v| g.change_gate(v, |gate| gate.selector = 0), 13, |_| 0),
    (|g, v| g.change_gate(v, |gate| gate.selector = 3), 13, |_| 0),
    (|g, v| g.change_gate(v, |gate| gate.selector = 0x1238), 13, |_| 0x1238),
    (|g, v| g.change_gate(v, |gate| gate.selector = 0xc), 13, |_| 0xc),
    (|g, v| g.change_gate(v, |gate| gate.selector = DATA0), 13, |_| 0x10),
    (|g, v| g.change_gate(v, |gate| gate.selector = CODE32), 13, |_| 0x30),
    (|g, v| g.change_gate(v, |gate| gate.selector = USER64), 13, |_| 0x28),
    (|g, v| g.change_gate(v, |gate| gate.selector = TASK), 13, |_| 0x40),
    (
        |g, v| {
            let selector = g.free_descriptor(0, 0x00af_1b00_0000_ffff);
            g.change_gate(v, |gate| gate.selector = selector);
        },
        11,
        |_| 0x60,
    ),
    (|g, v| g.change_gate(v, |gate| gate.offset = 0x8000_0000_0000), 13, |_| 0),
    (
        |g, v| {
            g.change_gate(v, |gate| gate.ist = 2);
            g.put::<u64>(TSS + 0x2c, 0x8000_0000_0000);
        },
        12,
        |_| 0,
    ),
    (
        |g, v| {
            g.change_gate(v, |gate| gate.ist = 2);
            g.cpu().tr.limit = 0x2b;
        },
        10,
        |_| 0x40,
    ),
];

#[test]
fn a_bad_gate_is_a_fault_of_the_int_with_ext_clear() {
    for (n, (defect, vector, error)) in DEFECTS.iter().enumerate() {
        let mut g = Guest::long();
        // #GP must be deliverable where the table is cut.
        defect(&mut g, 0x80);
        let code = int80(&mut g);
        let e = g.expect(*vector);
        assert_eq!((e.error, e.rip, e.count), (Some(error(0x80)), code.at(1), 1), "defect {n}");
    }
}

#[test]
fn a_bad_gate_of_an_exception_or_an_interrupt_sets_ext() {
    for (n, (defect, vector, error)) in DEFECTS.iter().enumerate() {
        // #XM is benign, so what its delivery raises is delivered next; its gate lies behind those of the others.
        let mut g = Guest::long();
        defect(&mut g, 19);
        let code = g.program(|a| {
            a.mov(dword_ptr(DATA), 0)?;
            a.ldmxcsr(dword_ptr(DATA))?;
            a.divps(xmm0, xmm0)
        });
        let e = g.expect(*vector);
        assert_eq!((e.error, e.rip), (Some(error(19) | 1), code.at(2)), "defect {n}");

        let mut g = Guest::long();
        defect(&mut g, 0x80);
        g.flag(rflags::IF);
        g.at_count(2, Line::Vector(0x80));
        let code = g.program(|a| {
            a.nop()?;
            a.nop()?;
            a.nop()
        });
        let e = g.expect(*vector);
        assert_eq!((e.error, e.rip, e.count), (Some(error(0x80) | 1), code.at(2), 2), "defect {n}");
    }
}

#[test]
fn a_conforming_handler_runs_at_the_interrupted_privilege_on_its_stack() {
    let mut g = Guest::long();
    let selector = g.free_descriptor(0, 0x00af_9f00_0000_ffff);
    g.load(USER_CODE + 0x100, |a| a.ud2());
    g.set_gate(0x80, Gate { selector, offset: USER_CODE + 0x100, ist: 0, access: 0xee });
    g.user_program(|a| a.int(0x80));
    let e = g.expect(6);
    assert_eq!((e.rip, e.cs, e.ss), (USER_CODE + 0x100, selector | 3, DATA3));
    assert_eq!(e.rsp, USER_STACK - 40);
}

#[test]
fn a_push_that_faults_leaves_the_interrupted_state_whole() {
    let mut g = Guest::long();
    g.put::<u64>(TSS + 4, ABSENT);
    g.change_gate(14, |gate| gate.ist = 1);
    g.change_gate(0x80, |gate| gate.access = 0xee);
    let code = g.user_program(|a| {
        a.stc()?;
        a.int(0x80)
    });
    let e = g.expect_page_fault(ABSENT - 8, pf::W);
    assert_eq!((e.rip, e.cs, e.rsp, e.ss), (code.at(1), USER64, USER_STACK, DATA3));
    assert_eq!(e.rflags, rflags::FIXED | rflags::CF | rflags::RF);
    assert_eq!(e.count, 1);
    // Mended, it goes through.
    g.put::<u64>(TSS + 4, STACK0);
    assert_eq!(g.expect(0x80).rip, code.end);
}

/// What makes the first exception, and its vector.
type Cause = (fn(&mut CodeAssembler) -> Result<(), IcedError>, u8);

const DIVIDE: Cause = (|a| a.div(ecx), 0);
const UNDEFINED: Cause = (|a| a.ud2(), 6);
const PROTECTION: Cause = (|a| a.mov(rax, qword_ptr(rbp)), 13);
const PAGE: Cause = (|a| a.mov(eax, dword_ptr(ABSENT)), 14);

/// The first exception with a gate that is not present (#NP) or with its stack in an absent page (#PF).
fn second(cause: Cause, page_fault: bool) -> Guest {
    let mut g = Guest::long();
    g.set_reg(RCX, 0);
    g.set_reg(RBP, 0);
    g.program(|a| {
        a.mov(rbp, 0x8000_0000_0000_0000u64)?;
        a.mov(rsi, rbp)?;
        if cause.1 == 13 { a.mov(rax, qword_ptr(rsi)) } else { (cause.0)(a) }
    });
    if page_fault {
        g.put::<u64>(TSS + 0x2c, ABSENT + 0x1000);
        g.change_gate(cause.1, |gate| gate.ist = 2);
        if cause.1 != 14 {
            g.change_gate(14, |gate| gate.ist = 1);
        }
    } else {
        g.change_gate(cause.1, |gate| gate.access = 0x0e);
    }
    g
}

#[test]
fn exceptions_in_delivery_combine_as_the_table_says() {
    // First exception, whether the second is #PF (else #NP), the vector that results (SDM vol. 3, table 6-5).
    let table = [
        (DIVIDE, false, 8),
        (DIVIDE, true, 14),
        (UNDEFINED, false, 11),
        (UNDEFINED, true, 14),
        (PROTECTION, false, 8),
        (PROTECTION, true, 14),
        (PAGE, false, 8),
        (PAGE, true, 8),
    ];
    for (cause, page_fault, result) in table {
        let mut g = second(cause, page_fault);
        let e = g.expect(result);
        let error = match result {
            8 => 0,
            11 => u64::from(cause.1) * 8 + 3,
            _ => u64::from(pf::W),
        };
        assert_eq!((e.error, e.count), (Some(error), 2), "after vector {}", cause.1);
        assert_eq!((e.cs, e.rsp), (CODE64, STACK));
        if page_fault {
            assert_eq!(e.cr2, ABSENT + 0x1000 - 8);
        }
    }
}

#[test]
fn a_double_fault_that_cannot_be_delivered_shuts_down() {
    let mut g = second(PAGE, false);
    g.change_gate(8, |gate| gate.access = 0x0e);
    let rip = CODE + 13;
    assert_eq!(g.go(), Stop::Exit(Exit::TripleFault { rip, vector: 14 }));
}

#[test]
fn without_an_idt_the_first_exception_shuts_down() {
    let mut g = Guest::long();
    g.cpu().idtr.limit = 0;
    let code = g.program(|a| {
        a.nop()?;
        a.ud2()
    });
    assert_eq!(g.go(), Stop::Exit(Exit::TripleFault { rip: code.at(1), vector: 6 }));
}

#[test]
fn an_interrupt_that_cannot_be_delivered_is_no_double_fault() {
    let mut g = Guest::long();
    g.flag(rflags::IF);
    g.put::<u64>(TSS + 0x2c, ABSENT + 0x1000);
    g.change_gate(0x31, |gate| gate.ist = 2);
    g.change_gate(14, |gate| gate.ist = 1);
    g.at_count(1, Line::Vector(0x31));
    let code = g.program(|a| {
        a.nop()?;
        a.nop()
    });
    let e = g.expect_page_fault(ABSENT + 0x1000 - 8, pf::W);
    assert_eq!(e.rip, code.at(1));
}

#[test]
fn an_nmi_ignores_if_and_blocks_the_next_until_iret() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        a.nop()?;
        a.nop()?;
        a.hlt()
    });
    g.at_count(1, Line::Nmi);
    let first = g.expect(2);
    assert_eq!((first.rip, first.count), (code.at(1), 1));
    assert!(g.cpu().nmi_blocked);
    g.raise(Line::Nmi);
    let second = g.expect(2);
    assert_eq!((second.rip, second.count), (code.at(1), 1 + 2), "right after the IRET");
    g.expect_halt();
    assert!(!g.cpu().nmi_blocked);
}

#[test]
fn other_exceptions_do_not_end_the_blocking_of_nmis_but_their_iret_does() {
    let mut g = Guest::long();
    let handler = g.load(CODE + 0x100, |a| {
        a.int3()?;
        a.nop()?;
        a.iretq()
    });
    g.set_gate(2, Gate::interrupt(handler.start));
    g.program(|a| {
        a.nop()?;
        a.hlt()
    });
    g.raise(Line::Nmi);
    let e = g.expect(3);
    assert_eq!((e.rip, e.count), (handler.at(1), 1));
    g.raise(Line::Nmi);
    // The IRET of the breakpoint handler, still inside that of the NMI.
    let again = g.expect(3);
    assert_eq!((again.rip, again.count), (handler.at(1), 4), "a second NMI came in at the breakpoint's IRET");
    assert_eq!(g.board().taken, [(0, 2), (3, 2)]);
}

#[test]
fn an_iret_that_faults_ends_the_blocking_of_nmis_too() {
    let mut g = Guest::long();
    let handler = g.load(CODE + 0x100, |a| {
        a.mov(qword_ptr(rsp + 8), 0)?;
        a.iretq()
    });
    g.set_gate(2, Gate::interrupt(handler.start));
    g.program(|a| a.hlt());
    g.raise(Line::Nmi);
    let e = g.expect(13);
    assert_eq!((e.rip, e.error), (handler.at(1), Some(0)));
    assert!(!g.cpu().nmi_blocked);
}

#[test]
fn int_2_blocks_nothing() {
    let mut g = Guest::long();
    g.program(|a| a.int(2));
    g.expect(2);
    assert!(!g.cpu().nmi_blocked);
}

#[test]
fn a_maskable_interrupt_waits_for_if_and_comes_at_the_boundary() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        a.nop()?;
        a.pushfq()?;
        a.or(dword_ptr(rsp), rflags::IF as u32)?;
        a.popfq()?;
        a.nop()?;
        a.hlt()
    });
    g.raise(Line::Vector(0x41));
    let e = g.expect(0x41);
    assert_eq!((e.rip, e.count), (code.at(4), 4), "POPF has no shadow");
    assert_eq!(g.board().taken, [(4, 0x41)]);
    g.expect_halt();
}

#[test]
fn interrupts_come_one_at_a_time_in_the_boards_order() {
    let mut g = Guest::long();
    g.flag(rflags::IF);
    g.program(|a| {
        a.nop()?;
        a.hlt()
    });
    for vector in [0x50, 0x51, 0x52] {
        g.raise(Line::Vector(vector));
    }
    for vector in [0x50, 0x51, 0x52] {
        let e = g.expect(vector);
        assert_eq!(e.rip, CODE);
    }
    g.raise(Line::Vector(0x53));
    g.raise(Line::Nmi);
    assert_eq!(g.expect(2).rip, STUBS + 0x521, "NMI is the more urgent, and IF does not hold it");
    assert_eq!(g.expect(0x53).rip, CODE);
    g.expect_halt();
}

#[test]
fn a_waiting_nmi_that_is_blocked_does_not_hold_back_maskable_interrupts() {
    let mut g = Guest::long();
    let handler = g.load(CODE + 0x100, |a| {
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.hlt()
    });
    g.set_gate(2, Gate::interrupt(handler.start));
    g.program(|a| a.nop());
    g.raise(Line::Nmi);
    g.run_until(1);
    g.raise(Line::Nmi);
    g.raise(Line::Vector(0x61));
    let e = g.expect(0x61);
    assert_eq!((e.rip, e.count), (handler.at(2), 2));
}

#[test]
fn an_interrupt_that_went_away_is_not_delivered_and_wakes_nobody() {
    let mut g = Guest::long();
    g.flag(rflags::IF);
    g.board().withdrawn = true;
    let code = g.program(|a| {
        a.hlt()?;
        a.ud2()
    });
    g.raise(Line::Vector(0x50));
    assert_eq!(g.run_until(1000), Exit::Halted);
    g.raise(Line::Vector(0x50));
    assert_eq!(g.run_until(1000), Exit::Halted);
    assert_eq!((g.rip(), g.count()), (code.at(1), 1));
}

// ---- the handler's code segment is marked as accessed ----

/// Ring-0 code that no handler has been entered through yet.
const UNMARKED: u64 = 0x00af_9a00_0000_ffff;

#[test]
fn a_handler_whose_descriptor_cannot_be_marked_is_not_entered() {
    for (ist, ring) in [(0, 3), (1, 3), (0, 0), (1, 0)] {
        let mut g = Guest::long();
        let selector = g.free_descriptor(0, UNMARKED);
        g.change_gate(6, |gate| (gate.selector, gate.ist) = (selector, ist));
        let pte = g.pte(GDT);
        g.put::<u64>(pte, GDT | P);
        let code = if ring == 3 { g.user_program(|a| a.ud2()) } else { g.program(|a| a.ud2()) };
        let from = if ring == 3 { (USER64, DATA3, USER_STACK) } else { (CODE64, DATA0, STACK) };
        let e = g.expect_page_fault(GDT + u64::from(selector) + 5, pf::P | pf::W);
        assert_eq!(((e.cs, e.ss, e.rsp), e.rip, e.cpl), (from, code.start, 0), "IST {ist}, ring {ring}");
        assert_eq!(e.frame, if ring == 3 { STACK0 } else { STACK } - 48);
        // With the page writable it goes on as if nothing had been.
        g.put::<u64>(pte, GDT | P | W);
        g.cpu().flush_tlb();
        let e = g.expect(6);
        assert_eq!(((e.cs, e.ss, e.rsp), e.rip), (from, code.start));
        assert_eq!(g.get::<u64>(GDT + u64::from(selector)), UNMARKED | 1 << 40);
    }
}

/// 32-bit code with paging on, all RAM one to one, the page of the GDT not writable.
fn protected_gdt() -> Guest {
    use trapgate_x86::regs::cr0;
    let mut g = Guest::protected();
    for page in 0..1024u32 {
        g.put::<u32>(TABLES + 0x1000 + 4 * u64::from(page), page << 12 | 7);
    }
    g.put::<u32>(TABLES + 0x1000 + 4 * (GDT >> 12), GDT as u32 | 1);
    g.put::<u32>(TABLES, (TABLES as u32 + 0x1000) | 7);
    g.cpu().cr3 = TABLES;
    g.cpu().cr0 |= cr0::PG | cr0::WP;
    g.cpu().update_mode();
    g
}

#[test]
fn a_32_bit_handler_whose_descriptor_cannot_be_marked_is_not_entered() {
    let mut g = protected_gdt();
    let selector = g.free_descriptor(0, 0x00cf_9a00_0000_ffff);
    g.set_gate_32(6, selector, STUBS as u32 + 6 * 16, 0x8e);
    g.set_ring(USER32, DATA3, USER_STACK);
    let code = g.program(|a| a.ud2());
    let e = g.expect(14);
    assert_eq!((e.cr2, e.error), (GDT + u64::from(selector) + 5, Some((pf::P | pf::W).into())));
    assert_eq!((e.cs, e.ss, e.rsp, e.rip), (USER32, DATA3, USER_STACK, code.start));
    assert_eq!(e.frame, STACK0 - 24);
}

#[test]
fn the_stack_segment_of_an_inner_ring_is_marked_as_accessed() {
    for writable in [true, false] {
        let mut g = protected_gdt();
        let selector = g.free_descriptor(0, 0x00cf_9200_0000_ffff);
        g.put::<u16>(TSS + 8, selector);
        if writable {
            g.put::<u32>(TABLES + 0x1000 + 4 * (GDT >> 12), GDT as u32 | 3);
        }
        g.set_ring(USER32, DATA3, USER_STACK);
        g.program(|a| a.ud2());
        if writable {
            g.expect(6);
            assert_eq!(g.get::<u8>(GDT + u64::from(selector) + 5), 0x93);
            assert_eq!(g.cpu().seg[2].access & 0xff, 0x93);
        } else {
            // No handler has a stack then.
            assert!(matches!(g.go(), Stop::Exit(Exit::TripleFault { vector: 6, .. })));
            assert_eq!((g.cpu().cr2, g.cpu().cpl), (GDT + u64::from(selector) + 5, 3));
        }
    }
}

#[test]
fn the_upper_half_of_a_16_bit_gates_offset_does_not_count() {
    let mut g = Guest::protected();
    g.set_gate_32(6, CODE16, 0xdead_6000, 0x86);
    g.poke(0x6000, &[0xf4]);
    g.program(|a| a.ud2());
    g.expect_halt();
    assert_eq!((g.rip(), g.reg(RSP)), (0x6001, STACK - 6));
}
