//! What may stay cached of a translation, and until when (SDM vol. 3, 4.10): INVLPG, CR3, global pages, PCIDs, INVPCID,
//! large pages, and faults that must not come from a stale entry.

use iced_x86::code_asm::*;
use trapgate_x86::regs::{cr3, cr4, pf};

use crate::common::*;

/// Outside what the harness maps.
const VA: u64 = 0x1_0000_0000;
const OLD: u64 = 0x1111;
const NEW: u64 = 0x2222;

/// VA mapped to a page that holds `OLD`; the page behind it in physical memory holds `NEW`.
fn two_pages(flags: u64) -> Guest {
    let mut g = Guest::long();
    g.map(VA, DATA, flags);
    g.put(DATA, OLD);
    g.put(DATA + 0x1000, NEW);
    let pte = g.pte(VA);
    g.set_reg(RSI, VA);
    g.set_reg(RDI, pte);
    g.set_reg(RDX, (DATA + 0x1000) | flags);
    g
}

#[test]
fn a_changed_entry_may_stay_cached_before_invlpg_and_is_gone_after_it() {
    let mut g = two_pages(P | W);
    g.program(|a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.mov(rbx, qword_ptr(rsi))?;
        a.invlpg(ptr(rsi))?;
        a.mov(rcx, qword_ptr(rsi))?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.reg(RAX), g.reg(RCX)), (OLD, NEW));
    assert!([OLD, NEW].contains(&g.reg(RBX)));
}

#[test]
fn stores_and_fetches_see_the_new_page_after_invlpg() {
    let mut g = two_pages(P | W);
    // The code at both physical pages is MOV EAX, n; RET.
    for (page, n) in [(DATA, 1u8), (DATA + 0x1000, 2)] {
        g.poke(page + 0x100, &[0xb8, n, 0, 0, 0, 0xc3]);
    }
    g.set_reg(RBX, VA + 0x100);
    g.program(|a| {
        a.call(rbx)?;
        a.mov(qword_ptr(rsi), eax)?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.invlpg(ptr(rsi + 0x800))?;
        a.call(rbx)?;
        a.mov(qword_ptr(rsi + 8), eax)?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!(g.reg(RAX), 2);
    assert_eq!((g.get::<u32>(DATA), g.get::<u32>(DATA + 8)), (1, 0));
    assert_eq!((g.get::<u32>(DATA + 0x1000), g.get::<u32>(DATA + 0x1008)), (NEW as u32, 2));
}

#[test]
fn invlpg_also_forgets_the_upper_levels() {
    let mut g = two_pages(P | W);
    let table = g.new_table();
    g.put(table, (DATA + 0x1000) | P | W);
    let pde = g.entry_at(VA, 2);
    g.set_reg(RDI, pde);
    g.set_reg(RDX, table | P | W);
    g.program(|a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.invlpg(ptr(rsi))?;
        a.mov(rcx, qword_ptr(rsi))?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.reg(RAX), g.reg(RCX)), (OLD, NEW));
}

#[test]
fn a_cr3_reload_drops_pages_that_are_not_global() {
    let mut g = two_pages(P | W);
    g.program(|a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.mov(rbx, cr3)?;
        a.mov(cr3, rbx)?;
        a.mov(rcx, qword_ptr(rsi))?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.reg(RAX), g.reg(RCX)), (OLD, NEW));
}

#[test]
fn global_pages_may_outlive_cr3_but_not_a_change_of_pge() {
    let mut g = two_pages(P | W | G);
    g.cpu().cr4 |= cr4::PGE;
    g.program(|a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.mov(rbx, cr3)?;
        a.mov(cr3, rbx)?;
        a.mov(rbx, qword_ptr(rsi))?;
        a.mov(rcx, cr4)?;
        a.and(rcx, !(cr4::PGE as i32))?;
        a.mov(cr4, rcx)?;
        a.mov(rcx, qword_ptr(rsi))?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.reg(RAX), g.reg(RCX)), (OLD, NEW));
    assert!([OLD, NEW].contains(&g.reg(RBX)));
}

#[test]
fn setting_pge_drops_everything_as_clearing_it_does() {
    let mut g = two_pages(P | W | G);
    g.program(|a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.mov(rcx, cr4)?;
        a.or(rcx, cr4::PGE as i32)?;
        a.mov(cr4, rcx)?;
        a.mov(rcx, qword_ptr(rsi))?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.reg(RAX), g.reg(RCX)), (OLD, NEW));
}

#[test]
fn two_address_spaces_do_not_see_each_other() {
    let mut g = two_pages(P | W);
    let other = second_space(&mut g);
    g.set_reg(RBX, other);
    g.set_reg(RCX, TABLES);
    g.program(|a| {
        for space in [rbx, rcx, rbx] {
            a.mov(r8, qword_ptr(rsi))?;
            a.inc(qword_ptr(rsi))?;
            a.mov(cr3, space)?;
        }
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.get::<u64>(DATA), g.get::<u64>(DATA + 0x1000)), (OLD + 2, NEW + 1));
}

/// A second root that shares the harness's part and maps VA to the other page.
fn second_space(g: &mut Guest) -> u64 {
    let root = g.new_table();
    let pdpt = g.new_table();
    g.put(root, pdpt | P | W | U);
    g.put(pdpt, g.get::<u64>(g.entry_at(0, 3)));
    g.map_in(root, VA, DATA + 0x1000, 1, P | W);
    root
}

#[test]
fn pcids_keep_spaces_apart_with_and_without_flush() {
    let mut g = two_pages(P | W);
    let other = second_space(&mut g);
    g.cpu().cr4 |= cr4::PCIDE;
    g.set_reg(RBX, other | 2 | cr3::NO_FLUSH);
    g.set_reg(RCX, TABLES | 1 | cr3::NO_FLUSH);
    g.program(|a| {
        for space in [rcx, rbx, rcx, rbx] {
            a.mov(cr3, space)?;
            a.inc(qword_ptr(rsi))?;
        }
        a.mov(rax, cr3)?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.get::<u64>(DATA), g.get::<u64>(DATA + 0x1000)), (OLD + 2, NEW + 2));
    assert_eq!(g.reg(RAX), other | 2, "bit 63 is not stored");
}

#[test]
fn a_cr3_load_without_noflush_drops_its_own_pcid() {
    let mut g = two_pages(P | W);
    g.cpu().cr4 |= cr4::PCIDE;
    g.set_reg(RBX, TABLES | 7);
    g.set_reg(RCX, TABLES | 8);
    g.program(|a| {
        a.mov(cr3, rbx)?;
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(cr3, rcx)?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.mov(cr3, rbx)?;
        a.mov(rcx, qword_ptr(rsi))?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.reg(RAX), g.reg(RCX)), (OLD, NEW));
}

#[test]
fn every_type_of_invpcid_drops_what_it_names() {
    for kind in 0..4u64 {
        // Type 3 keeps global pages, the others drop them too.
        let mut g = two_pages(if kind == 2 { P | W | G } else { P | W });
        g.cpu().cr4 |= cr4::PCIDE | cr4::PGE;
        g.put::<u64>(DATA + 0x2000, 5);
        g.put::<u64>(DATA + 0x2008, VA);
        g.set_reg(RBX, kind);
        g.set_reg(RBP, DATA + 0x2000);
        g.program(|a| {
            a.mov(rax, TABLES | 5)?;
            a.mov(cr3, rax)?;
            a.mov(rax, qword_ptr(rsi))?;
            a.mov(qword_ptr(rdi), rdx)?;
            a.invpcid(rbx, ptr(rbp))?;
            a.mov(rcx, qword_ptr(rsi))?;
            a.hlt()
        });
        g.expect_halt();
        assert_eq!((g.reg(RAX), g.reg(RCX)), (OLD, NEW), "type {kind}");
    }
}

#[test]
fn invpcid_checks_its_operands() {
    // Type, descriptor, PCIDE, whether it is #GP (SDM vol. 2, INVPCID).
    let cases: [(u64, [u64; 2], bool, bool); 12] = [
        (4, [0, 0], true, true),
        (u64::MAX, [0, 0], true, true),
        (0, [1 << 12, 0], true, true),
        (1, [1 << 63, 0], true, true),
        (2, [1 << 12, 0], true, true),
        (3, [1 << 12, 0], true, true),
        (0, [0, 0x8000_0000_0000], true, true),
        (1, [0, 0x8000_0000_0000], true, false),
        (2, [0xfff, 0x8000_0000_0000], true, false),
        (0, [1, 0], false, true),
        (1, [1, 0], false, true),
        (3, [1, 0], false, false),
    ];
    for (kind, descriptor, pcide, faults) in cases {
        let mut g = Guest::long();
        g.cpu().cr4 |= if pcide { cr4::PCIDE } else { 0 };
        g.put(DATA, descriptor[0]);
        g.put(DATA + 8, descriptor[1]);
        g.set_reg(RBX, kind);
        g.program(|a| {
            a.invpcid(rbx, ptr(DATA))?;
            a.hlt()
        });
        if faults {
            assert_eq!(g.expect(13).error, Some(0), "{kind} {descriptor:x?}");
        } else {
            g.expect_halt();
        }
    }
    let mut g = Guest::long();
    g.user_program(|a| a.invpcid(rbx, ptr(DATA)));
    g.expect(13);
}

#[test]
fn a_page_made_writable_without_invlpg_can_be_written() {
    let mut g = two_pages(P);
    g.set_reg(RDX, DATA | P | W);
    g.program(|a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.mov(qword_ptr(rsi), edx)?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!(g.get::<u32>(DATA), (DATA | P | W) as u32);
}

#[test]
fn a_page_made_present_or_executable_without_invlpg_works() {
    let mut g = two_pages(P | NX);
    g.poke(DATA + 0x100, &[0xc3]);
    let absent = VA + 0x1000;
    g.map(absent, 0, 0);
    g.set_reg(RBX, VA + 0x100);
    g.set_reg(RDX, DATA | P);
    let code = g.program(|a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.call(rbx)?;
        a.mov(rax, qword_ptr(rsi + 0x1000))?;
        a.hlt()
    });
    let e = g.expect_page_fault(VA + 0x100, pf::P | pf::I);
    assert_eq!(e.rip, VA + 0x100);
    g.put(g.pte(VA), DATA | P);
    let e = g.expect_page_fault(absent, 0);
    assert_eq!(e.rip, code.at(2));
    g.put(g.pte(absent), (DATA + 0x1000) | P);
    g.expect_halt();
    assert_eq!(g.reg(RAX), NEW);
}

#[test]
fn a_page_opened_to_users_without_invlpg_can_be_read_by_them() {
    let mut g = Guest::long();
    g.map(VA, DATA, P | W);
    g.put(DATA, NEW);
    g.set_reg(RSI, VA);
    let code = g.user_program(|a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.int(0x80)
    });
    let e = g.expect_page_fault(VA, pf::P | pf::U);
    assert_eq!(e.rip, code.start);
    g.put(g.pte(VA), DATA | P | W | U);
    g.change_gate(0x80, |gate| gate.access |= 0x60);
    g.expect(0x80);
    assert_eq!(g.reg(RAX), NEW);
}

#[test]
fn a_narrowed_permission_holds_after_invlpg() {
    // Flags before and after, what is then done, and the error code that it must give.
    let cases = [
        (P | W, P, 'w', pf::P | pf::W),
        (P | W, 0, 'r', 0),
        (P | W, 0, 'w', pf::W),
        (P, P | NX, 'x', pf::P | pf::I),
        (P, 0, 'x', pf::I),
    ];
    for (before, after, what, error) in cases {
        let mut g = Guest::long();
        g.map(VA, DATA, before);
        g.poke(DATA, &[0xc3]);
        g.set_reg(RSI, VA);
        let pte = g.pte(VA);
        g.set_reg(RDI, pte);
        g.set_reg(RDX, DATA | after);
        let access = |a: &mut CodeAssembler| match what {
            'w' => a.mov(byte_ptr(rsi), 0xc3),
            'r' => a.mov(al, byte_ptr(rsi)),
            _ => a.call(rsi),
        };
        g.program(|a| {
            access(a)?;
            a.mov(qword_ptr(rdi), rdx)?;
            a.invlpg(ptr(rsi))?;
            access(a)?;
            a.hlt()
        });
        g.expect_page_fault(VA, error);
    }
}

/// Two large pages, the second with `NEW` where the first has `OLD`, and three offsets inside.
fn large(level: usize, first: u64, second: u64, offsets: [u64; 3]) -> Guest {
    let mut g = Guest::long();
    let base = 0x80_0000_0000;
    g.map_level(base, first, level, P | W);
    for at in offsets {
        if first + at < RAM {
            g.put(first + at, OLD);
        }
        if second + at < RAM {
            g.put(second + at, NEW);
        }
    }
    let entry = g.entry_at(base, level);
    g.set_reg(RDI, entry);
    g.set_reg(RDX, second | P | W | PS);
    for (reg, at) in [RSI, RBX, RBP].into_iter().zip(offsets) {
        g.set_reg(reg, base + at);
    }
    g.program(|a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(rcx, qword_ptr(rbx))?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.invlpg(ptr(rbp))?;
        a.mov(r8, qword_ptr(rsi))?;
        a.mov(r9, qword_ptr(rbx))?;
        a.hlt()
    });
    g
}

#[test]
fn invlpg_anywhere_in_a_2_mib_page_drops_all_of_it() {
    let mut g = large(2, 0x40_0000, 0x60_0000, [0x10, 0x1f_f008, 0x8_0000]);
    g.expect_halt();
    assert_eq!([g.reg(RAX), g.reg(RCX), g.reg(8), g.reg(9)], [OLD, OLD, NEW, NEW]);
}

#[test]
fn invlpg_anywhere_in_a_1_gib_page_drops_all_of_it() {
    let mut g = large(3, 0, 0x4000_0000, [0x50_0000, 0x7f_f008, 0x3fff_f000]);
    g.expect_halt();
    assert_eq!([g.reg(RAX), g.reg(RCX)], [OLD, OLD]);
    assert_eq!([g.reg(8), g.reg(9)], [u64::MAX; 2], "the second page is device memory");
    let read: Vec<_> = g.board().mmio.iter().map(|access| access.at).collect();
    assert_eq!(read, [0x4050_0000, 0x407f_f008]);
}

#[test]
fn a_2_mib_page_split_into_small_ones_is_gone_after_one_invlpg() {
    let mut g = large(2, 0x40_0000, 0, [0x10, 0x1f_f008, 0x8_0000]);
    let table = g.new_table();
    for n in 0..512 {
        g.put(table + 8 * n, (DATA + 0x1000 * (n & 1)) | P | W);
    }
    g.put(DATA + 0x10, NEW);
    g.put(DATA + 0x1008, NEW + 1);
    g.set_reg(RDX, table | P | W);
    g.expect_halt();
    assert_eq!([g.reg(RAX), g.reg(RCX), g.reg(8), g.reg(9)], [OLD, OLD, NEW, NEW + 1]);
}

#[test]
fn small_pages_joined_into_a_large_one_are_gone_after_invlpg_of_each() {
    let mut g = two_pages(P | W);
    let pde = g.entry_at(VA, 2);
    g.put(0x60_0000, NEW);
    g.set_reg(RDI, pde);
    g.set_reg(RDX, 0x60_0000 | P | W | PS);
    g.program(|a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.invlpg(ptr(rsi))?;
        a.mov(rcx, qword_ptr(rsi))?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.reg(RAX), g.reg(RCX)), (OLD, NEW));
}

#[test]
fn invlpg_in_either_half_of_a_4_mib_page_drops_all_of_it() {
    for inside in [0x1000u32, 0x20_1000] {
        let mut g = Guest::protected();
        let (directory, base) = (0x2_0000, 0x80_0000u32);
        g.put::<u32>(directory, 0x83);
        g.put::<u32>(directory + 8, 0x83);
        for at in [DATA, 0x10_8000] {
            g.put::<u32>(at, OLD as u32);
            g.put::<u32>(0x40_0000 + at, NEW as u32);
        }
        g.cpu().cr4 = cr4::PSE;
        g.program(|a| {
            a.mov(eax, directory as u32)?;
            a.mov(cr3, eax)?;
            a.mov(eax, cr0)?;
            a.or(eax, 0x8000_0000u32)?;
            a.mov(cr0, eax)?;
            a.mov(ebx, dword_ptr(base + DATA as u32))?;
            a.mov(ecx, dword_ptr(base + 0x10_8000))?;
            a.mov(dword_ptr(directory as u32 + 8), 0x40_0083u32)?;
            a.invlpg(ptr(base + inside))?;
            a.mov(esi, dword_ptr(base + DATA as u32))?;
            a.mov(edi, dword_ptr(base + 0x10_8000))?;
            a.hlt()
        });
        g.expect_halt();
        let seen = [RBX, RCX, RSI, RDI].map(|n| g.reg(n));
        assert_eq!(seen, [OLD, OLD, NEW, NEW]);
    }
}
