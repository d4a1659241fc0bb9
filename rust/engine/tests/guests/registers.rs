//! What control registers and MSRs take and what they refuse, the way into long mode and out, CPUID (SDM vol. 3, 2.5, 4.1
//! and 9.8.5).

use iced_x86::code_asm::*;
use trapgate_engine::Exit;
use trapgate_engine::exit::Unsupported;
use trapgate_x86::model::X86_64_V2;
use trapgate_x86::msr;
use trapgate_x86::regs::{cr0, cr3, cr4, efer, xcr0};

use crate::common::*;

#[test]
fn cr0_refuses_what_the_manual_forbids_and_ignores_reserved_low_bits() {
    let base = cr0::PE | cr0::PG | cr0::NE | cr0::ET;
    // Value, refused, what is read back.
    let table = [
        (base, false, base),
        (base | cr0::WP | cr0::AM | cr0::TS | cr0::MP | cr0::EM, false, base | cr0::WP | cr0::AM | 0xe),
        (base & !cr0::ET, false, base),
        (base | 1 << 6 | 1 << 17 | 1 << 28, false, base),
        (base | cr0::CD, false, base | cr0::CD),
        (base | cr0::CD | cr0::NW, false, base | cr0::CD | cr0::NW),
        (base | cr0::NW, true, 0),
        (base | 1 << 32, true, 0),
        (base | 1 << 63, true, 0),
        (base & !cr0::PE, true, 0),
        // Paging cannot be left from 64-bit mode.
        (base & !cr0::PG, true, 0),
    ];
    for (value, gp, read) in table {
        let mut g = Guest::long();
        let before = g.cpu().cr0;
        g.set_reg(RAX, value);
        assert_eq!(refused(&mut g, |a| a.mov(cr0, rax)), gp, "{value:#x}");
        assert_eq!(g.cpu().cr0, if gp { before } else { read }, "{value:#x}");
    }
}

#[test]
fn cr0_in_protected_mode() {
    let base = cr0::PE | cr0::NE | cr0::ET;
    // Value, LME, CR4.PAE, refused.
    let table = [
        (base | cr0::PG, false, false, false),
        (base | cr0::PG, true, false, true),
        (base | cr0::NW, false, false, true),
        ((base & !cr0::PE) | cr0::PG, false, false, true),
    ];
    for (value, lme, pae, gp) in table {
        let mut g = Guest::protected();
        g.put::<u32>(TABLES, 0x83);
        g.cpu().cr3 = TABLES;
        g.cpu().cr4 = cr4::PSE | if pae { cr4::PAE } else { 0 };
        g.cpu().efer = if lme { efer::LME } else { 0 };
        g.set_reg(RAX, value);
        assert_eq!(refused(&mut g, |a| a.mov(cr0, eax)), gp, "{value:#x}");
    }
}

#[test]
fn real_mode_ends_the_run_with_a_typed_exit() {
    let mut g = Guest::protected();
    g.set_reg(RAX, cr0::ET | cr0::NE);
    g.program(|a| a.mov(cr0, eax));
    let want = Exit::Unsupported { what: Unsupported::RealMode, rip: CODE };
    assert_eq!(g.go(), Stop::Exit(want));
}

#[test]
fn cr3_refuses_bits_above_the_physical_width() {
    // Value, PCIDE, refused.
    let table = [
        (TABLES | 0x18, false, false),
        (TABLES | 0xfe7, false, false),
        (TABLES | 1 << 40, false, true),
        (TABLES | 1 << 51, false, true),
        (TABLES | 1 << 62, true, true),
        (TABLES | cr3::NO_FLUSH, false, true),
        (TABLES | cr3::NO_FLUSH, true, false),
        (TABLES | 0xfff, true, false),
    ];
    for (value, pcide, gp) in table {
        let mut g = Guest::long();
        g.cpu().cr4 |= if pcide { cr4::PCIDE } else { 0 };
        g.set_reg(RAX, value);
        assert_eq!(refused(&mut g, |a| a.mov(cr3, rax)), gp, "{value:#x}");
        assert_eq!(g.cpu().cr3, if gp { TABLES } else { value & !cr3::NO_FLUSH }, "{value:#x}");
    }
}

#[test]
fn cr4_refuses_bits_that_are_not_offered_and_bad_transitions() {
    let base = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    let offered = X86_64_V2.cr4_mask();
    for bit in 0..64 {
        let value = base ^ 1 << bit;
        let mut g = Guest::long();
        // Open to users, SMEP would keep the program out of its own page.
        g.map(CODE, CODE, P | W);
        g.set_reg(RAX, value);
        let gp = value & !offered != 0 || value & cr4::PAE == 0;
        assert_eq!(refused(&mut g, |a| a.mov(cr4, rax)), gp, "bit {bit}");
        assert_eq!(g.cpu().cr4, if gp { base } else { value }, "bit {bit}");
    }
    // PCIDE needs PCID 0 when it is set, and long mode.
    for (low, gp) in [(0, false), (1, true), (0x18, true)] {
        let mut g = Guest::long();
        g.cpu().cr3 |= low;
        g.set_reg(RAX, base | cr4::PCIDE);
        assert_eq!(refused(&mut g, |a| a.mov(cr4, rax)), gp, "CR3 ends in {low:#x}");
    }
    let mut g = Guest::protected();
    g.set_reg(RAX, cr4::PCIDE);
    assert!(refused(&mut g, |a| a.mov(cr4, eax)));
    // Paging cannot be left while PCIDs are on.
    let mut g = Guest::long();
    g.cpu().cr4 |= cr4::PCIDE;
    g.set_ring(CODE32, DATA0, STACK);
    g.set_reg(RAX, cr0::PE);
    assert!(refused(&mut g, |a| a.mov(cr0, eax)));
}

#[test]
fn cr8_is_the_task_priority_and_has_four_bits() {
    for (value, gp) in [(0, false), (15, false), (16, true), (1 << 63, true)] {
        let mut g = Guest::long();
        g.set_reg(RAX, value);
        let refused = refused(&mut g, |a| {
            a.mov(cr8, rax)?;
            a.mov(rbx, cr8)
        });
        assert_eq!(refused, gp);
        if !gp {
            assert_eq!((g.board().tpr, g.reg(RBX)), (value as u8, value));
        }
    }
}

#[test]
fn registers_that_do_not_exist_are_undefined() {
    // MOV to and from CR1, CR5, CR7, CR9, CR15.
    for n in [1u8, 5, 7, 9, 15] {
        for opcode in [0x20u8, 0x22] {
            let mut g = Guest::long();
            let rex = if n >= 8 { 0x44 } else { 0x40 };
            g.poke(CODE, &[rex, 0x0f, opcode, 0xc0 | (n & 7) << 3]);
            g.cpu().rip = CODE;
            g.expect(6);
        }
    }
}

#[test]
fn efer_checks_its_bits_and_keeps_lma() {
    let base = efer::LME | efer::LMA | efer::NXE | efer::SCE;
    let table = [
        (base, false, base),
        (base & !efer::NXE, false, base & !efer::NXE),
        (base & !efer::LMA, false, base),
        (base & !efer::LME, true, base),
        (base | 1 << 12, true, base),
        (base | 1 << 1, true, base),
        (base | 1 << 63, true, base),
    ];
    for (value, gp, read) in table {
        let mut g = Guest::long();
        g.set_reg(RAX, value & 0xffff_ffff);
        g.set_reg(RDX, value >> 32);
        g.set_reg(RCX, msr::IA32_EFER.into());
        assert_eq!(refused(&mut g, |a| a.wrmsr()), gp, "{value:#x}");
        assert_eq!(g.cpu().efer, read, "{value:#x}");
    }
}

#[test]
fn a_guest_enters_long_mode_and_leaves_it() {
    let mut g = Guest::protected();
    // Its own tables: one page of 2 MiB.
    g.put::<u64>(TABLES, (TABLES + 0x1000) | P | W);
    g.put::<u64>(TABLES + 0x1000, (TABLES + 0x2000) | P | W);
    g.put::<u64>(TABLES + 0x2000, P | W | PS);
    let long = g.load(CODE + 0x100, |a| {
        a.mov(r15, 0x1234_5678_9abc_def0u64)?;
        a.jmp(fword_ptr(CODE + 0x208))
    });
    g.put::<u32>(CODE + 0x200, long.start as u32);
    g.put::<u16>(CODE + 0x204, CODE64);
    g.put::<u32>(CODE + 0x208, CODE as u32 + 0x300);
    g.put::<u16>(CODE + 0x20c, CODE32);
    g.load_bits(32, CODE + 0x300, CODE + 0x300, |a| {
        a.mov(eax, cr0)?;
        a.and(eax, 0x7fff_ffff)?;
        a.mov(cr0, eax)?;
        a.hlt()
    });
    g.program(|a| {
        a.mov(eax, cr4::PAE as u32)?;
        a.mov(cr4, eax)?;
        a.mov(eax, TABLES as u32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, msr::IA32_EFER)?;
        a.rdmsr()?;
        a.or(eax, efer::LME as u32)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, cr0::PG as u32)?;
        a.mov(cr0, eax)?;
        a.rdmsr()?;
        a.mov(ebx, eax)?;
        a.jmp(fword_ptr(CODE as u32 + 0x200))
    });
    g.expect_halt();
    assert_eq!(g.reg(RBX), efer::LME | efer::LMA, "active from the setting of PG on");
    assert_eq!((g.cpu().regs[15], g.cpu().efer), (0x1234_5678_9abc_def0, efer::LME));
    assert!(!g.cpu().mode().long);
}

// ---- MSRs, XCR0 ----

#[test]
fn msrs_with_addresses_take_canonical_ones_only() {
    for number in [
        msr::IA32_LSTAR,
        msr::IA32_CSTAR,
        msr::IA32_FS_BASE,
        msr::IA32_GS_BASE,
        msr::IA32_KERNEL_GS_BASE,
        msr::IA32_SYSENTER_ESP,
        msr::IA32_SYSENTER_EIP,
    ] {
        for (value, gp) in [
            (0x7fff_ffff_ffff, false),
            (0xffff_8000_0000_0000, false),
            (0x8000_0000_0000, true),
            (0xfffe_8000_0000_0000, true),
            (1 << 63, true),
        ] {
            let mut g = Guest::long();
            g.set_reg(RCX, number.into());
            g.set_reg(RAX, value & 0xffff_ffff);
            g.set_reg(RDX, 0xffff_ffff_0000_0000 | value >> 32);
            let refused = refused(&mut g, |a| {
                a.wrmsr()?;
                a.rdmsr()
            });
            assert_eq!(refused, gp, "{number:#x} = {value:#x}");
            if !gp {
                assert_eq!(g.reg(RDX) << 32 | g.reg(RAX), value);
            }
        }
    }
}

#[test]
fn msrs_that_do_not_exist_and_values_that_they_refuse_are_gp() {
    let read = |number: u32| {
        let mut g = Guest::long();
        g.set_reg(RCX, number.into());
        refused(&mut g, |a| a.rdmsr())
    };
    for number in [0x40, 0x140, 0x345, 0x606, 0x4000_0000, 0xc001_0015, u32::MAX, msr::IA32_PRED_CMD] {
        assert!(read(number), "{number:#x}");
    }
    assert!(!read(msr::IA32_PAT));
    let write = |number: u32, value: u64| {
        let mut g = Guest::long();
        g.set_reg(RCX, number.into());
        g.set_reg(RAX, value & 0xffff_ffff);
        g.set_reg(RDX, value >> 32);
        refused(&mut g, |a| a.wrmsr())
    };
    assert!(!write(msr::IA32_PAT, 0x0407_0506_0007_0406));
    assert!(write(msr::IA32_PAT, 0x02));
    assert!(write(msr::IA32_FMASK, 1 << 32));
    assert!(write(msr::IA32_TSC_AUX, 1 << 32));
    assert!(write(msr::IA32_SYSENTER_CS, 1 << 32));
    assert!(write(msr::IA32_ARCH_CAPABILITIES, 0));
    assert!(!write(msr::IA32_STAR, u64::MAX));
    assert!(!write(msr::IA32_PRED_CMD, 1) && write(msr::IA32_PRED_CMD, 2));
}

#[test]
fn writes_of_the_time_stamp_counter_and_its_adjustment_follow_each_other() {
    let mut g = Guest::long();
    g.program(|a| {
        a.mov(ecx, msr::IA32_TSC_ADJUST)?;
        a.mov(eax, 1000)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.rdtsc()?;
        a.mov(ebx, eax)?;
        a.mov(ecx, msr::IA32_TIME_STAMP_COUNTER)?;
        a.xor(eax, eax)?;
        a.wrmsr()?;
        a.rdtsc()?;
        a.mov(esi, eax)?;
        a.mov(ecx, msr::IA32_TSC_ADJUST)?;
        a.rdmsr()?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.reg(RBX), g.reg(RSI)), (4 + 1000, 1));
    // EDX was 1, the high half of the counter: written as it was.
    let adjust = g.reg(RDX) << 32 | g.reg(RAX);
    assert_eq!(adjust, 0u64.wrapping_sub(8));
}

#[test]
fn xcr0_takes_what_is_offered() {
    // Value, register number, OSXSAVE, vector or none.
    let table = [
        (xcr0::X87, 0, true, None),
        (xcr0::X87 | xcr0::SSE, 0, true, None),
        (xcr0::SSE, 0, true, Some(13)),
        (0, 0, true, Some(13)),
        (xcr0::X87 | xcr0::SSE | xcr0::AVX, 0, true, Some(13)),
        (xcr0::X87 | 1 << 63, 0, true, Some(13)),
        (xcr0::X87, 1, true, Some(13)),
        (xcr0::X87, 0, false, Some(6)),
    ];
    for (value, number, osxsave, vector) in table {
        let mut g = Guest::long();
        g.cpu().cr4 |= if osxsave { cr4::OSXSAVE } else { 0 };
        g.set_reg(RCX, number);
        g.set_reg(RAX, value & 0xffff_ffff);
        g.set_reg(RDX, value >> 32);
        g.program(|a| {
            a.xsetbv()?;
            a.xor(ecx, ecx)?;
            a.xgetbv()?;
            a.hlt()
        });
        match vector {
            Some(vector) => {
                g.expect(vector);
            }
            None => {
                g.expect_halt();
                assert_eq!((g.reg(RAX), g.cpu().xcr0), (value, value));
            }
        }
    }
}

// ---- CPUID ----

fn cpuid(g: &mut Guest, leaf: u32, subleaf: u32) -> [u32; 4] {
    g.set_reg(RAX, 0xffff_ffff_0000_0000 | u64::from(leaf));
    g.set_reg(RCX, subleaf.into());
    let code = g.load(CODE, |a| a.cpuid());
    g.cpu().rip = code.start;
    assert_eq!(g.step(), Exit::Budget);
    [RAX, RBX, RCX, RDX].map(|n| {
        assert_eq!(g.reg(n) >> 32, 0, "upper halves are cleared");
        g.reg(n) as u32
    })
}

#[test]
fn cpuid_agrees_with_the_processor_it_describes() {
    let mut g = Guest::long();
    let highest = cpuid(&mut g, 0, 0)[0];
    assert!((0xd..0x20).contains(&highest));
    let [_, _, ecx1, edx1] = cpuid(&mut g, 1, 0);
    // PAE, CX8, SEP, PGE, CMOV, FXSR, SSE2 of EDX; what Linux requires.
    for bit in [6, 8, 11, 13, 15, 24, 26] {
        assert_ne!(edx1 & 1 << bit, 0, "EDX bit {bit}");
    }
    assert_eq!(ecx1 >> 31, 0, "no hypervisor");
    assert_eq!(ecx1 >> 27 & 1, 0, "OSXSAVE is off");
    g.cpu().cr4 |= cr4::OSXSAVE;
    assert_eq!(cpuid(&mut g, 1, 0)[2] >> 27 & 1, 1);
    // Each bit of CR4 that a leaf announces can be set, and no other.
    let [_, ebx7, ecx7, _] = cpuid(&mut g, 7, 0);
    let announced = [
        (edx1 >> 13 & 1, cr4::PGE),
        (ecx1 >> 17 & 1, cr4::PCIDE),
        (ecx1 >> 26 & 1, cr4::OSXSAVE),
        (ebx7 & 1, cr4::FSGSBASE),
        (ebx7 >> 7 & 1, cr4::SMEP),
        (ebx7 >> 20 & 1, cr4::SMAP),
        (ecx7 >> 2 & 1, cr4::UMIP),
        (ecx7 >> 3 & 1, cr4::PKE),
        (ecx7 >> 16 & 1, cr4::LA57),
    ];
    for (offered, bit) in announced {
        assert_eq!(offered != 0, X86_64_V2.cr4_mask() & bit != 0, "CR4 bit {bit:#x}");
    }
    let widths = cpuid(&mut g, 0x8000_0008, 0)[0];
    assert_eq!((widths & 0xff, widths >> 8 & 0xff), (40, 48));
    assert_eq!(cpuid(&mut g, 0xd, 0)[..3], [3, 576, 576]);
    assert_ne!(cpuid(&mut g, 0x8000_0001, 0)[3] & 1 << 11, 0, "SYSCALL in 64-bit mode");
    g.set_ring(CODE32, DATA0, STACK);
    assert_eq!(cpuid(&mut g, 0x8000_0001, 0)[3] & 1 << 11, 0, "and not outside it");
}

#[test]
fn cpuid_can_be_used_in_ring_3() {
    let mut g = Guest::long();
    g.user_program(|a| {
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.ud2()
    });
    g.expect(6);
    assert_eq!(g.reg(RBX), u64::from(u32::from_le_bytes(*b"Genu")));
}
