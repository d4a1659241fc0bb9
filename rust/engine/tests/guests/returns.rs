//! Ways back and across: IRET with every fault it can have, SYSCALL and SYSRET, SYSENTER and SYSEXIT, SWAPGS, and what
//! ring 3 may not do.

use iced_x86::code_asm::*;
use trapgate_engine::Exit;
use trapgate_x86::regs::{cr0, cr4, efer, rflags};

use crate::common::*;

/// RIP, CS, RFLAGS, RSP, SS.
type Frame = [u64; 5];

const TO_USER: Frame = [USER_CODE, USER64 as u64, rflags::FIXED, USER_STACK, DATA3 as u64];
const TO_KERNEL: Frame = [CODE + 0x800, CODE64 as u64, rflags::FIXED, STACK - 0x100, DATA0 as u64];

/// At an IRETQ with the frame on the stack.
fn at_iret(frame: Frame) -> Guest {
    let mut g = Guest::long();
    g.set_reg(RSP, STACK - 40);
    for (n, word) in frame.into_iter().enumerate() {
        g.put(STACK - 40 + 8 * n as u64, word);
    }
    g.load(USER_CODE, |a| a.int(0x80));
    g.load(CODE + 0x800, |a| a.hlt());
    g.change_gate(0x80, |gate| gate.access = 0xee);
    g.program(|a| a.iretq());
    g
}

#[test]
fn iret_goes_to_ring_3_and_int_comes_back() {
    let mut g = at_iret(TO_USER);
    let e = g.expect(0x80);
    assert_eq!((e.rip, e.cs, e.ss, e.rsp), (USER_CODE + 2, USER64, DATA3, USER_STACK));
    assert_eq!((e.frame, e.count), (STACK0 - 40, 2));
}

#[test]
fn iret_at_the_same_ring_also_takes_the_stack_and_may_take_a_null_one() {
    for stack in [DATA0, 0] {
        let mut frame = TO_KERNEL;
        frame[4] = u64::from(stack);
        let mut g = at_iret(frame);
        g.expect_halt();
        assert_eq!((g.reg(RSP), g.cpu().seg[2].selector, g.cpu().cpl), (STACK - 0x100, stack, 0));
    }
}

#[test]
fn a_bad_frame_is_a_fault_of_the_iret_that_changes_nothing() {
    let with = |base: Frame, n: usize, value: u64| {
        let mut frame = base;
        frame[n] = value;
        frame
    };
    const BAD: u64 = 0x60;
    // Frame, descriptor for the selector 60h, vector, error code (SDM vol. 2, IRET).
    let table: &[(Frame, u64, u8, u64)] = &[
        (with(TO_KERNEL, 1, 0), 0, 13, 0),
        (with(TO_USER, 1, 3), 0, 13, 0),
        (with(TO_USER, 1, 0x1003), 0, 13, 0x1000),
        (with(TO_USER, 1, 0x7), 0, 13, 4),
        (with(TO_KERNEL, 1, DATA0 as u64), 0, 13, 0x10),
        (with(TO_KERNEL, 1, TASK as u64), 0, 13, 0x40),
        (with(TO_KERNEL, 1, 0x28), 0, 13, 0x28),
        (with(TO_USER, 1, 0xb), 0, 13, 8),
        // A conforming segment of ring 3 is out of reach for ring 0's RPL.
        (with(TO_KERNEL, 1, BAD), 0x00af_ff00_0000_ffff, 13, BAD),
        (with(TO_KERNEL, 1, BAD), 0x00af_1b00_0000_ffff, 11, BAD),
        (with(TO_KERNEL, 1, BAD), 0x00ef_9b00_0000_ffff, 13, BAD),
        (with(TO_USER, 1, BAD | 3), 0x00af_7b00_0000_ffff, 11, BAD),
        (with(TO_USER, 0, 0x8000_0000_0000), 0, 13, 0),
        (with(TO_KERNEL, 0, 0xffff_7fff_ffff_ffff), 0, 13, 0),
        (with(with(TO_USER, 1, USER32 as u64), 0, 0x1_0000_0000), 0, 13, 0),
        (with(TO_USER, 4, 0), 0, 13, 0),
        (with(TO_USER, 4, 3), 0, 13, 0),
        (with(with(TO_USER, 1, USER32 as u64), 4, 3), 0, 13, 0),
        (with(with(TO_KERNEL, 1, CODE32 as u64), 4, 0), 0, 13, 0),
        (with(TO_USER, 4, 0x1003), 0, 13, 0x1000),
        (with(TO_USER, 4, 0x20), 0, 13, 0x20),
        (with(TO_USER, 4, 0x13), 0, 13, 0x10),
        (with(TO_USER, 4, USER64 as u64), 0, 13, 0x28),
        (with(TO_USER, 4, BAD | 3), 0x00cf_f100_0000_ffff, 13, BAD),
        (with(TO_USER, 4, BAD | 3), 0x00cf_7300_0000_ffff, 12, BAD),
        (with(TO_KERNEL, 4, BAD), 0x00cf_1300_0000_ffff, 12, BAD),
        (with(TO_KERNEL, 4, DATA3 as u64), 0, 13, 0x20),
    ];
    for (n, (frame, descriptor, vector, error)) in table.iter().enumerate() {
        let mut g = at_iret(*frame);
        g.free_descriptor(0, *descriptor);
        let e = g.expect(*vector);
        assert_eq!((e.error, e.rip, e.cs, e.ss), (Some(*error), CODE, CODE64, DATA0), "case {n}");
        assert_eq!((e.rsp, e.count, e.rflags), (STACK - 40, 0, rflags::FIXED | rflags::RF), "case {n}");
    }
}

#[test]
fn iret_from_an_absent_or_impossible_stack_faults() {
    for (top, vector, error, address) in [(0x5000_0000, 14, 0, 0x5000_0000), (0x8000_0000_0000, 12, 0, 0)] {
        let mut g = at_iret(TO_USER);
        g.set_reg(RSP, top);
        g.change_gate(vector, |gate| gate.ist = 1);
        let e = g.expect(vector);
        assert_eq!((e.error, e.rip, e.rsp), (Some(error), CODE, top));
        assert_eq!(g.cpu().cr2, address);
    }
    // The last word is in an absent page.
    let mut g = at_iret(TO_USER);
    g.map(0x5000_0000, DATA, P | W);
    for (n, word) in TO_USER.into_iter().enumerate().take(4) {
        g.put(DATA + 0xfe0 + 8 * n as u64, word);
    }
    g.set_reg(RSP, 0x5000_0fe0);
    g.change_gate(14, |gate| gate.ist = 1);
    let e = g.expect_page_fault(0x5000_1000, 0);
    assert_eq!((e.rip, e.rsp, e.cs), (CODE, 0x5000_0fe0, CODE64));
}

#[test]
fn iret_with_nt_is_gp_in_long_mode() {
    let mut g = at_iret(TO_USER);
    g.flag(rflags::NT);
    assert_eq!(g.expect(13).error, Some(0));
}

#[test]
fn the_flags_that_iret_changes_depend_on_privilege_and_iopl() {
    const IMAGE: u64 = rflags::ALL & !(rflags::TF | rflags::NT);
    let all = rflags::STATUS | rflags::DF | rflags::RF | rflags::AC | rflags::ID;
    let system = rflags::IOPL | rflags::VIF | rflags::VIP;
    // From ring 0 everything but VM comes from the image.
    let mut frame = TO_USER;
    frame[2] = IMAGE;
    let mut g = at_iret(frame);
    assert_eq!(g.step(), Exit::Budget);
    assert_eq!(g.rflags(), rflags::FIXED | all | system | rflags::IF);

    // From ring 3 to ring 3 with IOPL 0 and 3.
    for (iopl, also) in [(0, 0), (rflags::IOPL, rflags::IF)] {
        let mut g = at_iret(TO_USER);
        frame[0] = USER_CODE + 0x100;
        for (n, word) in frame.into_iter().enumerate() {
            g.put(USER_STACK - 40 + 8 * n as u64, word);
        }
        g.user_program(|a| a.iretq());
        g.flag(iopl);
        g.set_reg(RSP, USER_STACK - 40);
        assert_eq!(g.step(), Exit::Budget);
        assert_eq!((g.rip(), g.cpu().cpl), (USER_CODE + 0x100, 3));
        assert_eq!(g.rflags(), rflags::FIXED | all | iopl | also);
    }
}

#[test]
fn a_16_bit_iret_changes_the_low_flags_only() {
    let mut g = Guest::long();
    g.flag(rflags::AC | rflags::ID);
    let image = [0x800u16, CODE64, rflags::CF as u16, 0x6f00, DATA0];
    for (n, word) in image.into_iter().enumerate() {
        g.put(STACK - 10 + 2 * n as u64, word);
    }
    g.set_reg(RSP, STACK - 10);
    g.map(0, 0x3_0000, P | W);
    g.program(|a| a.iret());
    assert_eq!(g.step(), Exit::Budget);
    assert_eq!(g.rip(), 0x800);
    assert_eq!(g.rflags(), rflags::FIXED | rflags::AC | rflags::ID | rflags::CF);
}

#[test]
fn iret_to_ring_3_empties_segments_that_it_may_not_use() {
    let mut g = at_iret(TO_USER);
    let flat = g.cpu().seg[3];
    g.cpu().seg[0].selector = DATA3;
    g.cpu().seg[0].access |= 0x60;
    g.cpu().seg[4].base = 0x1234_5678_9abc;
    assert_eq!(flat.dpl(), 0);
    assert_eq!(g.step(), Exit::Budget);
    let selectors = [0, 3, 4, 5].map(|n: usize| g.cpu().seg[n].selector);
    assert_eq!(selectors, [DATA3, 0, 0, 0]);
    assert!(!g.cpu().seg[0].is_null() && g.cpu().seg[3].is_null());
}

#[test]
fn iret_to_compatibility_mode_runs_32_bit_code_and_int_comes_back() {
    let mut frame = TO_USER;
    frame[1] = u64::from(USER32);
    frame[3] |= 0x1_0000_0000;
    let mut g = at_iret(frame);
    let code = g.load_bits(32, USER_CODE, USER_CODE, |a| {
        a.inc(eax)?;
        a.push(eax)?;
        a.int(0x80)
    });
    g.set_reg(RAX, 0xffff_ffff_0000_0001);
    let e = g.expect(0x80);
    assert_eq!((e.rip, e.cs, e.rsp), (code.end, USER32, USER_STACK - 4));
    assert_eq!((g.reg(RAX), g.get::<u32>(USER_STACK - 4)), (2, 2));
    // And once more through the stub's IRET.
    g.load_bits(32, code.end, code.end, |a| a.ud2());
    assert_eq!(g.expect(6).cs, USER32);
}

// ---- SYSCALL and SYSRET ----

const ENTRY: u64 = CODE + 0x400;

fn syscall_guest() -> Guest {
    let mut g = Guest::long();
    let cpu = g.cpu();
    // SYSCALL: CS 8, SS 10h. SYSRET: compatibility 1bh, SS 23h, 64-bit 2bh.
    cpu.star = 0x0018_0008 << 32;
    cpu.lstar = ENTRY;
    g.load(ENTRY, |a| a.hlt());
    g
}

#[test]
fn syscall_saves_rip_and_flags_and_masks_them() {
    let mut g = syscall_guest();
    g.cpu().fmask = rflags::IF | rflags::DF | rflags::CF;
    let code = g.user_program(|a| {
        a.nop()?;
        a.syscall()
    });
    g.flag(rflags::IF | rflags::DF | rflags::CF | rflags::ZF | rflags::RF);
    g.step();
    g.flag(rflags::RF);
    g.step();
    let before = rflags::FIXED | rflags::IF | rflags::DF | rflags::CF | rflags::ZF;
    assert_eq!((g.rip(), g.reg(RCX), g.reg(11)), (ENTRY, code.end, before));
    assert_eq!(g.rflags(), rflags::FIXED | rflags::ZF);
    let (code, stack) = (g.cpu().seg[1], g.cpu().seg[2]);
    assert_eq!((g.cpu().cpl, code.selector, stack.selector, g.reg(RSP)), (0, 8, 0x10, USER_STACK));
    assert!(code.long() && code.is_code() && stack.writable() && stack.limit == u32::MAX);
}

#[test]
fn syscall_is_undefined_without_sce_and_in_compatibility_mode() {
    let mut g = syscall_guest();
    g.cpu().efer &= !efer::SCE;
    g.user_program(|a| a.syscall());
    g.expect(6);
    let mut g = syscall_guest();
    g.set_ring(USER32, DATA3, USER_STACK);
    g.poke(USER_CODE, &[0x0f, 0x05]);
    g.cpu().rip = USER_CODE;
    g.expect(6);
}

#[test]
fn sysret_returns_to_64_bit_and_to_compatibility_code() {
    for (to_64, selector) in [(true, USER64), (false, USER32)] {
        let mut g = syscall_guest();
        g.program(|a| if to_64 { a.sysretq() } else { a.sysret() });
        g.set_reg(RCX, 0x7fff_0000_0000 | USER_CODE);
        g.set_reg(11, !rflags::TF);
        g.step();
        let target = if to_64 { 0x7fff_0000_0000 | USER_CODE } else { USER_CODE };
        assert_eq!((g.rip(), g.cpu().seg[1].selector, g.cpu().seg[2].selector), (target, selector, DATA3));
        assert_eq!((g.cpu().cpl, g.cpu().seg[1].long(), g.cpu().seg[1].big()), (3, to_64, !to_64));
        let all = rflags::ALL & !(rflags::RF | rflags::VM | rflags::TF);
        assert_eq!(g.rflags(), rflags::FIXED | all);
    }
}

#[test]
fn sysret_to_an_impossible_address_faults_in_ring_0() {
    let mut g = syscall_guest();
    g.program(|a| a.sysretq());
    g.set_reg(RCX, 0x8000_0000_0000);
    let e = g.expect(13);
    assert_eq!((e.error, e.rip, e.cs, e.rsp), (Some(0), CODE, CODE64, STACK));
    // The 32-bit form takes the low half.
    let mut g = syscall_guest();
    g.program(|a| a.sysret());
    g.set_reg(RCX, 0x8000_0000_0000 | USER_CODE);
    g.step();
    assert_eq!(g.rip(), USER_CODE);
}

#[test]
fn sysret_is_for_ring_0_and_64_bit_mode() {
    let mut g = syscall_guest();
    g.user_program(|a| a.sysretq());
    assert_eq!(g.expect(13).error, Some(0));
    let mut g = syscall_guest();
    g.cpu().efer &= !efer::SCE;
    g.program(|a| a.sysretq());
    g.expect(6);
    let mut g = syscall_guest();
    g.set_ring(CODE32, DATA0, STACK);
    g.poke(CODE, &[0x0f, 0x07]);
    g.cpu().rip = CODE;
    g.expect(6);
}

// ---- SYSENTER and SYSEXIT ----

fn sysenter_guest() -> Guest {
    let mut g = Guest::long();
    let cpu = g.cpu();
    // SYSENTER: CS 8, SS 10h. SYSEXIT: 18h and 20h, or 28h and 30h for 64-bit code.
    cpu.sysenter_cs = 8;
    cpu.sysenter_esp = STACK0 - 8;
    cpu.sysenter_eip = ENTRY;
    g.load(ENTRY, |a| a.hlt());
    g
}

#[test]
fn sysenter_enters_64_bit_code_from_both_modes_with_interrupts_off() {
    for selector in [USER64, USER32] {
        let mut g = sysenter_guest();
        g.set_ring(selector, DATA3, USER_STACK);
        g.poke(USER_CODE, &[0x0f, 0x34]);
        g.cpu().rip = USER_CODE;
        g.flag(rflags::IF | rflags::DF);
        g.step();
        assert_eq!((g.rip(), g.reg(RSP), g.cpu().cpl), (ENTRY, STACK0 - 8, 0));
        assert_eq!((g.cpu().seg[1].selector, g.cpu().seg[2].selector), (8, 0x10));
        assert!(g.cpu().seg[1].long());
        assert_eq!(g.rflags(), rflags::FIXED | rflags::DF);
    }
}

#[test]
fn sysexit_leaves_to_both_modes() {
    for (to_64, code, stack) in [(true, USER64, 0x33), (false, USER32, DATA3)] {
        let mut g = sysenter_guest();
        g.program(|a| if to_64 { a.sysexitq() } else { a.sysexit() });
        g.set_reg(RDX, 0x7f00_0000_0000 | USER_CODE);
        g.set_reg(RCX, 0x7f00_0000_0000 | USER_STACK);
        g.step();
        let high = if to_64 { 0x7f00_0000_0000 } else { 0 };
        assert_eq!((g.rip(), g.reg(RSP)), (high | USER_CODE, high | USER_STACK));
        assert_eq!((g.cpu().seg[1].selector, g.cpu().seg[2].selector, g.cpu().cpl), (code, stack, 3));
    }
}

#[test]
fn sysenter_and_sysexit_have_their_faults() {
    for selector in [0, 3] {
        let mut g = sysenter_guest();
        g.cpu().sysenter_cs = selector;
        g.user_program(|a| a.sysenter());
        assert_eq!(g.expect(13).error, Some(0));
        let mut g = sysenter_guest();
        g.cpu().sysenter_cs = selector;
        g.program(|a| a.sysexit());
        assert_eq!(g.expect(13).error, Some(0));
    }
    let mut g = sysenter_guest();
    g.user_program(|a| a.sysexit());
    assert_eq!(g.expect(13).error, Some(0));
    for (target, stack) in [(0x8000_0000_0000, 0), (0, 0x8000_0000_0000)] {
        let mut g = sysenter_guest();
        g.program(|a| a.sysexitq());
        g.set_reg(RDX, target);
        g.set_reg(RCX, stack);
        assert_eq!(g.expect(13).rip, CODE);
    }
}

#[test]
fn sysenter_works_in_protected_mode_without_long_mode() {
    let mut g = Guest::protected();
    let cpu = g.cpu();
    (cpu.sysenter_cs, cpu.sysenter_esp, cpu.sysenter_eip) = (CODE32.into(), STACK0, ENTRY);
    g.set_ring(USER32, DATA3, USER_STACK);
    g.poke(USER_CODE, &[0x0f, 0x34]);
    g.cpu().rip = USER_CODE;
    g.step();
    assert_eq!((g.rip(), g.reg(RSP), g.cpu().cpl), (ENTRY, STACK0, 0));
    assert!(g.cpu().seg[1].big() && !g.cpu().seg[1].long());
}

#[test]
fn swapgs_exchanges_the_bases_in_ring_0_only() {
    let mut g = Guest::long();
    g.cpu().kernel_gs_base = 0xffff_8000_0000_1000;
    g.cpu().seg[5].base = DATA;
    g.put::<u64>(DATA + 8, 77);
    g.program(|a| {
        a.mov(rax, qword_ptr(8).gs())?;
        a.swapgs()?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!(g.reg(RAX), 77);
    assert_eq!((g.cpu().kernel_gs_base, g.cpu().seg[5].base), (DATA, 0xffff_8000_0000_1000));
    let mut g = Guest::long();
    g.user_program(|a| a.swapgs());
    assert_eq!(g.expect(13).error, Some(0));
}

#[test]
fn privileged_instructions_are_gp_in_ring_3() {
    let table: &[Insn] = &[
        |a| a.hlt(),
        |a| a.cli(),
        |a| a.sti(),
        |a| a.in_(al, dx),
        |a| a.out(dx, eax),
        |a| a.insb(),
        |a| a.outsd(),
        |a| a.lgdt(ptr(DATA)),
        |a| a.lidt(ptr(DATA)),
        |a| a.lldt(ax),
        |a| a.ltr(ax),
        |a| a.lmsw(ax),
        |a| a.clts(),
        |a| a.mov(rax, cr0),
        |a| a.mov(cr2, rax),
        |a| a.mov(cr3, rax),
        |a| a.mov(rax, cr4),
        |a| a.mov(cr8, rax),
        |a| a.mov(rax, dr0),
        |a| a.mov(dr7, rax),
        |a| a.invlpg(ptr(DATA)),
        |a| a.invd(),
        |a| a.wbinvd(),
        |a| a.rdmsr(),
        |a| a.wrmsr(),
        |a| a.rdpmc(),
        |a| a.xsetbv(),
        |a| a.sysexit(),
    ];
    for (n, insn) in table.iter().enumerate() {
        let mut g = Guest::long();
        g.cpu().cr4 |= cr4::OSXSAVE;
        g.user_program(insn);
        g.set_reg(RDI, DATA);
        g.set_reg(RSI, DATA);
        let e = g.expect(13);
        assert_eq!((e.error, e.rip, e.count), (Some(0), USER_CODE, 0), "instruction {n}");
        assert!(g.board().ports.is_empty());
    }
}

#[test]
fn what_ring_3_may_do_without_umip_it_can() {
    let mut g = Guest::long();
    g.user_program(|a| {
        a.sgdt(ptr(DATA))?;
        a.sidt(ptr(DATA + 16))?;
        a.sldt(eax)?;
        a.str(ebx)?;
        a.smsw(ecx)?;
        a.ud2()
    });
    g.expect(6);
    assert_eq!((g.get::<u16>(DATA), g.get::<u64>(DATA + 2)), (0xff, GDT));
    assert_eq!((g.get::<u16>(DATA + 16), g.get::<u64>(DATA + 18)), (0xfff, IDT));
    assert_eq!((g.reg(RAX), g.reg(RBX)), (0, TASK.into()));
    assert_eq!(g.reg(RCX), g.cpu().cr0 & 0xffff_ffff);
    assert_ne!(g.reg(RCX) & cr0::PG, 0);
}
