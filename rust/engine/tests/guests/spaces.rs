//! Address spaces with process-context identifiers: what one PCID's invalidation means for the others, for global pages, and
//! when there are more of them than anybody keeps (SDM vol. 3, 4.10).

use iced_x86::code_asm::*;
use trapgate_x86::regs::{cr3, cr4};

use crate::common::*;

const VA: u64 = 0x1_0000_0000;
const OLD: u64 = 0x1111;
const NEW: u64 = 0x2222;
const KEEP: u64 = cr3::NO_FLUSH;

/// VA at a page with `OLD`, RDX ready to be stored to the entry at RDI so that it leads to `NEW`; PCIDs are on.
fn guest(flags: u64) -> Guest {
    let mut g = Guest::long();
    g.map(VA, DATA, P | W | flags);
    g.put(DATA, OLD);
    g.put(DATA + 0x1000, NEW);
    let pte = g.pte(VA);
    g.set_reg(RSI, VA);
    g.set_reg(RDI, pte);
    g.set_reg(RDX, (DATA + 0x1000) | P | W | flags);
    g.set_reg(8, TABLES | 7);
    g.set_reg(9, TABLES | 8);
    g.set_reg(10, TABLES | 7 | KEEP);
    g.set_reg(11, TABLES | 8 | KEEP);
    g.cpu().cr4 |= cr4::PCIDE | cr4::PGE;
    g
}

/// Reads VA in space 7, changes its entry in space 8, does something there, and reads VA in space 7 again.
fn seen_after(flags: u64, act: Insn) -> (Guest, u64) {
    let mut g = guest(flags);
    g.program(|a| {
        a.mov(cr3, r8)?;
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(cr3, r9)?;
        a.mov(qword_ptr(rdi), rdx)?;
        act(a)?;
        a.mov(cr3, r10)?;
        a.mov(rcx, qword_ptr(rsi))?;
        a.hlt()
    });
    // The descriptor of INVPCID: PCID 7, VA.
    g.put::<u64>(DATA + 0x2000, 7);
    g.put::<u64>(DATA + 0x2008, VA);
    g.set_reg(RBX, 0);
    g.expect_halt();
    assert_eq!(g.reg(RAX), OLD);
    let seen = g.reg(RCX);
    (g, seen)
}

#[test]
fn invpcid_reaches_a_space_that_is_not_the_current_one() {
    let acts: [(Insn, u64); 4] = [
        (|a| a.invpcid(rbx, ptr(DATA + 0x2000)), 0),
        (
            |a| {
                a.mov(ebx, 1)?;
                a.invpcid(rbx, ptr(DATA + 0x2000))
            },
            0,
        ),
        (
            |a| {
                a.mov(ebx, 2)?;
                a.invpcid(rbx, ptr(DATA + 0x2000))
            },
            G,
        ),
        (
            |a| {
                a.mov(ebx, 3)?;
                a.invpcid(rbx, ptr(DATA + 0x2000))
            },
            0,
        ),
    ];
    for (kind, (act, flags)) in acts.into_iter().enumerate() {
        assert_eq!(seen_after(flags, act).1, NEW, "type {kind}");
    }
}

#[test]
fn without_any_invalidation_a_kept_space_may_show_either_page() {
    let (_, seen) = seen_after(0, |a| a.nop());
    assert!([OLD, NEW].contains(&seen));
}

#[test]
fn invlpg_drops_a_global_page_for_every_space() {
    assert_eq!(seen_after(G, |a| a.invlpg(ptr(rsi))).1, NEW);
}

#[test]
fn changes_of_pge_and_of_pcide_drop_every_space() {
    for bit in [cr4::PGE, cr4::PCIDE] {
        for flags in [0, G] {
            let mut g = guest(flags);
            g.set_reg(RBX, bit);
            g.set_reg(12, TABLES);
            g.program(|a| {
                a.mov(cr3, r8)?;
                a.mov(rax, qword_ptr(rsi))?;
                // PCIDE can be set again under PCID 0 only.
                a.mov(cr3, r12)?;
                a.mov(qword_ptr(rdi), rdx)?;
                a.mov(rcx, cr4)?;
                a.xor(rcx, rbx)?;
                a.mov(cr4, rcx)?;
                a.xor(rcx, rbx)?;
                a.mov(cr4, rcx)?;
                a.mov(cr3, r10)?;
                a.mov(rcx, qword_ptr(rsi))?;
                a.hlt()
            });
            g.expect_halt();
            assert_eq!((g.reg(RAX), g.reg(RCX)), (OLD, NEW), "CR4 bit {bit:#x}, flags {flags:#x}");
        }
    }
}

#[test]
fn a_fault_in_one_space_heals_there_and_leaves_the_others_right() {
    let mut g = guest(0);
    let pte = g.pte(VA);
    g.put(pte, DATA | P);
    g.program(|a| {
        a.mov(cr3, r8)?;
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(cr3, r9)?;
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(qword_ptr(rdi), rdx)?;
        // Read-only as it is remembered, writable as it is.
        a.mov(qword_ptr(rsi), rsi)?;
        a.mov(cr3, r10)?;
        a.mov(qword_ptr(rsi + 8), rsi)?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.get::<u64>(DATA), g.get::<u64>(DATA + 8)), (OLD, 0), "nothing went to the old page");
    assert_eq!((g.get::<u64>(DATA + 0x1000), g.get::<u64>(DATA + 0x1008)), (VA, VA));
}

#[test]
fn many_spaces_stay_apart_round_after_round() {
    const SPACES: u64 = 48;
    let mut g = Guest::long();
    g.cpu().cr4 |= cr4::PCIDE;
    // Each space has a page of its own at VA, and two share each root's upper part.
    let mut roots = Vec::new();
    for n in 0..SPACES {
        let root = 0x44_0000 + n * 0x4000;
        for table in 0..4 {
            g.poke(root + table * 0x1000, &[0; 0x1000]);
        }
        g.put(root, (root + 0x1000) | P | W | U);
        g.put(root + 0x1000, g.get::<u64>(g.entry_at(0, 3)));
        g.put(root + 0x1000 + 8 * 4, (root + 0x2000) | P | W);
        g.put(root + 0x2000, (root + 0x3000) | P | W);
        g.put(root + 0x3000, (DATA + 0x1000 * n) | P | W);
        roots.push(root | (n + 1) | KEEP);
    }
    for (n, root) in roots.iter().enumerate() {
        g.put(0x3f_0000 + 8 * n as u64, *root);
    }
    g.set_reg(RSI, VA);
    g.program(|a| {
        let mut round = a.create_label();
        let mut space = a.create_label();
        a.mov(ebx, 3)?;
        a.set_label(&mut round)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut space)?;
        a.mov(rax, qword_ptr(rcx * 8 + 0x3f_0000))?;
        a.mov(cr3, rax)?;
        a.add(qword_ptr(rsi), rcx)?;
        a.inc(qword_ptr(rsi + 8))?;
        a.inc(ecx)?;
        a.cmp(ecx, SPACES as i32)?;
        a.jb(space)?;
        a.dec(ebx)?;
        a.jnz(round)?;
        a.hlt()
    });
    g.expect_halt();
    for n in 0..SPACES {
        let page = DATA + 0x1000 * n;
        assert_eq!((g.get::<u64>(page), g.get::<u64>(page + 8)), (3 * n, 3), "space {n}");
    }
}
