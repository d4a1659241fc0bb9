//! The machine that a random program runs on: data pages of all kinds, handlers that mend what can be mended and go on behind
//! the rest.

use iced_x86::code_asm::*;
use trapgate_engine::vector::X87State;
use trapgate_x86::exception::Vector;
use trapgate_x86::features::Features;
use trapgate_x86::model::{Model, X86_64_V2, X86_64_V3};
use trapgate_x86::regs::{cr0, cr4, rflags, xcr0};

use super::place::*;
use super::write::Text;
use crate::common::{
    CODE64, DATA0, DATA3, DEVICE, G, Gate, Guest, Line, NX, Noise, P, ROM, U, USER32, USER64, W, pushes_error,
};

const HANDLERS: u64 = 0xb000;
/// Addresses in the handlers lie between these.
pub const HANDLERS_END: u64 = 0xc000;

/// The processor that a program runs on: every third one's has AVX.
pub fn model(seed: u64) -> Model {
    if seed.is_multiple_of(3) { X86_64_V3 } else { X86_64_V2 }
}

/// The machine with a program in it, ready to run.
pub fn machine(seed: u64, text: &Text) -> Guest {
    let mut noise = Noise(seed.wrapping_mul(0xd134_2543_de82_ef95) | 1);
    for _ in 0..4 {
        noise.next();
    }
    let mut g = Guest::with_model(model(seed));
    map(&mut g, &mut noise);
    handlers(&mut g);
    functions(&mut g);
    g.poke(CODE, &text.code);
    for (at, word) in &text.words {
        g.put(*at, *word);
    }
    for (at, value) in &text.cells {
        g.put(*at, *value);
    }
    for _ in 0..40 {
        // Values that are interesting as numbers, beside noise.
        let at = DATA + noise.below(DATA_PAGES * 0x1000 - 8);
        g.put(at, noise.next() >> noise.below(64));
    }
    let bytes: Vec<u8> = (0..0x800).flat_map(|_| noise.next().to_le_bytes()).collect();
    g.poke(DATA + noise.below(12) * 0x1000, &bytes);
    for n in 0..16 {
        g.set_reg(n, noise.next() >> noise.below(64));
    }
    let user = noise.below(2) == 1;
    let stack = STACKS + 0x2000 + noise.below(0x200) * 8;
    if user {
        g.set_ring(USER64, DATA3, stack);
    } else {
        g.set_ring(CODE64, DATA0, stack);
    }
    let cpu = g.cpu();
    cpu.rip = CODE;
    cpu.seg[4].base = FS;
    cpu.seg[5].base = GS;
    cpu.star = u64::from(USER32) << 48 | u64::from(CODE64) << 32;
    cpu.lstar = HANDLERS + 0x600;
    cpu.fmask = rflags::IF | rflags::TF | rflags::AC;
    if noise.below(4) == 0 {
        cpu.cr0 |= cr0::AM;
    }
    cpu.cr4 |= cr4::PCIDE | cr4::PGE | cr4::FSGSBASE;
    for xmm in &mut cpu.vector().xmm {
        *xmm = u128::from(noise.next()) << 64 | u128::from(noise.next() >> noise.below(64));
    }
    if model(seed).features.contains(Features::AVX) {
        cpu.cr4 |= cr4::OSXSAVE;
        cpu.xcr0 =
            if noise.below(8) == 0 { xcr0::X87 | xcr0::SSE } else { xcr0::X87 | xcr0::SSE | xcr0::AVX };
        // Most programs leave them clear.
        for half in cpu.vector().ymm_high.iter_mut().take(noise.below(3) as usize * 8) {
            *half = u128::from(noise.next()) << 64 | u128::from(noise.next());
        }
    }
    cpu.update_mode();
    g.flag(rflags::IF);
    let often = [30, 200, 2000][noise.below(3) as usize];
    let mut due = noise.below(often);
    while due < 10_000 {
        g.at_count(due, Line::Vector(TIMER));
        due += 1 + noise.below(often);
    }
    if noise.below(8) != 0 {
        // After reset nothing is masked.
        g.cpu().vector().x87 = X87State::INITIAL;
    }
    g
}

fn map(g: &mut Guest, noise: &mut Noise) {
    for page in 0..DATA_PAGES {
        g.map(BEYOND + DATA + page * 0x1000, OTHERS + page * 0x1000, P | W | U | NX);
    }
    // The page table of the 2 MiB that all of this is in, and another root with another one.
    let [old_pdpt, old_pd] = [g.entry_at(DATA, 3) & !0xfff, g.entry_at(DATA, 2) & !0xfff];
    let old_table = g.entry_at(DATA, 1) & !0xfff;
    let (pdpt, pd) = (0x7_3000, 0x7_4000);
    for (from, to) in [(ROOT_A, ROOT_B), (old_pdpt, pdpt), (old_pd, pd), (old_table, TABLE_A)] {
        g.poke(to, &g.peek(from, 0x1000));
    }
    g.put(g.entry_at(DATA, 2), TABLE_A | P | W | U);
    g.put(ROOT_B, pdpt | P | W | U);
    g.put(pdpt, pd | P | W | U);
    // One to one for the code by both names.
    for page in 0..8 {
        let at = CODE + page * 0x1000;
        g.map(at + ALIAS, at, P | W | U);
    }
    let mut order: Vec<u64> = (0..DATA_PAGES).collect();
    let mut places: Vec<u64> = (0..DATA_PAGES).collect();
    for i in (1..DATA_PAGES as usize).rev() {
        order.swap(i, noise.below(i as u64 + 1) as usize);
        places.swap(i, noise.below(i as u64 + 1) as usize);
    }
    for (page, (kind, place)) in order.into_iter().zip(&places).enumerate() {
        let page = page as u64;
        let (linear, ram) = (DATA + page * 0x1000, DATA + place * 0x1000);
        let (gpa, flags, fix) = match kind {
            0 => (ram, W | U | G | NX | P, 0),
            // Read-only until the handler makes it writable, or for ever.
            1 => (ram, P | U | NX, W),
            2 => (ram, P | U | NX, 0),
            // Not there, with and without a handler that brings it.
            3 | 4 => (ram, W | U | NX, P),
            5 => (ram, W | U | NX, 0),
            6 => (DEVICE + page * 0x1000, P | W | U | NX, 0),
            7 => (ROM, P | W | U | NX, 0),
            // For the supervisor.
            8 => (ram, P | W | NX, 0),
            // Another page's memory once more.
            9 => (DATA + places[0] * 0x1000, P | W | U | NX, 0),
            _ => (ram, P | W | U | NX, 0),
        };
        g.map(linear, gpa, flags);
        g.put(FIXES + 8 * page, fix);
    }
    let stacks = [0, 2, 1, 3].map(|n| STACKS + n * 0x1000);
    for (page, gpa) in stacks.into_iter().enumerate() {
        let write = if page == 3 && noise.below(2) == 0 { 0 } else { W };
        g.map(STACKS + page as u64 * 0x1000, gpa, P | write | U | NX);
    }
    g.map(FUNCTION, FUNCTION + 0x1000, P | W | U);
    g.map(WRITTEN_ALIAS, WRITTEN, P | W | U);
    g.poke(TABLE_B, &g.peek(TABLE_A, 0x1000));
    g.put(pd + 8 * (DATA >> 21 & 511), TABLE_B | P | W | U);
    // In the other root data pages lie elsewhere.
    for page in 0..DATA_PAGES / 2 {
        let at = |page: u64| TABLE_B + 8 * ((DATA >> 12 & 511) + page);
        let (one, other) = (g.get::<u64>(at(page)), g.get::<u64>(at(page + DATA_PAGES / 2)));
        if (one | other) & G == 0 {
            g.put(at(page), other);
            g.put(at(page + DATA_PAGES / 2), one);
        }
    }
    g.put(TABLE_B + 8 * (FUNCTION >> 12 & 511), (FUNCTION + 0x2000) | P | W | U);
}

/// The two functions: alike but for what they add.
fn functions(g: &mut Guest) {
    for (at, n) in [(FUNCTION + 0x1000, 1i32), (FUNCTION + 0x2000, 0x1000)] {
        g.load_bits(64, at, FUNCTION, |a| {
            a.add(rbx, n)?;
            a.push(rbx)?;
            a.lea(r8, qword_ptr(r8 + n))?;
            a.pop(r9)?;
            a.ret()
        });
    }
}

fn handlers(g: &mut Guest) {
    let install = |g: &mut Guest, vector: u8, offset: u64, ist: u8, dpl: u8| {
        let access = 0x8e | dpl << 5;
        g.set_gate(vector, Gate { ist, access, ..Gate::interrupt(HANDLERS + offset) });
    };
    // Faults: go on where the program says.
    g.load(HANDLERS, |a| {
        a.push(rax)?;
        a.mov(rax, qword_ptr(RECOVER))?;
        a.mov(qword_ptr(rsp + 8), rax)?;
        a.pop(rax)?;
        a.iretq()
    });
    g.load(HANDLERS + 0x40, |a| {
        a.push(rax)?;
        a.mov(rax, qword_ptr(RECOVER))?;
        a.mov(qword_ptr(rsp + 16), rax)?;
        a.pop(rax)?;
        a.add(rsp, 8)?;
        a.iretq()
    });
    for vector in [0, 4, 5, 6, 10, 11, 12, 13, 16, 17, 19] {
        install(g, vector, if pushes_error(vector) { 0x40 } else { 0 }, 1, 0);
    }
    // #PF: mend the entry, once, and try again.
    g.load(HANDLERS + 0x100, |a| {
        let mut skip = a.create_label();
        let entry = |table: u64| table + 8 * (DATA >> 12 & 511);
        a.push(rax)?;
        a.push(rcx)?;
        a.mov(rax, cr2)?;
        a.sub(rax, DATA as i32)?;
        a.shr(rax, 12)?;
        a.cmp(rax, DATA_PAGES as i32)?;
        a.jae(skip)?;
        a.mov(rcx, qword_ptr(rax * 8 + FIXES))?;
        a.test(rcx, rcx)?;
        a.jz(skip)?;
        a.or(qword_ptr(rax * 8 + entry(TABLE_A)), rcx)?;
        a.or(qword_ptr(rax * 8 + entry(TABLE_B)), rcx)?;
        a.mov(qword_ptr(rax * 8 + FIXES), 0)?;
        a.pop(rcx)?;
        a.pop(rax)?;
        a.add(rsp, 8)?;
        a.iretq()?;
        a.set_label(&mut skip)?;
        a.pop(rcx)?;
        a.mov(rax, qword_ptr(RECOVER))?;
        a.mov(qword_ptr(rsp + 16), rax)?;
        a.pop(rax)?;
        a.add(rsp, 8)?;
        a.iretq()
    });
    install(g, Vector::Pf as u8, 0x100, 1, 0);
    // #NM: CR0.TS goes.
    g.load(HANDLERS + 0x200, |a| {
        a.clts()?;
        a.iretq()
    });
    install(g, Vector::Nm as u8, 0x200, 1, 0);
    // #DB: steps end after a while.
    g.load(HANDLERS + 0x240, |a| {
        let mut keep = a.create_label();
        a.inc(qword_ptr(COUNTERS))?;
        a.dec(dword_ptr(TRAPS))?;
        a.jns(keep)?;
        a.and(dword_ptr(rsp + 16), !(rflags::TF as i32))?;
        a.mov(dword_ptr(TRAPS), 7)?;
        a.set_label(&mut keep)?;
        a.iretq()
    });
    install(g, Vector::Db as u8, 0x240, 2, 0);
    for (vector, offset, cell) in [(TIMER, 0x300, 8), (COUNT, 0x340, 16), (3, 0x380, 16)] {
        g.load(HANDLERS + offset, |a| {
            a.inc(qword_ptr(COUNTERS + cell))?;
            a.iretq()
        });
        install(g, vector, offset, 1, if vector == TIMER { 0 } else { 3 });
    }
    g.load(HANDLERS + 0x400, |a| {
        a.xor(dword_ptr(rsp + 8), i32::from(CODE64 ^ USER64))?;
        a.xor(dword_ptr(rsp + 32), i32::from(DATA0 ^ DATA3))?;
        a.iretq()
    });
    install(g, SWITCH, 0x400, 1, 3);
    g.load(HANDLERS + 0x440, |a| {
        a.cli()?;
        a.hlt()
    });
    install(g, OVER, 0x440, 1, 3);
    // SYSCALL.
    g.load(HANDLERS + 0x600, |a| {
        a.inc(qword_ptr(COUNTERS + 16))?;
        a.sysretq()
    });
}
