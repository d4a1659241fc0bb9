//! Units that go on at the target of a jump or call and behind the call again, and accesses to the stack whose moves are put
//! off. As in [`super::passage`] a program must do the same on every engine, wherever its run is parted.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use iced_x86::code_asm::*;

use crate::common::*;
use crate::passage::{Asm, Made, alike, finish, interpreted, machine, on};

/// A loop of `rounds` around a call of a function in the page. R13 adds up what can be seen of the stack pointer.
fn calling(stack: u64, rounds: u32, function: impl FnOnce(&mut Asm) -> Made) -> Guest {
    let mut g = Guest::long();
    g.program(|a| {
        let (mut again, mut f, mut start) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(rsp, stack)?;
        a.mov(ebx, rounds)?;
        a.jmp(start)?;
        a.set_label(&mut f)?;
        function(a)?;
        a.ret()?;
        a.set_label(&mut start)?;
        a.nop()?;
        a.set_label(&mut again)?;
        a.push(rbx)?;
        a.call(f)?;
        a.pop(rdx)?;
        a.add(r13, rsp)?;
        a.lea(r13, ptr(r13 + rdx * 8 + rax))?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.hlt()
    });
    g
}

/// Pushes and pops with all that may stand between them.
fn prologue(a: &mut Asm) -> Made {
    let mut over = a.create_label();
    a.push(rbp)?;
    a.mov(eax, ebx)?;
    a.push(r12)?;
    a.push(r9)?;
    a.push(0x1234)?;
    a.mov(r12, qword_ptr(rsp + 0x20))?;
    a.add(qword_ptr(rsp + 8), rax)?;
    a.test(eax, 1)?;
    a.jnz(over)?;
    a.push(rsp)?;
    a.pop(rcx)?;
    a.add(r13, rcx)?;
    a.set_label(&mut over)?;
    a.pop(rcx)?;
    a.lea(rax, ptr(rax + rcx * 2))?;
    a.pop(r9)?;
    a.pop(r12)?;
    a.pop(rbp)
}

#[test]
fn functions_of_the_page_move_the_stack_as_they_should() {
    let make = || calling(STACK, 9, prologue);
    alike(make);
    assert!(interpreted(make) < 4);
}

#[test]
fn stacks_may_end_anywhere_in_a_page() {
    let end = STACK & !0xfff;
    for offset in (0..0x48).step_by(8).chain([1, 4, 0x1c, 0x2f]) {
        let make = || calling(end + offset, 5, prologue);
        let want = finish(&mut on(&make, None));
        for engine in 0..2 {
            assert_eq!(finish(&mut on(&make, Some(engine))), want, "stack at {offset:#x}");
        }
    }
}

#[test]
fn a_frame_across_pages_does_not_leave() {
    // The group's check fails in each round: the unit that checks each access alone goes on without a look around.
    let mut g = on(&|| calling((STACK & !0xfff) + 0x10, 300, prologue), Some(0));
    finish(&mut g);
    let stats = g.engine.translator_stats().expect("a translator");
    assert!(stats.misses > 300 && stats.entries < 100, "{stats:?}");
}

/// A loop over three stacks in pages of their own.
fn three_stacks(a: &mut Asm) -> Made {
    let mut again = a.create_label();
    a.mov(ebx, 60)?;
    a.set_label(&mut again)?;
    for stack in [DATA + 0x1000, DATA + 0x2000, DATA + 0x3000] {
        a.mov(rsp, stack)?;
        a.push(rbx)?;
        a.add(qword_ptr(rsp), r12)?;
        a.pop(rcx)?;
        a.lea(r12, ptr(r12 + rcx * 2))?;
    }
    a.dec(ebx)?;
    a.jnz(again)
}

#[test]
fn stacks_that_are_in_the_table_of_pages_are_found_there() {
    let supervisor = || {
        let mut g = machine();
        g.program(|a| {
            three_stacks(a)?;
            a.hlt()
        });
        g
    };
    let user = || {
        let mut g = machine();
        g.user_program(|a| {
            three_stacks(a)?;
            a.int(0x81)
        });
        g
    };
    alike(supervisor);
    alike(user);
    for make in [&supervisor as &dyn Fn() -> Guest, &user] {
        let mut g = on(make, Some(0));
        finish(&mut g);
        let misses = g.engine.translator_stats().expect("a translator").misses;
        assert!(misses < 20, "{misses}");
    }
}

#[test]
fn what_names_the_stack_pointer_sees_it_as_it_is() {
    alike(|| {
        calling(STACK, 9, |a| {
            a.push(rbp)?;
            a.push(rbx)?;
            a.mov(rbp, rsp)?;
            a.push(rax)?;
            a.lea(rcx, ptr(rsp + 8))?;
            a.push(rcx)?;
            a.push(qword_ptr(rsp))?;
            a.xor(qword_ptr(rsp), rsp)?;
            a.pop(rdx)?;
            a.add(r13, rdx)?;
            a.push(rdx)?;
            a.sub(rsp, 0x18)?;
            a.push(rdx)?;
            a.cmp(rsp, rbp)?;
            a.pop(qword_ptr(rsp + 8))?;
            a.add(rsp, 0x20)?;
            a.pop(rdx)?;
            a.push(rbp)?;
            a.pop(rsp)?;
            a.pop(rdx)?;
            a.pop(rbp)
        })
    });
}

#[test]
fn the_interpreter_sees_the_stack_as_it_is() {
    let make = || {
        calling(STACK, 9, |a| {
            a.push(rbx)?;
            a.push(rbp)?;
            a.xor(eax, eax)?;
            a.cpuid()?;
            a.pop(rbp)?;
            a.push(rbp)?;
            a.int3()?;
            a.pop(rbp)?;
            a.pop(rbx)
        })
    };
    alike(make);
    assert!(interpreted(make) >= 9);
}

#[test]
fn a_return_may_lead_elsewhere() {
    // Every other time the function returns behind the POP of its caller, which it has done itself.
    // Not at a page's end: the check is for the way that is expected as well.
    alike(|| {
        calling(STACK - 0x100, 9, |a| {
            let mut plain = a.create_label();
            a.push(rbp)?;
            a.test(bl, 1)?;
            a.jz(plain)?;
            a.add(qword_ptr(rsp + 8), 1)?;
            a.pop(rbp)?;
            a.mov(rdx, qword_ptr(rsp + 8))?;
            a.mov(rcx, qword_ptr(rsp))?;
            a.add(rsp, 8)?;
            a.mov(qword_ptr(rsp), rcx)?;
            a.push(rbp)?;
            a.set_label(&mut plain)?;
            a.pop(rbp)
        })
    });
}

#[test]
fn a_return_may_lead_to_no_address() {
    let make = || {
        calling(STACK, 3, |a| {
            let mut plain = a.create_label();
            a.push(rbp)?;
            a.cmp(ebx, 1)?;
            a.jne(plain)?;
            a.mov(rcx, 0x8000_0000_0000_0000u64)?;
            a.mov(qword_ptr(rsp + 8), rcx)?;
            a.set_label(&mut plain)?;
            a.pop(rbp)
        })
    };
    for engine in [None, Some(0), Some(1)] {
        let fault = on(&make, engine).expect(13);
        assert_eq!((fault.error, fault.rsp), (Some(0), STACK - 0x10), "{engine:?}");
    }
}

#[test]
fn faults_of_a_function_find_the_stack_where_it_was() {
    const END: u64 = 0x70_0000;
    for room in (0..=0x30).step_by(8) {
        alike(|| {
            let mut g = calling(END + room, 3, |a| {
                a.push(rbp)?;
                a.push(rbx)?;
                a.xor(eax, eax)?;
                a.push(rax)?;
                a.mov(rax, qword_ptr(rax + 0x60_0000))?;
                a.push(rax)?;
                a.add(rsp, 0x10)?;
                a.pop(rbx)?;
                a.pop(rbp)
            });
            g.map(END, DATA, P | W);
            g
        });
    }
}

#[test]
fn each_piece_of_a_unit_may_change() {
    // The function is in the unit of its caller; now and then its MOV AL gets another value.
    alike(|| {
        let mut g = Guest::long();
        g.program(|a| {
            let (mut again, mut f, mut write) = (a.create_label(), a.create_label(), a.create_label());
            let mut start = a.create_label();
            a.mov(ebx, 12)?;
            a.jmp(start)?;
            a.set_label(&mut f)?;
            a.mov(al, 5)?;
            a.ret()?;
            a.set_label(&mut start)?;
            a.lea(rsi, ptr(f))?;
            a.set_label(&mut again)?;
            a.call(f)?;
            a.movzx(eax, al)?;
            a.lea(r12, ptr(r12 + r12 * 2))?;
            a.add(r12, rax)?;
            a.test(bl, 3)?;
            a.jz(write)?;
            a.set_label(&mut write)?;
            a.mov(byte_ptr(rsi + 1), bl)?;
            a.dec(ebx)?;
            a.jnz(again)?;
            a.hlt()
        });
        g
    });
}
