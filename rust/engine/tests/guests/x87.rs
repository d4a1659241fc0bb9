//! x87 and MMX instructions in translated code: the host's unit holds the guest's state, and nobody may notice. Every program
//! must do the same on every engine, wherever its run is parted: registers, flags, pointers, images, faults.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use iced_x86::code_asm::*;
use trapgate_engine::Exit;
use trapgate_engine::vector::{F80, FpUnit, NativeFp, X87Unary};
use trapgate_x86::model::X86_64_V3;
use trapgate_x86::regs::{cr0, cr4, xcr0};

use crate::common::*;
use crate::passage::{Asm, Made, alike, alike_in_one_go, ends_at, interpreted, machine, on};

/// Code that no 32 bits reach.
const FAR: u64 = 0x1234_5678_9000;
/// Where images go.
const IMAGE: u64 = DATA + 0x3000;

/// Doubles that are neither round nor far apart, integers behind them.
fn numbers(g: &mut Guest) {
    let mut noise = Noise(0x1234_5678_9abc_def1);
    for n in 0..512 {
        let value = (noise.below(1 << 40) as f64 - 5e11) / 3e9;
        g.put(DATA + 8 * n, value.to_bits());
        g.put(DATA + 0x1000 + 8 * n, noise.next() >> 12);
    }
}

/// A machine with numbers and a program at an address.
fn program(at: u64, f: impl FnOnce(&mut Asm) -> Made) -> Guest {
    let mut g = machine();
    numbers(&mut g);
    for page in 0..2 {
        g.map(FAR + page * 0x1000, CODE + page * 0x1000, P | W);
    }
    g.load_bits(64, CODE, at, f);
    g.cpu().rip = at;
    g
}

/// A loop of some rounds around `body`, which may use RSI, RDI and RAX; twice, the second time all pages are known.
fn looping(at: u64, rounds: u32, body: impl Fn(&mut Asm) -> Made) -> Guest {
    program(at, |a| {
        let (mut twice, mut again) = (a.create_label(), a.create_label());
        a.mov(ebp, 2)?;
        a.fninit()?;
        a.fldz()?;
        a.set_label(&mut twice)?;
        a.mov(rsi, DATA)?;
        a.mov(rdi, DATA + 0x1000)?;
        a.mov(ebx, rounds)?;
        a.set_label(&mut again)?;
        body(a)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.dec(ebp)?;
        a.jnz(twice)?;
        a.hlt()
    })
}

fn sum_of_products(a: &mut Asm) -> Made {
    a.fld(qword_ptr(rsi))?;
    a.fmul(qword_ptr(rsi + 8))?;
    a.faddp(st1, st0)?;
    a.add(rsi, 8)
}

#[test]
fn loops_of_doubles() {
    for at in [CODE, FAR] {
        for rounds in [3, 40, 400] {
            alike(|| looping(at, rounds, sum_of_products));
        }
    }
    assert!(interpreted(|| looping(CODE, 400, sum_of_products)) < 8, "x87 instructions are not translated");
}

/// By a segment with a base, which a loop without checks has no form for.
#[test]
fn loops_with_a_segment() {
    alike(|| {
        let mut g = looping(CODE, 60, |a| {
            a.fld(qword_ptr(rsi).fs())?;
            a.fmul(qword_ptr(rdi))?;
            a.faddp(st1, st0)?;
            a.movq(mm1, qword_ptr(rdi).gs())?;
            a.emms()?;
            a.fild(qword_ptr(rdi))?;
            a.add(rsi, 8)
        });
        g.cpu().seg[4].base = 0x10;
        g
    });
}

/// Instructions across pages, each of which has to ask for the state: CPUID is the interpreter's.
#[test]
fn instructions_across_pages() {
    for offset in 0xfb0..0x1000 {
        alike_in_one_go(|| {
            let mut g = machine();
            numbers(&mut g);
            g.load(CODE + offset, |a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.fninit()?;
                a.fld(qword_ptr(rsi))?;
                a.cpuid()?;
                a.fmul(qword_ptr(rsi + 0x100))?;
                a.cpuid()?;
                a.fstp(tbyte_ptr(rsi + 8))?;
                a.cpuid()?;
                a.movq(mm1, qword_ptr(rsi + 0x100))?;
                a.cpuid()?;
                a.movq2dq(xmm9, mm1)?;
                a.cpuid()?;
                a.paddb(mm1, qword_ptr(rsi))?;
                a.cpuid()?;
                a.fldcw(word_ptr(rdi))?;
                a.cpuid()?;
                a.movntq(qword_ptr(rsi), mm1)?;
                a.add(rsi, 16)?;
                a.dec(ebp)?;
                a.jnz(again)?;
                a.hlt()
            });
            g.cpu().rip = CODE + offset;
            for (n, value) in [(RSI, DATA), (RDI, DATA + 0x1000), (RBP, 6)] {
                g.set_reg(n, value);
            }
            g.put(DATA + 0x1000, 0xf7fu16);
            g
        });
    }
}

/// A branch out of the middle, behind an x87 instruction: the pointer differs by where the loop is left.
#[test]
fn loops_that_are_left_in_the_middle() {
    let make = |at: u64, before: bool, value: u32| {
        program(at, |a| {
            let (mut twice, mut again, mut out) = (a.create_label(), a.create_label(), a.create_label());
            a.mov(ebp, 2)?;
            a.fninit()?;
            a.fldz()?;
            a.set_label(&mut twice)?;
            a.mov(rsi, DATA)?;
            a.mov(ebx, 100)?;
            a.set_label(&mut again)?;
            a.fld(qword_ptr(rsi))?;
            if before {
                a.fchs()?;
            }
            a.cmp(ebx, value)?;
            a.je(out)?;
            a.fstp(qword_ptr(rsi + 8))?;
            a.add(rsi, 8)?;
            a.fld1()?;
            a.faddp(st1, st0)?;
            a.dec(ebx)?;
            a.jnz(again)?;
            a.set_label(&mut out)?;
            a.dec(ebp)?;
            a.jnz(twice)?;
            a.hlt()
        })
    };
    for at in [CODE, FAR] {
        for before in [true, false] {
            // The last of them never comes.
            for value in [17, 2, 95, 1, 1000] {
                alike(|| make(at, before, value));
            }
        }
    }
}

/// The state as FNSTENV, FXSAVE and XSAVE show it, behind an x87 instruction and behind one that is none.
#[test]
fn images_show_the_pointers() {
    let make = |at: u64, far: bool| {
        let mut g = looping(at, 5, |a| {
            a.fld(qword_ptr(rsi))?;
            a.fadd(qword_ptr(rsi + 8))?;
            if far {
                a.mov(eax, ebx)?;
            }
            a.fnstenv(ptr(IMAGE))?;
            a.fistp(qword_ptr(rdi))?;
            a.fxsave64(ptr(IMAGE + 0x200))?;
            a.fld1()?;
            a.mov(eax, -1)?;
            a.mov(edx, -1)?;
            a.xsave64(ptr(IMAGE + 0x400))?;
            a.fstp(st1)?;
            a.fxsave(ptr(IMAGE + 0x800))?;
            a.xrstor64(ptr(IMAGE + 0x400))?;
            a.fnsave(ptr(IMAGE + 0xa00))?;
            a.frstor(ptr(IMAGE + 0xa00))?;
            a.add(rsi, 16)
        });
        g.cpu().cr4 |= cr4::OSXSAVE;
        g.cpu().xcr0 = xcr0::X87 | xcr0::SSE;
        g
    };
    for at in [CODE, FAR] {
        for far in [false, true] {
            alike(|| make(at, far));
        }
    }
    let mut g = on(&|| make(CODE, false), Some(0));
    g.expect_halt();
    let at = g.get::<u64>(IMAGE + 0x200 + 8);
    assert_eq!(g.peek(at, 2), [0xdf, 0x3f], "FIP of FXSAVE is the FISTP");
    assert_eq!(g.get::<u64>(IMAGE + 0x200 + 16), 0, "FDP has not changed");
}

/// Faults in the middle of a unit: what was done before them stays, a store pops nothing, FIP is that of the last
/// instruction that completed.
#[test]
fn faults_are_exact() {
    let stores: [fn(&mut Asm) -> Made; 7] = [
        |a| a.fstp(qword_ptr(rdi)),
        |a| a.fstp(tbyte_ptr(rdi)),
        |a| a.fistp(word_ptr(rdi)),
        |a| a.fisttp(dword_ptr(rdi)),
        |a| a.fnstcw(word_ptr(rdi)),
        |a| a.movq(qword_ptr(rdi), mm3),
        |a| a.fadd(dword_ptr(rdi)),
    ];
    for store in stores {
        for (offset, at) in [(0x1000u64, CODE), (0xffc, FAR), (0xff8, CODE), (0xffe, FAR)] {
            let end = alike(|| {
                let mut g = program(at, |a| {
                    a.fninit()?;
                    a.fld(qword_ptr(DATA))?;
                    a.fld(dword_ptr(DATA + 8))?;
                    a.mov(rdi, DATA + 0x1000 + offset)?;
                    a.fsqrt()?;
                    a.fld1()?;
                    store(a)?;
                    a.fldl2t()?;
                    a.hlt()
                });
                g.map(DATA + 0x2000, 0, 0);
                ends_at(&mut g, 14);
                g
            });
            assert_eq!(end.events, [Stop::Halted]);
        }
    }
}

/// A loop whose pages end, so that it faults after many rounds in its fast form.
#[test]
fn loops_that_fault_after_many_rounds() {
    for at in [CODE, FAR] {
        alike_in_one_go(|| {
            let mut g = looping(at, 5000, |a| {
                a.fild(qword_ptr(rdi))?;
                a.fmul(qword_ptr(rsi))?;
                a.fstp(qword_ptr(rdi))?;
                a.add(rdi, 8)
            });
            g.map(DATA + 0x3000, 0, 0);
            ends_at(&mut g, 14);
            g
        });
    }
}

/// Saves the state by an interrupt's handler, as a kernel that switches lazily does: each round sets CR0.TS, the first
/// instruction that needs the unit is #NM, whose handler changes states.
#[test]
fn lazy_switches() {
    let bodies: [fn(&mut Asm) -> Made; 4] = [
        |a| a.fadd(qword_ptr(rsi)),
        |a| a.paddb(mm0, mm1),
        |a| a.wait(),
        |a| {
            a.movq2dq(xmm0, mm1)?;
            a.paddd(xmm1, xmm0)
        },
    ];
    for (n, body) in bodies.into_iter().enumerate() {
        for mp in [false, true] {
            let end = alike(|| {
                let mut g = looping(CODE, 12, |a| {
                    a.mov(rax, cr0)?;
                    a.or(rax, 8)?;
                    a.mov(cr0, rax)?;
                    a.add(rsi, 8)?;
                    body(a)?;
                    a.fld1()?;
                    a.fstp(qword_ptr(rsi + 0x200))
                });
                g.load(CODE + 0x900, |a| {
                    a.clts()?;
                    a.inc(r15)?;
                    a.fxsave64(ptr(IMAGE))?;
                    a.fxrstor64(ptr(IMAGE + 0x200))?;
                    a.fxsave64(ptr(IMAGE + 0x400))?;
                    a.fxrstor64(ptr(IMAGE))?;
                    a.iretq()
                });
                g.put(IMAGE + 0x200, 0x37fu64);
                g.put(IMAGE + 0x218, 0x1f80u64);
                g.set_gate(7, Gate::interrupt(CODE + 0x900));
                g.cpu().cr0 |= if mp { cr0::MP } else { 0 };
                g
            });
            assert_eq!(end.cpu.regs[15], 24, "one #NM a round, body {n}");
        }
    }
}

#[test]
fn emulation_is_undefined_or_not_available() {
    for (vector, body) in [(7u8, (|a| a.fld1()) as Insn), (6, |a| a.paddb(mm0, mm1)), (6, |a| a.emms())] {
        let end = alike(|| {
            let mut g = looping(CODE, 3, |a| {
                a.add(r12, 1)?;
                body(a)
            });
            // The first FLDZ is one of them, too.
            g.cpu().rip = g
                .program(|a| {
                    a.nop()?;
                    body(a)?;
                    a.hlt()
                })
                .start;
            g.cpu().cr0 |= cr0::EM;
            ends_at(&mut g, vector);
            g
        });
        assert_eq!((&end.events[..], end.cpu.cr0 & cr0::EM), (&[Stop::Halted][..], cr0::EM));
    }
}

/// RDTSC calls a function, which ends the loan.
#[test]
fn the_clock_between_x87_instructions() {
    alike(|| {
        looping(CODE, 40, |a| {
            a.fadd(qword_ptr(rsi))?;
            a.rdtsc()?;
            a.mov(qword_ptr(rdi), rax)?;
            a.fild(dword_ptr(rdi))?;
            a.faddp(st1, st0)?;
            a.rdtsc()?;
            a.paddd(xmm0, xmm1)?;
            a.fst(qword_ptr(rdi + 8))?;
            a.add(rsi, 8)
        })
    });
}

/// All of it in one loop: MMX registers are the x87's, and what one does to tags and TOP the other sees.
#[test]
fn mmx_and_x87_meet() {
    for at in [CODE, FAR] {
        let make = || {
            looping(at, 60, |a| {
                a.movq(mm0, qword_ptr(rsi))?;
                a.movq(mm1, qword_ptr(rdi))?;
                a.paddusb(mm0, mm1)?;
                a.pmaddwd(mm1, mm0)?;
                a.pshufw(mm2, mm1, 0x4e)?;
                a.punpcklbw(mm2, dword_ptr(rdi))?;
                a.movd(eax, mm2)?;
                a.pinsrw(mm3, eax, 2)?;
                a.movq2dq(xmm1, mm3)?;
                a.cvtpi2ps(xmm2, mm2)?;
                a.addps(xmm2, xmm1)?;
                a.cvtps2pi(mm4, xmm2)?;
                a.movdq2q(mm5, xmm1)?;
                a.pmovmskb(r9d, mm5)?;
                a.fxch(st0, st3)?;
                a.fst(qword_ptr(rsi))?;
                a.movntq(qword_ptr(rdi), mm4)?;
                a.emms()?;
                a.fild(dword_ptr(rdi))?;
                a.fidiv(word_ptr(rsi + 2))?;
                a.fxam()?;
                a.fnstsw(ax)?;
                a.add(r12, rax)?;
                a.fnstsw(word_ptr(rdi + 4))?;
                a.fisttp(qword_ptr(rsi + 8))?;
                a.add(rsi, 8)?;
                a.add(rdi, 8)
            })
        };
        alike(make);
        let left = interpreted(make);
        assert!(left < 10, "translated code was left {left} times");
    }
}

fn compares(a: &mut Asm) -> Made {
    a.fld(qword_ptr(rsi))?;
    a.fld(qword_ptr(rsi + 8))?;
    a.fcomi(st0, st1)?;
    a.adc(r12, 0)?;
    a.fcmovb(st0, st1)?;
    a.fucomip(st0, st1)?;
    a.adc(r12, r12)?;
    a.fcomp(qword_ptr(rsi + 16))?;
    a.fnstsw(ax)?;
    a.sahf()?;
    a.adc(r12, 0)?;
    a.ftst()?;
    a.fnstsw(ax)?;
    a.xor(r12, rax)?;
    a.add(rsi, 8)
}

#[test]
fn comparisons_set_flags() {
    alike(|| looping(CODE, 100, compares));
    assert!(interpreted(|| looping(CODE, 100, compares)) < 8);
}

/// (int) of a double, as compilers for the x87 do it: the rounding control changes to and fro.
fn truncates(a: &mut Asm) -> Made {
    a.fld(qword_ptr(rsi))?;
    a.fnstcw(word_ptr(rdi))?;
    a.movzx(eax, word_ptr(rdi))?;
    a.or(ah, 0xc)?;
    a.mov(word_ptr(rdi + 2), ax)?;
    a.fldcw(word_ptr(rdi + 2))?;
    a.fistp(dword_ptr(rsi))?;
    a.fldcw(word_ptr(rdi))?;
    a.add(rsi, 8)
}

#[test]
fn control_words_are_loaded_in_place() {
    alike(|| looping(CODE, 100, truncates));
    assert!(interpreted(|| looping(CODE, 100, truncates)) < 8);
}

/// An exception that is unmasked at times: the host must never get it, and #MF comes where it is due.
#[test]
fn unmasked_exceptions_are_the_interpreters() {
    for (mask, from) in [(0x20, 7), (1, 3), (0x20, 1), (4, 24)] {
        let end = alike(|| {
            let mut g = looping(CODE, 40, |a| {
                let mut on = a.create_label();
                a.mov(dword_ptr(rdi), 0x37f)?;
                a.cmp(ebx, from)?;
                a.jne(on)?;
                a.xor(dword_ptr(rdi), mask)?;
                a.set_label(&mut on)?;
                a.fldcw(word_ptr(rdi))?;
                a.fld1()?;
                a.fld(qword_ptr(rsi))?;
                a.fdivp(st1, st0)?;
                a.fldz()?;
                a.fdiv_2(st0, st0)?;
                a.fstp(st0)?;
                a.fld1()?;
                a.fldz()?;
                a.fdivp(st1, st0)?;
                a.fstp(st0)?;
                a.wait()?;
                a.fstp(dword_ptr(rdi + 8))?;
                a.add(rsi, 8)
            });
            // Counts, clears what is pending and masks it, and goes on.
            g.load(CODE + 0x900, |a| {
                a.inc(r15)?;
                a.fnclex()?;
                a.fldcw(word_ptr(IMAGE))?;
                a.iretq()
            });
            g.put(IMAGE, 0x37fu64);
            g.set_gate(16, Gate::interrupt(CODE + 0x900));
            g
        });
        assert_eq!(end.cpu.regs[15], 2, "one #MF each time");
    }
}

/// Operands across pages, in device memory and in ROM.
#[test]
fn operands_in_strange_places() {
    alike_in_one_go(|| {
        let mut g = looping(CODE, 40, |a| {
            a.mov(r14, DEVICE)?;
            a.fild(qword_ptr(rdi + 0xffc))?;
            a.fstp(tbyte_ptr(rsi + 0xff8))?;
            a.fld(tbyte_ptr(rsi + 0xff8))?;
            a.fadd(qword_ptr(r14))?;
            a.fstp(qword_ptr(r14 + 8))?;
            a.fld(qword_ptr(ROM))?;
            a.fstp(qword_ptr(ROM))?;
            a.add(rsi, 1)?;
            a.add(rdi, 1)
        });
        g.map(ROM, ROM, P | W);
        g.map(DEVICE, DEVICE, P | W);
        g
    });
}

#[test]
fn upper_halves_stay_where_they_are() {
    alike(|| {
        let mut g = Guest::with_model(X86_64_V3);
        g.cpu().cr4 |= cr4::OSXSAVE;
        g.cpu().xcr0 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
        numbers(&mut g);
        g.program(|a| {
            let mut again = a.create_label();
            a.mov(rsi, DATA)?;
            a.fninit()?;
            a.set_label(&mut again)?;
            a.vmovups(ymm3, ymmword_ptr(rsi))?;
            a.fld(qword_ptr(rsi))?;
            a.paddd(xmm4, xmm3)?;
            a.vpaddd(ymm5, ymm5, ymm3)?;
            a.fstp(qword_ptr(rsi + 8))?;
            a.cpuid()?;
            a.add(rsi, 8)?;
            a.dec(r15)?;
            a.jns(again)?;
            a.hlt()
        });
        g.set_reg(15, 30);
        g
    });
}

/// Whoever runs a guest finds the host's unit empty, wherever the run has stopped.
#[test]
fn the_hosts_unit_is_left_empty() {
    let make = || {
        looping(CODE, 1000, |a| {
            a.movq(mm7, qword_ptr(rsi))?;
            a.paddb(mm6, mm7)?;
            a.fld1()?;
            a.fldcw(word_ptr(IMAGE))
        })
    };
    let mut g = on(&make, Some(0));
    g.put(IMAGE, 0xf7fu64);
    let (four, two) = (F80::new(0x4001, 1 << 63), F80::new(0x4000, 1 << 63));
    for n in 0..40 {
        assert_eq!(g.run_until(200 + n * 60), Exit::Budget);
        assert_eq!(NativeFp.x87_unary(X87Unary::SquareRoot, four, 0x37f).value, two, "stop {n}");
    }
    assert_eq!((g.cpu().vector().x87.fcw, g.cpu().vector().x87.tags), (0xf7f, 0xff));
}
