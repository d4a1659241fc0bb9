//! Segmentation outside 64-bit mode and what of it is left inside: limits, types, null selectors, loads (SDM vol. 3,
//! chapters 3 and 5).

use crate::common::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const BASE: u32 = DATA as u32;

/// One access through a segment in FS of 32-bit code; whether it is within the rules.
fn allowed(
    descriptor: u64,
    long: bool,
    access: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> bool {
    let mut g = if long { Guest::long() } else { Guest::protected() };
    if long {
        g.set_ring(CODE32, DATA0, STACK);
    }
    let selector = g.free_descriptor(0, descriptor);
    g.set_reg(RAX, selector.into());
    let code = g.program(|a| {
        a.mov(fs, eax)?;
        access(a)?;
        a.hlt()
    });
    match g.go() {
        Stop::Halted => true,
        Stop::Event(e) => {
            assert_eq!((e.vector, e.error, e.rip), (13, Some(0), code.at(1)));
            false
        }
        other => panic!("{other:x?}"),
    }
}

#[test]
fn limits_are_checked_to_the_byte_in_protected_and_compatibility_mode() {
    // Limit field, flags (G 8, B 4), access byte, first and last valid offset (SDM vol. 3, 5.3).
    let segments: [(u32, u8, u8, u64, u64); 6] = [
        (0x10, 4, 0x93, 0, 0x10),
        (0xfff, 4, 0x93, 0, 0xfff),
        (1, 0xc, 0x93, 0, 0x1fff),
        (0x10, 4, 0x97, 0x11, 0xffff_ffff),
        (0x10, 0, 0x97, 0x11, 0xffff),
        (1, 0xc, 0x97, 0x2000, 0xffff_ffff),
    ];
    for (limit, flags, kind, first, last) in segments {
        // Small offsets only lie in memory; they are where the interesting limits are.
        let d = descriptor(BASE, limit, kind, flags);
        for long in [false, true] {
            for size in [1u64, 2, 4] {
                for edge in [0u64, first, last, last.wrapping_add(1)] {
                    for around in 0..6u64 {
                        let offset = (edge + around).wrapping_sub(4) as u32;
                        let end = u64::from(offset) + size - 1;
                        if end > 0xffff_ffff || offset > 0x1_0010 {
                            continue;
                        }
                        let want = u64::from(offset) >= first && end <= last;
                        let at = fs_ptr(offset);
                        let got = allowed(d, long, |a| match size {
                            1 => a.mov(bl, byte_ptr(at)),
                            2 => a.mov(bx, word_ptr(at)),
                            _ => a.mov(dword_ptr(at), ebx),
                        });
                        assert_eq!(got, want, "limit {limit:#x} {flags} {kind:#x}, {size} at {offset:#x}");
                    }
                }
            }
        }
    }
}

fn fs_ptr(offset: u32) -> AsmMemoryOperand {
    ptr(offset).fs()
}

#[test]
fn the_type_decides_what_may_be_done() {
    // Access byte; whether reads and writes are allowed.
    let table = [
        (0x91, true, false),
        (0x93, true, true),
        (0x95, true, false),
        (0x97, true, true),
        (0x9b, true, false),
        (0x9f, true, false),
    ];
    for (kind, read, write) in table {
        // An expand-down segment is valid above its limit.
        let limit = if kind & 0xc == 4 { 0 } else { 0xfffff };
        let d = descriptor(0, limit, kind, 0xc);
        let at = fs_ptr(BASE);
        assert_eq!(allowed(d, false, |a| a.mov(eax, dword_ptr(at))), read, "{kind:#x}");
        assert_eq!(allowed(d, false, |a| a.mov(dword_ptr(at), eax)), write, "{kind:#x}");
        assert_eq!(allowed(d, true, |a| a.inc(byte_ptr(at))), write, "{kind:#x}");
    }
}

#[test]
fn flat_segments_are_held_to_their_type_too() {
    for long in [false, true] {
        let start = || {
            let mut g = if long { Guest::long() } else { Guest::protected() };
            if long {
                g.set_ring(CODE32, DATA0, STACK);
            }
            g
        };
        // DS flat but read-only, and flat code.
        for d in [0x00cf_9100_0000_ffff, 0x00cf_9b00_0000_ffff] {
            let mut g = start();
            let selector = g.free_descriptor(0, d);
            g.set_reg(RAX, selector.into());
            let code = g.program(|a| {
                a.mov(ds, eax)?;
                a.mov(ebx, dword_ptr(BASE))?;
                a.mov(dword_ptr(BASE), ebx)
            });
            let e = g.expect(13);
            assert_eq!((e.error, e.rip), (Some(0), code.at(2)), "long {long}");
        }
        // ES for string stores.
        let mut g = start();
        let selector = g.free_descriptor(0, 0x00cf_9100_0000_ffff);
        g.set_reg(RAX, selector.into());
        g.set_reg(RDI, DATA);
        let code = g.program(|a| {
            a.mov(es, eax)?;
            a.stosd()
        });
        assert_eq!(g.expect(13).rip, code.at(1), "long {long}");
        // A write through CS.
        let mut g = start();
        g.program(|a| a.mov(dword_ptr(BASE).cs(), eax));
        assert_eq!(g.expect(13).error, Some(0), "long {long}");
        // A read through a CS that can only be executed.
        let mut g = start();
        let selector = g.free_descriptor(0, 0x00cf_9900_0000_ffff);
        g.set_ring(selector, DATA0, STACK);
        g.program(|a| a.mov(eax, dword_ptr(BASE).cs()));
        assert_eq!(g.expect(13).error, Some(0), "long {long}");
    }
}

#[test]
fn a_null_segment_cannot_be_used_outside_64_bit_mode() {
    for selector in 0..4u16 {
        let mut g = Guest::protected();
        g.set_reg(RAX, selector.into());
        let code = g.program(|a| {
            a.mov(ds, eax)?;
            a.mov(ebx, dword_ptr(BASE))
        });
        let e = g.expect(13);
        assert_eq!((e.error, e.rip), (Some(0), code.at(1)));
        let mut g = Guest::long();
        g.set_reg(RAX, selector.into());
        g.program(|a| {
            a.mov(ds, eax)?;
            a.mov(ebx, dword_ptr(DATA))?;
            a.hlt()
        });
        g.expect_halt();
    }
}

#[test]
fn beyond_the_limit_of_the_stack_segment_it_is_ss() {
    let accesses: [Insn; 6] = [
        |a| a.push(eax),
        |a| a.mov(eax, dword_ptr(ebp)),
        |a| a.mov(dword_ptr(esp - 4), eax),
        |a| a.call(ecx),
        |a| a.pop(ebx),
        |a| a.enter(0, 0),
    ];
    for (n, access) in accesses.iter().enumerate() {
        // In ring 3, so that the handler has a stack of its own.
        let mut g = Guest::protected();
        let selector = g.free_descriptor(0, descriptor(BASE, 0xfff, 0xf3, 4)) | 3;
        g.set_ring(USER32, DATA3, USER_STACK);
        g.set_reg(RAX, selector.into());
        g.set_reg(RBP, 0xffd);
        let code = g.program(|a| {
            a.mov(ss, eax)?;
            a.mov(esp, 0x1002)?;
            access(a)
        });
        let e = g.expect(12);
        assert_eq!((e.error, e.rip, e.rsp), (Some(0), code.at(2), 0x1002), "access {n}");
    }
}

// ---- loads ----

#[test]
fn loads_of_data_segments_are_checked() {
    // Descriptor, RPL, ring, result: vector and error, or none.
    const D: u64 = FREE as u64;
    let table: [(u64, u16, bool, Fault); 13] = [
        (0x00cf_9300_0000_ffff, 0, false, None),
        (0x00cf_9100_0000_ffff, 3, false, Some((13, D))),
        (0x00cf_f300_0000_ffff, 3, false, None),
        (0x00cf_f300_0000_ffff, 3, true, None),
        (0x00cf_9300_0000_ffff, 3, true, Some((13, D))),
        (0x00cf_9300_0000_ffff, 0, true, Some((13, D))),
        (0x00cf_9900_0000_ffff, 0, false, Some((13, D))),
        (0x00cf_9b00_0000_ffff, 0, false, None),
        (0x00cf_9b00_0000_ffff, 3, true, Some((13, D))),
        // Readable conforming code is open to all.
        (0x00cf_9f00_0000_ffff, 3, true, None),
        (0x00cf_1300_0000_ffff, 0, false, Some((11, D))),
        (0x0000_8900_0000_0067, 0, false, Some((13, D))),
        (0, 0, false, Some((13, D))),
    ];
    for (n, (d, rpl, user, result)) in table.into_iter().enumerate() {
        for seg in 0..4u8 {
            let mut g = Guest::long();
            let selector = g.free_descriptor(0, d & !(1 << 40)) | rpl;
            if user {
                g.enter_user(USER_CODE);
            }
            g.set_reg(RAX, selector.into());
            let start = g.cpu().seg;
            let code = g.program(|a| {
                match seg {
                    0 => a.mov(ds, eax)?,
                    1 => a.mov(es, eax)?,
                    2 => a.mov(fs, eax)?,
                    _ => a.mov(gs, eax)?,
                }
                a.ud2()
            });
            let which = [3, 0, 4, 5][usize::from(seg)];
            match result {
                Some((vector, error)) => {
                    let e = g.expect(vector);
                    assert_eq!((e.error, e.rip), (Some(error), code.start), "case {n}");
                    assert_eq!(g.cpu().seg[which], start[which], "case {n}");
                }
                None => {
                    g.expect(6);
                    assert_eq!(g.cpu().seg[which].selector, selector, "case {n}");
                    let accessed = g.get::<u64>(GDT + u64::from(FREE)) >> 40 & 1;
                    assert_eq!(accessed, 1, "case {n}: the accessed bit");
                }
            }
        }
    }
}

#[test]
fn loads_of_ss_are_checked() {
    const D: u64 = FREE as u64;
    let table: [(u64, u16, Fault); 8] = [
        (0x00cf_9300_0000_ffff, 0, None),
        (0x00cf_9300_0000_ffff, 3, Some((13, D))),
        (0x00cf_f300_0000_ffff, 3, Some((13, D))),
        (0x00cf_f300_0000_ffff, 0, Some((13, D))),
        (0x00cf_9100_0000_ffff, 0, Some((13, D))),
        (0x00cf_9b00_0000_ffff, 0, Some((13, D))),
        (0x00cf_1300_0000_ffff, 0, Some((12, D))),
        (0x0000_8900_0000_0067, 0, Some((13, D))),
    ];
    for (n, (d, rpl, result)) in table.into_iter().enumerate() {
        for protected in [false, true] {
            let mut g = if protected { Guest::protected() } else { Guest::long() };
            let selector = g.free_descriptor(0, d) | rpl;
            g.set_reg(RAX, selector.into());
            let code = g.program(|a| {
                a.mov(ss, eax)?;
                a.hlt()
            });
            match result {
                Some((vector, error)) => {
                    let e = g.expect(vector);
                    assert_eq!((e.error, e.rip), (Some(error), code.start), "case {n}");
                }
                None => g.expect_halt(),
            }
        }
    }
}

#[test]
fn a_null_ss_is_for_64_bit_code_below_ring_3() {
    let mut g = Guest::long();
    g.program(|a| {
        a.xor(eax, eax)?;
        a.mov(ss, eax)?;
        a.push(rax)?;
        a.hlt()
    });
    g.expect_halt();
    for selector in 1..4u32 {
        let mut g = Guest::long();
        g.set_reg(RAX, selector.into());
        g.program(|a| a.mov(ss, eax));
        assert_eq!(g.expect(13).error, Some(0), "RPL {selector}");
    }
    let mut g = Guest::protected();
    g.program(|a| {
        a.xor(eax, eax)?;
        a.mov(ss, eax)
    });
    assert_eq!(g.expect(13).error, Some(0));
    let mut g = Guest::long();
    g.set_reg(RAX, 3);
    g.user_program(|a| a.mov(ss, eax));
    assert_eq!(g.expect(13).error, Some(0));
}

#[test]
fn selectors_beyond_their_table_are_gp_with_the_selector() {
    for (selector, error) in [(0x100u64, 0x100), (0xfffb, 0xfff8), (0x64, 0x64), (0x1004, 0x1004)] {
        let mut g = Guest::long();
        g.set_reg(RAX, selector);
        g.program(|a| a.mov(ds, eax));
        assert_eq!(g.expect(13).error, Some(error));
    }
    // The table's last byte counts.
    let mut g = Guest::long();
    g.free_descriptor(0, 0x00cf_9300_0000_ffff);
    g.cpu().gdtr.limit = FREE + 6;
    g.set_reg(RAX, FREE.into());
    g.program(|a| a.mov(ds, eax));
    assert_eq!(g.expect(13).error, Some(FREE.into()));
}

#[test]
fn mov_to_cs_is_undefined() {
    let mut g = Guest::long();
    g.poke(CODE, &[0x8e, 0xc8]);
    g.cpu().rip = CODE;
    g.expect(6);
}

// ---- bases in 64-bit mode ----

#[test]
fn only_fs_and_gs_have_bases_in_64_bit_mode() {
    let mut g = Guest::long();
    for n in 0..6 {
        g.cpu().seg[n].base = 0x1000;
        g.cpu().seg[n].limit = 0;
    }
    g.put::<u64>(DATA, 1);
    g.put::<u64>(DATA + 0x1000, 2);
    g.program(|a| {
        a.mov(rax, qword_ptr(DATA))?;
        a.mov(rbx, qword_ptr(DATA).fs())?;
        a.mov(rcx, qword_ptr(DATA).gs())?;
        // Overrides of the others are ignored: SS: here.
        a.db(&[0x36, 0x48, 0x8b, 0x14, 0x25, 0, 0, 0x20, 0])?;
        a.push(rax)?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!([RAX, RBX, RCX, RDX].map(|n| g.reg(n)), [1, 2, 2, 1]);
}

#[test]
fn a_linear_address_wraps_at_4_gib_outside_64_bit_mode() {
    for long in [false, true] {
        let mut g = if long { Guest::long() } else { Guest::protected() };
        if long {
            g.set_ring(CODE32, DATA0, STACK);
        }
        let selector = g.free_descriptor(0, descriptor(0xffff_f000, 0xfffff, 0x93, 0xc));
        g.set_reg(RAX, selector.into());
        g.put::<u32>(DATA, 0xabcd);
        g.program(|a| {
            a.mov(fs, eax)?;
            a.mov(ebx, dword_ptr(BASE + 0x1000).fs())?;
            a.hlt()
        });
        g.expect_halt();
        assert_eq!(g.reg(RBX), 0xabcd, "long {long}");
    }
}

#[test]
fn pop_ss_counts_by_the_width_of_the_stack_that_it_leaves() {
    // From a stack of 32 bits to one of 16 and back, at the end of 64 KiB.
    for (big, top, after) in [(true, 0xfffc, 0x1_0000), (false, 0x7_fffc, 0x7_0000)] {
        let mut g = Guest::protected();
        let wide = g.free_descriptor(0, descriptor(0, 0xfffff, 0x93, 0xc));
        let narrow = g.free_descriptor(1, descriptor(0, 0xfffff, 0x93, 0x8));
        let (from, to) = if big { (wide, narrow) } else { (narrow, wide) };
        g.set_ring(CODE32, from, top);
        g.put::<u32>(if big { top } else { top & 0xffff }, to.into());
        g.program(|a| {
            a.pop(ss)?;
            a.hlt()
        });
        g.expect_halt();
        assert_eq!(g.reg(RSP), after);
    }
}
