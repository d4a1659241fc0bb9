//! Makes one unit of translation: guest code from an address up to the first transfer that does not fall through, the end of
//! the page or a limit, with a side exit for each conditional branch on the way.
//!
//! A unit charges the instructions that it completed where it leaves, and only runs while a whole unit's worth of budget is
//! left; the interpreter does the rest, so every limit is met to the instruction.

use trapgate_x86::features::Features;
use trapgate_x86::insn::{Bits, Operand};
use trapgate_x86::layout::Layout;
use trapgate_x86::slots::decode_slots;

use super::access::Groups;
use super::asm::{Asm, R10, R11, RCX, at, indexed};
use super::context::field;
use super::emit::{Emitter, Fetched};
use super::exits::{Exit, Exits, Second};
use super::explain::Note;
use super::flow::Flow;
use super::loops::{Counters, Loop};
use super::plan::{self, Plan};
use super::thunks::Thunks;
use crate::mmu::access::canonical;

/// Instructions of a unit at most; also what the budget must allow before one is entered.
pub const LONGEST: u32 = crate::options::LONGEST;
/// Conditional branches that a unit goes on behind.
const MOST_BRANCHES: u32 = 4;
/// Bytes that one unit may take at most, stubs included.
pub const MOST_BYTES: usize = 64 << 10;

/// What to translate.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub rip: u64,
    /// The bytes from there on, up to the end of the page or as many as a unit can have.
    pub code: &'a [u8],
    /// Offset of the page in the host mapping.
    pub page: u64,
    /// The second view of the TLB.
    pub user: bool,
    /// The guest is para-virtual: its kernel has the first view, but not CPL 0.
    pub para: bool,
    pub features: Features,
    /// Instructions at most.
    pub longest: u32,
    /// Check each access alone.
    pub alone: bool,
}

/// Where a new unit is entered, by address in the cache.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    /// Where indirect branches arrive, with their target in R10.
    pub indirect: u64,
    /// Where everybody else arrives.
    pub entry: u64,
    /// Bytes of guest code in the unit's page, and in the next one.
    pub len: u16,
    pub more: u16,
}

/// An instruction and what becomes of it.
pub type Planned<'a> = (Fetched<'a>, Plan);

/// Translates into the assembler's buffer. `None` if there is no instruction that ends in this page.
pub fn translate(asm: &mut Asm, exits: &mut Exits, thunks: &Thunks, source: &Source<'_>) -> Option<Made> {
    let list = fetch(source);
    let start = list.first()?.0.rip;
    let groups = Groups::of(&list, source.alone);
    let vectors = list.iter().any(|(_, plan)| *plan == Plan::Vector);
    let indirect = asm.here();
    asm.note(Note::Arrival);
    let entry = arrivals(asm, exits, thunks, start, vectors);
    let back = if source.alone { None } else { Loop::of(&list) };
    if back.is_some() {
        // Rounds are counted from where the loop is entered: short loops never get to their head.
        let Counters { trip, first, .. } = Counters::of(start);
        asm.load(RCX, first);
        asm.store(trip, RCX);
    }
    let top = asm.here();
    let emitter = Emitter {
        asm,
        exits,
        cold: Vec::new(),
        user: source.user,
        para: source.para,
        page: source.page,
        second: None,
        step: None,
        groups,
        fast: None,
    };
    let mut unit = Flow::new(emitter, thunks, start, top);
    unit.loops = back.as_ref().map(|_| start);
    let mut end = start;
    let mut open = true;
    for (f, plan) in &list {
        end = f.next();
        unit.emitter.asm.note(Note::Plain(f.done));
        if !unit.instruction(f, *plan) {
            open = false;
            break;
        }
    }
    if open {
        let done = list.len() as u32;
        unit.emitter.asm.note(Note::End);
        unit.leave_to(end, done);
    }
    if let Some(back) = back {
        unit.fast_form(&list, back);
    }
    unit.finish();
    Some(Made { indirect, entry, len: (end - start) as u16, more: 0 })
}

/// Makes a unit of one instruction that begins in the source's page and goes on in the next one. The interpreter runs it where
/// the next page is not known to be where it is expected. `None` if there is no such instruction.
pub fn across(
    asm: &mut Asm,
    exits: &mut Exits,
    thunks: &Thunks,
    source: &Source<'_>,
    second: Second,
) -> Option<Made> {
    let list = fetch(&Source { longest: 1, ..*source });
    let (f, plan) = list.first()?;
    let inside = 0x1000 - (f.rip & 0xfff);
    if u64::from(f.insn.len) <= inside {
        return None;
    }
    let indirect = asm.here();
    asm.note(Note::Arrival);
    let entry = arrivals(asm, exits, thunks, f.rip, *plan == Plan::Vector);
    let top = asm.here();
    let emitter = Emitter {
        asm,
        exits,
        cold: Vec::new(),
        user: source.user,
        para: source.para,
        page: source.page,
        second: Some(second),
        step: None,
        groups: Groups::of(&list, true),
        fast: None,
    };
    // It is left from its second page, which its head has found: links into that one hold as they do inside a page.
    let mut unit = Flow::new(emitter, thunks, f.rip.wrapping_add(inside), top);
    if *plan != Plan::Interpret {
        unit.goes_on_at(f, second.pair);
    }
    unit.emitter.asm.note(Note::Plain(f.done));
    if unit.instruction(f, *plan) {
        unit.emitter.asm.note(Note::End);
        unit.leave_to(f.next(), 1);
    }
    unit.finish();
    let more = u64::from(f.insn.len) - inside;
    Some(Made { indirect, entry, len: inside as u16, more: more as u16 })
}

/// Decodes up to the end of the unit. Instructions that run into the next page, and bytes that are none, end it before them.
pub(super) fn fetch<'a>(source: &Source<'a>) -> Vec<Planned<'a>> {
    let mut list = Vec::with_capacity(8);
    let (mut at, mut branches) = (0, 0);
    while (list.len() as u32) < source.longest {
        let bytes = &source.code[at..];
        let Ok(layout) = Layout::scan(bytes, Bits::B64) else { break };
        let Ok((insn, slots)) = decode_slots(bytes, &layout, &source.features) else { break };
        let rip = source.rip.wrapping_add(at as u64);
        let fetched = Fetched { bytes, layout, insn, slots, rip, done: list.len() as u32 };
        let mut plan = plan::plan(&insn, source.user || source.para);
        if insn.operands[0] == Operand::Rel && !canonical(fetched.next().wrapping_add(insn.imm)) {
            plan = Plan::Interpret;
        }
        list.push((fetched, plan));
        at += usize::from(insn.len);
        match plan {
            plan if plan.ends_unit() => break,
            // A loop is a unit.
            Plan::Branch if rip_of(&list) == source.rip => break,
            Plan::Branch if branches == MOST_BRANCHES => break,
            Plan::Branch => branches += 1,
            _ => {}
        }
    }
    list
}

/// The target of a list's last instruction, a direct branch.
fn rip_of(list: &[Planned<'_>]) -> u64 {
    list.last().map_or(0, |(f, _)| f.next().wrapping_add(f.insn.imm))
}

/// The unit's two entries. An indirect branch brings its target in R10: other targets share its slot.
fn arrivals(asm: &mut Asm, exits: &mut Exits, thunks: &Thunks, rip: u64, vectors: bool) -> u64 {
    let minus = rip.wrapping_neg();
    if let Ok(disp) = i32::try_from(minus as i64) {
        asm.lea(RCX, at(R10, disp));
    } else {
        asm.constant(RCX, minus);
        asm.lea(RCX, indexed(RCX, R10, 0, 0));
    }
    let good = asm.jrcxz_later();
    asm.jmp(thunks.exit);
    let no_vectors = asm.here();
    if vectors {
        let exit = exits.add(Exit::Vectors { rip, entry: 0 });
        asm.store_constant32(field!(exit), exit);
        // Five bytes follow this one.
        let entry = asm.here() + 7 + 5;
        asm.place_of(R11, entry);
        asm.jmp(thunks.lend);
        debug_assert_eq!(entry, asm.here());
        exits.set(exit, Exit::Vectors { rip, entry });
    }
    asm.bind(good);
    let entry = asm.here();
    if vectors {
        asm.load(RCX, field!(vector));
        let over = no_vectors as i64 - (asm.here() as i64 + 2);
        asm.jrcxz(over as i8);
    }
    entry
}
