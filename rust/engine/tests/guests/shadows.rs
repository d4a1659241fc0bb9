//! The instruction after STI and after MOV SS and POP SS, and HLT among them (SDM vol. 3, 6.8.3; vol. 2, STI and HLT).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trapgate_engine::Exit;
use trapgate_x86::regs::{dr6, dr7, rflags};

use crate::common::*;

const TIMER: u8 = 0x41;

/// A program with a maskable interrupt that waits from the start.
fn waiting(f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> (Guest, Code) {
    let mut g = Guest::long();
    let code = g.program(f);
    g.raise(Line::Vector(TIMER));
    (g, code)
}

#[test]
fn one_instruction_runs_between_sti_and_the_interrupt() {
    let (mut g, code) = waiting(|a| {
        a.nop()?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.hlt()
    });
    let e = g.expect(TIMER);
    assert_eq!((e.rip, e.count), (code.at(3), 3));
}

#[test]
fn sti_with_interrupts_on_has_no_shadow() {
    let mut g = Guest::long();
    g.flag(rflags::IF);
    let code = g.program(|a| {
        a.sti()?;
        a.nop()
    });
    g.at_count(1, Line::Vector(TIMER));
    assert_eq!(g.expect(TIMER).rip, code.at(1));
}

#[test]
fn a_second_sti_does_not_prolong_the_shadow() {
    let (mut g, code) = waiting(|a| {
        a.sti()?;
        a.sti()?;
        a.nop()
    });
    assert_eq!(g.expect(TIMER).rip, code.at(2));
}

#[test]
fn cli_in_the_shadow_keeps_the_interrupt_out() {
    let (mut g, _) = waiting(|a| {
        a.sti()?;
        a.cli()?;
        a.nop()?;
        a.hlt()
    });
    g.expect_halt();
    assert!(g.board().taken.is_empty());
}

#[test]
fn sti_hlt_is_one_step_for_interrupts() {
    let (mut g, code) = waiting(|a| {
        a.sti()?;
        a.hlt()?;
        a.nop()
    });
    let e = g.expect(TIMER);
    assert_eq!((e.rip, e.count), (code.at(2), 2), "behind the HLT, which has run");
}

#[test]
fn sti_hlt_waits_and_wakes() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        a.sti()?;
        a.hlt()?;
        a.nop()
    });
    assert_eq!(g.run_until(50), Exit::Halted);
    assert_eq!((g.rip(), g.count()), (code.at(2), 2));
    g.raise(Line::Vector(TIMER));
    g.run_until(50);
    let Stop::Event(e) = g.halted() else { panic!("no event") };
    assert_eq!((e.vector, e.rip, e.count), (TIMER, code.at(2), 2));
}

#[test]
fn a_fault_in_the_shadow_of_sti_ends_it() {
    let (mut g, code) = waiting(|a| {
        a.sti()?;
        a.ud2()
    });
    g.change_gate(6, |gate| gate.access = 0x8f);
    // A trap gate leaves IF on: the interrupt comes before the handler's first instruction.
    let e = g.expect(TIMER);
    assert_eq!(e.rip, STUBS + 0x60);
    assert_eq!(g.expect(6).rip, code.at(1));
}

#[test]
fn a_budget_that_ends_in_the_shadow_does_not_end_it() {
    let (mut g, code) = waiting(|a| {
        a.sti()?;
        a.nop()?;
        a.nop()
    });
    assert_eq!(g.step(), Exit::Budget);
    let state = g.cpu().save();
    g.cpu().restore(&state).unwrap();
    assert_eq!(g.step(), Exit::Budget);
    assert_eq!(g.rip(), STUBS + 0x10 * u64::from(TIMER), "the interrupt is in, nothing else has run");
    assert_eq!(g.expect(TIMER).rip, code.at(2));
}

#[test]
fn a_repeated_instruction_has_the_shadow_for_one_iteration() {
    let (mut g, code) = waiting(|a| {
        a.mov(ecx, 10)?;
        a.mov(edi, DATA as u32)?;
        a.sti()?;
        a.rep().stosb()
    });
    let e = g.expect(TIMER);
    assert_eq!((e.rip, e.count, g.reg(RCX)), (code.at(3), 4, 9));
}

/// The loads of SS that have a shadow.
const LOADS: [Insn; 3] = [|a| a.mov(ss, eax), |a| a.mov(ss, word_ptr(rsi)), |a| a.db(&[0x17])];

/// 32-bit code, where POP SS exists, with flat data at EAX, [ESI] and on the stack.
fn loading(n: usize, rest: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> (Guest, Code) {
    let mut g = Guest::protected();
    g.set_reg(RAX, DATA0.into());
    g.set_reg(RSI, DATA);
    g.put::<u32>(DATA, DATA0.into());
    g.set_reg(RSP, STACK - 4);
    g.put::<u32>(STACK - 4, DATA0.into());
    let code = g.program(|a| {
        a.nop()?;
        if n == 1 {
            a.mov(ss, word_ptr(esi))?
        } else {
            LOADS[n](a)?
        }
        rest(a)
    });
    (g, code)
}

#[test]
fn a_load_of_ss_holds_back_interrupts_and_nmis_for_one_instruction() {
    for n in 0..LOADS.len() {
        for line in [Line::Vector(TIMER), Line::Nmi] {
            let (mut g, code) = loading(n, |a| {
                a.nop()?;
                a.nop()
            });
            g.flag(rflags::IF);
            g.at_count(2, line);
            let vector = if line == Line::Nmi { 2 } else { TIMER };
            let e = g.expect(vector);
            assert_eq!((e.rip, e.count), (code.at(3), 3), "load {n}, {line:?}");
        }
    }
}

#[test]
fn the_second_of_two_loads_of_ss_has_no_shadow() {
    let (mut g, code) = loading(0, |a| {
        a.mov(ss, eax)?;
        a.nop()
    });
    g.flag(rflags::IF);
    g.at_count(2, Line::Vector(TIMER));
    assert_eq!(g.expect(TIMER).rip, code.at(3));
}

#[test]
fn lss_has_no_shadow() {
    let mut g = Guest::long();
    g.put::<u64>(DATA, STACK);
    g.put::<u16>(DATA + 8, DATA0);
    g.flag(rflags::IF);
    let code = g.program(|a| {
        // REX.W LSS RSP, [DATA].
        a.db(&[0x48, 0x0f, 0xb2, 0x24, 0x25, 0, 0, 0x20, 0])?;
        a.nop()
    });
    g.at_count(1, Line::Vector(TIMER));
    assert_eq!(g.expect(TIMER).rip, code.start + 9);
}

#[test]
fn a_load_of_another_segment_has_no_shadow() {
    let mut g = Guest::long();
    g.set_reg(RAX, DATA0.into());
    g.flag(rflags::IF);
    let code = g.program(|a| {
        a.mov(ds, eax)?;
        a.nop()
    });
    g.at_count(1, Line::Vector(TIMER));
    assert_eq!(g.expect(TIMER).rip, code.at(1));
}

/// A write or read watchpoint of 4 bytes at DATA in DR0.
fn watch(g: &mut Guest) {
    g.cpu().dr[0] = DATA;
    g.cpu().dr7 = dr7::RESET | 1 | 0xf << 16;
}

#[test]
fn a_breakpoint_on_the_operand_of_mov_ss_waits_for_the_next_instruction() {
    let (mut g, code) = loading(1, |a| {
        a.inc(eax)?;
        a.nop()
    });
    watch(&mut g);
    let e = g.expect(1);
    assert_eq!((e.rip, e.count), (code.at(3), 3));
    assert_eq!(g.cpu().dr6, dr6::RESET | dr6::B0);
}

#[test]
fn after_mov_ss_and_int_the_breakpoint_strikes_in_the_handler() {
    // The order that surprised kernels: the trap that MOV SS held back comes before the handler's first instruction.
    let (mut g, code) = loading(1, |a| a.int(0x80));
    watch(&mut g);
    g.set_gate_32(0x80, CODE32, STUBS as u32 + 0x800, 0x8f);
    let e = g.expect(1);
    assert_eq!((e.rip, e.count), (STUBS + 0x800, 3));
    assert_eq!(g.expect(0x80).rip, code.end);
}

#[test]
fn a_fault_after_mov_ss_lets_the_held_back_trap_in_at_the_handler() {
    let (mut g, code) = loading(1, |a| a.ud2());
    watch(&mut g);
    let e = g.expect(1);
    assert_eq!((e.rip, e.count), (STUBS + 0x60, 2));
    assert_eq!(g.expect(6).rip, code.at(2));
}

#[test]
fn a_code_breakpoint_behind_mov_ss_does_not_strike() {
    let (mut g, code) = loading(0, |a| {
        a.nop()?;
        a.nop()?;
        a.hlt()
    });
    g.cpu().dr[0] = code.at(2);
    g.cpu().dr[1] = code.at(3);
    g.cpu().dr7 = dr7::RESET | 5;
    let e = g.expect(1);
    assert_eq!((e.rip, g.cpu().dr6), (code.at(3), dr6::RESET | dr6::B1));
}

#[test]
fn hlt_in_the_shadow_of_mov_ss_wakes_all_the_same() {
    let (mut g, code) = loading(0, |a| {
        a.hlt()?;
        a.nop()
    });
    g.flag(rflags::IF);
    g.at_count(2, Line::Vector(TIMER));
    let e = g.expect(TIMER);
    assert_eq!((e.rip, e.count), (code.at(3), 3));
}
