//! What random programs have found in the translator, each as small as it gets.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use iced_x86::code_asm::*;
use trapgate_engine::Exit;

use crate::common::engines::translator;
use crate::common::*;

/// A guest on the translator, whatever the others run on.
fn guest() -> Guest {
    let mut g = Guest::long();
    assert!(g.engine.set_translate(Some(translator("translator"))), "this host cannot translate");
    g
}

/// Runs a test on both engines.
fn both(test: impl Fn(Guest)) {
    let mut interpreter = Guest::long();
    interpreter.engine.set_translate(None);
    test(interpreter);
    test(guest());
}

#[test]
fn vector_registers_that_were_lent_as_the_budget_ran_out_are_not_kept() {
    for more in 40..70 {
        let mut g = guest();
        g.program(|a| {
            let (mut again, mut vectors) = (a.create_label(), a.create_label());
            a.mov(ecx, 200)?;
            a.set_label(&mut again)?;
            a.nop()?;
            a.jmp(vectors)?;
            a.set_label(&mut vectors)?;
            a.movups(xmm1, xmm0)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.hlt()
        });
        g.run_until(300);
        g.run_until(300 + more);
        g.cpu().vector().xmm[0] = 7;
        g.expect_halt();
        assert_eq!(g.cpu().vector().xmm[1], 7, "stopped after {more} more");
    }
}

#[test]
fn a_call_that_overwrites_its_own_target_is_not_made_again() {
    // The target is not canonical, which is found when the return address has been written over it.
    both(|mut g| {
        let code = g.program(|a| {
            a.push(rbx)?;
            a.push(rbx)?;
            a.pop(rbx)?;
            a.mov(rax, 0x8000_0000_0000_0000u64)?;
            a.mov(qword_ptr(rsp - 8), rax)?;
            a.call(qword_ptr(rsp - 8))?;
            a.hlt()
        });
        let e = g.expect(13);
        assert_eq!((e.error, e.rip, e.count, e.rsp), (Some(0), code.at(5), 5, STACK - 8));
    });
}

#[test]
fn code_that_a_page_walk_changes_is_run_as_it_is_then() {
    // A page table with a function in it: MOV AL, the low byte of an entry; JMP; RET. The access to the entry's page sets its
    // accessed flag.
    const TABLE: u64 = DATA + 0x1_0000;
    const AREA: u64 = 0x60_0000;
    const ENTRY: u64 = 64;
    both(|mut g| {
        g.put(g.entry_at(AREA, 2), TABLE | P | W | U);
        g.map(TABLE, TABLE, P | W);
        g.put::<u8>(TABLE + 8 * ENTRY - 1, 0xb0);
        // G, two bits for software and the frame's low digit make EB, the next digits the distance.
        g.put::<u64>(TABLE + 8 * ENTRY, 0x0020_eb00 | P | W);
        g.put::<u8>(TABLE + 8 * ENTRY + 3 + 0x20, 0xc3);
        g.program(|a| {
            let mut again = a.create_label();
            a.mov(rdx, TABLE + 8 * ENTRY - 1)?;
            a.mov(rsi, AREA + ENTRY * 0x1000)?;
            a.mov(ecx, 5)?;
            a.set_label(&mut again)?;
            a.call(rdx)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.mov(ebx, eax)?;
            a.mov(rdi, qword_ptr(rsi))?;
            a.call(rdx)?;
            a.hlt()
        });
        g.expect_halt();
        assert_eq!((g.reg(RBX) as u8, g.reg(RAX) as u8), (0x03, 0x23));
    });
}

#[test]
fn the_stack_that_was_checked_stays_when_the_table_of_pages_is_emptied() {
    // Two pages take each other's place in the table all the time, until it starts over.
    const OTHER: u64 = DATA + (1 << 28);
    both(|mut g| {
        g.map(OTHER, DATA + 0x1000, P | W);
        g.program(|a| {
            let mut again = a.create_label();
            a.mov(rsi, DATA)?;
            a.mov(rdi, OTHER)?;
            a.mov(ebx, 140_000)?;
            a.set_label(&mut again)?;
            a.push(rbx)?;
            a.mov(rax, qword_ptr(rsi))?;
            a.push(rsi)?;
            a.mov(rax, qword_ptr(rdi))?;
            a.pop(rdx)?;
            a.pop(rcx)?;
            a.xor(rcx, rbx)?;
            a.or(r12, rcx)?;
            a.dec(ebx)?;
            a.jnz(again)?;
            a.mov(rax, r12)?;
            a.hlt()
        });
        assert_eq!(g.run_until(2_000_000), Exit::Halted);
        assert_eq!(g.reg(RAX), 0, "a value on the stack was lost");
    });
}

#[test]
fn a_push_of_memory_that_changes_the_stacks_page_leaves_other_accesses_where_they_are() {
    both(|mut g| {
        // Two pages of the stack that do not follow each other in memory.
        g.map(DATA + 0x1000, DATA + 0x4000, P | W);
        g.put::<u64>(DATA + 0x3000, 0x33);
        let top = DATA + 0x1000;
        g.program(|a| {
            let mut again = a.create_label();
            a.mov(r14, 0x1122_3344_5566_7788u64)?;
            a.mov(ebx, 20)?;
            a.set_label(&mut again)?;
            a.mov(rsp, top + 8)?;
            a.push(r14)?;
            a.push(qword_ptr(DATA + 0x3000))?;
            a.push(qword_ptr(rsp + 8))?;
            a.dec(ebx)?;
            a.jnz(again)?;
            a.hlt()
        });
        g.expect_halt();
        assert_eq!(g.get::<u64>(DATA + 0x1000 - 16), 0x1122_3344_5566_7788);
    });
}
