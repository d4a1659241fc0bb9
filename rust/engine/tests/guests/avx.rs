//! The processor of `x86-64-v3`: what CPUID promises, what enables AVX, what its instructions do at faults.

use iced_x86::code_asm::*;
use trapgate_engine::Exit;
use trapgate_x86::model::{X86_64_V2, X86_64_V3};
use trapgate_x86::regs::{cr0, cr4, xcr0};

use crate::common::*;

const ALL: u64 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
/// User-accessible, writable, present.
const OPEN: u64 = 7;

/// In 64-bit mode with AVX state enabled.
fn enabled() -> Guest {
    let mut g = Guest::with_model(X86_64_V3);
    g.cpu().cr4 |= cr4::OSXSAVE;
    g.cpu().xcr0 = ALL;
    g
}

/// A kernel's way through leaf 0Dh: enable what is offered, then find the size of the area once from subleaf 0, once from
/// the components, once in the compacted format. Sizes end up in RSI, RDI and RBP, the components in R8.
fn walk_of_leaf_0d(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let (mut next, mut skip, mut done) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(eax, 0xd)?;
    a.xor(ecx, ecx)?;
    a.cpuid()?;
    a.mov(r8d, eax)?;
    a.xor(ecx, ecx)?;
    a.xsetbv()?;
    a.mov(eax, 0xd)?;
    a.cpuid()?;
    a.mov(esi, ebx)?;
    a.mov(r9d, ecx)?;
    // The legacy region and the header are always there.
    a.mov(edi, 576)?;
    a.mov(r10d, 2)?;
    a.set_label(&mut next)?;
    a.cmp(r10d, 63)?;
    a.jae(done)?;
    a.bt(r8, r10)?;
    a.jnc(skip)?;
    a.mov(eax, 0xd)?;
    a.mov(ecx, r10d)?;
    a.cpuid()?;
    a.add(eax, ebx)?;
    a.cmp(eax, edi)?;
    a.cmova(edi, eax)?;
    a.set_label(&mut skip)?;
    a.inc(r10d)?;
    a.jmp(next)?;
    a.set_label(&mut done)?;
    a.mov(eax, 0xd)?;
    a.mov(ecx, 1)?;
    a.cpuid()?;
    a.mov(r11d, eax)?;
    a.mov(ebp, ebx)?;
    a.hlt()
}

#[test]
fn leaf_0d_says_what_xsave_writes() {
    let mut g = Guest::with_model(X86_64_V3);
    g.cpu().cr4 |= cr4::OSXSAVE;
    g.program(walk_of_leaf_0d);
    g.expect_halt();
    assert_eq!((g.reg(8), g.cpu().xcr0), (ALL, ALL));
    assert_eq!([RSI, RDI, RBP, 9].map(|n| g.reg(n)), [832; 4]);
    assert_eq!(g.reg(11), 7, "XSAVEOPT, XSAVEC and XGETBV of 1");
    // An area that ends with its page, before one that is not there, is large enough.
    let area = DATA + 0x1000 - 832;
    g.map(DATA + 0x1000, 0, 0);
    for compacted in [false, true] {
        g.poke(area, &[0; 832]);
        g.program(|a| {
            a.vpcmpeqd(ymm0, ymm0, ymm0)?;
            a.vmovdqa(ymm15, ymm0)?;
            a.mov(eax, -1)?;
            a.mov(edx, -1)?;
            if compacted {
                a.xsavec64(ptr(area))?
            } else {
                a.xsave64(ptr(area))?
            }
            a.vzeroall()?;
            a.xrstor64(ptr(area))?;
            a.vpmovmskb(ebx, ymm15)?;
            a.hlt()
        });
        g.expect_halt();
        assert_eq!(g.reg(RBX), 0xffff_ffff);
        assert_eq!(g.peek(area + 832 - 16, 16), [0xff; 16], "the upper half of YMM15 is the last");
        assert_eq!(g.get::<u64>(area + 520), if compacted { 1 << 63 | ALL } else { 0 });
    }
}

#[test]
fn xcr0_takes_avx_with_sse_only() {
    for (value, taken) in [(ALL, true), (xcr0::X87 | xcr0::SSE, true), (xcr0::X87 | xcr0::AVX, false)] {
        let mut g = Guest::with_model(X86_64_V3);
        g.cpu().cr4 |= cr4::OSXSAVE;
        g.set_reg(RAX, value);
        g.program(|a| {
            a.xor(ecx, ecx)?;
            a.xor(edx, edx)?;
            a.xsetbv()?;
            a.hlt()
        });
        if taken {
            g.expect_halt();
        } else {
            g.expect(13);
        }
        assert_eq!(g.cpu().xcr0, if taken { value } else { xcr0::X87 });
    }
}

/// Vector of the exception that VADDPS raises, or none.
fn vaddps(mut g: Guest) -> Option<u8> {
    g.program(|a| {
        a.vaddps(ymm0, ymm1, ymm2)?;
        a.hlt()
    });
    match g.go() {
        Stop::Halted => None,
        Stop::Event(event) => Some(event.vector),
        other => panic!("{other:x?}"),
    }
}

#[test]
fn avx_is_undefined_until_it_is_enabled() {
    assert_eq!(vaddps(enabled()), None);
    let mut g = enabled();
    g.cpu().cr4 &= !cr4::OSXSAVE;
    assert_eq!(vaddps(g), Some(6));
    let mut g = enabled();
    g.cpu().xcr0 = xcr0::X87 | xcr0::SSE;
    assert_eq!(vaddps(g), Some(6));
    let mut g = enabled();
    g.cpu().cr0 |= cr0::TS;
    assert_eq!(vaddps(g), Some(7));
    let mut g = Guest::with_model(X86_64_V2);
    g.cpu().cr4 |= cr4::OSXSAVE;
    g.cpu().xcr0 = ALL;
    assert_eq!(vaddps(g), Some(6), "level 2 has no VEX");
}

/// F3 before BSF and BSR means something only where CPUID says so.
#[test]
fn counting_zeros_is_scanning_where_it_is_not_offered() {
    for (model, expected) in [(X86_64_V2, [4, 4]), (X86_64_V3, [4, 27])] {
        let mut g = Guest::with_model(model);
        g.program(|a| {
            a.mov(ecx, 0x10)?;
            a.tzcnt(eax, ecx)?;
            a.lzcnt(ebx, ecx)?;
            a.hlt()
        });
        g.expect_halt();
        assert_eq!([RAX, RBX].map(|n| g.reg(n)), expected);
    }
}

#[test]
fn general_registers_need_no_avx_state() {
    let mut g = Guest::with_model(X86_64_V3);
    g.program(|a| {
        a.mov(edx, 0x8000_0001u32)?;
        a.mov(ecx, 0xf0f0_0ff0u32)?;
        a.mulx(eax, ebx, ecx)?;
        a.pext(esi, edx, ecx)?;
        a.pdep(edi, ecx, edx)?;
        a.rorx(r8d, ecx, 4)?;
        a.stc()?;
        a.sarx(r9d, edx, eax)?;
        a.setc(r10b)?;
        a.hlt()
    });
    g.expect_halt();
    let product = 0x8000_0001u64 * 0xf0f0_0ff0;
    assert_eq!((g.reg(RAX), g.reg(RBX)), (product >> 32, product & 0xffff_ffff));
    // The mask's lowest and highest bits are bit 4 and bit 31.
    assert_eq!((g.reg(RSI), g.reg(RDI), g.reg(8)), (1 << 15, 0, 0x0f0f_00ff));
    let shifted = (0x8000_0001u32 as i32 >> (product >> 32 & 31)) as u32;
    assert_eq!((g.reg(9), g.reg(10) & 1), (shifted.into(), 1), "flags are left alone");
}

/// An operating system pages the missing element in, and the gather goes on with it.
#[test]
fn a_gather_goes_on_after_a_fault() {
    let mut g = enabled();
    let (first, second) = (DATA, DATA + 0x1000);
    g.map(second, 0, 0);
    for n in 0..8u32 {
        g.put::<u32>(first + 4 * u64::from(n), 100 + n);
    }
    let vector = g.cpu().vector();
    // Elements 0 to 5 on the first page, then one on the second, then one more on the first.
    let indexes = [0u32, 1, 2, 3, 4, 5, 0x400, 7];
    let half = |at: usize| (0..4).fold(0, |value, i| value | u128::from(indexes[at + i]) << (32 * i));
    (vector.xmm[1], vector.ymm_high[1]) = (half(0), half(4));
    // Element 2 is not wanted.
    (vector.xmm[2], vector.ymm_high[2]) = (u128::MAX - (0xffff_ffff << 64), u128::MAX);
    (vector.xmm[0], vector.ymm_high[0]) = (7 << 64, 0);
    g.set_reg(RBX, first);
    g.program(|a| {
        // VPGATHERDD YMM0, [RBX + YMM1*4], YMM2.
        a.db(&[0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x8b])?;
        a.hlt()
    });
    let before = g.count();
    g.expect_page_fault(second, 0);
    assert_eq!(g.count() - 1, before, "a fault counts nothing");
    let vector = g.cpu().vector();
    assert_eq!((vector.xmm[2], vector.ymm_high[2]), (0, u128::MAX - u128::from(u64::MAX)), "six are done");
    assert_eq!(vector.ymm_high[0], 105 << 32 | 104);
    g.put::<u32>(first + 0x2000, 999);
    g.map(second, first + 0x2000, OPEN);
    g.expect_halt();
    let vector = g.cpu().vector();
    assert_eq!((vector.xmm[2], vector.ymm_high[2]), (0, 0));
    assert_eq!(vector.xmm[0], 103 << 96 | 7 << 64 | 101 << 32 | 100);
    assert_eq!(vector.ymm_high[0], 107 << 96 | 999 << 64 | 105 << 32 | 104);
}

#[test]
fn masked_moves_do_not_touch_what_they_leave_out() {
    let mut g = enabled();
    g.map(DATA + 0x1000, 0, 0);
    let at = DATA + 0x1000 - 8;
    g.put::<u64>(at, 0x1111_1111_2222_2222);
    let vector = g.cpu().vector();
    // The lower two of eight elements.
    (vector.xmm[1], vector.ymm_high[1]) = (1 << 31 | 1 << 63, 0);
    g.set_reg(RBX, at);
    g.program(|a| {
        a.vpmaskmovd(ymm0, ymm1, ptr(rbx))?;
        a.vpaddd(ymm0, ymm0, ymm0)?;
        a.vpmaskmovd(ptr(rbx), ymm1, ymm0)?;
        a.vpcmpeqd(ymm1, ymm1, ymm1)?;
        a.vpmaskmovd(ptr(rbx), ymm1, ymm0)?;
        a.hlt()
    });
    g.expect_page_fault(DATA + 0x1000, 2);
    assert_eq!(g.get::<u64>(at), 0x2222_2222_4444_4444, "the last one wrote nothing");
}

#[test]
fn a_saved_processor_has_its_upper_halves() {
    let mut g = enabled();
    g.cpu().vector().ymm_high[13] = 13;
    let saved = g.cpu().save();
    assert_eq!(saved.version, 2);
    let mut other = enabled();
    other.cpu().restore(&saved).expect("the same processor");
    assert_eq!(other.cpu().vector().ymm_high[13], 13);
    assert_eq!(other.cpu().save(), saved);
    let old = trapgate_engine::state::record::VcpuState { version: 1, ..saved };
    assert!(other.cpu().restore(&old).is_err());
}

#[test]
fn stepping_over_a_gather_takes_one_step() {
    let mut g = enabled();
    g.set_reg(RBX, DATA);
    g.cpu().vector().xmm[2] = u128::MAX;
    let code = g.program(|a| {
        // VPGATHERQQ XMM0, [RBX + XMM1], XMM2.
        a.db(&[0xc4, 0xe2, 0xe9, 0x91, 0x04, 0x0b])?;
        a.hlt()
    });
    assert_eq!(g.step(), Exit::Budget);
    assert_eq!(g.rip(), code.start + 6);
}
