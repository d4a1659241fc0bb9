//! Instructions that begin in one page and end in the next one. The translator makes host code of them that holds while the
//! second page is where it was and reads as it did; a program must do the same on every engine whatever becomes of either page.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use iced_x86::code_asm::*;
use trapgate_x86::regs::cr4;

use crate::common::*;
use crate::passage::{alike, ends_at, interpreted, machine};

/// A second page of code behind [`CODE`].
const NEXT: u64 = CODE + 0x1000;
/// Where programs go on behind what they try.
const BEHIND: u64 = CODE + 0x200;
/// A function that only returns.
const RETURNS: u64 = CODE + 0x300;

// ---- all kinds of instructions ----

/// A loop around one instruction of which `inside` bytes lie in the first page.
fn straddling(inside: u64, insn: Insn) -> Guest {
    let mut g = machine();
    g.load(NEXT - inside, |a| {
        insn(a)?;
        a.jmp(BEHIND)
    });
    g.load(RETURNS, |a| a.ret());
    g.load(CODE, |a| {
        a.mov(rdi, DATA + 0x800)?;
        a.lea(rsi, ptr(rdi + rbx * 8))?;
        a.mov(ecx, 3)?;
        a.xor(edx, edx)?;
        a.lea(rax, ptr(rbx + 0x77))?;
        a.test(bl, 4)?;
        a.jmp(NEXT - inside)
    });
    g.load(BEHIND, |a| {
        a.pushfq()?;
        a.pop(r12)?;
        a.add(r13, r12)?;
        a.add(r13, rax)?;
        a.add(r13, rdi)?;
        a.movq(r12, xmm1)?;
        a.add(r13, r12)?;
        a.dec(ebx)?;
        a.jnz(CODE)?;
        a.hlt()
    });
    g.cpu().rip = CODE;
    g.set_reg(RBX, 30);
    g
}

/// Every way to have an instruction across pages.
fn everywhere(insn: Insn, mut look: impl FnMut(u64)) {
    let code = Guest::long().load(NEXT, insn);
    for inside in 1..code.end - code.start {
        look(inside);
    }
}

#[test]
fn instructions_of_all_kinds_need_no_interpreter() {
    let kinds: [Insn; 14] = [
        |a| a.mov(rax, rbx),
        |a| a.add(r13, 0x1234_5678),
        |a| a.xor(r9, rbx),
        |a| a.db(&[0x48, 0x8d, 0x05, 0, 1, 0, 0]),
        |a| a.mov(rax, qword_ptr(rsi + 8)),
        |a| a.add(qword_ptr(rdi), rax),
        |a| a.lock().xadd(qword_ptr(rdi + 16), rax),
        |a| a.paddq(xmm1, xmmword_ptr(rdi)),
        |a| a.jne(BEHIND),
        |a| a.jne(CODE + 0x1080),
        |a| a.jmp(BEHIND),
        |a| a.call(RETURNS),
        |a| a.div(rcx),
        |a| a.rep().stosq(),
    ];
    for insn in kinds {
        everywhere(insn, |inside| {
            let make = || {
                let mut g = straddling(inside, insn);
                g.load(CODE + 0x1080, |a| a.jmp(BEHIND));
                g
            };
            alike(make);
            let left = interpreted(make);
            assert!(left < 10, "left {left} times, {inside} bytes in the first page");
        });
    }
}

#[test]
fn instructions_of_the_interpreters_go_on_behind() {
    let kinds: [Insn; 3] = [|a| a.fninit(), |a| a.smsw(rax), |a| a.lar(ecx, edx)];
    for insn in kinds {
        everywhere(insn, |inside| {
            alike(|| straddling(inside, insn));
        });
    }
}

// ---- accesses that are not for translated code ----

#[test]
fn accesses_that_miss_are_the_interpreters() {
    // A page that is mapped for every other round, one across two pages, and one of code.
    let kinds: [Insn; 3] = [
        |a| a.add(qword_ptr(DATA as u32 as i32 + 0x3010), rax),
        |a| a.add(qword_ptr(DATA as u32 as i32 + 0xffc), rax),
        |a| a.add(byte_ptr(CODE as u32 as i32 + 0x1900), al),
    ];
    for insn in kinds {
        everywhere(insn, |inside| {
            let end = alike(|| {
                let mut g = straddling(inside, insn);
                let entry = g.entry_at(DATA + 0x3010, 1);
                g.load(CODE + 0x800, |a| {
                    a.add(r14, qword_ptr(rsp + 8))?;
                    a.add(rsp, 8)?;
                    a.or(byte_ptr(entry), 1)?;
                    a.iretq()
                });
                g.set_gate(14, Gate::interrupt(CODE + 0x800));
                g.load(BEHIND, |a| {
                    a.and(byte_ptr(entry), 0xfe)?;
                    a.invlpg(byte_ptr(DATA + 0x3010))?;
                    a.dec(ebx)?;
                    a.jnz(CODE)?;
                    a.hlt()
                });
                g
            });
            assert_eq!(end.events, [Stop::Halted]);
        });
    }
}

// ---- pages that change ----

/// A loop with a 10-byte MOV, of which `inside` bytes lie in the first page.
fn across(inside: u64) -> Guest {
    let mut g = machine();
    let start = NEXT - inside;
    g.load(start, |a| {
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.add(r13, rax)?;
        a.dec(ebx)?;
        a.jmp(CODE)
    });
    g.load(CODE, |a| {
        let mut over = a.create_label();
        a.jz(over)?;
        a.nop()?;
        a.jmp(start)?;
        a.set_label(&mut over)?;
        a.hlt()
    });
    g.cpu().rip = CODE;
    g.set_reg(RBX, 30);
    g
}

#[test]
fn instructions_across_pages_are_run_without_a_look_around() {
    for inside in [1, 2, 5, 9] {
        alike(|| across(inside));
        let left = interpreted(|| across(inside));
        assert!(left < 10, "left {left} times, {inside} bytes in the first page");
    }
}

#[test]
fn the_second_page_may_be_written() {
    for offset in [0u64, 3] {
        alike(|| {
            let mut g = across(4);
            // Of the immediate, or of what follows the instruction.
            g.load(CODE, |a| {
                let mut over = a.create_label();
                a.jz(over)?;
                a.inc(byte_ptr(NEXT + offset))?;
                a.test(ebx, ebx)?;
                a.jmp(NEXT - 4)?;
                a.set_label(&mut over)?;
                a.hlt()
            });
            g
        });
    }
    alike(|| {
        let mut g = across(4);
        g.load(CODE, |a| {
            let mut over = a.create_label();
            a.jz(over)?;
            a.inc(byte_ptr(NEXT + 0x800))?;
            a.test(ebx, ebx)?;
            a.jmp(NEXT - 4)?;
            a.set_label(&mut over)?;
            a.hlt()
        });
        g
    });
}

#[test]
fn the_second_page_may_be_mapped_elsewhere() {
    let end = alike(|| {
        let mut g = across(4);
        let mut other = g.peek(NEXT, 0x1000);
        other[1] ^= 1;
        g.poke(DATA, &other);
        let entry = g.entry_at(NEXT, 1);
        g.map(DATA + 0x7000, entry & !0xfff, P | W);
        let slot = DATA + 0x7000 + entry % 0x1000;
        g.load(CODE, |a| {
            let mut over = a.create_label();
            a.jz(over)?;
            // To the other page and back.
            a.mov(rcx, qword_ptr(slot))?;
            a.mov(rdx, NEXT ^ DATA)?;
            a.xor(rcx, rdx)?;
            a.mov(qword_ptr(slot), rcx)?;
            a.invlpg(byte_ptr(NEXT))?;
            a.test(ebx, ebx)?;
            a.jmp(NEXT - 4)?;
            a.set_label(&mut over)?;
            a.hlt()
        });
        g
    });
    assert_eq!(end.events, [Stop::Halted]);
}

#[test]
fn the_second_page_may_go_and_come_back() {
    let end = alike(|| {
        let mut g = across(4);
        let entry = g.entry_at(NEXT, 1);
        // The handler maps it again and goes back.
        g.load(CODE + 0x800, |a| {
            a.add(r14, qword_ptr(rsp + 8))?;
            a.add(rsp, 8)?;
            a.or(byte_ptr(entry), 1)?;
            a.iretq()
        });
        g.set_gate(14, Gate::interrupt(CODE + 0x800));
        g.load(CODE, |a| {
            let (mut over, mut stay) = (a.create_label(), a.create_label());
            a.jz(over)?;
            a.test(ebx, 3)?;
            a.jnz(stay)?;
            a.and(byte_ptr(entry), 0xfe)?;
            a.invlpg(byte_ptr(NEXT))?;
            a.set_label(&mut stay)?;
            a.test(ebx, ebx)?;
            a.jmp(NEXT - 4)?;
            a.set_label(&mut over)?;
            a.hlt()
        });
        g
    });
    assert_eq!(end.events, [Stop::Halted]);
}

#[test]
fn an_instruction_that_writes_over_its_own_end_is_seen_the_next_time() {
    // INC of the last byte of its own displacement's page: ADD BYTE [NEXT + n], 1 whose immediate is at NEXT + n.
    for inside in 1..7 {
        let end = alike(|| {
            let mut g = straddling(inside, |a| a.nop());
            let place = NEXT - inside + 7;
            g.load(NEXT - inside, |a| {
                a.add(byte_ptr(place), 1)?;
                a.jmp(BEHIND)
            });
            g
        });
        assert_eq!(end.events, [Stop::Halted]);
    }
}

#[test]
fn either_page_may_be_written_through_an_alias() {
    const ALIAS: u64 = 0x2_0000_0000;
    // The first byte of the immediate, the last one in the first page, the first one of the second.
    for (inside, at) in [(4u64, NEXT - 2), (4, NEXT - 1), (4, NEXT), (9, NEXT), (2, NEXT + 7)] {
        alike(|| {
            let mut g = across(inside);
            g.map(ALIAS, CODE, P | W);
            g.map(ALIAS + 0x1000, NEXT, P | W);
            g.load(CODE, |a| {
                let mut over = a.create_label();
                a.jz(over)?;
                a.mov(rcx, ALIAS + at - CODE)?;
                a.test(ebx, 3)?;
                a.setz(dl)?;
                a.add(byte_ptr(rcx), dl)?;
                a.test(ebx, ebx)?;
                a.jmp(NEXT - inside)?;
                a.set_label(&mut over)?;
                a.hlt()
            });
            g
        });
    }
}

#[test]
fn a_device_may_write_the_second_page() {
    let mut g = across(4);
    assert!(g.engine.set_translate(Some(Default::default())), "this host cannot translate");
    g.run_until(60);
    let before = g.reg(13);
    let rounds = g.reg(RBX);
    assert!(rounds > 4 && rounds < 28 && before % 0x1122_3344_5566_7788 == 0);
    // The last byte of the immediate.
    g.memory.write(NEXT - 4 + 9, &[0]).unwrap();
    g.cpu().rip = CODE;
    g.set_reg(13, 0);
    g.set_reg(RBX, 2);
    g.cpu().flags.remove(trapgate_x86::regs::rflags::ZF);
    g.expect_halt();
    assert_eq!(g.reg(13), 2 * 0x0022_3344_5566_7788);
}

#[test]
fn the_second_page_may_be_another_in_each_address_space() {
    for global in [0, G] {
        let end = alike(|| {
            let mut g = across(4);
            let mut other = g.peek(NEXT, 0x1000);
            other[1] ^= 1;
            g.poke(DATA + 0x1000, &other);
            let (one, two) = (g.cpu().cr3, g.new_table());
            // All as it is, but for the second page.
            for linear in (0..0x20_0000u64).step_by(0x1000) {
                let to = if linear == NEXT { DATA + 0x1000 } else { linear };
                g.map_in(two, linear, to, 1, P | W | global);
            }
            g.map_in(two, DATA, DATA, 2, P | W | PS);
            g.cpu().cr4 |= if global != 0 { cr4::PGE } else { 0 };
            g.load(CODE, |a| {
                let (mut over, mut stay) = (a.create_label(), a.create_label());
                a.jz(over)?;
                a.mov(rcx, one)?;
                a.test(ebx, 2)?;
                a.jz(stay)?;
                a.mov(rcx, two)?;
                a.set_label(&mut stay)?;
                a.mov(cr3, rcx)?;
                a.test(ebx, ebx)?;
                a.jmp(NEXT - 4)?;
                a.set_label(&mut over)?;
                a.hlt()
            });
            g
        });
        assert_eq!(end.events, [Stop::Halted]);
    }
}

#[test]
fn a_second_page_that_may_not_be_run_faults_at_its_own_address() {
    for bits in [NX, 0] {
        let end = alike(|| {
            let mut g = across(4);
            let entry = g.entry_at(NEXT, 1);
            let present = if bits == 0 { 0 } else { P | W };
            g.load(CODE, |a| {
                let (mut over, mut stay) = (a.create_label(), a.create_label());
                a.jz(over)?;
                a.cmp(ebx, 9)?;
                a.jne(stay)?;
                a.mov(rcx, NEXT | present | bits)?;
                a.mov(qword_ptr(entry), rcx)?;
                a.invlpg(byte_ptr(NEXT))?;
                a.set_label(&mut stay)?;
                a.test(ebx, ebx)?;
                a.jmp(NEXT - 4)?;
                a.set_label(&mut over)?;
                a.hlt()
            });
            ends_at(&mut g, 14);
            g
        });
        assert_eq!((end.events, end.cpu.regs[RBX]), (vec![Stop::Halted], 9));
        assert_eq!(end.cpu.cr2, NEXT);
    }
}
