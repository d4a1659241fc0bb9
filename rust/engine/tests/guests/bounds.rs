//! What the engine keeps of a guest that tries to make it keep much: translations under every PCID, blocks of code.

use iced_x86::code_asm::*;
use trapgate_engine::Engine;
use trapgate_x86::regs::cr4;

use crate::common::*;

/// Both within what docs/limits.md says; the most that was seen of each.
#[derive(Debug, Default)]
struct Most {
    blocks: usize,
    translations: usize,
}

impl Most {
    fn see(&mut self, engine: &Engine) {
        self.blocks = self.blocks.max(engine.block_bytes());
        self.translations = self.translations.max(engine.translation_bytes());
    }
}

#[test]
fn translations_under_every_pcid_are_bounded() {
    const VA: u64 = 0x1_0000_0000;
    const PAGES: u64 = 0x4_0000;
    let mut g = Guest::long();
    // One page table, named by every entry of every directory below one of the PML4's entries.
    let table = g.new_table();
    let directory = g.new_table();
    for n in 0..512 {
        g.put::<u64>(table + 8 * n, DATA | P | W);
        g.put::<u64>(directory + 8 * n, table | P | W);
    }
    let pointers = g.get::<u64>(TABLES) & FRAME;
    g.put::<u64>(pointers + 8 * 4, directory | P | W);
    g.cpu().cr4 |= cr4::PCIDE;
    let code = g.program(|a| {
        let mut page = a.create_label();
        let mut space = a.create_label();
        a.set_label(&mut space)?;
        a.mov(cr3, rdx)?;
        a.mov(rsi, VA)?;
        a.mov(ecx, PAGES as u32)?;
        a.set_label(&mut page)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.add(rsi, 0x1000)?;
        a.dec(ecx)?;
        a.jnz(page)?;
        a.inc(rdx)?;
        a.jmp(space)
    });
    g.set_reg(RDX, TABLES);
    let mut most = Most::default();
    while g.reg(RDX) - TABLES < 40 {
        let until = g.count() + 20_000;
        g.run_until(until);
        most.see(&g.engine);
    }
    assert!(g.rip() >= code.start && g.rip() < code.end);
    assert!(most.translations <= Engine::TRANSLATION_BUDGET, "{most:?}");
    // The budget is used: a guest of ordinary size is not to feel it.
    assert!(most.translations > Engine::TRANSLATION_BUDGET / 4, "{most:?}");
}

#[test]
fn translations_of_few_pages_under_many_pcids_are_bounded() {
    const VA: u64 = 0x1_0000_0000;
    let mut g = Guest::long();
    let (table, directory) = (g.new_table(), g.new_table());
    for n in 0..512 {
        g.put::<u64>(table + 8 * n, DATA | P | W | if n < 256 { G } else { 0 });
        g.put::<u64>(directory + 8 * n, table | P | W);
    }
    let pointers = g.get::<u64>(TABLES) & FRAME;
    g.put::<u64>(pointers + 8 * 4, directory | P | W);
    g.cpu().cr4 |= cr4::PCIDE | cr4::PGE;
    // A long walk in one space, then emptied; so each of them would keep room for it.
    let mut most = Most::default();
    for pcid in 0..64 {
        g.program(|a| {
            let mut page = a.create_label();
            a.mov(cr3, rdx)?;
            a.mov(rsi, VA)?;
            a.mov(ecx, 0x1_8000)?;
            a.set_label(&mut page)?;
            a.mov(eax, dword_ptr(rsi))?;
            a.add(rsi, 0x1000)?;
            a.dec(ecx)?;
            a.jnz(page)?;
            a.mov(cr3, rdx)?;
            a.hlt()
        });
        g.set_reg(RDX, TABLES + pcid);
        g.expect_halt();
        most.see(&g.engine);
    }
    assert!(most.translations <= Engine::TRANSLATION_BUDGET, "{most:?}");
}

/// From here on to the end of RAM there is code, and at its end a halt.
const START: u64 = 0x60_0000;

/// A guest that runs over `code` again and again, as code of one width and of the other.
fn run_over(code: [u8; 2]) -> (Guest, Most) {
    let mut g = Guest::long();
    g.poke(START, &code.repeat((RAM - START) as usize / 2));
    g.poke(RAM - 2, &[0xf4]);
    let mut most = Most::default();
    for selector in [CODE64, CODE32, CODE64] {
        g.set_ring(selector, DATA0, STACK);
        g.cpu().rip = START;
        g.cpu().halted = false;
        while !g.cpu().halted {
            let until = g.count() + 10_000;
            g.run_until(until);
            most.see(&g.engine);
        }
        assert_eq!(g.rip(), RAM - 1);
    }
    (g, most)
}

#[test]
fn blocks_of_one_instruction_each_are_bounded() {
    // Each a jump to the next one.
    let (g, most) = run_over([0xeb, 0x00]);
    assert!(g.engine.blocks_decoded() > 3_000_000);
    assert!(most.blocks <= Engine::BLOCK_BUDGET, "{most:?}");
    // The budget is used: a guest of ordinary size is not to feel it.
    assert!(most.blocks > Engine::BLOCK_BUDGET / 2, "{most:?}");
}

#[test]
fn blocks_of_full_length_are_bounded() {
    let (_, most) = run_over([0x90, 0x90]);
    assert!(most.blocks <= Engine::BLOCK_BUDGET, "{most:?}");
    assert!(most.blocks > Engine::BLOCK_BUDGET / 2, "{most:?}");
}
