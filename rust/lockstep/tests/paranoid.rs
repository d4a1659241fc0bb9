//! The interpreter against itself: what a boot and small programs do must not depend on what the interpreter remembers.
//!
//! Without the image the test of the boot says so and passes. `TRAPGATE_FULL=1` goes further.

mod common;

use iced_x86::code_asm::*;
use trapgate_lockstep::guest::Guest;
use trapgate_lockstep::paranoid::{Against, Plan, Verdict, compare};
use trapgate_machine::Exit;
use trapgate_x86::insn::Bits;

use common::{debian, full};

#[track_caller]
fn same(guest: &Guest, plan: &Plan) -> (u64, Option<Exit>) {
    match compare(guest, plan).unwrap() {
        Verdict::Same { count, exit } => (count, exit),
        Verdict::Differs(divergence) => panic!("{divergence}"),
    }
}

#[test]
fn tables_that_change_under_a_running_program_do_not_matter() {
    // Maps 4 MiB on to memory at 2 MiB, writes through it, maps it elsewhere with INVLPG, writes again, and runs code
    // through both names.
    let guest = Guest::program(Bits::B64, |a| {
        let mut again = a.create_label();
        a.mov(rsp, 0x1f_0000u64)?;
        // The first page directory of the entry state: CR3 -> PML4[0] -> PDPT[0].
        a.mov(rbx, cr3)?;
        a.mov(rbx, qword_ptr(rbx))?;
        a.and(rbx, -4096)?;
        a.mov(rbx, qword_ptr(rbx))?;
        a.and(rbx, -4096)?;
        a.mov(ecx, 30)?;
        a.set_label(&mut again)?;
        a.mov(eax, ecx)?;
        a.and(eax, 1)?;
        a.shl(eax, 21)?;
        a.or(eax, 0x83)?;
        a.mov(qword_ptr(rbx + 16), rax)?;
        a.invlpg(ptr(0x40_0000))?;
        // MOV EAX, imm32; RET at 4 MiB + 1.5 MiB, with the count in it.
        a.mov(byte_ptr(0x58_0000), 0xb8)?;
        a.mov(dword_ptr(0x58_0001), ecx)?;
        a.mov(byte_ptr(0x58_0005), 0xc3u32)?;
        a.mov(edx, 0x58_0000)?;
        a.call(rdx)?;
        a.add(esi, eax)?;
        a.mov(edx, 0x18_0000)?;
        a.mov(byte_ptr(0x18_0000), 0xb8)?;
        a.mov(byte_ptr(0x18_0005), 0xc3u32)?;
        a.call(rdx)?;
        a.sub(edi, eax)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    let plan = Plan { against: Against::Paranoid, start: 0, end: 10_000, every: 1, hash_every: 50 };
    let (count, exit) = same(&guest.unwrap(), &plan);
    assert_eq!(exit, Some(Exit::Halted));
    assert!(count > 30 * 15);
}

#[test]
fn timers_and_halts_do_not_matter() {
    // The PIT through the 8259, in HLT and in a loop.
    let guest = Guest::program(Bits::B64, |a| {
        let (mut handler, mut wait) = (a.create_label(), a.create_label());
        const IDT: u64 = 0x21_0000;
        a.mov(rsp, 0x20_0000u64)?;
        a.lea(rax, qword_ptr(handler))?;
        a.or(eax, 0)?;
        a.mov(edx, eax)?;
        a.and(edx, 0xffff)?;
        a.or(edx, 0x10_0000)?;
        a.mov(dword_ptr(IDT + 16 * 0x20), edx)?;
        a.and(eax, 0xffff_0000u32)?;
        a.or(eax, 0x8e00)?;
        a.mov(dword_ptr(IDT + 16 * 0x20 + 4), eax)?;
        a.mov(word_ptr(IDT - 16), 0xfff)?;
        a.mov(eax, IDT as u32)?;
        a.mov(qword_ptr(IDT - 14), rax)?;
        a.lidt(ptr(IDT - 16))?;
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x20),
            (0x21, 4),
            (0x21, 1),
            (0x21, 0xfe),
            (0x43, 0x34),
            (0x40, 0xff),
            (0x40, 0),
        ] {
            a.mov(al, value)?;
            a.out(port, al)?;
        }
        a.sti()?;
        a.set_label(&mut wait)?;
        a.inc(rcx)?;
        a.cmp(r15d, 5)?;
        a.jb(wait)?;
        a.hlt()?;
        a.hlt()?;
        a.cli()?;
        a.hlt()?;
        a.set_label(&mut handler)?;
        a.inc(r15d)?;
        a.mov(al, 0x20)?;
        a.out(0x20, al)?;
        a.iretq()
    });
    let plan = Plan { against: Against::Paranoid, start: 0, end: 5_000_000, every: 97, hash_every: 50_000 };
    assert_eq!(same(&guest.unwrap(), &plan).1, Some(Exit::Halted));
}

#[test]
fn debian_boots_the_same_way() {
    let Some(guest) = debian() else { return };
    let more = if full() { 10_000_000 } else { 200_000 };
    // The first instructions; the kernel's own page tables; the memory allocator.
    for start in [0, 18_000_000, 60_000_000] {
        let plan =
            Plan { against: Against::Paranoid, start, end: start + more, every: 100, hash_every: 100_000 };
        assert_eq!(same(&guest, &plan), (plan.end, None));
    }
}
