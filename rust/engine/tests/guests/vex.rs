//! VEX-encoded vector code on the translator: where upper halves of YMM registers are, who sees them, which faults there are. As
//! in [`super::passage`] a program must do the same on every engine, wherever its run is parted.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use iced_x86::code_asm::*;
use trapgate_x86::model::X86_64_V3;
use trapgate_x86::regs::{cr0, cr4, xcr0};

use crate::common::engines::translator;
use crate::common::*;
use crate::passage::{
    Asm, Made, alike, alike_in_one_go, caller, ends_at, finish, interpreted, kernel, machine_of, nothing, on,
};

const ALL: u64 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
/// Where state is saved.
const AREA: u64 = DATA + 0x1000;
/// The lowest entry's bit that says that its page was used.
const ACCESSED: u64 = 1 << 5;

/// A machine with AVX enabled, and bits in all halves of all registers.
fn machine() -> Guest {
    let mut g = machine_of(X86_64_V3);
    let cpu = g.cpu();
    cpu.cr4 |= cr4::OSXSAVE;
    cpu.xcr0 = ALL;
    let vector = cpu.vector();
    for n in 0..16u128 {
        vector.xmm[n as usize] = 0x0123_4567_89ab_cdef_0f1e_2d3c_4b5a_6978 ^ n << 64 ^ n << 7;
        vector.ymm_high[n as usize] = 0x8877_6655_4433_2211_1021_3243_5465_7687 ^ n << 96 ^ n << 3;
    }
    let bytes: Vec<u8> = (0..0x6000u32).map(|n| (n * 7 + (n >> 8)) as u8).collect();
    g.poke(DATA, &bytes);
    g
}

/// Both halves of YMM1 go into R12.
fn look(a: &mut Asm) -> Made {
    a.vextracti128(xmm5, ymm1, 1)?;
    a.vpxor(xmm5, xmm5, xmm1)?;
    a.vmovq(r9, xmm5)?;
    a.vpextrq(r10, xmm5, 1)?;
    a.lea(r12, ptr(r12 + 2 * r9))?;
    a.xor(r12, r10)
}

/// Parts a unit from what follows.
fn next_unit(a: &mut Asm) -> Made {
    let mut next = a.create_label();
    a.jmp(next)?;
    a.set_label(&mut next)
}

/// A program of ring 0 that does something so many times.
fn repeated(g: &mut Guest, times: u32, mut body: impl FnMut(&mut Asm) -> Made) {
    g.program(|a| {
        let mut again = a.create_label();
        a.mov(ebx, times)?;
        a.set_label(&mut again)?;
        body(a)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.hlt()
    });
}

#[test]
fn legacy_code_keeps_upper_halves_and_vex_clears_them() {
    let end = alike(|| {
        let mut g = machine();
        g.program(|a| {
            let mut again = a.create_label();
            a.mov(ebx, 12)?;
            a.set_label(&mut again)?;
            // Units of legacy code alone, while upper halves are elsewhere or here.
            a.paddq(xmm1, xmm2)?;
            a.movups(xmm3, xmm4)?;
            next_unit(a)?;
            look(a)?;
            next_unit(a)?;
            a.paddb(xmm6, xmm1)?;
            a.cpuid()?;
            a.mov(ebx, r14d)?;
            a.pxor(xmm7, xmm6)?;
            next_unit(a)?;
            // One with both.
            a.vpaddq(xmm8, xmm6, xmm7)?;
            a.addpd(xmm9, xmm8)?;
            a.vmovaps(ymm10, ymm9)?;
            a.vpermq(ymm1, ymm1, 0x39)?;
            a.dec(r14d)?;
            a.jnz(again)?;
            a.hlt()
        });
        g.set_reg(14, 12);
        g
    });
    let vector = end.cpu.vector;
    assert_eq!(vector.ymm_high[8], 0, "VEX.128 clears");
    assert_ne!(vector.ymm_high[9], 0, "legacy code keeps");
    assert_eq!(vector.ymm_high[10], vector.ymm_high[9]);
    assert_ne!(vector.ymm_high[15], 0, "nobody touched it");
}

#[test]
fn all_are_cleared_at_once() {
    for all in [false, true] {
        let end = alike(|| {
            let mut g = machine();
            repeated(&mut g, 9, |a| {
                a.vpaddd(ymm1, ymm1, ymm2)?;
                look(a)?;
                if all {
                    a.vzeroall()?
                } else {
                    a.vzeroupper()?
                }
                a.movups(xmm0, xmm1)?;
                next_unit(a)?;
                a.paddw(xmm3, xmm1)?;
                a.rdtsc()?;
                look(a)?;
                a.vinserti128(ymm2, ymm3, xmm3, 1)
            });
            g
        });
        let vector = end.cpu.vector;
        assert!((0..16).all(|n| n == 2 || vector.ymm_high[n] == 0));
        assert_eq!(vector.xmm[14] == 0, all);
    }
}

/// Vector instructions of a program, with a look at their results.
fn vectors(a: &mut Asm) -> Made {
    a.vmovq(xmm0, r12)?;
    a.vpbroadcastq(ymm0, xmm0)?;
    a.vpaddq(ymm1, ymm1, ymm0)?;
    a.vpermq(ymm1, ymm1, 0x4b)?;
    look(a)
}

#[test]
fn whole_registers_outlast_system_calls() {
    alike(|| {
        let mut g = machine();
        kernel(&mut g, |a| {
            // The kernel's own code has no VEX, and leaves for the interpreter.
            a.movq(xmm3, rbx)?;
            a.paddq(xmm1, xmm3)?;
            a.rdtsc()?;
            a.mov(r9, rbx)?;
            a.cpuid()?;
            a.mov(rbx, r9)?;
            a.paddq(xmm1, xmm3)
        });
        caller(&mut g, 20, vectors);
        g
    });
}

#[test]
fn whole_registers_are_given_back_for_whoever_saves_them() {
    // With upper halves that are clear, and with others.
    for clear in [false, true] {
        alike(|| {
            let mut g = machine();
            g.poke(AREA, &[0; 1024]);
            kernel(&mut g, |a| {
                a.mov(r9, rax)?;
                a.mov(r8, rdx)?;
                a.mov(eax, 7)?;
                a.xor(edx, edx)?;
                a.xsave64(ptr(AREA))?;
                // The upper half of YMM1.
                a.xor(r12, qword_ptr(AREA + 576 + 16))?;
                a.vpcmpeqd(ymm1, ymm1, ymm1)?;
                a.vzeroall()?;
                a.inc(qword_ptr(AREA + 576 + 16))?;
                a.xrstor64(ptr(AREA))?;
                a.xsavec64(ptr(AREA + 0x800))?;
                a.mov(rdx, r8)?;
                a.mov(rax, r9)
            });
            caller(&mut g, 20, |a| {
                vectors(a)?;
                if clear { a.vzeroupper() } else { Ok(()) }
            });
            g.poke(AREA + 0x800, &[0; 1024]);
            g
        });
    }
}

#[test]
fn a_kernel_that_switches_lazily_sees_each_first_use() {
    let end = alike(|| {
        let mut g = machine();
        // #NM: counted, and the registers are another task's.
        g.load(CODE + 0x800, |a| {
            a.clts()?;
            a.inc(r15)?;
            a.vpxor(ymm1, ymm1, ymm2)?;
            a.iretq()
        });
        g.set_gate(7, Gate { ist: 1, ..Gate::interrupt(CODE + 0x800) });
        kernel(&mut g, |a| {
            let mut stay = a.create_label();
            a.test(ebx, 3)?;
            a.jnz(stay)?;
            a.mov(r8, cr0)?;
            a.or(r8, cr0::TS as i32)?;
            a.mov(cr0, r8)?;
            a.set_label(&mut stay)?;
            a.nop()
        });
        caller(&mut g, 20, vectors);
        g
    });
    assert_eq!(end.cpu.regs[15], 5);
}

#[test]
fn what_is_disabled_on_the_way_is_undefined() {
    for osxsave in [false, true] {
        let end = alike(|| {
            let mut g = machine();
            kernel(&mut g, |a| {
                let mut stay = a.create_label();
                a.cmp(ebx, 6)?;
                a.jne(stay)?;
                if osxsave {
                    a.mov(r8, cr4)?;
                    a.and(r8, !(cr4::OSXSAVE as i32))?;
                    a.mov(cr4, r8)?;
                } else {
                    a.mov(eax, 3)?;
                    a.xor(ecx, ecx)?;
                    a.xor(edx, edx)?;
                    a.xsetbv()?;
                }
                a.set_label(&mut stay)?;
                // Legacy code goes on.
                a.paddq(xmm1, xmm3)
            });
            caller(&mut g, 20, vectors);
            ends_at(&mut g, 6);
            g
        });
        assert_eq!((end.events, end.cpu.regs[RBX]), (vec![Stop::Halted], 6));
    }
}

#[test]
fn unmasked_exceptions_are_the_interpreters() {
    // Each lane's quotient is wrong in one iteration, that of the highest in the last.
    for lane in 0..4u64 {
        let end = alike(|| {
            let mut g = machine();
            g.cpu().vector().mxcsr = 0x1d80;
            for n in 0..4 {
                g.put(DATA + 8 * n, f64::to_bits(if n == lane { 3.0 } else { 1e10 }));
            }
            g.put(DATA + 32, f64::to_bits(1.0));
            repeated(&mut g, 20, |a| {
                a.vmovupd(ymm2, ymmword_ptr(DATA))?;
                a.vbroadcastsd(ymm3, qword_ptr(DATA + 32))?;
                a.vsubpd(ymm4, ymm2, ymm3)?;
                a.vmovupd(ymmword_ptr(DATA), ymm4)?;
                a.vdivpd(ymm5, ymm3, ymm4)
            });
            ends_at(&mut g, 19);
            g
        });
        assert_eq!((end.events, end.cpu.regs[RBX]), (vec![Stop::Halted], 18));
    }
}

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
fn pages_that_are_looked_up_do_not_disturb_registers() {
    alike(|| {
        let mut g = machine();
        repeated(&mut g, 24, |a| {
            // Another page each time, and the stack's.
            a.vpaddq(ymm1, ymm1, ymmword_ptr(rsi))?;
            a.vpsubq(ymm15, ymm15, ymm1)?;
            a.push(rsi)?;
            a.vpermq(ymm14, ymm15, 0x93)?;
            a.pop(rdi)?;
            a.add(rsi, 0x1000)?;
            a.and(esi, 0x20_5fff)
        });
        g.set_reg(RSI, DATA + 0x10);
        g
    });
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
fn gathers_and_what_else_is_the_interpreters_see_whole_registers() {
    alike(|| {
        let mut g = machine();
        repeated(&mut g, 12, |a| {
            a.vpaddd(ymm1, ymm1, ymm2)?;
            a.vpand(ymm4, ymm1, ymm5)?;
            a.vpcmpeqd(ymm6, ymm6, ymm6)?;
            a.vpsrld(ymm4, ymm4, 20)?;
            // VPGATHERDD YMM0, [RSI + YMM4], YMM6.
            a.db(&[0xc4, 0xe2, 0x4d, 0x90, 0x04, 0x26])?;
            a.vpaddq(ymm1, ymm1, ymm0)?;
            a.vstmxcsr(dword_ptr(DATA + 0x5000))?;
            look(a)
        });
        g.set_reg(RSI, DATA);
        g
    });
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

#[test]
fn upper_halves_that_were_lent_as_the_budget_ran_out_are_not_kept() {
    for more in 40..70 {
        let mut g = machine();
        assert!(g.engine.set_translate(Some(translator("translator"))), "this host cannot translate");
        repeated(&mut g, 200, |a| {
            next_unit(a)?;
            a.nop()?;
            a.vmovups(ymm1, ymm0)
        });
        g.run_until(300);
        g.run_until(300 + more);
        g.cpu().vector().ymm_high[0] = 7;
        g.expect_halt();
        assert_eq!(g.cpu().vector().ymm_high[1], 7, "stopped after {more} more");
    }
}

#[test]
fn vex_code_needs_no_interpreter() {
    let calls = || {
        let mut g = machine();
        kernel(&mut g, nothing);
        caller(&mut g, 60, |a| {
            vectors(a)?;
            a.vfmadd231pd(ymm3, ymm4, ymmword_ptr(rsp - 64))?;
            a.vcvtph2ps(ymm6, xmm3)?;
            a.vmovdqa(ymmword_ptr(rsp - 96), ymm6)?;
            a.vzeroupper()
        });
        g
    };
    assert!(interpreted(calls) < 30);
}
