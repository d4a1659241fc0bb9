//! VEX-encoded vector code on the translator: where upper halves of YMM registers are, who sees them. As
//! in [`super::passage`] a program must do the same on every engine, wherever its run is parted.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use iced_x86::code_asm::*;
use trapgate_x86::model::X86_64_V3;
use trapgate_x86::regs::{cr0, cr4, xcr0};

use crate::common::engines::translator;
use crate::common::*;
use crate::passage::{Asm, Made, alike, caller, ends_at, interpreted, kernel, machine_of, nothing};
use crate::unbroken::vectors_in_kernel;

const ALL: u64 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
/// Where state is saved.
const AREA: u64 = DATA + 0x1000;

/// A machine with AVX enabled, and bits in all halves of all registers.
pub fn machine() -> Guest {
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
pub fn repeated(g: &mut Guest, times: u32, mut body: impl FnMut(&mut Asm) -> Made) {
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
        // The kernel's own code has no VEX.
        kernel(&mut g, vectors_in_kernel);
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
