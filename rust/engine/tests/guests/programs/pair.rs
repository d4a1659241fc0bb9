//! Runs a program on both engines, with the same stops, and compares; makes one that differs shorter.

use std::fmt::Write;

use trapgate_engine::state::record::VcpuState;
use trapgate_engine::translate::TranslateOptions;
use trapgate_engine::{Exit, HookEvent, HookId, HookKind};
use trapgate_x86::decode::decode;
use trapgate_x86::facts::text as disassemble;
use trapgate_x86::features::Features;
use trapgate_x86::flags::flag_use;
use trapgate_x86::insn::Bits;
use trapgate_x86::regs::rflags;

use super::machine::{HANDLERS_END, machine, model};
use super::place::*;
use super::write::{Piece, Text, pieces, write};
use crate::common::engines;
use crate::common::{Guest, IST1, IST2, Noise};

/// Instructions that a program may take.
const LONGEST: u64 = 3000;

/// How the translator is made to work.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    pub options: TranslateOptions,
    /// A new translator at each stop.
    pub fresh: bool,
}

impl Variant {
    /// The translator of a name, with no more room for code than it needs.
    pub fn of(name: &str) -> Variant {
        let options = engines::translator(name);
        let options = TranslateOptions { cache: options.cache.min(2 << 20), ..options };
        Variant { options, fresh: false }
    }

    fn apply(self, g: &mut Guest) {
        assert!(g.engine.set_translate(Some(self.options)), "this host cannot translate");
    }
}

/// What many programs came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub programs: u64,
    /// Programs that differ only because they look at what the manual leaves undefined.
    pub invalid: u64,
    pub instructions: u64,
    /// Instructions that the interpreter was not asked for, at least.
    pub translated: u64,
    pub units: u64,
    pub flushes: u64,
}

/// Where the runs stop, and what is done there.
#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    stops: Vec<u64>,
    hooks: bool,
}

fn plan(seed: u64) -> Plan {
    let mut noise = Noise(seed.wrapping_mul(0xa076_1d64_78bd_642f) | 1);
    for _ in 0..4 {
        noise.next();
    }
    let step = [20, 100, 400, 1500, LONGEST][noise.below(5) as usize];
    let mut stops = Vec::new();
    let mut at = 0;
    while at < LONGEST {
        at = (at + 1 + noise.below(step)).min(LONGEST);
        stops.push(at);
    }
    Plan { seed, stops, hooks: noise.below(4) == 0 }
}

fn features(seed: u64) -> Features {
    model(seed).features
}

/// Runs program `seed`; what differs, if something does.
pub fn try_program(seed: u64, variant: Variant, totals: &mut Totals) -> Option<String> {
    let list = pieces(seed);
    let plan = plan(seed);
    totals.programs += 1;
    run(&list, &plan, variant, Some(totals))?;
    if !is_valid(&list, seed) {
        totals.invalid += 1;
        return None;
    }
    Some(narrow(list, plan, variant))
}

/// The first difference of a run: the count of the last stop that was equal, and what it is.
fn run(
    list: &[Option<Piece>],
    plan: &Plan,
    variant: Variant,
    totals: Option<&mut Totals>,
) -> Option<(u64, String)> {
    let text = write(list, features(plan.seed));
    let mut noise = Noise(plan.seed | 1);
    let (mut a, mut b) = (machine(plan.seed, &text), machine(plan.seed, &text));
    a.engine.set_translate(None);
    variant.apply(&mut b);
    let mut hooks: Vec<(HookId, HookId)> = Vec::new();
    let mut good = 0;
    let mut difference = None;
    let (mut interpreted, mut units, mut flushes) = (0, 0, 0);
    for stop in &plan.stops {
        let end = loop {
            let exits = (a.run_until(*stop), b.run_until(*stop));
            let events = (a.cpu().take_hook_events(), b.cpu().take_hook_events());
            let last = exits.0 != Exit::Budget && exits.0 != Exit::Hook;
            let whole = last || *stop == LONGEST;
            difference = compare(&text, &mut a, &mut b, &exits, &events, whole);
            if difference.is_some() || exits.0 != Exit::Hook {
                break last;
            }
            good = a.count();
        };
        if end || difference.is_some() {
            break;
        }
        good = a.count();
        if plan.hooks && noise.below(3) == 0 {
            if let Some((one, other)) = hooks.pop()
                && noise.below(2) == 0
            {
                a.cpu().remove_hook(one);
                b.cpu().remove_hook(other);
            } else {
                let (kind, at) = match noise.below(3) {
                    0 => (HookKind::Exec, CODE + noise.below(0x400)),
                    1 => (HookKind::MemWrite, DATA + noise.below(0x1_0000)),
                    _ => (HookKind::MemRead, DATA + noise.below(0x1_0000)),
                };
                let last = at + noise.below(0x200);
                hooks.push((a.cpu().add_hook(kind, at, last), b.cpu().add_hook(kind, at, last)));
            }
        }
        if variant.fresh {
            let stats = b.engine.translator_stats().expect("a translator");
            interpreted += stats.interpreted;
            units += stats.units;
            variant.apply(&mut b);
        }
    }
    if let Some(totals) = totals {
        let stats = b.engine.translator_stats().expect("a translator");
        interpreted += stats.interpreted;
        units += stats.units;
        flushes += stats.flushes;
        totals.instructions += b.count();
        // Near the stops the interpreter runs alone.
        let near = plan.stops.iter().filter(|stop| **stop <= b.count()).count() as u64
            * u64::from(variant.options.longest);
        totals.translated += b.count().saturating_sub(interpreted + near);
        totals.units += units;
        totals.flushes += flushes;
    }
    difference.map(|difference| (good, difference))
}

/// What a program may change, by page and number of pages: all of it, and the data alone.
const WHOLE: &[(u64, u64)] = &[
    (0, 0xd),
    (ROOT_A, 16),
    (ROOT_B, 5),
    (CODE, 8),
    (DATA, DATA_PAGES),
    (FUNCTION, 3),
    (KEPT, 3),
    (STACKS, 4),
    (WRITTEN, 1),
    (OTHERS, DATA_PAGES),
];
const DATA_PARTS: &[(u64, u64)] = &[(DATA, DATA_PAGES), (KEPT, 1), (STACKS, 4)];

/// Flags that may differ at an address.
fn undefined(text: &Text, rip: u64) -> u64 {
    if rip < HANDLERS_END {
        // A handler, which runs with the flags of what it interrupted.
        return rflags::STATUS;
    }
    let known = |rip: u64| text.starts.get(&rip).copied();
    known(rip).or_else(|| known(rip.wrapping_sub(ALIAS))).unwrap_or(0)
}

fn compare(
    text: &Text,
    a: &mut Guest,
    b: &mut Guest,
    exits: &(Exit, Exit),
    events: &(Vec<HookEvent>, Vec<HookEvent>),
    whole: bool,
) -> Option<String> {
    if exits.0 != exits.1 {
        return Some(format!("exits: {:x?} / {:x?} at {:#x}, {:#x}", exits.0, exits.1, a.rip(), b.rip()));
    }
    let (mut one, mut other) = (a.cpu().save(), b.cpu().save());
    let mask = undefined(text, one.rip);
    one.rflags &= !mask;
    other.rflags &= !mask;
    if one != other {
        return Some(states(&one, &other));
    }
    if events.0.len() != events.1.len()
        || events.0.iter().zip(&events.1).any(|(a, b)| (a.rip, a.at, a.value) != (b.rip, b.at, b.value))
    {
        return Some(format!("hook events: {:x?} / {:x?}", events.0, events.1));
    }
    {
        let (x, y) = (a.board(), b.board());
        if x.mmio != y.mmio || x.ports != y.ports || x.taken != y.taken {
            return Some(format!("the board: {:x?} / {:x?}", x.mmio.last(), y.mmio.last()));
        }
    }
    let parts = if whole { WHOLE } else { DATA_PARTS };
    let mut pages = ([0; 0x1000], [0; 0x1000]);
    for page in parts.iter().flat_map(|(start, pages)| (0..*pages).map(move |n| start + n * 0x1000)) {
        a.memory.read(page, &mut pages.0).expect("RAM");
        b.memory.read(page, &mut pages.1).expect("RAM");
        if page == IST1 - 0x1000 || page == IST2 - 0x1000 {
            // RFLAGS in the frames of the handlers.
            for bytes in [&mut pages.0, &mut pages.1] {
                bytes[0x1000 - 24] &= !rflags::STATUS as u8;
                bytes[0x1000 - 23] &= !(rflags::STATUS >> 8) as u8;
            }
        }
        if pages.0 != pages.1 {
            let at = (0..0x1000).find(|at| pages.0[*at] != pages.1[*at]).unwrap_or(0);
            return Some(format!(
                "memory at {:#x}: {:#x} / {:#x}",
                page + at as u64,
                pages.0[at],
                pages.1[at]
            ));
        }
    }
    None
}

fn states(one: &VcpuState, other: &VcpuState) -> String {
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    let mut out = String::new();
    for (n, name) in NAMES.iter().enumerate() {
        if one.regs[n] != other.regs[n] {
            let _ = writeln!(out, "{name}: {:#x} / {:#x}", one.regs[n], other.regs[n]);
        }
    }
    for (name, x, y) in [
        ("rip", one.rip, other.rip),
        ("rflags", one.rflags, other.rflags),
        ("count", one.count, other.count),
        ("cr2", one.cr2, other.cr2),
        ("mxcsr", u64::from(one.vector.mxcsr), u64::from(other.vector.mxcsr)),
    ] {
        if x != y {
            let _ = writeln!(out, "{name}: {x:#x} / {y:#x}");
        }
    }
    for n in 0..16 {
        if one.vector.xmm[n] != other.vector.xmm[n] {
            let _ = writeln!(out, "xmm{n}: {:#x} / {:#x}", one.vector.xmm[n], other.vector.xmm[n]);
        }
        let (x, y) = (one.vector.ymm_high[n], other.vector.ymm_high[n]);
        if x != y {
            let _ = writeln!(out, "ymm{n} above: {x:#x} / {y:#x}");
        }
    }
    if one.vector.x87 != other.vector.x87 {
        let _ = writeln!(out, "{:x?}\n{:x?}", one.vector.x87, other.vector.x87);
    }
    if out.is_empty() {
        out = format!("{one:x?}\n{other:x?}");
    }
    out
}

/// Whether a program, run by the interpreter, stays among its instructions and reads no flag that is undefined.
fn is_valid(list: &[Option<Piece>], seed: u64) -> bool {
    let text = write(list, features(seed));
    let mut g = machine(seed, &text);
    g.engine.set_translate(None);
    let mut unknown = 0;
    while g.count() < LONGEST {
        let (rip, count) = (g.rip(), g.count());
        let code = |rip: u64| (CODE..CODE + 0x8000).contains(&rip);
        if code(rip) || code(rip.wrapping_sub(ALIAS)) {
            let at = if code(rip) { rip } else { rip - ALIAS };
            if !text.starts.contains_key(&at) {
                return false;
            }
            let bytes = g.peek(at, 15);
            if let Ok(insn) = decode(&bytes, Bits::B64, &features(seed)) {
                let flags = flag_use(&insn);
                if g.step() != Exit::Budget {
                    return true;
                }
                if g.count() > count {
                    if u64::from(flags.read) & unknown != 0 {
                        return false;
                    }
                    let defined = (flags.written | flags.cleared | flags.set) & !flags.kept;
                    unknown = unknown & !u64::from(defined) | u64::from(flags.undefined);
                }
                continue;
            }
        }
        if g.step() != Exit::Budget {
            return true;
        }
    }
    true
}

/// Leaves out what the difference does not need, and says what is left.
fn narrow(mut list: Vec<Option<Piece>>, mut plan: Plan, variant: Variant) -> String {
    let differs = |list: &[Option<Piece>], plan: &Plan| run(list, plan, variant, None);
    let mut size = list.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < list.len() {
            let mut shorter = list.clone();
            shorter[at..(at + size).min(list.len())].fill(None);
            if shorter.iter().flatten().count() < list.iter().flatten().count()
                && differs(&shorter, &plan).is_some()
                && is_valid(&shorter, plan.seed)
            {
                list = shorter;
            }
            at += size;
        }
        size /= 2;
    }
    // Without hooks and with one stop at the end, if that will do.
    for other in
        [Plan { hooks: false, ..plan.clone() }, Plan { hooks: false, stops: vec![LONGEST], ..plan.clone() }]
    {
        if differs(&list, &other).is_some() {
            plan = other;
        }
    }
    let (good, found) = differs(&list, &plan).expect("it differed before");
    let mut out = format!("{found}\n(interpreter / translator, equal after {good}");
    if plan.stops == [LONGEST] {
        out.push_str(")\n");
        // The earliest stop that differs, found by halving.
        let stop = |at: u64| differs(&list, &Plan { stops: vec![at], ..plan.clone() });
        let (mut low, mut high) = (0, LONGEST);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if stop(middle).is_some() { high = middle } else { low = middle }
        }
        if let Some((_, found)) = stop(high) {
            let mut g = machine(plan.seed, &write(&list, features(plan.seed)));
            g.engine.set_translate(None);
            g.run_until(high - 1);
            let _ = writeln!(out, "it begins at {:#x}, after {} instructions: {found}", g.rip(), high - 1);
        }
    } else {
        let _ = writeln!(out, ", with hooks: {}, stops {:?})", plan.hooks, plan.stops);
    }
    let text = write(&list, features(plan.seed));
    let mut at = 0;
    while at < text.code.len() {
        let rip = CODE + at as u64;
        let bytes = &text.code[at..];
        let known = text.starts.contains_key(&rip);
        let line = if known { disassemble(&bytes[..bytes.len().min(15)], Bits::B64, rip) } else { None };
        let len = (at + 1..text.code.len()).find(|n| text.starts.contains_key(&(CODE + *n as u64)));
        let len = len.unwrap_or(text.code.len()) - at;
        let _ = writeln!(out, "{rip:#x} {:02x?} {}", &bytes[..len.min(15)], line.unwrap_or_default());
        at += len;
    }
    let g = machine(plan.seed, &text);
    let _ = writeln!(out, "at first CPL {}, registers {:x?}", g.engine.cpu.cpl, &g.engine.cpu.regs[..16]);
    out
}
