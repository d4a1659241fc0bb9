//! What translated code goes on with where it would have had to leave: repetitions, stacks that change, vector registers that
//! stay lent. As in [`super::passage`] a program must do the same on every engine.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use iced_x86::code_asm::*;
use trapgate_x86::regs::{cr0, cr4, rflags};

use crate::common::*;
use crate::passage::{
    Asm, Made, alike, alike_in_one_go, caller, ends_at, interpreted, kernel, machine, nothing,
};

// ---- REP MOVS and REP STOS ----

/// A loop around some repetitions, whose registers R8 and R9 hold the places.
fn repeating(to: u64, from: u64, body: impl FnOnce(&mut Asm) -> Made) -> Guest {
    let mut g = Guest::long();
    let bytes: Vec<u8> = (0..0x3000u32).map(|n| (n * 7 + (n >> 8)) as u8).collect();
    g.poke(DATA, &bytes);
    g.program(|a| {
        let mut again = a.create_label();
        a.mov(ebx, 12)?;
        a.set_label(&mut again)?;
        a.mov(rdi, to)?;
        a.mov(rsi, from)?;
        a.mov(rax, 0x0123_4567_89ab_cdefu64)?;
        a.add(rax, rbx)?;
        a.mov(ecx, 6)?;
        a.cmp(ebx, 5)?;
        body(a)?;
        a.pushfq()?;
        a.pop(r12)?;
        a.add(r13, r12)?;
        a.add(r13, rdi)?;
        a.add(r13, rsi)?;
        a.add(r13, rcx)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.hlt()
    });
    g
}

#[test]
fn repetitions_of_all_widths_do_what_single_ones_do() {
    let fill: [Insn; 4] =
        [|a| a.rep().stosb(), |a| a.rep().stosw(), |a| a.rep().stosd(), |a| a.rep().stosq()];
    let copy: [Insn; 4] =
        [|a| a.rep().movsb(), |a| a.rep().movsw(), |a| a.rep().movsd(), |a| a.rep().movsq()];
    for body in fill.into_iter().chain(copy) {
        // In one page, up to its last byte, across its end, and onto itself.
        for (to, from) in [
            (DATA + 0x800, DATA + 0x100),
            (DATA + 0xfd0, DATA + 0x1fd0),
            (DATA + 0xfd9, DATA + 0x100),
            (DATA + 0x100, DATA + 0xfd9),
            (DATA + 0x805, DATA + 0x802),
        ] {
            let make = || repeating(to, from, body);
            alike_in_one_go(make);
            if to % 0x1000 == 0x800 {
                assert!(interpreted(make) < 10);
            }
        }
    }
}

#[test]
fn repetitions_are_parted_where_the_budget_ends() {
    alike(|| repeating(DATA + 0xfd9, DATA + 0x1fd0, |a| a.rep().movsq()));
    alike(|| repeating(DATA + 0x800, DATA + 0x805, |a| a.rep().movsb()));
    alike(|| repeating(DATA + 0x800, DATA, |a| a.rep().stosq()));
    // More iterations than a unit may have instructions.
    alike(|| {
        repeating(DATA + 0x100, DATA, |a| {
            a.mov(ecx, 170)?;
            a.rep().stosq()
        })
    });
}

#[test]
fn counts_of_repetitions_are_taken_as_they_are() {
    for count in [0u64, 1, 2, 511, 512, 513, 4095, 4096] {
        alike_in_one_go(|| {
            repeating(DATA, DATA + 0x1000, |a| {
                a.mov(rcx, count)?;
                a.rep().stosb()?;
                a.mov(rcx, count)?;
                a.mov(rdi, DATA + 0x2000)?;
                a.rep().movsb()
            })
        });
    }
}

#[test]
fn repetitions_over_the_end_of_a_page_go_on_where_the_next_one_is() {
    for body in [(|a| a.rep().stosd()) as Insn, |a| a.rep().movsw()] {
        let end = alike_in_one_go(|| {
            let mut g = repeating(DATA + 0xffa, DATA + 0xff7, body);
            g.map(DATA + 0x1000, DATA + 0x5000, P | W);
            g
        });
        assert_eq!(end.events, [Stop::Halted]);
    }
}

#[test]
fn counts_that_wrap_the_address_fault() {
    for count in [1u64 << 61, 1 << 63, (1 << 61) + 4, !0] {
        let end = alike_in_one_go(|| {
            let mut g = repeating(DATA, DATA + 0x1000, |a| {
                a.mov(r8, count)?;
                a.cmove(rcx, r8)?;
                a.rep().stosq()
            });
            g.map(DATA + 0x2000, 0, 0);
            ends_at(&mut g, 14);
            g
        });
        assert_eq!(end.events, [Stop::Halted]);
    }
}

#[test]
fn repetitions_backward_and_in_other_segments_are_the_interpreters() {
    alike(|| {
        repeating(DATA + 0x800, DATA + 0x900, |a| {
            a.std()?;
            a.rep().movsq()?;
            a.cld()?;
            a.mov(ecx, 5)?;
            a.rep().stosq()
        })
    });
    alike(|| {
        let mut g = repeating(DATA + 0x800, 0x900, |a| a.db(&[0x64, 0xf3, 0x48, 0xa5]));
        g.cpu().seg[4].base = DATA;
        g
    });
}

#[test]
fn a_repetition_over_its_own_code_is_seen_at_once() {
    // It writes over the immediate of the instruction behind it.
    alike(|| {
        let mut g = Guest::long();
        g.program(|a| {
            let (mut again, mut place) = (a.create_label(), a.create_label());
            a.mov(ebx, 60)?;
            a.set_label(&mut again)?;
            a.lea(rdi, ptr(place))?;
            a.add(rdi, 1)?;
            a.mov(eax, ebx)?;
            a.mov(ecx, 4)?;
            a.rep().stosb()?;
            a.set_label(&mut place)?;
            a.mov(edx, 0)?;
            a.add(r13, rdx)?;
            a.dec(ebx)?;
            a.jnz(again)?;
            a.hlt()
        });
        g
    });
}

// ---- pages that change places ----

#[test]
fn code_that_maps_another_page_over_itself_goes_on_there() {
    let end = alike(|| {
        let mut g = machine();
        let entry = g.entry_at(CODE, 1);
        g.map(DATA + 0x7000, entry & !0xfff, P | W);
        let slot = DATA + 0x7000 + entry % 0x1000;
        for (page, value) in [(CODE, 1), (DATA, 1000)] {
            g.load_bits(64, page, CODE, |a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                // At every fourth round the other page.
                a.xor(edx, edx)?;
                a.mov(ecx, (CODE ^ DATA) as u32)?;
                a.test(ebx, 3)?;
                a.cmovnz(ecx, edx)?;
                a.xor(qword_ptr(slot), rcx)?;
                a.invlpg(byte_ptr(CODE))?;
                a.add(r13, value)?;
                a.dec(ebx)?;
                a.jnz(again)?;
                a.hlt()
            });
        }
        g.set_reg(RBX, 30);
        g.cpu().rip = CODE;
        g
    });
    assert_eq!((end.events, end.cpu.regs[13]), (vec![Stop::Halted], 14 + 16 * 1000));
}

// ---- stacks ----

#[test]
fn two_stacks_change_places() {
    // Pushes on either page, near its end and across it, and a page that goes away meanwhile.
    for (one, other) in
        [(STACK, IST1), (STACK + 4, IST1), (STACK - 0xff8, IST1 - 0xffc), (STACK, STACK - 0x40)]
    {
        alike(|| {
            let mut g = machine();
            g.program(|a| {
                let mut again = a.create_label();
                a.mov(ebx, 25)?;
                a.mov(rbp, other)?;
                a.set_label(&mut again)?;
                a.push(rbx)?;
                a.xchg(rsp, rbp)?;
                a.push(rbx)?;
                a.push(rbp)?;
                a.add(r13, qword_ptr(rsp + 8))?;
                a.pop(rbp)?;
                a.pop(rcx)?;
                a.xchg(rsp, rbp)?;
                a.pop(rdx)?;
                a.add(r13, rdx)?;
                a.invlpg(byte_ptr(rbp))?;
                a.dec(ebx)?;
                a.jnz(again)?;
                a.hlt()
            });
            g.set_reg(RSP, one);
            g
        });
    }
}

#[test]
fn a_stack_that_is_no_longer_writable_faults() {
    let end = alike(|| {
        let mut g = machine();
        let entry = g.entry_at(IST2 - 8, 1);
        g.program(|a| {
            let (mut again, mut stay) = (a.create_label(), a.create_label());
            a.mov(ebx, 25)?;
            a.mov(rbp, IST2)?;
            a.set_label(&mut again)?;
            a.push(rbx)?;
            a.xchg(rsp, rbp)?;
            a.push(rbx)?;
            a.pop(rcx)?;
            a.xchg(rsp, rbp)?;
            a.pop(rdx)?;
            a.cmp(ebx, 9)?;
            a.jne(stay)?;
            a.and(byte_ptr(entry), !2)?;
            a.invlpg(byte_ptr(IST2 - 8))?;
            a.set_label(&mut stay)?;
            a.dec(ebx)?;
            a.jnz(again)?;
            a.hlt()
        });
        ends_at(&mut g, 14);
        g
    });
    assert_eq!((end.events, end.cpu.regs[RBX]), (vec![Stop::Halted], 8));
}

// ---- vector registers ----

/// Vector instructions of a program, with a look at their results.
fn vectors(a: &mut Asm) -> Made {
    a.movq(xmm0, r12)?;
    a.paddq(xmm1, xmm0)?;
    a.pshufd(xmm2, xmm1, 0x1b)?;
    a.movq(r12, xmm2)
}

/// A kernel that works on vector registers, reads the clock and leaves for the interpreter.
pub fn vectors_in_kernel(a: &mut Asm) -> Made {
    a.movq(xmm3, rbx)?;
    a.paddq(xmm1, xmm3)?;
    a.rdtsc()?;
    a.mov(r9, rbx)?;
    a.cpuid()?;
    a.mov(rbx, r9)?;
    a.paddq(xmm1, xmm3)
}

#[test]
fn vector_registers_outlast_system_calls() {
    alike(|| {
        let mut g = machine();
        kernel(&mut g, vectors_in_kernel);
        caller(&mut g, 20, vectors);
        g
    });
}

#[test]
fn vector_registers_are_given_back_for_whoever_saves_them() {
    alike(|| {
        let mut g = machine();
        kernel(&mut g, |a| {
            a.fxsave(ptr(DATA + 0x1000))?;
            a.mov(r9, qword_ptr(DATA + 0x1000 + 160 + 16))?;
            a.inc(qword_ptr(DATA + 0x1000 + 160 + 16))?;
            a.fxrstor(ptr(DATA + 0x1000))?;
            a.xor(r12, r9)
        });
        caller(&mut g, 20, vectors);
        g
    });
}

#[test]
fn a_task_switch_bit_set_in_a_system_call_stops_the_programs_vectors() {
    for (bits, vector) in [(cr0::TS, 7), (cr0::EM, 6)] {
        let end = alike(|| {
            let mut g = machine();
            kernel(&mut g, |a| {
                let mut stay = a.create_label();
                a.cmp(ebx, 6)?;
                a.jne(stay)?;
                a.mov(r8, cr0)?;
                a.or(r8, bits as i32)?;
                a.mov(cr0, r8)?;
                a.set_label(&mut stay)?;
                a.nop()
            });
            caller(&mut g, 20, vectors);
            ends_at(&mut g, vector);
            g
        });
        assert_eq!((end.events, end.cpu.regs[RBX]), (vec![Stop::Halted], 6));
    }
}

#[test]
fn unmasked_exceptions_come_after_lent_registers_were_taken_back() {
    let end = alike(|| {
        let mut g = machine();
        kernel(&mut g, |a| {
            let mut stay = a.create_label();
            a.cmp(ebx, 6)?;
            a.jne(stay)?;
            a.mov(dword_ptr(DATA), 0x1d80)?;
            a.ldmxcsr(dword_ptr(DATA))?;
            a.set_label(&mut stay)?;
            a.nop()
        });
        caller(&mut g, 20, |a| {
            a.cvtsi2sd(xmm4, ebx)?;
            a.pxor(xmm5, xmm5)?;
            a.divsd(xmm4, xmm5)
        });
        ends_at(&mut g, 19);
        g.cpu().cr4 |= cr4::OSXMMEXCPT;
        g.flag(rflags::IF);
        g
    });
    assert_eq!((end.events, end.cpu.regs[RBX]), (vec![Stop::Halted], 6));
}

#[test]
fn system_calls_of_a_program_with_vectors_need_no_interpreter() {
    let make = || {
        let mut g = machine();
        kernel(&mut g, nothing);
        caller(&mut g, 60, vectors);
        g
    };
    assert!(interpreted(make) < 30);
}
