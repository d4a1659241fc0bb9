//! The four page-directory-pointer entries of PAE paging: registers, checked and loaded by MOV to CR0, CR3 and CR4 (SDM
//! vol. 3, 4.4.1).

use iced_x86::code_asm::*;
use trapgate_x86::regs::{cr0, cr4};

use crate::common::*;

/// 32-bit code about to switch PAE paging on, with these four entries at a 32-byte boundary.
fn pae(entries: [u64; 4]) -> Guest {
    let mut g = Guest::protected();
    for (n, entry) in entries.into_iter().enumerate() {
        g.put(TABLES + 0x20 + 8 * n as u64, entry);
    }
    // Two directories: the first 2 MiB at both, with another page behind in the second.
    g.put::<u64>(TABLES + 0x1000, P | W | PS);
    g.put::<u64>(TABLES + 0x1008, DATA | P | W | PS);
    g.put::<u64>(TABLES + 0x2000, P | W | PS);
    g.put::<u64>(TABLES + 0x2008, 0x40_0000 | P | W | PS);
    g.put::<u32>(DATA + 0x1000, 1);
    g.put::<u32>(0x40_1000, 2);
    g.cpu().cr4 = cr4::PAE;
    g.set_reg(RBX, TABLES + 0x20);
    g
}

const FIRST: u64 = TABLES + 0x1000;

#[test]
fn paes_entries_are_checked_when_paging_is_switched_on() {
    for (entry, gp) in [
        (FIRST | P, false),
        (FIRST | P | 0x18, false),
        (FIRST | P | 0xe00, false),
        (0, false),
        (!P, false),
        (FIRST | P | W, true),
        (FIRST | P | U, true),
        (FIRST | P | 1 << 5, true),
        (FIRST | P | 1 << 8, true),
        (FIRST | P | 1 << 40, true),
        (FIRST | P | NX, true),
    ] {
        for place in 1..4 {
            let mut entries = [FIRST | P, 0, 0, 0];
            entries[place] = entry;
            let mut g = pae(entries);
            let code = g.program(|a| {
                a.mov(cr3, ebx)?;
                a.mov(eax, cr0)?;
                a.or(eax, cr0::PG as u32)?;
                a.mov(cr0, eax)?;
                a.hlt()
            });
            if gp {
                let e = g.expect(13);
                assert_eq!((e.error, e.rip), (Some(0), code.at(3)), "{entry:#x} at {place}");
                assert_eq!(g.cpu().cr0 & cr0::PG, 0);
            } else {
                g.expect_halt();
            }
        }
    }
}

/// Switches paging on, changes entry 0 in memory, does something, and reads through it.
fn pae_changed(new: u64, act: Insn) -> Guest {
    let mut g = pae([FIRST | P, 0, 0, 0]);
    g.set_reg(RSI, new);
    g.program(|a| {
        a.mov(cr3, ebx)?;
        a.mov(eax, cr0)?;
        a.or(eax, cr0::PG as u32)?;
        a.mov(cr0, eax)?;
        a.mov(edi, dword_ptr(DATA as u32 + 0x1000))?;
        a.mov(dword_ptr(ebx), esi)?;
        act(a)?;
        a.mov(edi, dword_ptr(DATA as u32 + 0x1000))?;
        a.hlt()
    });
    g
}

#[test]
fn paes_entries_are_registers_that_only_some_writes_load() {
    let second = TABLES + 0x2000 + 1;
    // The page must not be cached, so each action drops it as well.
    let table: [(Insn, u64); 5] = [
        (|a| a.invlpg(ptr(DATA as u32 + 0x1000)), 1),
        (|a| a.mov(cr3, ebx), 2),
        (
            |a| {
                a.mov(eax, cr4)?;
                a.xor(eax, cr4::PGE as u32)?;
                a.mov(cr4, eax)
            },
            2,
        ),
        (
            |a| {
                a.mov(eax, cr0)?;
                a.xor(eax, cr0::CD as u32)?;
                a.mov(cr0, eax)
            },
            2,
        ),
        // WP is not among those that load them.
        (
            |a| {
                a.mov(eax, cr0)?;
                a.xor(eax, cr0::WP as u32)?;
                a.mov(cr0, eax)?;
                a.invlpg(ptr(DATA as u32 + 0x1000))
            },
            1,
        ),
    ];
    for (n, (act, want)) in table.into_iter().enumerate() {
        let mut g = pae_changed(second, act);
        g.expect_halt();
        if n == 3 {
            // The old translation may still be there.
            assert_eq!(g.cpu().pdptes[0], second);
        } else {
            assert_eq!(g.reg(RDI), want, "action {n}");
        }
    }
}

#[test]
fn a_refused_load_of_paes_entries_changes_nothing() {
    let bad = FIRST | P | W;
    for act in [(|a: &mut CodeAssembler| a.mov(cr3, ebx)) as Insn, |a| {
        a.mov(eax, cr4)?;
        a.xor(eax, cr4::PGE as u32)?;
        a.mov(cr4, eax)
    }] {
        let mut g = pae_changed(bad, act);
        assert_eq!(g.expect(13).error, Some(0));
        assert_eq!((g.cpu().pdptes[0], g.cpu().cr4, g.cpu().cr3), (FIRST | P, cr4::PAE, TABLES + 0x20));
    }
    // Outside memory everything reads as ones.
    let mut g = pae([FIRST | P, 0, 0, 0]);
    g.set_reg(RSI, DEVICE);
    g.set_reg(RDI, cr0::PE | cr0::PG);
    g.program(|a| {
        a.mov(cr3, ebx)?;
        a.mov(cr0, edi)?;
        a.mov(cr3, esi)
    });
    assert_eq!(g.expect(13).error, Some(0));
}
