//! Single steps through everything (SDM vol. 3, 19.3.1.4).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trapgate_x86::regs::{dr6, rflags};

use crate::common::*;

const ENTRY: u64 = CODE + 0x400;

/// The next event must be a single-step trap; gives it.
#[track_caller]
pub fn step(g: &mut Guest) -> Event {
    let e = g.expect(1);
    assert_eq!(g.cpu().dr6, dr6::RESET | dr6::BS, "at {:#x}", e.rip);
    assert_eq!(g.rflags() & rflags::TF, 0, "the handler is not stepped");
    e
}

/// A program that runs with TF set from its first instruction.
pub fn stepped(f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> (Guest, Code) {
    let mut g = Guest::long();
    let code = g.program(f);
    g.flag(rflags::TF);
    (g, code)
}

#[test]
fn straight_code_and_branches_trap_after_each_instruction() {
    let (mut g, code) = stepped(|a| {
        let mut on = a.create_label();
        a.nop()?;
        a.add(eax, 1)?;
        a.jmp(on)?;
        a.ud2()?;
        a.set_label(&mut on)?;
        a.push(rax)?;
        a.pop(rbx)?;
        a.mov(dword_ptr(DATA), eax)?;
        a.hlt()
    });
    for (n, next) in [1, 2, 4, 5, 6, 7].into_iter().enumerate() {
        let e = step(&mut g);
        assert_eq!(e.rip, code.at(next));
        assert_ne!(e.rflags & rflags::TF, 0);
        assert_eq!(e.rflags & rflags::RF, 0);
        // Two for each stub before.
        assert_eq!(e.count, n as u64 + 1 + 2 * n as u64);
    }
}

#[test]
fn a_repetition_traps_after_each_iteration_with_rf_until_the_last() {
    let (mut g, code) = stepped(|a| {
        a.mov(ecx, 3)?;
        a.rep().movsb()?;
        a.nop()?;
        a.hlt()
    });
    g.set_reg(RSI, DATA);
    g.set_reg(RDI, DATA + 0x100);
    assert_eq!(step(&mut g).rip, code.at(1));
    for left in [2, 1] {
        let e = step(&mut g);
        assert_eq!((e.rip, g.reg(RCX)), (code.at(1), left));
        assert_ne!(e.rflags & rflags::RF, 0);
    }
    let e = step(&mut g);
    assert_eq!((e.rip, g.reg(RCX), e.rflags & rflags::RF), (code.at(2), 0, 0));
    assert_eq!(step(&mut g).rip, code.at(3));
}

#[test]
fn int_n_is_not_trapped_and_its_handler_runs_free() {
    let (mut g, code) = stepped(|a| {
        a.nop()?;
        a.int(0x80)?;
        a.nop()?;
        a.nop()?;
        a.hlt()
    });
    let handler = g.load(ENTRY, |a| {
        a.nop()?;
        a.iretq()
    });
    g.set_gate(0x80, Gate::interrupt(handler.start));
    assert_eq!(step(&mut g).rip, code.at(1));
    // INT, NOP, IRETQ, NOP: IRET puts TF back and lets one instruction pass.
    assert_eq!(step(&mut g).rip, code.at(3));
    assert_eq!(step(&mut g).rip, code.at(4));
}

#[test]
fn popf_that_sets_tf_lets_one_instruction_pass_and_one_that_clears_it_traps() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        a.push(0x102)?;
        a.popfq()?;
        a.nop()?;
        a.push(2)?;
        a.popfq()?;
        a.nop()?;
        a.hlt()
    });
    assert_eq!(step(&mut g).rip, code.at(3));
    assert_eq!(step(&mut g).rip, code.at(4));
    let last = step(&mut g);
    assert_eq!((last.rip, last.rflags & rflags::TF), (code.at(5), 0));
    g.expect_halt();
}

#[test]
fn iret_that_sets_tf_lets_one_instruction_pass() {
    let mut g = Guest::long();
    g.load(USER_CODE, |a| {
        a.nop()?;
        a.nop()
    });
    let frame = [USER_CODE, USER64.into(), rflags::FIXED | rflags::TF, USER_STACK, DATA3.into()];
    for (n, word) in frame.into_iter().enumerate() {
        g.put(STACK - 40 + 8 * n as u64, word);
    }
    g.set_reg(RSP, STACK - 40);
    g.program(|a| a.iretq());
    assert_eq!(step(&mut g).rip, USER_CODE + 1);
    assert_eq!(step(&mut g).rip, USER_CODE + 2);
}

fn system_call(mask: u64) -> (Guest, Code) {
    let mut g = Guest::long();
    let cpu = g.cpu();
    cpu.star = 0x0018_0008 << 32;
    cpu.lstar = ENTRY;
    cpu.fmask = mask;
    g.load(ENTRY, |a| {
        a.nop()?;
        a.sysretq()
    });
    let code = g.user_program(|a| {
        a.syscall()?;
        a.nop()?;
        a.nop()
    });
    g.flag(rflags::TF);
    (g, code)
}

#[test]
fn syscall_with_tf_masked_does_not_trap_but_sysret_does_at_once() {
    let (mut g, code) = system_call(rflags::TF);
    let e = step(&mut g);
    // As if the SYSCALL had just completed: nothing of ring 3 has run since.
    assert_eq!((e.rip, e.cs, e.count), (code.at(1), USER64, 3));
    assert_eq!(step(&mut g).rip, code.at(2));
}

#[test]
fn syscall_with_tf_not_masked_traps_at_the_entry() {
    let (mut g, _) = system_call(0);
    let e = step(&mut g);
    assert_eq!((e.rip, e.cs, e.cpl), (ENTRY, CODE64, 0));
    assert_ne!(e.rflags & rflags::TF, 0);
}

#[test]
fn sysenter_does_not_clear_tf_and_traps_at_the_entry() {
    let mut g = Guest::long();
    let cpu = g.cpu();
    (cpu.sysenter_cs, cpu.sysenter_esp, cpu.sysenter_eip) = (8, STACK0, ENTRY);
    g.user_program(|a| a.sysenter());
    g.flag(rflags::TF);
    let e = step(&mut g);
    assert_eq!((e.rip, e.cs), (ENTRY, CODE64));
}

#[test]
fn an_instruction_that_faults_traps_only_when_it_has_completed() {
    let (mut g, code) = stepped(|a| {
        a.nop()?;
        a.mov(rax, qword_ptr(0x5000_0000))?;
        a.hlt()
    });
    g.map(0x5000_0000, 0, 0);
    assert_eq!(step(&mut g).rip, code.at(1));
    let e = g.expect_page_fault(0x5000_0000, 0);
    assert_eq!(e.rflags & (rflags::TF | rflags::RF), rflags::TF | rflags::RF);
    g.put(g.pte(0x5000_0000), DATA | P);
    assert_eq!(step(&mut g).rip, code.at(2));
}

#[test]
fn hlt_traps_and_so_does_not_wait() {
    let (mut g, code) = stepped(|a| {
        a.hlt()?;
        a.nop()
    });
    let e = step(&mut g);
    assert_eq!((e.rip, e.count), (code.at(1), 1));
    assert_eq!(step(&mut g).rip, code.end);
}

#[test]
fn mov_ss_is_stepped_over_with_the_instruction_behind_it() {
    let (mut g, code) = stepped(|a| {
        a.mov(eax, u32::from(DATA0))?;
        a.mov(ss, eax)?;
        a.nop()?;
        a.nop()
    });
    assert_eq!(step(&mut g).rip, code.at(1));
    assert_eq!(step(&mut g).rip, code.at(3));
}

#[test]
fn the_trap_comes_before_an_interrupt_that_waits() {
    let (mut g, code) = stepped(|a| {
        a.nop()?;
        a.nop()
    });
    g.flag(rflags::IF);
    g.at_count(1, Line::Vector(0x41));
    let e = step(&mut g);
    assert_eq!((e.rip, e.count), (code.at(1), 1));
    let e = g.expect(0x41);
    assert_eq!((e.rip, e.count), (code.at(1), 3));
    assert_ne!(e.rflags & rflags::TF, 0);
    assert_eq!(step(&mut g).rip, code.at(2));
}

#[test]
fn int1_and_int3_say_nothing_in_dr6() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        a.int1()?;
        a.int3()?;
        a.hlt()
    });
    assert_eq!((g.expect(1).rip, g.cpu().dr6), (code.at(1), dr6::RESET));
    assert_eq!((g.expect(3).rip, g.cpu().dr6), (code.at(2), dr6::RESET));
}
