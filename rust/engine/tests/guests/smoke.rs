//! The harness itself.

use iced_x86::code_asm::*;

use crate::common::*;

#[test]
fn a_program_runs_and_an_event_is_seen_and_left() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        a.mov(eax, 5)?;
        a.ud2()?;
        a.add(eax, 2)?;
        a.hlt()
    });
    let e = g.expect(6);
    assert_eq!((e.rip, e.cs, e.ss, e.rsp, e.count, e.cpl), (code.at(1), CODE64, DATA0, STACK, 1, 0));
    g.return_to(&e, code.at(2));
    g.expect_halt();
    assert_eq!(g.reg(RAX), 7);
    assert_eq!(g.count(), 1 + 2 + 2, "MOV; the stub's HLT and IRET; ADD, HLT");
}

#[test]
fn a_user_program_runs_and_its_page_fault_is_seen() {
    let mut g = Guest::long();
    let code = g.user_program(|a| {
        a.mov(rax, qword_ptr(0x1000))?;
        a.hlt()
    });
    let e = g.expect_page_fault(0x1000, 5);
    assert_eq!((e.rip, e.cs, e.ss, e.rsp, e.frame), (code.start, USER64, DATA3, USER_STACK, STACK0 - 48));
}

#[test]
fn a_protected_mode_program_runs_and_an_event_is_seen_and_left() {
    let mut g = Guest::protected();
    let code = g.program(|a| {
        a.mov(eax, 5)?;
        a.int3()?;
        a.inc(eax)?;
        a.hlt()
    });
    let e = g.expect(3);
    assert_eq!((e.rip, e.cs, e.frame), (code.at(2), CODE32, STACK - 12));
    g.expect_halt();
    assert_eq!(g.reg(RAX), 6);
}
