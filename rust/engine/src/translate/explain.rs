//! Translation to be looked at: makes units as the translator does, without a machine, and says for each instruction what became
//! of it and why, and what each piece of host code is for.
//!
//! While code is made, [`Asm`] takes notes of what follows; they cut the code into parts. Nothing of it runs, so it may lie
//! anywhere and leave to addresses that stand for the thunks.

use std::ops::Range;

use trapgate_x86::class::{Class, Reason, class};
use trapgate_x86::decode::decode;
use trapgate_x86::facts::TextWriter;
use trapgate_x86::features::Features;
use trapgate_x86::insn::{Bits, DecodeError, Insn, Operand, RIP};
use trapgate_x86::layout::MAX_LENGTH;

use super::asm::Asm;
use super::context::{Place, place};
use super::emit::Fetched;
use super::exits::{Cold, Exit, Exits};
use super::names::{named, register};
use super::path::Path;
use super::plan::Plan;
use super::thunks::Thunks;
use super::unit::{self, LONGEST, Source};
use super::vectors::gives_index;
use super::x87::Kind;
use crate::memory::PAGE;

/// Where explained units seem to lie.
const BASE: u64 = 0x1_0000;
/// Where they leave to.
pub(super) const THUNKS: Thunks = Thunks {
    enter: 0,
    exit: 0x1000,
    miss: 0x2000,
    stack: 0x3000,
    lend: 0x4000,
    clock: 0x5000,
    lend_upper: 0x6000,
    lend_x87: 0x7000,
    user_stack: 0x8000,
};

/// What the code behind a place in the assembler is for. Numbers are those of instructions in the unit.
#[derive(Clone, Copy, Debug)]
pub(super) enum Note {
    /// The unit's entries.
    Arrival,
    /// An instruction.
    Plain(u32),
    /// Leaves an instruction to the interpreter.
    Interpret(u32),
    /// Goes on behind the unit's last instruction.
    End,
    /// Takes instructions off the budget.
    Charge,
    /// Goes on with what was before the charge.
    Charged,
    /// Head of a loop's fast form.
    Head,
    /// An instruction in that form.
    Fast(u32),
    /// What is rarely run.
    Cold(Cold),
}

/// What became of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Done {
    /// The host runs the same instruction.
    Copied,
    /// The host runs the same operation on the registers that stand for the guest's.
    Renamed,
    /// Other code does what it does.
    Rewritten,
    /// Nothing is left of it but its count.
    Dropped,
    /// The interpreter runs it.
    Interpreted,
}

impl Done {
    pub const fn name(self) -> &'static str {
        match self {
            Done::Copied => "copied",
            Done::Renamed => "renamed",
            Done::Rewritten => "rewritten",
            Done::Dropped => "dropped",
            Done::Interpreted => "interpreted",
        }
    }
}

/// A guest instruction and what became of it.
#[derive(Clone, Debug)]
pub struct Explained {
    pub address: u64,
    /// Its bytes; a single one if they are no instruction.
    pub bytes: Vec<u8>,
    /// `None` if the bytes are no instruction.
    pub class: Option<Class>,
    pub done: Done,
    pub reason: String,
    /// Which parts of the unit are its code, what is rarely run apart.
    pub parts: Range<usize>,
}

/// A piece of host code.
#[derive(Clone, Debug)]
pub struct Part {
    pub name: &'static str,
    /// The instruction that it belongs to, by position in the unit.
    pub guest: Option<usize>,
    pub address: u64,
    pub code: Vec<u8>,
}

/// A unit of translation.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// At least one.
    pub guest: Vec<Explained>,
    /// All of the unit's code, in order. None if no unit can be made.
    pub parts: Vec<Part>,
}

/// A host instruction.
#[derive(Clone, Debug)]
pub struct Line {
    pub address: u64,
    pub len: usize,
    /// Intel syntax; places of the context and thunks by name.
    pub text: String,
}

/// Translates the unit at the start of 64-bit guest code, which must not be empty, at CPL 0 or 3.
pub fn explain(code: &[u8], address: u64, user: bool, features: &Features) -> Explanation {
    let in_page = code.len().min((PAGE - address % PAGE) as usize).min(MAX_LENGTH * LONGEST as usize);
    let source = Source {
        rip: address,
        code: &code[..in_page],
        from: address,
        page: 0,
        user,
        para: false,
        features: *features,
        longest: LONGEST,
        alone: false,
        // Each address is shown once.
        follow: false,
    };
    let mut asm = Asm::default();
    asm.notes = Some(Vec::new());
    asm.start(BASE);
    let mut exits = Exits::default();
    exits.add(Exit::Astray);
    if unit::translate(&mut asm, &mut exits, &THUNKS, &source).is_none() {
        return Explanation { guest: vec![untranslated(code, address, features)], parts: Vec::new() };
    }
    let mut notes = asm.notes.take().unwrap_or_default();
    notes.retain(|(at, _)| *at <= asm.code.len());
    let list = Path::of(&source).list;
    let mut cut =
        Cut { parts: Vec::new(), own: vec![0..0; list.len()], interpreted: vec![false; list.len()] };
    cut.parts(&asm, &exits, &notes);
    let guest = list.iter().enumerate().map(|(n, (f, plan))| {
        let parts = cut.own[n].clone();
        let host: Vec<u8> = cut.parts[parts.clone()].iter().flat_map(|part| &part.code).copied().collect();
        let bytes = &f.bytes[..usize::from(f.insn.len)];
        let plan = if cut.interpreted[n] { Plan::Interpret } else { *plan };
        let (done, reason) = verdict(f, plan, bytes == host, user);
        Explained { address: f.rip, bytes: bytes.to_vec(), class: Some(class(&f.insn)), done, reason, parts }
    });
    Explanation { guest: guest.collect(), parts: cut.parts }
}

/// Code cut at its notes.
struct Cut {
    parts: Vec<Part>,
    /// The parts of each instruction.
    own: Vec<Range<usize>>,
    /// Whether the interpreter runs it.
    interpreted: Vec<bool>,
}

impl Cut {
    fn parts(&mut self, asm: &Asm, exits: &Exits, notes: &[(usize, Note)]) {
        // What the code is when no charge interrupts it, and whether it is an instruction's plain form.
        let (mut now, mut body) = (("", None), false);
        for (n, &(at, note)) in notes.iter().enumerate() {
            let end = notes.get(n + 1).map_or(asm.code.len(), |(at, _)| *at);
            let number = |n: u32| Some(n as usize);
            (now, body) = match note {
                Note::Arrival => (("arrival", None), false),
                Note::Plain(n) => (("instruction", number(n)), true),
                Note::Interpret(n) => {
                    self.interpreted[n as usize] = true;
                    ((INTERPRETER, number(n)), true)
                }
                Note::End => (("end of the unit", None), false),
                Note::Charge | Note::Charged => (now, body),
                Note::Head => (("loop head", None), false),
                Note::Fast(n) => (("loop without checks", number(n)), false),
                Note::Cold(cold) => (rare(&cold, exits), false),
            };
            let name = if matches!(note, Note::Charge) { "charge" } else { now.0 };
            let code = asm.code[at..end].to_vec();
            if !code.is_empty() {
                self.parts.push(Part { name, guest: now.1, address: asm.base + at as u64, code });
            }
            if let (true, Some(guest)) = (body, now.1) {
                let own = &mut self.own[guest];
                let start =
                    if own.start == own.end { self.parts.len() - usize::from(at < end) } else { own.start };
                *own = start..self.parts.len();
            }
        }
    }
}

const INTERPRETER: &str = "exit to the interpreter";

/// What a piece of rarely run code is, and of which instruction.
fn rare(cold: &Cold, exits: &Exits) -> (&'static str, Option<usize>) {
    let last = |count: u32| (count as usize).checked_sub(1);
    let instruction = |exit| match exits.get(exit) {
        Some(Exit::Interpret { done, .. } | Exit::Miss { done, .. }) => Some(done as usize),
        _ => None,
    };
    match *cold {
        Cold::Miss { exit, .. } => ("miss stub", instruction(exit)),
        Cold::Leave { exit, .. } | Cold::Restore { exit, .. } => match instruction(exit) {
            None => ("exit stub", None),
            some => (INTERPRETER, some),
        },
        Cold::Taken { count, .. } => ("side exit", last(count)),
        Cold::Broken { count, .. } => ("side exit of the loop without checks", last(count)),
        Cold::Elsewhere { count, .. } => ("return elsewhere", last(count)),
        Cold::Back { count, .. } => ("round the loop", last(count)),
    }
}

/// The first instruction has no unit.
fn untranslated(code: &[u8], address: u64, features: &Features) -> Explained {
    let (len, class, reason) = match decode(code, Bits::B64, features) {
        Ok(insn) => (usize::from(insn.len), Some(class(&insn)), "it goes on in the next page"),
        Err(DecodeError::Truncated) => (1, None, "it is cut off"),
        Err(_) => (1, None, "it is no instruction: the guest gets the fault"),
    };
    Explained {
        address,
        bytes: code[..len].to_vec(),
        class,
        done: Done::Interpreted,
        reason: reason.to_owned(),
        parts: 0..0,
    }
}

/// What became of an instruction, and why. `same` says that its code is its own bytes.
fn verdict(f: &Fetched<'_>, plan: Plan, same: bool, user: bool) -> (Done, String) {
    let insn = &f.insn;
    let memory = insn.operands.iter().any(|operand| matches!(operand, Operand::Mem { .. }));
    let reason = match plan {
        Plan::Interpret => {
            let reason = match class(insn) {
                Class::Privileged if user => "it is privileged, and the guest's fault may be due",
                Class::Privileged => Reason::SystemState.text(),
                Class::Sensitive => Reason::HostState.text(),
                _ => "the translator has no form for it",
            };
            return (Done::Interpreted, reason.to_owned());
        }
        Plan::Nothing => return (Done::Dropped, "it does nothing but count".to_owned()),
        Plan::X87(Kind::Wait) => {
            return (Done::Dropped, "no exception is pending where the x87 state is lent".to_owned());
        }
        Plan::X87(Kind::LoadControl) => {
            "what it loads is looked at: the host must have every exception masked"
        }
        Plan::Copy | Plan::Vector | Plan::X87(_) if !memory => return copied(insn, same),
        Plan::Lea if insn.mem.base != RIP => return copied(insn, same),
        Plan::Copy | Plan::Vector | Plan::X87(_) | Plan::BitString | Plan::Repeat => Reason::Address.text(),
        Plan::Lea => "it counts from RIP, which is the guest's: a constant here",
        Plan::Push | Plan::Pop | Plan::Leave => "the stack's address is translated and checked",
        Plan::Divide => "its fault would be the host's: its operands are looked at first",
        Plan::Cli | Plan::Sti => "it is privileged: the guest's IF is a place in memory",
        Plan::Swapgs => "it is privileged: the guest's bases are places in memory",
        Plan::Syscall | Plan::Sysret => {
            "it would enter the host's kernel: the guest's mode is a place in memory"
        }
        Plan::ReadClock => "it would show the host's counter: a helper gives the guest's",
        Plan::ReadBase(_) | Plan::WriteBase(_) => {
            "it would reach the host's base: the guest's is a place in memory"
        }
        Plan::Pushf => "it would show the host's IF and IOPL: the guest's are put in",
        Plan::Cld => "the host's DF stays clear: the guest's is a place in memory",
        Plan::ReadControl => "it is privileged: the guest's control registers are places in memory",
        Plan::ReadSelector => "it would show the host's selector: the guest's is a place in memory",
        Plan::Call | Plan::Return | Plan::CallInside | Plan::ReturnInside(_) => {
            "its target is looked up in translated code, and the stack is checked"
        }
        Plan::Jump | Plan::Branch | Plan::Follow => Reason::Target.text(),
    };
    (Done::Rewritten, reason.to_owned())
}

/// An instruction on registers alone.
fn copied(insn: &Insn, same: bool) -> (Done, String) {
    if same {
        return (Done::Copied, "it does the same on the host".to_owned());
    }
    let operands = insn.operands.iter().filter_map(|operand| match operand {
        Operand::Gpr { reg, .. } => Some(*reg),
        _ => None,
    });
    let index = gives_index(insn.op).then_some(1);
    let mut moved = Vec::new();
    for reg in
        operands.chain(index).chain([insn.mem.base, insn.mem.index].into_iter().filter(|reg| *reg < 16))
    {
        let text = match place(reg) {
            Place::Host(host) if host == reg => continue,
            Place::Host(host) => format!("{} is {}", register(reg), register(host)),
            Place::Slot(_) => format!("{} is in memory", register(reg)),
        };
        if !moved.contains(&text) {
            moved.push(text);
        }
    }
    if moved.is_empty() {
        return (Done::Copied, "it does the same on the host, encoded anew".to_owned());
    }
    (Done::Renamed, format!("here {}", moved.join(", ")))
}

impl Part {
    /// The code as instructions.
    pub fn lines(&self) -> Vec<Line> {
        let (mut writer, mut lines, mut at) = (TextWriter::new(), Vec::new(), 0);
        while at < self.code.len() {
            let (bytes, address) = (&self.code[at..], self.address + at as u64);
            let insn = decode(bytes, Bits::B64, &Features::all()).ok();
            let len = insn.map_or(1, |insn| usize::from(insn.len));
            let mut text = String::new();
            if insn.is_none() || !writer.write(bytes, Bits::B64, address, &mut text) {
                text = format!("db {:#04x}", bytes[0]);
            }
            if let Some(insn) = insn {
                text = named(text, &insn, address + len as u64);
            }
            lines.push(Line { address, len, text });
            at += len;
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Explanation {
        explain(bytes, 0x1000, false, &Features::all())
    }

    /// What became of the first instruction, why, and its host code.
    fn first(bytes: &[u8], user: bool) -> (Done, String, Vec<String>) {
        let made = explain(bytes, 0x1000, user, &Features::all());
        let insn = made.guest[0].clone();
        let lines = made.parts[insn.parts].iter().flat_map(Part::lines).map(|line| line.text).collect();
        (insn.done, insn.reason, lines)
    }

    #[test]
    fn each_instruction_says_what_became_of_it() {
        let (done, _, code) = first(&[0x48, 0x01, 0xd8], false);
        assert_eq!((done, code), (Done::Copied, vec!["add rax, rbx".to_owned()]));
        let (done, reason, code) = first(&[0x48, 0x01, 0xc8], false);
        assert_eq!((done, code), (Done::Renamed, vec!["add rax, r8".to_owned()]));
        assert_eq!(reason, "here rcx is r8");
        let (done, reason, code) = first(&[0x48, 0x8b, 0x07], false);
        assert_eq!((done, reason.as_str()), (Done::Rewritten, Reason::Address.text()));
        assert!(code.iter().any(|line| line.contains("[tlb_read+r")), "{code:?}");
        let (done, reason, code) = first(&[0xfa], false);
        assert!(done == Done::Rewritten && reason.contains("privileged"), "cli: {reason}");
        assert!(code.iter().any(|line| line.contains("[interrupts]")), "{code:?}");
        assert_eq!(first(&[0xfa], true).0, Done::Interpreted, "cli at CPL 3");
        let (done, reason, _) = first(&[0x0f, 0xa2], false);
        assert!(done == Done::Interpreted && reason == Reason::HostState.text(), "cpuid: {reason}");
        let (done, reason, _) = first(&[0x9c], false);
        assert!(done == Done::Rewritten && reason.contains("IOPL"), "pushf: {reason}");
        assert_eq!(of(&[0x9c]).guest[0].class, Some(Class::Sensitive));
        let (done, _, code) = first(&[0xd9, 0xe8], true);
        assert_eq!((done, code), (Done::Copied, vec!["fld1".to_owned()]));
        let (done, _, code) = first(&[0x0f, 0xfc, 0xca], true);
        assert_eq!((done, code), (Done::Copied, vec!["paddb mm1, mm2".to_owned()]));
        let (done, reason, code) = first(&[0xd9, 0x2f], true);
        assert!(done == Done::Rewritten && reason.contains("masked"), "fldcw: {reason}");
        assert_eq!(code.last().map(String::as_str), Some("fldcw [new_fcw]"));
        assert_eq!(first(&[0x9b], true).0, Done::Dropped, "fwait");
        assert_eq!(first(&[0xd9, 0xf8], true).0, Done::Interpreted, "fprem");
        let (done, _, code) = first(&[0x90, 0xc3], false);
        assert_eq!((done, code), (Done::Dropped, vec![]));
    }

    #[test]
    fn all_parts_together_are_the_unit() {
        let cases: [&[u8]; 7] = [
            &[0x48, 0x01, 0xd8, 0xc3],
            &[0x48, 0x8b, 0x07, 0x75, 0x10, 0x50, 0xff, 0xd0],
            // A loop with a fast form: add rax, [rsi]; add rsi, 8; dec ecx; jnz.
            &[0x48, 0x03, 0x06, 0x48, 0x83, 0xc6, 0x08, 0xff, 0xc9, 0x75, 0xf5],
            // One whose fast form is taken back: mov ah, [rsi]; inc rsi; dec ecx; jnz.
            &[0x8a, 0x26, 0x48, 0xff, 0xc6, 0xff, 0xc9, 0x75, 0xf7],
            &[0x66, 0x0f, 0xef, 0xc0, 0x48, 0xf7, 0xf1, 0xfb],
            &[0xeb, 0xfe],
            &[0x0f, 0xa2],
        ];
        for bytes in cases {
            let made = of(bytes);
            let source = Source {
                rip: 0x1000,
                code: bytes,
                from: 0x1000,
                page: 0,
                user: false,
                para: false,
                features: Features::all(),
                longest: LONGEST,
                alone: false,
                follow: false,
            };
            let (mut asm, mut exits) = (Asm::default(), Exits::default());
            asm.start(BASE);
            exits.add(Exit::Astray);
            unit::translate(&mut asm, &mut exits, &THUNKS, &source).unwrap();
            let together: Vec<u8> = made.parts.iter().flat_map(|part| &part.code).copied().collect();
            assert_eq!(together, asm.code, "{bytes:02x?}");
            let mut at = BASE;
            for part in &made.parts {
                assert_eq!(part.address, at);
                at += part.code.len() as u64;
                assert!(part.lines().iter().all(|line| !line.text.starts_with("db")), "{part:?}");
            }
            let guest: Vec<u8> = made.guest.iter().flat_map(|insn| &insn.bytes).copied().collect();
            assert_eq!(guest, bytes);
        }
    }

    #[test]
    fn parts_have_names() {
        let names = |bytes: &[u8]| of(bytes).parts.iter().map(|part| part.name).collect::<Vec<_>>();
        let looping = names(&[0x48, 0x03, 0x06, 0x48, 0x83, 0xc6, 0x08, 0xff, 0xc9, 0x75, 0xf5]);
        for name in [
            "arrival",
            "instruction",
            "charge",
            "loop head",
            "loop without checks",
            "miss stub",
            "round the loop",
        ] {
            assert!(looping.contains(&name), "{name}: {looping:?}");
        }
        let plain = names(&[0x75, 0x10, 0xfb, 0x0f, 0xa2]);
        for name in ["side exit", "exit stub", INTERPRETER] {
            assert!(plain.contains(&name), "{name}: {plain:?}");
        }
        assert!(!names(&[0x8a, 0x26, 0x48, 0xff, 0xc6, 0xff, 0xc9, 0x75, 0xf7]).contains(&"loop head"));
    }

    #[test]
    fn what_has_no_unit_is_one_instruction() {
        let made = of(&[0x06, 0x90]);
        assert!(made.parts.is_empty() && made.guest[0].class.is_none() && made.guest[0].bytes == [0x06]);
        let across = explain(&[0x48, 0x01, 0xd8], 0x1ffe, false, &Features::all());
        assert_eq!((across.guest[0].done, across.guest[0].bytes.len()), (Done::Interpreted, 3));
        assert!(across.guest[0].reason.contains("next page"));
    }
}
