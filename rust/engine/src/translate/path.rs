//! The path of a unit: which instructions it is made of. It begins at the unit's address and goes on behind what falls through,
//! at the target of a direct jump or call in the page, and behind a call where it meets the return. So a function that is
//! called in its page is part of the unit, and the stack is checked for both.

use trapgate_x86::insn::{Bits, Operand};
use trapgate_x86::layout::Layout;
use trapgate_x86::slots::decode_slots;

use super::emit::Fetched;
use super::plan::{self, Plan};
use super::unit::Source;
use crate::mmu::access::canonical;

/// Conditional branches that a unit goes on behind.
const MOST_BRANCHES: u32 = 4;

/// An instruction and what becomes of it.
pub type Planned<'a> = (Fetched<'a>, Plan);

/// The instructions of a unit in the order in which they run.
#[derive(Debug)]
pub struct Path<'a> {
    pub list: Vec<Planned<'a>>,
    /// Where the last of them goes on.
    pub end: u64,
    /// Where calls on the way return to that have not met their return.
    calls: Vec<u64>,
    branches: u32,
}

impl<'a> Path<'a> {
    /// Decodes up to the end of the unit. Instructions that run into the next page, and bytes that are none, end it before
    /// them.
    pub fn of(source: &Source<'a>) -> Path<'a> {
        let list = Vec::with_capacity(8);
        let mut path = Path { list, end: source.rip, calls: Vec::new(), branches: 0 };
        while (path.list.len() as u32) < source.longest {
            let Some(bytes) = source.at(path.end) else { break };
            let Ok(layout) = Layout::scan(bytes, Bits::B64) else { break };
            let Ok((insn, slots)) = decode_slots(bytes, &layout, &source.features) else { break };
            let done = path.list.len() as u32;
            let fetched = Fetched { bytes, layout, insn, slots, rip: path.end, done };
            if !path.add(source, fetched) {
                break;
            }
        }
        path
    }

    /// Adds an instruction; whether the path goes on behind it.
    fn add(&mut self, source: &Source<'a>, f: Fetched<'a>) -> bool {
        let mut plan = plan::plan(&f.insn, source.user || source.para);
        let relative = f.insn.operands[0] == Operand::Rel;
        let target = f.next().wrapping_add(f.insn.imm);
        if relative && !canonical(target) {
            plan = Plan::Interpret;
        }
        let follow = source.follow && relative && self.is_new(source, f.rip, target);
        self.end = f.next();
        let open = match plan {
            Plan::Jump if follow => {
                (plan, self.end) = (Plan::Follow, target);
                true
            }
            Plan::Call if follow => {
                self.calls.push(self.end);
                (plan, self.end) = (Plan::CallInside, target);
                true
            }
            Plan::Return if f.insn.operands[0] == Operand::None => match self.calls.pop() {
                Some(back) if self.is_new(source, f.rip, back) => {
                    (plan, self.end) = (Plan::ReturnInside(back), back);
                    true
                }
                _ => false,
            },
            // A loop is a unit.
            Plan::Branch if target == source.rip => false,
            Plan::Branch => {
                self.branches += 1;
                self.branches <= MOST_BRANCHES
            }
            plan => !plan.ends_unit(),
        };
        self.list.push((f, plan));
        open
    }

    /// Whether the path may go on from one address at another, where it has not been yet: what closes a loop leads to a unit
    /// of its own.
    fn is_new(&self, source: &Source<'a>, from: u64, target: u64) -> bool {
        let known = target == from || self.list.iter().any(|(f, _)| f.rip == target);
        source.at(target).is_some() && !known
    }

    /// The ranges of code that it is made of, as offsets in the page, none longer than it must be.
    pub fn pieces(&self) -> Vec<(u16, u16)> {
        let mut pieces: Vec<(u16, u16)> = Vec::new();
        for (f, _) in &self.list {
            let (at, len) = ((f.rip & 0xfff) as u16, u16::from(f.insn.len));
            match pieces.last_mut() {
                Some((start, known)) if *start + *known == at => *known += len,
                _ => pieces.push((at, len)),
            }
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use trapgate_x86::features::Features;

    use super::*;

    /// Addresses of a path through code at 1000h, its end and its pieces.
    fn path(code: &[u8], start: u64, follow: bool) -> (Vec<u64>, u64, Vec<(u16, u16)>) {
        let source = Source {
            rip: 0x1000 + start,
            from: 0x1000,
            code,
            page: 0,
            user: false,
            para: false,
            features: Features::all(),
            longest: 16,
            alone: false,
            follow,
        };
        let path = Path::of(&source);
        (path.list.iter().map(|(f, _)| f.rip - 0x1000).collect(), path.end - 0x1000, path.pieces())
    }

    #[test]
    fn jumps_and_calls_are_followed() {
        // 0: jmp 4; 2: ret; 3: nop; 4: call 2; 9: nop; 10: jmp 0
        let code = [0xeb, 2, 0xc3, 0x90, 0xe8, 0xf9, 0xff, 0xff, 0xff, 0x90, 0xeb, 0xf4];
        assert_eq!(path(&code, 0, true), (vec![0, 4, 2, 9, 10], 12, vec![(0, 2), (4, 5), (2, 1), (9, 3)]));
        assert_eq!(path(&code, 0, false), (vec![0], 2, vec![(0, 2)]));
        // Without a call a return ends the unit.
        assert_eq!(path(&code, 2, true), (vec![2], 3, vec![(2, 1)]));
    }

    #[test]
    fn no_instruction_is_met_twice() {
        // 0: nop; 1: jmp 3; 3: nop; 4: jmp 3
        let code = [0x90, 0xeb, 0, 0x90, 0xeb, 0xfd];
        assert_eq!(path(&code, 0, true), (vec![0, 1, 3, 4], 6, vec![(0, 6)]));
        // 0: call 0
        assert_eq!(path(&[0xe8, 0xfb, 0xff, 0xff, 0xff], 0, true), (vec![0], 5, vec![(0, 5)]));
        // 0: call 5, which it comes back to: 5: ret
        assert_eq!(path(&[0xe8, 0, 0, 0, 0, 0xc3], 0, true), (vec![0, 5], 6, vec![(0, 6)]));
    }

    #[test]
    fn nothing_is_followed_out_of_the_page() {
        // 0: jmp -1; the same to behind the end
        assert_eq!(path(&[0xeb, 0xfd, 0x90], 0, true).0, [0]);
        assert_eq!(path(&[0xeb, 1, 0x90], 0, true).0, [0]);
        // A call at the end has nowhere to return to.
        assert_eq!(path(&[0xc3, 0xe8, 0xfa, 0xff, 0xff, 0xff], 1, true).0, [1, 0]);
    }
}
