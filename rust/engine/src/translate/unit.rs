//! Makes one unit of translation: the guest code of a path from an address up to the first transfer that is not known, the end
//! of the page or a limit, with a side exit for each conditional branch on the way.
//!
//! A unit charges the instructions that it completed where it leaves, and only runs while a whole unit's worth of budget is
//! left; the interpreter does the rest, so every limit is met to the instruction.

use trapgate_x86::features::Features;

use super::access::Groups;
use super::asm::{Asm, R10, R11, RCX, at, indexed};
use super::context::field;
use super::emit::Emitter;
use super::exits::{Exit, Exits, Second};
use super::explain::Note;
use super::flow::Flow;
use super::loops::{Counters, Loop};
use super::path::{Path, Planned};
use super::plan::Plan;
use super::stack::PutOff;
use super::thunks::Thunks;
use super::vex;

/// Instructions of a unit at most; also what the budget must allow before one is entered.
pub const LONGEST: u32 = crate::options::LONGEST;

/// What to translate.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub rip: u64,
    /// Code of the page, and the address of its first byte.
    pub code: &'a [u8],
    pub from: u64,
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
    /// Go on at the targets of direct jumps and calls.
    pub follow: bool,
}

impl<'a> Source<'a> {
    /// The code from an address on, if any of it is known.
    pub fn at(&self, address: u64) -> Option<&'a [u8]> {
        let offset = usize::try_from(address.checked_sub(self.from)?).ok()?;
        self.code.get(offset..).filter(|code| !code.is_empty())
    }
}

/// Where a new unit is entered, by address in the cache.
#[derive(Clone, Debug)]
pub struct Made {
    /// Where indirect branches arrive, with their target in R10.
    pub indirect: u64,
    /// Where everybody else arrives.
    pub entry: u64,
    /// The guest code in the unit's page, by offset and length, and how many bytes are in the next one.
    pub pieces: Vec<(u16, u16)>,
    pub more: u16,
}

/// Translates into the assembler's buffer. `None` if there is no instruction that ends in this page.
pub fn translate(asm: &mut Asm, exits: &mut Exits, thunks: &Thunks, source: &Source<'_>) -> Option<Made> {
    let path = Path::of(source);
    let list = &path.list;
    let start = list.first()?.0.rip;
    debug_assert!(exits.pointer.is_none(), "the pointer of another unit");
    let groups = Groups::of(list, source.alone);
    let needs = Needs::of(list);
    let indirect = asm.here();
    asm.note(Note::Arrival);
    let entry = arrivals(asm, exits, thunks, start, needs);
    let back = if source.alone { None } else { Loop::of(list) };
    if back.is_some() {
        // Rounds are counted from where the loop is entered: short loops never get to their head.
        let Counters { trip, first, .. } = Counters::of(start);
        asm.load(RCX, first);
        asm.store(trip, RCX);
    }
    let top = asm.here();
    let emitter = emitter(asm, exits, source, None, groups);
    let mut unit = Flow::new(emitter, thunks, start, top);
    unit.loops = back.as_ref().map(|_| start);
    let mut open = true;
    for (f, plan) in list {
        unit.emitter.asm.note(Note::Plain(f.done));
        if !unit.instruction(f, *plan) {
            open = false;
            break;
        }
    }
    if open {
        let done = list.len() as u32;
        unit.emitter.asm.note(Note::End);
        unit.leave_to(path.end, done);
    }
    if let Some(back) = back {
        unit.fast_form(list, back);
    }
    unit.finish();
    Some(Made { indirect, entry, pieces: path.pieces(), more: 0 })
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
    let Path { list, .. } = Path::of(&Source { longest: 1, ..*source });
    let (f, plan) = list.first()?;
    let inside = 0x1000 - (f.rip & 0xfff);
    if u64::from(f.insn.len) <= inside {
        return None;
    }
    let indirect = asm.here();
    asm.note(Note::Arrival);
    let entry = arrivals(asm, exits, thunks, f.rip, Needs::of(&list));
    let top = asm.here();
    let emitter = emitter(asm, exits, source, Some(second), Groups::of(&list, true));
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
    let pieces = vec![((f.rip & 0xfff) as u16, inside as u16)];
    Some(Made { indirect, entry, pieces, more: more as u16 })
}

fn emitter<'a>(
    asm: &'a mut Asm,
    exits: &'a mut Exits,
    source: &Source<'_>,
    second: Option<Second>,
    groups: Groups,
) -> Emitter<'a> {
    let Source { user, para, page, .. } = *source;
    let (cold, put_off) = (Vec::new(), PutOff::default());
    Emitter { asm, exits, cold, user, para, page, second, step: None, groups, fast: None, put_off }
}

/// Registers of the guest that a unit needs in the host's.
#[derive(Clone, Copy, Debug, Default)]
struct Needs {
    /// XMM registers: the upper halves may be elsewhere.
    vectors: bool,
    /// YMM registers.
    upper: bool,
    x87: bool,
}

impl Needs {
    fn of(list: &[Planned<'_>]) -> Needs {
        list.iter().fold(Needs::default(), |needs, (f, plan)| match plan {
            Plan::Vector => Needs { vectors: true, upper: needs.upper || vex::needs_upper(&f.insn), ..needs },
            Plan::X87(kind) => Needs { vectors: needs.vectors || kind.needs_vectors(), x87: true, ..needs },
            _ => needs,
        })
    }
}

/// The unit's two entries. An indirect branch brings its target in R10: other targets share its slot.
fn arrivals(asm: &mut Asm, exits: &mut Exits, thunks: &Thunks, rip: u64, needs: Needs) -> u64 {
    compare(asm, rip);
    let good = asm.jrcxz_later();
    asm.jmp(thunks.exit);
    let wanted = [
        (needs.upper, Exit::Vectors { rip, entry: 0, upper: true }, thunks.lend_upper, field!(upper)),
        (
            needs.vectors && !needs.upper,
            Exit::Vectors { rip, entry: 0, upper: false },
            thunks.lend,
            field!(vector),
        ),
        (needs.x87, Exit::X87 { rip, entry: 0 }, thunks.lend_x87, field!(fpu.live)),
    ];
    let mut stubs = Vec::with_capacity(2);
    let mut left = wanted.iter().filter(|(needed, ..)| *needed).count() as u64;
    for (_, exit, thunk, test) in wanted.into_iter().filter(|(needed, ..)| *needed) {
        let stub = asm.here();
        let n = exits.add(exit);
        asm.store_constant32(field!(exit), n);
        // All stubs are of a length, and the entry stands behind the last of them.
        let entry = stub + left * (asm.here() + 7 + 5 - stub);
        left -= 1;
        asm.place_of(R11, entry);
        asm.jmp(thunk);
        exits.set(n, exit.with_entry(entry));
        stubs.push((stub, test));
    }
    asm.bind(good);
    let entry = asm.here();
    for (stub, test) in stubs {
        asm.load(RCX, test);
        let over = stub as i64 - (asm.here() as i64 + 2);
        debug_assert!(i8::try_from(over).is_ok());
        asm.jrcxz(over as i8);
    }
    entry
}

/// RCX is zero if R10 is an address.
pub(super) fn compare(asm: &mut Asm, rip: u64) {
    let minus = rip.wrapping_neg();
    if let Ok(disp) = i32::try_from(minus as i64) {
        asm.lea(RCX, at(R10, disp));
    } else {
        asm.constant(RCX, minus);
        asm.lea(RCX, indexed(RCX, R10, 0, 0));
    }
}
