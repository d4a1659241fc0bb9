//! Operands of VEX-encoded code on the translator: memory that must be aligned, that is written, or that a mask leaves out;
//! registers that no field names; loops.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use iced_x86::code_asm::*;

use crate::common::*;
use crate::passage::{Asm, Made, alike, alike_in_one_go, ends_at, finish, on};
use crate::vex::{machine, repeated};

/// The lowest entry's bit that says that its page was used.
const ACCESSED: u64 = 1 << 5;

#[test]
fn general_registers_and_flags_are_written() {
    alike(|| {
        let mut g = machine();
        repeated(&mut g, 20, |a| {
            let mut over = a.create_label();
            a.vmovdqu(ymm2, ymmword_ptr(rsi))?;
            a.vmovmskps(r9d, ymm2)?;
            a.vmovmskpd(ecx, ymm2)?;
            a.vpmovmskb(r10d, ymm2)?;
            a.vpextrb(r11d, xmm2, 3)?;
            a.vpextrw(r8d, xmm2, 2)?;
            a.lea(r12, ptr(r12 + 2 * r9))?;
            a.lea(r12, ptr(r12 + 4 * r10))?;
            a.lea(r12, ptr(r12 + r11))?;
            a.lea(r12, ptr(r12 + rcx))?;
            a.lea(r12, ptr(r12 + 8 * r8))?;
            a.vpinsrd(xmm3, xmm2, r8d, 1)?;
            a.vcvtsi2sd(xmm4, xmm3, r12)?;
            a.vcvttsd2si(r9, xmm4)?;
            a.vextractps(ecx, xmm3, 1)?;
            a.lea(r12, ptr(r12 + r9))?;
            a.lea(r12, ptr(r12 + rcx))?;
            a.vmovd(r8d, xmm3)?;
            a.vmovq(r9, xmm3)?;
            a.xor(r12, r8)?;
            a.xor(r12, r9)?;
            a.vptest(ymm2, ymm3)?;
            a.jc(over)?;
            a.inc(r12)?;
            a.set_label(&mut over)?;
            a.pushfq()?;
            a.pop(r8)?;
            a.xor(r12, r8)?;
            a.vucomisd(xmm2, xmm4)?;
            a.adc(r12, 5)?;
            a.vtestps(ymm2, ymm1)?;
            a.adc(r12, 7)?;
            a.add(rsi, 33)
        });
        g.set_reg(RSI, DATA + 0xf00);
        g
    });
}

/// Stores, each to a page that is there to be read only, after a load from it.
#[test]
fn what_writes_memory_needs_the_right_to() {
    type Store = fn(&mut Asm) -> Made;
    let stores: [(&str, Store); 14] = [
        ("vmovups", |a| a.vmovups(ymmword_ptr(rsi + 32), ymm1)),
        ("vmovdqa", |a| a.vmovdqa(ymmword_ptr(rsi + 32), ymm1)),
        ("vmovntps", |a| a.vmovntps(ymmword_ptr(rsi + 64), ymm1)),
        ("vmovd", |a| a.vmovd(dword_ptr(rsi + 4), xmm1)),
        ("vmovq", |a| a.vmovq(qword_ptr(rsi + 4), xmm1)),
        ("vmovss", |a| a.vmovss(dword_ptr(rsi + 4), xmm1)),
        ("vmovhps", |a| a.vmovhps(qword_ptr(rsi + 4), xmm1)),
        ("vpextrb", |a| a.vpextrb(byte_ptr(rsi + 5), xmm1, 2)),
        ("vpextrw", |a| a.vpextrw(word_ptr(rsi + 5), xmm1, 2)),
        ("vpextrq", |a| a.vpextrq(qword_ptr(rsi + 5), xmm1, 1)),
        ("vextractps", |a| a.vextractps(dword_ptr(rsi + 5), xmm1, 1)),
        ("vextractf128", |a| a.vextractf128(xmmword_ptr(rsi + 5), ymm1, 1)),
        ("vcvtps2ph", |a| a.vcvtps2ph(xmmword_ptr(rsi + 5), ymm1, 0)),
        ("vpmaskmovd", |a| a.vpmaskmovd(ymmword_ptr(rsi + 5), ymm2, ymm1)),
    ];
    for (name, store) in stores {
        for write in [true, false] {
            let end = alike_in_one_go(|| {
                let mut g = machine();
                repeated(&mut g, 20, |a| {
                    a.vmovdqu(ymm1, ymmword_ptr(rsi + 16))?;
                    a.vpcmpeqd(ymm2, ymm2, ymm2)?;
                    store(a)?;
                    a.vpaddb(ymm3, ymm3, ymmword_ptr(rsi))?;
                    a.add(rsi, 256)
                });
                g.set_reg(RSI, DATA);
                g.map(DATA + 0x1000, DATA + 0x1000, if write { P | W } else { P });
                ends_at(&mut g, 14);
                g
            });
            assert_eq!(end.cpu.regs[RBX], if write { 0 } else { 4 }, "{name}");
        }
    }
}

/// The machine with a loop that its fast form is for, from RSI to RDI.
fn looping(from: u64, rounds: u32, mut body: impl FnMut(&mut Asm) -> Made) -> Guest {
    let mut g = machine();
    for (linear, page) in (0..).zip([2, 0, 3, 1]) {
        g.map(DATA + linear * 0x1000, DATA + page * 0x1000, P | W);
    }
    g.program(|a| {
        let (mut twice, mut again) = (a.create_label(), a.create_label());
        a.mov(ebp, 2)?;
        a.set_label(&mut twice)?;
        a.mov(rsi, DATA + from)?;
        a.mov(rdi, DATA + 0x2000 + from)?;
        a.mov(ebx, rounds)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut again)?;
        body(a)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.dec(ebp)?;
        a.jnz(twice)?;
        a.hlt()
    });
    ends_at(&mut g, 13);
    g
}

#[test]
fn loops_do_not_check_what_stays_on_its_page() {
    for from in [0, 16, 32, 0x10, 0x208, 0xfe0, 0xff0] {
        alike_in_one_go(|| {
            looping(from, 100, |a| {
                a.vmovdqu(ymm0, ymmword_ptr(rsi))?;
                a.vpaddb(ymm0, ymm0, ymmword_ptr(rsi + 0x40))?;
                a.vmovdqu(ymmword_ptr(rdi), ymm0)?;
                a.vpmovmskb(r9d, ymm0)?;
                a.vptest(ymm0, ymm1)?;
                a.adc(rcx, r9)?;
                a.add(rsi, 32)?;
                a.add(rdi, 32)
            })
        });
    }
}

#[test]
fn loops_may_leave_elements_out() {
    for (from, mask) in [(0, 1 << 31), (0xfe8, u128::MAX), (0x208, 1 << 127 | 1 << 63), (0x800, 0)] {
        let end = alike_in_one_go(|| {
            let mut g = looping(from, 100, |a| {
                a.vpaddd(ymm3, ymm3, ymmword_ptr(rsi))?;
                a.vpmaskmovd(ymm4, ymm2, ymmword_ptr(rsi + 16))?;
                a.vpxor(ymm3, ymm3, ymm4)?;
                a.vmaskmovps(ymmword_ptr(rdi), ymm2, ymm3)?;
                a.add(rsi, 32)?;
                a.add(rdi, 32)
            });
            (g.cpu().vector().xmm[2], g.cpu().vector().ymm_high[2]) = (mask, mask);
            g
        });
        assert_eq!(end.cpu.regs[RBX], 0);
    }
}

#[test]
fn aligned_moves_fault_where_they_are_not() {
    // The offset, whether 16 bytes are aligned there, and whether 32.
    for (from, half, whole) in [(0, true, true), (16, true, false), (32, true, true), (8, false, false)] {
        let run = |body: fn(&mut Asm) -> Made| {
            let end = alike_in_one_go(|| looping(from, 60, body));
            end.cpu.regs[RBX] == 0
        };
        let both = run(|a| {
            a.vmovdqa(ymm0, ymmword_ptr(rsi))?;
            a.vmovaps(xmmword_ptr(rdi + 16), xmm0)?;
            a.add(rsi, 32)?;
            a.add(rdi, 32)
        });
        assert_eq!(both, whole, "from {from}");
        let lower = run(|a| {
            a.vmovapd(xmm0, xmmword_ptr(rsi))?;
            a.vmovntdq(xmmword_ptr(rdi + 16), xmm0)?;
            a.add(rsi, 16)?;
            a.add(rdi, 32)
        });
        assert_eq!(lower, half, "from {from}");
        // One group: an operand of 16 bytes before one of 32.
        let one = run(|a| {
            a.vmovaps(xmm0, xmmword_ptr(rsi + 16))?;
            a.vmovaps(ymmword_ptr(rsi), ymm0)?;
            a.add(rsi, 32)
        });
        assert_eq!(one, whole, "from {from}");
        // Those that step by half of what must be aligned.
        let every = run(|a| {
            a.vmovaps(ymm0, ymmword_ptr(rsi))?;
            a.add(rsi, 16)
        });
        assert!(!every, "from {from}");
        // No other operand need be.
        let none = run(|a| {
            a.vpaddd(ymm0, ymm0, ymmword_ptr(rsi))?;
            a.vaddps(xmm1, xmm0, xmmword_ptr(rdi + 16))?;
            a.add(rsi, 32)?;
            a.add(rdi, 32)
        });
        assert!(none, "from {from}");
    }
}

#[test]
fn masked_moves_leave_pages_alone_that_they_do_not_need() {
    for mask in [0u128, 1 << 31, 1 << 127, 1 << 31 | 1 << 95] {
        for (store, near) in [(false, 0), (true, 0), (false, 0xff8), (true, 0xff8)] {
            let make = || {
                let mut g = machine();
                (g.cpu().vector().xmm[2], g.cpu().vector().ymm_high[2]) = (mask, 0);
                repeated(&mut g, 8, |a| {
                    if store {
                        a.vmaskmovps(ymmword_ptr(rsi), ymm2, ymm1)?;
                    } else {
                        a.vmaskmovps(ymm3, ymm2, ymmword_ptr(rsi))?;
                    }
                    a.vpaddd(ymm1, ymm1, ymm3)
                });
                g.set_reg(RSI, DATA + 0x1000 + near);
                g
            };
            let used = |engine| {
                let mut g = on(&make, engine);
                let end = finish(&mut g);
                let bits = [1, 2].map(|n| g.get::<u64>(g.entry_at(DATA + 0x1000 * n, 1)) & 0x60);
                (end, bits)
            };
            let want = used(None);
            assert_eq!(want.1[0] & ACCESSED != 0, mask & 0x8000_0000 != 0 || mask != 0 && near == 0);
            for engine in 0..4 {
                assert!(used(Some(engine)) == want, "{mask:#x} {store} {near:#x}");
            }
        }
    }
}

#[test]
fn comparisons_of_strings_give_an_index() {
    alike(|| {
        let mut g = machine();
        repeated(&mut g, 12, |a| {
            a.lea(rax, ptr(rbx - 4))?;
            a.mov(edx, 9)?;
            a.pcmpistri(xmm1, xmmword_ptr(rsi + 3), 0x18)?;
            a.lea(r12, ptr(r12 + 2 * rcx))?;
            // ECX is part of an address, of which another was checked before.
            a.movzx(r9d, byte_ptr(rsi + rcx))?;
            a.vpcmpestri(xmm1, xmmword_ptr(rsi + 5), 0x0c)?;
            a.movzx(r10d, byte_ptr(rsi + rcx + 1))?;
            a.adc(r12, r9)?;
            a.add(r12, r10)?;
            a.vpcmpestrm(xmm1, xmm2, 0x48)?;
            a.vpaddd(ymm1, ymm1, ymm0)?;
            a.pcmpistrm(xmm1, xmmword_ptr(rsi + 1), 0x1a)?;
            a.seto(r9b)?;
            a.add(r12b, r9b)?;
            a.add(rsi, 0x155)
        });
        g.set_reg(RSI, DATA);
        g
    });
    // The index leads to another page than what it replaces.
    let end = alike_in_one_go(|| {
        let mut g = machine();
        g.map(DATA + 0x1000, DATA + 0x4000, P | W);
        repeated(&mut g, 20, |a| {
            a.xor(ecx, ecx)?;
            a.movzx(r9d, byte_ptr(rsi + rcx))?;
            a.pcmpistri(xmm1, xmm2, 0x0c)?;
            a.movzx(r10d, byte_ptr(rsi + rcx))?;
            a.lea(r12, ptr(r12 + 2 * r9))?;
            a.add(r12, r10)
        });
        g.set_reg(RSI, DATA + 0xff8);
        g
    });
    assert_eq!(end.cpu.regs[RCX], 16);
    // A loop whose count would stand in the register that the index comes in.
    alike_in_one_go(|| {
        looping(0x40, 100, |a| {
            a.vpcmpistri(xmm1, xmmword_ptr(rsi), 0x08)?;
            a.add(r12, rcx)?;
            a.vmovdqu(xmm1, xmmword_ptr(rdi))?;
            a.add(rsi, 16)?;
            a.add(rdi, 16)
        })
    });
}
