//! Far JMP, CALL and RET within a mode and between 64-bit and compatibility code, code segment limits, 16-bit segments, and
//! events in 32-bit protected mode (SDM vol. 2, JMP, CALL, RET; vol. 3, 5.8 and 6.12.1).

use iced_x86::code_asm::*;
use trapgate_engine::Exit;
use trapgate_engine::exit::Unsupported;
use trapgate_x86::regs::{cr4, rflags};

use crate::common::*;

const TARGET: u64 = CODE + 0x400;

fn pointer(g: &Guest, offset: u64, selector: u16) {
    g.put::<u32>(DATA, offset as u32);
    g.put::<u16>(DATA + 4, selector);
    g.put::<u64>(DATA + 0x10, offset);
    g.put::<u16>(DATA + 0x18, selector);
}

#[test]
fn a_far_jump_goes_to_compatibility_code_and_back() {
    let mut g = Guest::long();
    pointer(&g, TARGET, CODE32);
    g.put::<u32>(DATA + 0x20, (CODE + 0x800) as u32);
    g.put::<u16>(DATA + 0x24, CODE64);
    g.load_bits(32, TARGET, TARGET, |a| {
        a.dec(eax)?;
        a.jmp(fword_ptr(DATA as u32 + 0x20))
    });
    g.load(CODE + 0x800, |a| {
        a.mov(rbx, rax)?;
        a.hlt()
    });
    g.set_reg(RAX, 0xffff_ffff_0000_0005);
    g.program(|a| a.jmp(fword_ptr(DATA)));
    g.expect_halt();
    assert_eq!((g.reg(RBX), g.cpu().seg[1].selector, g.count()), (4, CODE64, 5));
}

#[test]
fn a_far_call_and_return_cross_modes_with_both_operand_sizes() {
    // CALL m16:32 pushes 8 bytes, m16:64 16; RETF of the same size comes back.
    for wide in [false, true] {
        let mut g = Guest::long();
        pointer(&g, TARGET, CODE32);
        g.load_bits(32, TARGET, TARGET, |a| {
            a.mov(ebx, esp)?;
            a.inc(eax)?;
            // From compatibility code only frames of 4-byte words can be taken.
            a.mov(ecx, dword_ptr(esp))?;
            a.mov(edx, dword_ptr(esp + if wide { 8 } else { 4 }))?;
            a.push(edx)?;
            a.push(ecx)?;
            a.retf()
        });
        let code = g.program(|a| {
            if wide {
                a.db(&[0x48, 0xff, 0x1c, 0x25, 0x10, 0, 0x20, 0])?
            } else {
                a.call(fword_ptr(DATA))?
            }
            a.hlt()
        });
        g.expect_halt();
        assert_eq!(g.rip(), code.end);
        let frame = if wide { 16 } else { 8 };
        assert_eq!((g.reg(RBX), g.reg(RAX)), (STACK - frame, 1), "wide {wide}");
        assert_eq!(g.reg(RSP), STACK - frame, "the copied frame is gone, the first one stays");
    }
}

#[test]
fn retf_releases_its_bytes_on_both_stacks_when_it_changes_rings() {
    let mut g = Guest::long();
    for (n, word) in
        [USER_CODE, USER64.into(), 0x1111, 0x2222, USER_STACK - 0x40, DATA3.into()].iter().enumerate()
    {
        g.put(STACK - 0x60 + 8 * n as u64, *word);
    }
    g.set_reg(RSP, STACK - 0x60);
    g.load(USER_CODE, |a| a.ud2());
    // REX.W RETF 16.
    g.poke(CODE, &[0x48, 0xca, 16, 0]);
    g.cpu().rip = CODE;
    let e = g.expect(6);
    assert_eq!((e.rip, e.cs, e.ss, e.rsp), (USER_CODE, USER64, DATA3, USER_STACK - 0x40 + 16));
}

#[test]
fn far_targets_are_checked_before_anything_changes() {
    const D: u64 = FREE as u64;
    // Selector, offset, descriptor at the free one, ring 3, vector, error code.
    let table: [(u16, u64, u64, bool, u8, u64); 14] = [
        (0, TARGET, 0, false, 13, 0),
        (3, TARGET, 0, false, 13, 0),
        (0x100, TARGET, 0, false, 13, 0x100),
        (0xc, TARGET, 0, false, 13, 0xc),
        (DATA0, TARGET, 0, false, 13, 0x10),
        (LOCAL, TARGET, 0, false, 13, 0x50),
        (TASK, TARGET, 0, false, 13, 0x40),
        (USER64, TARGET, 0, false, 13, 0x28),
        (CODE64 | 3, TARGET, 0, true, 13, 8),
        (FREE, TARGET, 0x00af_1b00_0000_ffff, false, 11, D),
        (FREE, TARGET, 0x00ef_9b00_0000_ffff, false, 13, D),
        // A conforming segment must not be less privileged than the code that goes there.
        (FREE, TARGET, 0x00af_ff00_0000_ffff, false, 13, D),
        (FREE, 0x1000, 0x0040_9b00_0000_0fff, false, 13, 0),
        (CODE64 | 1, TARGET, 0, false, 13, 8),
    ];
    for (n, (selector, offset, d, user, vector, error)) in table.into_iter().enumerate() {
        for call in [false, true] {
            let mut g = Guest::long();
            g.free_descriptor(0, d);
            pointer(&g, offset, selector);
            if user {
                g.enter_user(USER_CODE);
            }
            let (stack, at) = (g.reg(RSP), if user { USER_CODE } else { CODE });
            g.program(|a| if call { a.call(fword_ptr(DATA)) } else { a.jmp(fword_ptr(DATA)) });
            let e = g.expect(vector);
            assert_eq!((e.error, e.rip, e.rsp), (Some(error), at, stack), "case {n}, call {call}");
        }
    }
}

#[test]
fn a_far_jump_to_an_impossible_address_is_gp() {
    let mut g = Guest::long();
    pointer(&g, 0x8000_0000_0000, CODE64);
    g.poke(CODE, &[0x48, 0xff, 0x2c, 0x25, 0x10, 0, 0x20, 0]);
    g.cpu().rip = CODE;
    assert_eq!(g.expect(13).error, Some(0));
}

#[test]
fn conforming_code_is_entered_without_a_change_of_privilege() {
    let mut g = Guest::long();
    let selector = g.free_descriptor(0, 0x00af_9e00_0000_ffff);
    g.load(USER_CODE + 0x400, |a| a.ud2());
    g.enter_user(USER_CODE);
    pointer(&g, USER_CODE + 0x400, selector);
    g.program(|a| a.jmp(fword_ptr(DATA)));
    let e = g.expect(6);
    assert_eq!((e.cs, e.rip), (selector | 3, USER_CODE + 0x400));
    assert_eq!(g.get::<u64>(GDT + u64::from(selector)) >> 40 & 1, 1, "marked as accessed");
}

#[test]
fn call_gates_of_protected_mode_end_the_run_with_a_typed_exit() {
    for kind in [4u64, 12] {
        let mut g = Guest::protected();
        let selector =
            g.free_descriptor(0, (TARGET & 0xffff) | 0xe0 << 40 | kind << 40 | u64::from(CODE32) << 16);
        g.program(|a| a.call_far(selector, 0));
        let want = Exit::Unsupported { what: Unsupported::CallGate, rip: CODE };
        assert_eq!(g.go(), Stop::Exit(want));
    }
}

// ---- code segment limits and 16-bit code ----

fn short_code(limit: u32) -> (Guest, u16) {
    let g = Guest::protected();
    let selector = g.free_descriptor(0, descriptor(CODE as u32, limit, 0x9b, 4));
    (g, selector)
}

#[test]
fn a_near_branch_beyond_the_limit_is_gp_at_the_branch() {
    let branches: [Insn; 4] = [
        |a| a.jmp(0x1000),
        |a| a.call(ecx),
        |a| {
            a.push(ecx)?;
            a.ret()
        },
        |a| a.jmp(ecx),
    ];
    for (n, branch) in branches.into_iter().enumerate() {
        let (mut g, selector) = short_code(0xfff);
        g.set_ring(selector, DATA0, STACK);
        g.set_reg(RCX, 0x1000);
        let code = g.load_bits(32, CODE, 0, branch);
        g.cpu().rip = 0;
        let e = g.expect(13);
        let at = if n == 2 { code.at(1) } else { 0 };
        assert_eq!((e.error, e.rip), (Some(0), at), "branch {n}");
    }
}

#[test]
fn running_over_the_limit_is_gp_at_the_first_instruction_that_is_not_inside() {
    // Two bytes each: the fifth lies half outside, and is #GP as a whole.
    for limit in [7u32, 8] {
        let (mut g, selector) = short_code(limit);
        g.set_ring(selector, DATA0, STACK);
        g.poke(CODE, &[0x89, 0xc0, 0x89, 0xc0, 0x89, 0xc0, 0x89, 0xc0, 0x89, 0xc0, 0xf4]);
        g.cpu().rip = 0;
        let e = g.expect(13);
        assert_eq!((e.error, e.rip, e.count), (Some(0), 8, 4), "limit {limit}");
    }
    // The same code with room enough has run before.
    let (mut g, selector) = short_code(0xfff);
    g.set_ring(selector, DATA0, STACK);
    g.poke(CODE, &[0x89, 0xc0, 0x89, 0xc0, 0x89, 0xc0, 0x89, 0xc0, 0x89, 0xc0, 0xf4]);
    g.cpu().rip = 0;
    g.expect_halt();
    let short = g.free_descriptor(1, descriptor(CODE as u32, 8, 0x9b, 4));
    g.set_ring(short, DATA0, STACK);
    g.cpu().rip = 0;
    assert_eq!(g.expect(13).rip, 8);
}

#[test]
fn sixteen_bit_code_and_stacks_wrap_at_64_kib() {
    let mut g = Guest::protected();
    let stack = g.free_descriptor(0, descriptor(DATA as u32, 0xffff, 0x93, 0));
    let code = g.free_descriptor(1, descriptor(CODE as u32, 0xffff, 0x9b, 0));
    g.set_ring(code, stack, 0x1234_0002);
    g.load_bits(16, CODE, 0, |a| {
        a.mov(ax, 0x1122)?;
        a.push(ax)?;
        a.push(ax)?;
        a.hlt()
    });
    g.cpu().rip = 0;
    g.expect_halt();
    assert_eq!(g.reg(RSP), 0x1234_fffe, "the upper half stays");
    assert_eq!((g.get::<u16>(DATA), g.get::<u16>(DATA + 0xfffe)), (0x1122, 0x1122));
}

#[test]
fn sixteen_bit_operands_cut_branch_targets_in_32_bit_code() {
    let mut g = Guest::protected();
    let selector = g.free_descriptor(0, descriptor(CODE as u32 - 0x1_0000, 0xfffff, 0x9b, 0xc));
    g.set_ring(selector, DATA0, STACK);
    // At 1_0010h: a 16-bit JMP to the next instruction goes to 14h.
    g.poke(CODE + 0x10, &[0x66, 0xe9, 0, 0]);
    g.poke(CODE - 0x1_0000 + 0x14, &[0xf4]);
    g.cpu().rip = 0x1_0010;
    g.expect_halt();
    assert_eq!(g.rip(), 0x15);
}

// ---- events in protected mode ----

#[test]
fn an_inner_ring_is_entered_on_the_stack_of_the_task() {
    let mut g = Guest::protected();
    g.set_gate_32(0x80, CODE32, STUBS as u32 + 0x800, 0xee);
    g.set_ring(USER32, DATA3, USER_STACK);
    g.flag(rflags::IF | rflags::CF);
    let code = g.program(|a| {
        a.int(0x80)?;
        a.ud2()
    });
    let e = g.expect(0x80);
    assert_eq!((e.rip, e.cs, e.rsp, e.ss), (code.at(1), USER32, USER_STACK, DATA3));
    assert_eq!((e.frame, e.cpl, g.cpu().seg[2].selector), (STACK0 - 20, 0, DATA0));
    assert_eq!(e.rflags, rflags::FIXED | rflags::IF | rflags::CF);
    let e = g.expect(6);
    assert_eq!((e.rip, e.cs, e.rsp), (code.at(1), USER32, USER_STACK));
    assert_eq!(e.frame, STACK0 - 20);
}

#[test]
fn a_bad_inner_stack_is_ts_or_ss_with_its_selector_and_ext() {
    let free = u64::from(FREE);
    // SS0 in the task, descriptor at the free selector, limit of the task, vector, error code without EXT.
    let table: [(u16, u64, u32, u8, u64); 9] = [
        (0, 0, 0x67, 10, 0),
        (0x1000, 0, 0x67, 10, 0x1000),
        (FREE, 0x00cf_f300_0000_ffff, 0x67, 10, free),
        (FREE | 3, 0x00cf_9300_0000_ffff, 0x67, 10, free),
        (FREE, 0x00cf_9100_0000_ffff, 0x67, 10, free),
        (FREE, 0x00cf_9b00_0000_ffff, 0x67, 10, free),
        (FREE, 0x00cf_1300_0000_ffff, 0x67, 12, free),
        (DATA0, 0, 8, 10, TASK as u64),
        // The stack's limit is too small for the frame.
        (FREE, 0x0040_9300_0000_000f, 0x67, 12, free),
    ];
    for (n, (ss0, d, limit, vector, error)) in table.into_iter().enumerate() {
        for software in [false, true] {
            let mut g = Guest::protected();
            g.set_gate_32(0x80, CODE32, STUBS as u32 + 0x800, 0xee);
            // A conforming handler in ring 3 can be entered without another stack.
            let conforming = g.free_descriptor(1, 0x00cf_9f00_0000_ffff);
            g.set_gate_32(vector, conforming, USER_CODE as u32 + 0x100, 0x8e);
            g.free_descriptor(0, d);
            g.put::<u16>(TSS + 8, ss0);
            g.cpu().tr.limit = limit;
            g.set_ring(USER32, DATA3, USER_STACK);
            g.program(|a| if software { a.int(0x80) } else { a.ud2() });
            // The handler writes down its error code and leaves by an instruction that the board sees.
            g.flag(rflags::IOPL);
            g.load_bits(32, USER_CODE + 0x100, USER_CODE + 0x100, |a| {
                a.pop(eax)?;
                a.out(0x99, eax)?;
                a.pop(eax)?;
                a.out(0x9a, eax)
            });
            g.run_until(4);
            let seen: Vec<_> = g.board().ports.iter().map(|access| access.written).collect();
            let want = [Some(error | u64::from(!software)), Some(USER_CODE)];
            assert_eq!(seen, want, "case {n}, software {software}");
        }
    }
}

#[test]
fn sixteen_bit_gates_push_16_bit_words() {
    let mut g = Guest::protected();
    let code = g.free_descriptor(0, descriptor(CODE as u32, 0xffff, 0x9b, 0));
    // 16-bit interrupt gate.
    g.set_gate_32(0x80, code, 0x400, 0x86);
    g.load_bits(16, CODE + 0x400, 0x400, |a| a.hlt());
    g.set_ring(code, DATA0, STACK);
    g.flag(rflags::IF | rflags::CF);
    g.load_bits(16, CODE, 0, |a| a.int(0x80));
    g.cpu().rip = 0;
    g.expect_halt();
    assert_eq!(g.reg(RSP), STACK - 6);
    let frame = [0, 2, 4].map(|n| g.get::<u16>(STACK - 6 + n));
    assert_eq!(frame, [2, code, (rflags::FIXED | rflags::IF | rflags::CF) as u16]);
    assert_eq!(g.rflags() & rflags::IF, 0);
}

#[test]
fn into_and_bound_raise_their_exceptions() {
    let mut g = Guest::protected();
    g.put::<u32>(DATA, 10);
    g.put::<u32>(DATA + 4, 20);
    let code = g.program(|a| {
        a.into()?;
        a.mov(al, 0x7f)?;
        a.inc(al)?;
        a.into()?;
        a.mov(eax, 20)?;
        a.bound(eax, qword_ptr(DATA as u32))?;
        a.inc(eax)?;
        a.bound(eax, qword_ptr(DATA as u32))
    });
    let e = g.expect(4);
    assert_eq!((e.rip, e.count), (code.at(4), 4), "a trap");
    let e = g.expect(5);
    assert_eq!((e.rip, g.reg(RAX)), (code.at(7), 21), "a fault");
}

#[test]
fn task_gates_end_the_run_with_a_typed_exit() {
    let mut g = Guest::protected();
    g.set_gate_32(6, TASK, 0, 0x85);
    g.program(|a| a.ud2());
    let want = Exit::Unsupported { what: Unsupported::TaskSwitch, rip: CODE };
    assert_eq!(g.go(), Stop::Exit(want));
}

#[test]
fn iret_in_protected_mode_returns_to_the_outer_ring() {
    let mut g = Guest::protected();
    g.cpu().cr4 |= cr4::DE;
    let frame = [USER_CODE, USER32.into(), rflags::FIXED | rflags::CF, USER_STACK, DATA3.into()];
    for (n, word) in frame.into_iter().enumerate() {
        g.put::<u32>(STACK - 20 + 4 * n as u64, word as u32);
    }
    g.set_reg(RSP, STACK - 20);
    g.load_bits(32, USER_CODE, USER_CODE, |a| a.ud2());
    g.program(|a| a.iretd());
    let e = g.expect(6);
    assert_eq!((e.rip, e.cs, e.rsp, e.ss), (USER_CODE, USER32, USER_STACK, DATA3));
    assert_eq!(e.rflags & rflags::CF, rflags::CF);
    assert!(g.cpu().seg[3].is_null(), "DS of ring 0 was dropped");
}

#[test]
fn iret_to_virtual_8086_mode_and_nested_tasks_end_the_run_with_typed_exits() {
    for (image, own, what) in
        [(rflags::VM, 0, Unsupported::Virtual8086), (0, rflags::NT, Unsupported::TaskSwitch)]
    {
        let mut g = Guest::protected();
        for (n, word) in [0, 0, rflags::FIXED | image, 0, 0].into_iter().enumerate() {
            g.put::<u32>(STACK - 20 + 4 * n as u64, word as u32);
        }
        g.set_reg(RSP, STACK - 20);
        g.flag(own);
        // The task before is busy, as a link leads to it.
        let before = g.free_descriptor(0, 0x0000_8b00_0000_0067);
        g.put::<u16>(TSS, before);
        g.program(|a| a.iretd());
        assert_eq!(g.go(), Stop::Exit(Exit::Unsupported { what, rip: CODE }));
    }
}
