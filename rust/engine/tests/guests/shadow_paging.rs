//! Shadow page tables: which stores are trapped, for how long a page is taken for a table, and that shadows follow it. That
//! guests run alike with them the whole suite shows once more, see `engines.rs`.

use iced_x86::code_asm::*;
use trapgate_engine::Departures;
use trapgate_x86::regs::cr4;

use crate::common::*;

/// Outside what the harness maps.
const VA: u64 = 0x1_0000_0000;
const OLD: u64 = 0x1111;
const NEW: u64 = 0x2222;

/// VA at a page with `OLD`, RSI there; RDI at its entry, and RDX what leads to `NEW`, in the page behind.
fn guest() -> Guest {
    let mut g = Guest::long();
    g.cpu().set_shadow_paging(true);
    g.map(VA, DATA, P | W);
    g.put(DATA, OLD);
    g.put(DATA + 0x1000, NEW);
    let pte = g.pte(VA);
    g.set_reg(RSI, VA);
    g.set_reg(RDI, pte);
    g.set_reg(RDX, (DATA + 0x1000) | P | W);
    g
}

fn run(g: &mut Guest, insns: Insn) -> Departures {
    let before = g.cpu().departures;
    g.program(|a| {
        insns(a)?;
        a.hlt()
    });
    g.expect_halt();
    let after = g.cpu().departures;
    Departures {
        table_stores: after.table_stores - before.table_stores,
        hidden_faults: after.hidden_faults - before.hidden_faults,
        ..Departures::default()
    }
}

#[test]
fn a_store_to_a_table_is_trapped_and_empties_the_shadow() {
    let mut g = guest();
    let left = run(&mut g, |a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.invlpg(ptr(rsi))?;
        a.mov(rcx, qword_ptr(rsi))
    });
    assert_eq!((g.reg(RAX), g.reg(RCX)), (OLD, NEW));
    assert_eq!(left.table_stores, 1);
    // A table that nothing was looked up in is a page as any other.
    g.put(g.pte(VA + 0x20_0000) & !0xfff, 0u64);
    let left = run(&mut g, |a| a.mov(qword_ptr(rdi + 0x1000), rdx));
    assert_eq!(left.table_stores, 0);
}

#[test]
fn shadows_outlive_loads_of_cr3() {
    let mut g = guest();
    // The page table is found, to be written, before anything is counted.
    run(&mut g, |a| {
        a.mov(rax, qword_ptr(rdi))?;
        a.mov(qword_ptr(rdi), rax)?;
        a.mov(rax, qword_ptr(rsi))
    });
    let left = run(&mut g, |a| {
        a.mov(rbx, cr3)?;
        a.mov(cr3, rbx)?;
        a.mov(rcx, qword_ptr(rsi))
    });
    assert_eq!((g.reg(RCX), left.hidden_faults), (OLD, 0));
    // What has changed does not.
    let left = run(&mut g, |a| {
        a.mov(qword_ptr(rdi), rdx)?;
        a.mov(rbx, cr3)?;
        a.mov(cr3, rbx)?;
        a.mov(rcx, qword_ptr(rsi))
    });
    assert_eq!((g.reg(RCX), left.hidden_faults, left.table_stores), (NEW, 1, 1));
}

#[test]
fn flags_are_changed_by_a_store_of_one_byte_and_the_page_stays_a_table() {
    let mut g = guest();
    run(&mut g, |a| a.mov(qword_ptr(rsi), rax));
    for round in 0..8 {
        let left = run(&mut g, |a| {
            a.mov(rcx, qword_ptr(rsi))?;
            a.lock().and(byte_ptr(rdi), !(W as i32))?;
            a.invlpg(ptr(rsi))
        });
        assert_eq!((left.table_stores, left.hidden_faults), (1, 1), "{round}");
    }
    g.program(|a| a.mov(qword_ptr(rsi), rax));
    let cr0_wp = 1 << 16;
    g.cpu().cr0 |= cr0_wp;
    g.cpu().flush_tlb();
    g.expect_page_fault(VA, 3);
}

#[test]
fn a_page_that_is_written_as_no_table_is_none_any_more() {
    let writes: [(Insn, u64); 4] = [
        // Across two entries; part of one that is not its first byte; both are seen once.
        (|a| a.mov(qword_ptr(rdi + 0x804), rax), 1),
        (|a| a.mov(byte_ptr(rdi + 0x801), al), 1),
        (
            |a| {
                a.mov(ecx, 0x1000)?;
                a.lea(rdi, ptr(rdi))?;
                a.and(rdi, !0xfff)?;
                a.rep().stosb()
            },
            // The first byte might be a flag.
            2,
        ),
        (|a| a.movups(xmmword_ptr(rdi + 0x800), xmm0), 1),
    ];
    for (n, (write, trapped)) in writes.into_iter().enumerate() {
        let mut g = guest();
        g.cpu().cr4 |= cr4::OSFXSR;
        run(&mut g, |a| a.mov(rax, qword_ptr(rsi)));
        g.set_reg(RAX, 0);
        assert_eq!(run(&mut g, write).table_stores, trapped, "{n}");
        let pte = g.pte(VA);
        g.set_reg(RDI, pte);
        assert_eq!(run(&mut g, |a| a.mov(qword_ptr(rdi), rdx)).table_stores, 0, "{n}");
        let left = run(&mut g, |a| {
            a.invlpg(ptr(rsi))?;
            a.mov(rcx, qword_ptr(rsi))
        });
        assert_eq!((g.reg(RCX), left.hidden_faults), (NEW, 1), "{n}");
    }
}

#[test]
fn tables_that_nothing_leads_to_any_more_are_pages_again() {
    let mut g = guest();
    run(&mut g, |a| a.mov(rax, qword_ptr(rsi)));
    let directory = g.entry_at(VA, 2);
    g.set_reg(RBX, directory);
    let left = run(&mut g, |a| {
        a.mov(qword_ptr(rbx), 0)?;
        a.invlpg(ptr(rsi))?;
        // Its page table is free: it may hold anything.
        a.mov(qword_ptr(rdi), 1)?;
        a.mov(qword_ptr(rdi), 2)
    });
    assert_eq!(left.table_stores, 1);
}

#[test]
fn a_root_that_is_written_again_and_again_is_none_any_more() {
    let mut g = guest();
    let root = g.new_table();
    let used = g.get::<u64>(TABLES);
    g.put(root, used);
    g.set_reg(RBX, root);
    g.set_reg(8, root + 0x800);
    let left = run(&mut g, |a| {
        a.mov(rax, cr3)?;
        a.mov(cr3, rbx)?;
        a.mov(rcx, qword_ptr(rsi))?;
        a.mov(cr3, rax)?;
        a.mov(rcx, qword_ptr(rsi))?;
        (0..10).try_for_each(|n| a.mov(qword_ptr(r8), n))
    });
    assert_eq!(left.table_stores, 3);
    // One that is walked meanwhile stays.
    g.set_reg(8, TABLES + 0x800);
    let left = run(&mut g, |a| {
        (0..10).try_for_each(|n| {
            a.mov(qword_ptr(r8), n)?;
            a.invlpg(ptr(rsi))?;
            a.mov(rcx, qword_ptr(rsi))
        })
    });
    assert_eq!(left.table_stores, 10);
}

#[test]
fn what_a_device_writes_is_seen_behind_a_flush() {
    let mut g = guest();
    run(&mut g, |a| a.mov(rax, qword_ptr(rsi)));
    let (pte, new) = (g.pte(VA), (DATA + 0x1000) | P | W);
    g.put(pte, new);
    run(&mut g, |a| {
        a.invlpg(ptr(rsi))?;
        a.mov(rcx, qword_ptr(rsi))
    });
    assert_eq!((g.reg(RAX), g.reg(RCX)), (OLD, NEW));
    // The same where the guest has written there as well, to another entry.
    g.put(pte, DATA | P | W);
    run(&mut g, |a| {
        a.mov(qword_ptr(rdi + 8), rdx)?;
        a.invlpg(ptr(rsi))?;
        a.mov(rcx, qword_ptr(rsi))
    });
    assert_eq!(g.reg(RCX), OLD);
}

#[test]
fn a_table_that_leads_to_itself_is_followed_at_each_of_its_levels() {
    let mut g = guest();
    // The last entry of the root leads to the root: the tables are seen as memory at the top.
    g.put(TABLES + 0xff8, TABLES | P | W);
    let entry = 0xffff_ff80_0000_0000 + (VA >> 12) * 8;
    g.set_reg(RBX, entry);
    for (n, want) in [NEW, OLD, NEW].into_iter().enumerate() {
        run(&mut g, |a| {
            a.mov(rax, qword_ptr(rbx))?;
            a.mov(rcx, qword_ptr(rsi))?;
            a.xor(qword_ptr(rbx), 0x1000)?;
            a.invlpg(ptr(rsi))?;
            a.mov(rcx, qword_ptr(rsi))
        });
        assert_eq!(g.reg(RCX), want, "{n}");
    }
}
