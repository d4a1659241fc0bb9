//! Loops that the translator runs without checks in each iteration: wherever they begin, change pages, end or are parted, they
//! do what the interpreter does, to the instruction.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use iced_x86::code_asm::*;

use crate::common::*;
use crate::passage::{Asm, Made, alike, alike_in_one_go, machine};

/// Bytes that there are.
const AREA: u64 = 0x4000;

/// Something to read at DATA and the loop that `body` is, entered with RSI there and RDI behind it, twice: the second time
/// all pages are known.
fn looping(offset: u64, rounds: u64, body: impl Fn(&mut Asm, CodeLabel) -> Made) -> Guest {
    let mut g = machine();
    let bytes: Vec<u8> = (0..AREA).map(|n| (n * 7 + (n >> 8)) as u8).collect();
    g.poke(DATA, &bytes);
    // Whoever leaves a page finds another one than that behind it.
    for (linear, page) in (0..).zip([2, 0, 3, 1]) {
        g.map(DATA + linear * 0x1000, DATA + page * 0x1000, P | W);
    }
    g.program(|a| {
        let (mut twice, mut again) = (a.create_label(), a.create_label());
        a.mov(ebp, 2)?;
        a.set_label(&mut twice)?;
        a.mov(rsi, DATA + offset)?;
        a.mov(rdi, DATA + 0x2000 + offset / 2)?;
        a.mov(rbx, rounds)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut again)?;
        body(a, again)?;
        a.pushfq()?;
        a.pop(rdx)?;
        a.add(r13, rdx)?;
        a.add(r13, rax)?;
        a.add(r13, rsi)?;
        a.add(r13, rcx)?;
        a.dec(ebp)?;
        a.jnz(twice)?;
        a.hlt()
    });
    g
}

/// Adds up what is at RSI, `step` bytes apart.
fn sum(step: i32) -> impl Fn(&mut Asm, CodeLabel) -> Made {
    move |a, again| {
        a.add(rax, qword_ptr(rsi))?;
        a.add(rsi, step)?;
        a.dec(rbx)?;
        a.jnz(again)
    }
}

#[test]
fn loops_of_all_lengths_end_where_they_should() {
    for rounds in 1..60 {
        for step in [8, 64, 264] {
            alike_in_one_go(|| looping(0xc00, rounds, sum(step)));
        }
    }
}

#[test]
fn loops_change_pages_after_any_number_of_iterations() {
    // From few iterations in a page, with and without an access across its end, up and down.
    for step in [512i32, 1000, 1024, -512, -1000] {
        for offset in [0x800u64, 0x8f0, 0xa04, 0xe00, 0xff8, 0xffc] {
            let from = if step < 0 { 0x3000 + offset } else { offset };
            for rounds in [8, 9, 14, 15, 16, 17, 22] {
                if rounds * u64::from(step.unsigned_abs()) + offset < 0x3000 {
                    alike_in_one_go(|| looping(from, rounds, sum(step)));
                }
            }
        }
    }
}

#[test]
fn loops_are_parted_anywhere() {
    alike(|| looping(0xf00, 40, sum(8)));
    alike(|| looping(0x800, 20, sum(512)));
    alike(|| looping(0xe04, 20, sum(264)));
    // The condition comes first, and a jump leads back.
    alike(|| {
        looping(0xf80, 41, |a, again| {
            let mut out = a.create_label();
            a.dec(rbx)?;
            a.jz(out)?;
            a.add(rax, qword_ptr(rsi))?;
            a.add(rsi, 8)?;
            a.jmp(again)?;
            a.set_label(&mut out)?;
            a.nop()
        })
    });
}

#[test]
fn loops_are_left_by_any_branch_at_any_iteration() {
    for found in (0..48u64).chain([60, 61, 62, 63, 64, 65]) {
        alike_in_one_go(|| {
            let mut g = looping(0xe80, 70, |a, again| {
                let (mut out, mut end) = (a.create_label(), a.create_label());
                a.mov(rax, qword_ptr(rsi))?;
                a.add(qword_ptr(rdi), rax)?;
                a.inc(rcx)?;
                a.cmp(rax, r14)?;
                a.je(out)?;
                a.add(rsi, 8)?;
                a.add(rdi, 8)?;
                a.dec(rbx)?;
                a.jnz(again)?;
                a.jmp(end)?;
                a.set_label(&mut out)?;
                a.neg(rcx)?;
                a.set_label(&mut end)?;
                a.nop()
            });
            g.set_reg(14, 0x4711);
            g.put(g.gpa(DATA + 0xe80 + found * 8), 0x4711u64);
            g
        });
    }
}

#[test]
fn loops_that_need_a_register_more_count_in_memory() {
    for rounds in [7, 8, 9, 10, 11, 12, 13, 30, 31, 32, 33] {
        alike_in_one_go(|| {
            looping(0xe00, rounds, |a, again| {
                a.add(r8, qword_ptr(rsi))?;
                a.mov(qword_ptr(rdi), r8)?;
                a.add(rsi, 8)?;
                a.add(rdi, 8)?;
                a.dec(rbx)?;
                a.jnz(again)?;
                a.mov(rax, r8)
            })
        });
    }
}

#[test]
fn a_page_that_goes_away_ends_a_loop_with_its_fault() {
    for step in [8, 264, 512] {
        let end = alike_in_one_go(|| {
            let mut g = looping(0x900, 600, sum(step));
            g.map(DATA + 0x1000, 0, 0);
            crate::passage::ends_at(&mut g, 14);
            g
        });
        assert_eq!(end.events, [Stop::Halted]);
        assert_eq!(end.cpu.cr2 & !0xfff, DATA + 0x1000);
    }
}

/// Five streams, whose addresses are made of RSI and RDI; `left` leaves in the middle of an iteration, a shift needs RCX.
fn streams(offset: u64, rounds: u64, left: u64, shifts: bool) -> Guest {
    looping(offset, rounds, move |a, again| {
        let mut out = a.create_label();
        a.mov(rax, qword_ptr(rsi))?;
        a.add(rax, qword_ptr(rsi + 0x1000))?;
        a.xor(rax, qword_ptr(rdi + rcx * 8))?;
        a.mov(qword_ptr(rdi + rcx * 8 + 0x800), rax)?;
        a.cmp(rbx, left as i32)?;
        a.je(out)?;
        if shifts {
            a.rol(rax, cl)?;
        }
        a.add(dword_ptr(rdi + 8), eax)?;
        a.add(rsi, 8)?;
        a.add(rcx, 1)?;
        a.sub(rbx, 1)?;
        a.jnz(again)?;
        a.set_label(&mut out)?;
        // What the loop does not name must be what it was.
        for register in [rbp, r12, r13, r14, r15, rsp, r8, r9] {
            a.add(r13, register)?;
            a.rol(r13, 3)?;
        }
        Ok(())
    })
}

#[test]
fn registers_that_a_loop_does_not_name_come_back_by_every_way_out() {
    for rounds in [3, 9, 20, 30, 70, 200] {
        for left in [0, 1, 2, 5, 17] {
            for shifts in [false, true] {
                alike_in_one_go(|| streams(0x20, rounds, left, shifts));
            }
        }
    }
    alike(|| streams(0xf80, 40, 3, false));
}

#[test]
fn a_loop_may_end_with_a_jump_while_it_keeps_registers() {
    for rounds in [3, 9, 20, 40] {
        alike_in_one_go(|| {
            looping(0x20, rounds, |a, again| {
                let mut out = a.create_label();
                a.mov(rax, qword_ptr(rsi))?;
                a.add(rax, qword_ptr(rsi + 0x1000))?;
                a.mov(qword_ptr(rdi + rcx * 8), rax)?;
                a.add(rsi, 8)?;
                a.add(rcx, 1)?;
                a.sub(rbx, 1)?;
                a.jz(out)?;
                a.jmp(again)?;
                a.set_label(&mut out)?;
                for register in [rbp, r12, r14, r15, rsp] {
                    a.add(r13, register)?;
                    a.rol(r13, 3)?;
                }
                Ok(())
            })
        });
    }
}
