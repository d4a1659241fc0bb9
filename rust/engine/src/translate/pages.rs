//! Which translated code stands for which guest code: units by page, found by linear and host address, checked again when
//! their page was written.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::num::NonZeroU32;

use trapgate_x86::decode::decode;
use trapgate_x86::insn::Bits;
use trapgate_x86::layout::MAX_LENGTH;

use super::Translator;
use super::asm::Asm;
use super::cache::CodeCache;
use super::context::{Context, PAIRS};
use super::exits::{Exit, Exits, Second, Step};
use super::unit::{self, Made, Source};
use crate::memory::PAGE;
use crate::mix::Mix;
use crate::mmu::access::Place;
use crate::state::Vcpu;

/// Bytes that exits and units may take besides the code.
const TABLES: usize = 24 << 20;
/// About what one unit takes of them: itself, its place in the tables, a copy of its guest code.
const UNIT_BYTES: usize = 192;

/// Set in the offset of a unit that checks each access alone.
const ALONE: u16 = 1 << 15;

/// Where a page of code is, and for whom its units were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    linear: u64,
    host: u64,
    user: bool,
}

/// A unit.
#[derive(Debug)]
struct Unit {
    indirect: u64,
    entry: u64,
    /// The guest code that it was made from: ranges of the page, by offset and length, and their bytes.
    pieces: Box<[(u16, u16)]>,
    code: Box<[u8]>,
}

impl Unit {
    /// Whether a page holds the code.
    fn is_made_from(&self, now: &[u8]) -> bool {
        let mut code = &self.code[..];
        self.pieces.iter().all(|&(at, len)| {
            let (piece, rest) = code.split_at(usize::from(len));
            code = rest;
            now[usize::from(at)..][..usize::from(len)] == *piece
        })
    }
}

/// A page with units.
#[derive(Debug)]
struct Page {
    key: Key,
    /// Code counter with which the units were last known good.
    state: u32,
    /// Number of the pair (this linear page, this host page).
    pair: u16,
    /// By offset; `None` where the first instruction is the interpreter's.
    units: HashMap<u16, Option<Unit>, BuildHasherDefault<Mix>>,
    /// Entries of units that are no more, by offset, to be led to their successors.
    gone: Vec<(u16, u64)>,
    /// Ends of instructions that begin in the page before.
    tails: Vec<Tail>,
}

/// The end of an instruction across pages.
#[derive(Debug)]
struct Tail {
    /// Number of the page where the instruction begins, and its offset there.
    page: u32,
    offset: u16,
    code: Box<[u8]>,
}

impl Page {
    /// Whether no translated code was made from what is here.
    fn is_data(&self) -> bool {
        self.tails.is_empty() && self.units.values().all(Option::is_none)
    }

    /// Keeps the end of an instruction; there is one for each place where one begins.
    fn add_tail(&mut self, tail: Tail) {
        self.tails.retain(|other| (other.page, other.offset) != (tail.page, tail.offset));
        self.tails.push(tail);
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Pages {
    all: Vec<Page>,
    index: HashMap<Key, u32, BuildHasherDefault<Mix>>,
    /// Count of writes to code pages that was last looked at.
    writes: u64,
    /// Units that had been made when the cache was emptied last.
    since: u64,
    /// A unit could not be ended for want of room: all must go.
    full: bool,
}

impl Pages {
    pub fn clear(&mut self, units: u64) {
        self.since = units;
        self.all.clear();
        self.index.clear();
        self.full = false;
    }
}

/// A unit that was found, with its page.
#[derive(Clone, Copy, Debug)]
struct Found {
    indirect: u64,
    entry: u64,
    pair: u16,
}

impl Translator {
    /// The entry of the unit at the vCPU's RIP, made if need be; `None` if the interpreter is to run the next instruction.
    pub(super) fn find(&mut self, cpu: &mut Vcpu) -> Option<u64> {
        let rip = cpu.rip;
        let found = self.unit_at(cpu, rip, false)?;
        if self.options.link {
            let global = self.is_global(cpu, rip);
            self.set_jump(rip, cpu.user_view, global, found.indirect);
        }
        Some(found.entry)
    }

    /// Where the table of indirect targets says that the unit at the vCPU's RIP is; it may be another address's, which the
    /// unit itself finds out.
    pub(super) fn known(&self, cpu: &Vcpu) -> Option<u64> {
        let slot = self.context.get().jumps[usize::from(cpu.user_view)][Context::jump(cpu.rip)];
        (slot != self.thunks.exit).then_some(slot)
    }

    /// Lets a jump lead straight to its target from now on, and gives the target's entry.
    pub(super) fn link(&mut self, cpu: &mut Vcpu, rip: u64, field: u64, guard: Option<u64>) -> Option<u64> {
        let flushes = self.stats.flushes;
        let found = self.unit_at(cpu, rip, false)?;
        if flushes != self.stats.flushes {
            // The jump went with everything else.
            return Some(found.entry);
        }
        if let Some(guard) = guard {
            if found.pair == 0 {
                return Some(found.entry);
            }
            let pairs = super::context::at_offset(std::mem::offset_of!(super::context::Context, pairs)).disp;
            self.cache.write(guard, &(pairs + i32::from(found.pair)).to_le_bytes());
            let global = self.is_global(cpu, rip);
            self.set_pair(found.pair, rip & !(PAGE - 1), global, cpu.user_view);
        }
        self.cache.aim(field, found.entry);
        Some(found.entry)
    }

    fn is_global(&self, cpu: &Vcpu, linear: u64) -> bool {
        let entry = cpu.tlb.entry(linear, cpu.user_view);
        entry.fetch == linear & !0xfff && entry.global
    }

    /// The entry of a unit that checks each access alone.
    pub(super) fn find_alone(&mut self, cpu: &mut Vcpu) -> Option<u64> {
        self.unit_at(cpu, cpu.rip, true).map(|found| found.entry)
    }

    fn unit_at(&mut self, cpu: &mut Vcpu, rip: u64, alone: bool) -> Option<Found> {
        let host = match cpu.fetch_place(rip) {
            Ok(Place::Ram(host) | Place::Rom(host)) => host,
            Ok(Place::Device(_) | Place::Table(_)) => return None,
            Err(_) => {
                // The interpreter meets the same fault and raises it.
                cpu.fault = None;
                return None;
            }
        };
        let key = Key { linear: rip & !(PAGE - 1), host: host & !(PAGE - 1), user: cpu.user_view };
        let page = self.page(cpu, key);
        let offset = (rip % PAGE) as u16 | if alone { ALONE } else { 0 };
        let known = &self.pages.all[page as usize];
        match known.units.get(&offset) {
            Some(Some(unit)) => Some(Found { indirect: unit.indirect, entry: unit.entry, pair: known.pair }),
            Some(None) => None,
            None => self.make(cpu, page, rip, alone),
        }
    }

    /// The page of a key, entered if it is new, its units checked if it was written.
    fn page(&mut self, cpu: &mut Vcpu, key: Key) -> u32 {
        if let Some(&page) = self.pages.index.get(&key) {
            let state = self.pages.all[page as usize].state;
            if state & 1 == 0 || cpu.memory.code_state(key.host) != state {
                self.check(cpu, page as usize);
            }
            if !self.pages.full {
                return page;
            }
            self.empty();
        }
        let number = self.pages.all.len() as u32;
        let pair = if (number as usize + 1) < PAIRS { number as u16 + 1 } else { 0 };
        let state = cpu.watch_code(key.host);
        self.pages.all.push(Page {
            key,
            state,
            pair,
            units: HashMap::default(),
            gone: Vec::new(),
            tails: Vec::new(),
        });
        self.pages.index.insert(key, number);
        number
    }

    /// Translates the unit at an address of a page.
    fn make(&mut self, cpu: &mut Vcpu, page: u32, rip: u64, alone: bool) -> Option<Found> {
        let tables =
            self.exits.bytes() + self.stats.units.wrapping_sub(self.pages.since) as usize * UNIT_BYTES;
        if tables > TABLES {
            self.empty();
            return self.unit_at(cpu, rip, alone);
        }
        let key = self.pages.all[page as usize].key;
        let offset = (rip % PAGE) as usize;
        let length = PAGE as usize - offset;
        let mut code = [0; PAGE as usize];
        cpu.memory.read_host(key.host, &mut code);
        self.asm.start_parted(self.cache.next(), self.cache.next_aside());
        let longest = self.options.longest;
        let source = Source {
            rip,
            code: &code,
            from: key.linear,
            page: key.host,
            user: key.user,
            para: cpu.is_para(),
            features: cpu.features(),
            longest,
            alone: alone || !self.options.elide,
            follow: !alone,
        };
        let made = unit::translate(&mut self.asm, &mut self.exits, &self.thunks, &source);
        let made = match made {
            None if length < MAX_LENGTH => {
                // A page that is not there may be mapped later.
                let flushes = self.stats.flushes;
                let second = self.second_page(cpu, rip)?;
                if flushes != self.stats.flushes {
                    return self.unit_at(cpu, rip, alone);
                }
                self.make_across(cpu, page, source, second)
            }
            made => made,
        };
        // Making a unit watches its page: the vCPU's TLB has a change for ours.
        self.follow_changes(cpu);
        let page = &mut self.pages.all[page as usize];
        let slot = offset as u16 | if alone { ALONE } else { 0 };
        let (usual, aside) = self.asm.parts();
        let fits = usual.len() <= self.cache.room() && aside.len() <= self.cache.room_aside();
        if !fits && self.cache.next() != self.start {
            self.empty();
            return self.unit_at(cpu, rip, alone);
        }
        // What does not fit into an empty cache is the interpreter's.
        let Some(made) = made.filter(|_| fits) else {
            page.units.insert(slot, None);
            return None;
        };
        let (usual, aside) = self.asm.parts();
        self.cache.append(usual);
        self.cache.append_aside(aside);
        self.stats.units += 1;
        let code: Box<[u8]> = made
            .pieces
            .iter()
            .flat_map(|&(at, len)| code[usize::from(at)..][..usize::from(len)].iter().copied())
            .collect();
        self.stats.code_bytes += code.len() as u64;
        let unit = Unit { indirect: made.indirect, entry: made.entry, pieces: made.pieces.into(), code };
        let found = Found { indirect: unit.indirect, entry: unit.entry, pair: page.pair };
        page.units.insert(slot, Some(unit));
        page.gone.retain(|&(at, entry)| {
            let same = at == slot;
            if same {
                // What still leads to a unit that was here before goes on to the new one.
                self.cache.aim(entry + 1, found.entry);
            }
            !same
        });
        Some(found)
    }

    /// Translates the instruction at an address of a page that goes on in the next one.
    fn make_across(&mut self, cpu: &Vcpu, page: u32, source: Source<'_>, second: Second) -> Option<Made> {
        let first = source.at(source.rip)?;
        let inside = first.len();
        let mut bytes = [0; 2 * MAX_LENGTH];
        bytes[..inside].copy_from_slice(first);
        bytes[inside..inside + MAX_LENGTH].copy_from_slice(&second.bytes);
        let source = Source { code: &bytes[..inside + MAX_LENGTH], from: source.rip, ..source };
        // The look at the second page may have ended units.
        self.asm.start_parted(self.cache.next(), self.cache.next_aside());
        let made = unit::across(&mut self.asm, &mut self.exits, &self.thunks, &source, second)?;
        let linear = source.rip.wrapping_add(inside as u64);
        let key = Key { linear, host: second.host, user: source.user };
        if let Some(&next) = self.pages.index.get(&key) {
            let offset = (source.rip % PAGE) as u16;
            let code = second.bytes[..usize::from(made.more)].into();
            self.pages.all[next as usize].add_tail(Tail { page, offset, code });
        }
        self.set_pair(second.pair, linear, self.is_global(cpu, linear), cpu.user_view);
        Some(made)
    }

    /// Decodes the instruction at RIP, whose access has missed by an exit, as a step of that exit; `None` where it may be
    /// another by now. Step 0 is never one of these.
    pub(super) fn decode_miss(&mut self, cpu: &mut Vcpu, exit: u32) -> Option<NonZeroU32> {
        let Ok(Place::Ram(host) | Place::Rom(host)) = cpu.fetch_place(cpu.rip) else {
            cpu.fault = None;
            return None;
        };
        let inside = (PAGE - host % PAGE) as usize;
        let mut bytes = [0; MAX_LENGTH];
        let bytes = &mut bytes[..inside.min(MAX_LENGTH)];
        cpu.memory.read_host(host, bytes);
        let insn = decode(bytes, Bits::B64, &cpu.features()).ok().filter(|_| self.is_current(cpu))?;
        let step = NonZeroU32::new(self.exits.add_step(Step::new(insn, host & !(PAGE - 1), None)))?;
        if let Some(Exit::Miss { rip, done, retry, access, .. }) = self.exits.get(exit) {
            self.exits.set(exit, Exit::Miss { rip, done, retry, access, step: Some(step) });
        }
        Some(step)
    }

    /// Where an instruction goes on that reaches into the next page; `None` if that is not to be had. The page is entered, so
    /// that its writes are followed, for which everything may have to be forgotten.
    fn second_page(&mut self, cpu: &mut Vcpu, rip: u64) -> Option<Second> {
        let host = self.next_page(cpu, rip)?;
        let key = Key { linear: (rip | (PAGE - 1)).wrapping_add(1), host, user: cpu.user_view };
        let page = self.page(cpu, key) as usize;
        let Page { state, pair, .. } = self.pages.all[page];
        let mut bytes = [0; MAX_LENGTH];
        cpu.memory.read_host(host, &mut bytes);
        Some(Second { host, state, pair, bytes })
    }

    /// The host page behind the one of an address.
    fn next_page(&mut self, cpu: &mut Vcpu, rip: u64) -> Option<u64> {
        match cpu.fetch_place((rip | (PAGE - 1)).wrapping_add(1)) {
            Ok(Place::Ram(host) | Place::Rom(host)) => Some(host & !(PAGE - 1)),
            Ok(Place::Device(_) | Place::Table(_)) => None,
            Err(_) => {
                cpu.fault = None;
                None
            }
        }
    }

    /// Whether an instruction at RIP that reaches into the next page still goes on there as it did. If not its unit ends: one
    /// that is made when it is needed again will know better.
    pub(super) fn goes_on(&mut self, cpu: &mut Vcpu, number: u32) -> bool {
        let Some(&Step { page: host, second: Some(second), ref uop, .. }) = self.exits.step(number) else {
            return false;
        };
        let inside = (PAGE - cpu.rip % PAGE) as usize;
        let more = usize::from(uop.insn.len).saturating_sub(inside);
        if self.next_page(cpu, cpu.rip) == Some(second.host) {
            let mut same = cpu.memory.code_state(second.host) == second.state;
            if !same {
                let state = cpu.watch_code(second.host);
                let mut now = [0; MAX_LENGTH];
                cpu.memory.read_host(second.host, &mut now);
                same = now[..more] == second.bytes[..more];
                if same {
                    self.exits.renew_second(number, state);
                }
            }
            if same {
                // Until translations change the unit need not ask.
                let linear = cpu.rip.wrapping_add(inside as u64);
                self.set_pair(second.pair, linear, self.is_global(cpu, linear), cpu.user_view);
                return true;
            }
        }
        let key = Key { linear: cpu.rip & !(PAGE - 1), host, user: cpu.user_view };
        if let Some(&page) = self.pages.index.get(&key) {
            self.end(page, (cpu.rip % PAGE) as u16);
        }
        false
    }

    /// Ends the unit at an offset of a page, if there is one.
    fn end(&mut self, page: u32, offset: u16) {
        let page = &mut self.pages.all[page as usize];
        let Some(Some(unit)) = page.units.remove(&offset) else { return };
        let mut room = Room { cache: &mut self.cache, exits: &mut self.exits, asm: &mut self.asm };
        match room.end_unit(&unit, page.key.linear + u64::from(offset), self.thunks.exit) {
            true => page.gone.push((offset, unit.entry)),
            false => self.pages.full = true,
        }
    }

    /// Whether no page of code was written since they were last looked at.
    pub(super) fn is_current(&self, cpu: &Vcpu) -> bool {
        cpu.memory.code_writes() == self.pages.writes
    }

    /// Looks at the pages that were written since the last time.
    pub(super) fn follow_writes(&mut self, cpu: &mut Vcpu) {
        let writes = cpu.memory.code_writes();
        if writes == self.pages.writes {
            return;
        }
        self.pages.writes = writes;
        for page in 0..self.pages.all.len() {
            let known = &mut self.pages.all[page];
            let state = cpu.memory.code_state(known.key.host);
            if state == known.state {
                continue;
            }
            if known.is_data() {
                // Nothing is left of the code that was here: the page is data, and its writes need not be seen.
                known.units.clear();
                known.state = state;
            } else {
                self.check(cpu, page);
            }
        }
        if self.pages.full {
            self.empty();
        }
        self.follow_changes(cpu);
    }

    /// Compares the units of a page with its memory and ends those that differ.
    fn check(&mut self, cpu: &mut Vcpu, page: usize) {
        let known = &mut self.pages.all[page];
        known.state = cpu.watch_code(known.key.host);
        let mut now = [0; PAGE as usize];
        cpu.memory.read_host(known.key.host, &mut now);
        let mut room = Room { cache: &mut self.cache, exits: &mut self.exits, asm: &mut self.asm };
        let (gone, linear) = (&mut known.gone, known.key.linear);
        let mut full = false;
        known.units.retain(|&offset, unit| {
            let at = offset & !ALONE;
            let Some(unit) = unit else { return false };
            if unit.is_made_from(&now) {
                return true;
            }
            if room.end_unit(unit, linear + u64::from(at), self.thunks.exit) {
                gone.push((offset, unit.entry));
            } else {
                full = true;
            }
            false
        });
        self.pages.full |= full;
        self.check_tails(page, &now);
    }

    /// Ends units whose instruction goes on in a page where it reads differently by now.
    fn check_tails(&mut self, page: usize, now: &[u8]) {
        let differs = |tail: &mut Tail| now[..tail.code.len()] != *tail.code;
        let ended: Vec<Tail> = self.pages.all[page].tails.extract_if(.., differs).collect();
        for tail in ended {
            self.end(tail.page, tail.offset);
        }
    }
}

/// Where stubs are put.
struct Room<'a> {
    cache: &'a mut CodeCache,
    exits: &'a mut Exits,
    asm: &'a mut Asm,
}

impl Room<'_> {
    /// Whoever still leads to the unit at `rip` leaves, until a successor is made. False if there is no room for that.
    fn end_unit(&mut self, unit: &Unit, rip: u64, out: u64) -> bool {
        let exit = self.exits.add(Exit::Gone { rip });
        self.asm.start(self.cache.next_aside());
        self.asm.store_constant32(super::context::field!(exit), exit);
        self.asm.jmp(out);
        if self.asm.code.len() > self.cache.room_aside() {
            return false;
        }
        let stub = self.asm.base;
        self.cache.append_aside(&self.asm.code);
        self.cache.write(unit.entry, &[0xe9]);
        self.cache.aim(unit.entry + 1, stub);
        true
    }
}
