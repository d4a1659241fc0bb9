//! The local descriptor table and the task register, and the instructions that ask about descriptors: LAR, LSL, VERR, VERW,
//! ARPL (SDM vol. 2; vol. 3, 2.4 and 5.10).

use iced_x86::code_asm::*;
use trapgate_x86::regs::rflags;

use crate::common::*;

const BASE: u32 = DATA as u32;

// ---- local table, task register ----

#[test]
fn the_local_table_is_used_after_lldt() {
    for long in [false, true] {
        let mut g = if long { Guest::long() } else { Guest::protected() };
        g.put::<u64>(LDT + 8, descriptor(BASE, 0xfff, 0x93, 4));
        g.put::<u32>(DATA + 4, 0x1234_5678);
        g.program(|a| {
            a.mov(eax, u32::from(LOCAL))?;
            a.lldt(ax)?;
            a.mov(ecx, 0xc)?;
            a.mov(fs, ecx)?;
            a.mov(ebx, dword_ptr(4).fs())?;
            a.sldt(edx)?;
            a.xor(eax, eax)?;
            a.lldt(ax)?;
            a.mov(gs, ecx)
        });
        let e = g.expect(13);
        assert_eq!((g.reg(RBX), g.reg(RDX), e.error), (0x1234_5678, LOCAL.into(), Some(0xc)), "long {long}");
    }
}

#[test]
fn lldt_and_ltr_check_what_they_load() {
    let ldt = 0x0000_8200_0000_00ff | LDT << 16;
    let tss = 0x0000_8900_0000_0067 | TSS << 16;
    // Selector, descriptor there, LLDT's result, LTR's; none is success.
    let none = None;
    let table: [(u16, u64, Fault, Fault); 9] = [
        (0, 0, none, Some((13, 0))),
        (0x60, ldt, none, Some((13, 0x60))),
        (0x60, tss, Some((13, 0x60)), none),
        (0x60, tss | 2 << 40, Some((13, 0x60)), Some((13, 0x60))),
        (0x60, ldt & !(1 << 47), Some((11, 0x60)), Some((13, 0x60))),
        (0x60, tss & !(1 << 47), Some((13, 0x60)), Some((11, 0x60))),
        (0x64, ldt, Some((13, 0x64)), Some((13, 0x64))),
        (0x60, 0x00cf_9300_0000_ffff, Some((13, 0x60)), Some((13, 0x60))),
        (0x100, 0, Some((13, 0x100)), Some((13, 0x100))),
    ];
    for (selector, d, lldt, ltr) in table {
        for (task, result) in [(false, lldt), (true, ltr)] {
            let mut g = Guest::long();
            g.free_descriptor(0, d);
            g.free_descriptor(1, 0);
            g.set_reg(RAX, selector.into());
            g.program(|a| {
                if task {
                    a.ltr(ax)?
                } else {
                    a.lldt(ax)?
                }
                a.hlt()
            });
            match result {
                Some((vector, error)) => {
                    assert_eq!(g.expect(vector).error, Some(error), "{selector:#x} {d:x}")
                }
                None => g.expect_halt(),
            }
            if task && result.is_none() {
                assert_eq!(g.get::<u64>(GDT + 0x60) >> 40 & 0xf, 11, "busy");
                assert_eq!((g.cpu().tr.selector, g.cpu().tr.base), (selector, TSS));
            }
        }
    }
}

#[test]
fn system_bases_have_64_bits_in_long_mode() {
    let mut g = Guest::long();
    g.free_descriptor(0, 0x1200_8200_0000_00ff | 0x34_5678 << 16);
    g.free_descriptor(1, 0xffff_8000);
    g.set_reg(RAX, FREE.into());
    g.program(|a| {
        a.lldt(ax)?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!(g.cpu().ldtr.base, 0xffff_8000_1234_5678);
    // A type in the upper half is refused.
    let mut g = Guest::long();
    g.free_descriptor(0, 0x0000_8200_0000_00ff);
    g.free_descriptor(1, 0x0000_0200_0000_0000);
    g.set_reg(RAX, FREE.into());
    g.program(|a| a.lldt(ax));
    assert_eq!(g.expect(13).error, Some(FREE.into()));
}

// ---- LAR, LSL, VERR, VERW, ARPL ----

#[test]
fn lar_lsl_verr_and_verw_answer_by_type_and_privilege() {
    for long in [false, true] {
        for system in [false, true] {
            for kind in 0..16u64 {
                for (dpl, rpl, visible) in [(0u64, 0u16, true), (3, 0, true), (3, 3, true), (0, 3, false)] {
                    let s = if system { 0 } else { 1 << 44 };
                    let d = 0x00c1_8000_0000_2345 | kind << 40 | s | dpl << 45;
                    let code = !system && kind & 8 != 0;
                    let seen = visible || code && kind & 4 != 0;
                    // SDM vol. 2, LAR and LSL: the types that each may look at.
                    let (lar, lsl) = match (system, long) {
                        (false, _) => (true, true),
                        (true, false) => {
                            (matches!(kind, 1..=5 | 9 | 11 | 12), matches!(kind, 1..=3 | 9 | 11))
                        }
                        (true, true) => (matches!(kind, 2 | 9 | 11 | 12), matches!(kind, 2 | 9 | 11)),
                    };
                    let readable = !system && (!code || kind & 2 != 0);
                    let writable = !system && !code && kind & 2 != 0;
                    let mut g = if long { Guest::long() } else { Guest::protected() };
                    let selector = g.free_descriptor(0, d) | rpl;
                    for n in [RAX, RBX] {
                        g.set_reg(n, 0x5555_5555);
                    }
                    g.set_reg(RCX, selector.into());
                    g.program(|a| {
                        a.lar(eax, ecx)?;
                        a.setz(dl)?;
                        a.lsl(ebx, ecx)?;
                        a.setz(dh)?;
                        a.verr(cx)?;
                        a.mov(esi, 0)?;
                        a.setz(byte_ptr(BASE))?;
                        a.verw(cx)?;
                        a.setz(byte_ptr(BASE + 1))?;
                        a.hlt()
                    });
                    g.expect_halt();
                    let what = format!("long {long}, system {system}, type {kind}, DPL {dpl}, RPL {rpl}");
                    let rights = if seen && lar { d >> 32 & 0xff_ff00 } else { 0x5555_5555 };
                    // Bits 16 to 19 are undefined.
                    assert_eq!(g.reg(RAX) & !0xf_0000, rights & !0xf_0000, "LAR: {what}");
                    let limit = if seen && lsl { 0x1_2345 << 12 | 0xfff } else { 0x5555_5555 };
                    assert_eq!(g.reg(RBX), limit, "LSL: {what}");
                    let zero = g.reg(RDX) & 0xffff;
                    assert_eq!(zero, u64::from(seen && lar) | u64::from(seen && lsl) << 8, "{what}");
                    let verified = [seen && readable, seen && writable].map(u8::from);
                    assert_eq!(g.peek(DATA, 2), verified, "VERR and VERW: {what}");
                }
            }
        }
    }
}

#[test]
fn selectors_that_name_nothing_clear_zf_and_do_not_fault() {
    for selector in [0u64, 3, 0x100, 0x64, 0xffff] {
        let mut g = Guest::long();
        g.set_reg(RCX, selector);
        g.flag(rflags::ZF);
        g.program(|a| {
            a.lar(rax, rcx)?;
            a.setz(byte_ptr(DATA))?;
            a.verr(cx)?;
            a.setz(byte_ptr(DATA + 1))?;
            a.hlt()
        });
        g.poke(DATA, &[9, 9]);
        g.expect_halt();
        assert_eq!(g.peek(DATA, 2), [0, 0], "{selector:#x}");
    }
}

#[test]
fn arpl_raises_the_privilege_of_a_selector() {
    for (value, want, zf, result) in
        [(0x10u64, 3u64, true, 0x13), (0x13, 1, false, 0x13), (0x11, 1, false, 0x11)]
    {
        let mut g = Guest::protected();
        g.set_reg(RAX, value);
        g.set_reg(RCX, want);
        g.program(|a| {
            a.arpl(ax, cx)?;
            a.hlt()
        });
        g.expect_halt();
        assert_eq!((g.reg(RAX), g.rflags() & rflags::ZF != 0), (result, zf));
    }
}
