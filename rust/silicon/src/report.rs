//! What was covered, and the line that a failure is reported by.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};

use crate::case::{Case, Outcome, State, fx};
use crate::catalog::{Entry, Verdict};
use crate::compare::NAMES;
use crate::prepare::Kind;

/// What a run has done.
#[derive(Debug, Default)]
pub struct Report {
    /// Encodings and mnemonics that ran, and all of the group.
    ran: (BTreeSet<u32>, BTreeSet<u32>),
    all: (BTreeSet<u32>, BTreeSet<u32>),
    skipped: BTreeMap<String, u32>,
    kinds: BTreeMap<Kind, u64>,
    vectors: BTreeMap<u64, u64>,
    cases: u64,
    /// Of blocks.
    instructions: u64,
    /// Outcomes that differ by who made the processor, by rule.
    by_maker: BTreeMap<&'static str, u64>,
    failures: BTreeMap<String, Failure>,
}

#[derive(Debug)]
struct Failure {
    count: u64,
    /// The first one's line.
    line: String,
}

impl Report {
    /// Counts an encoding that the group has.
    pub fn entry(&mut self, entry: &Entry) {
        self.all.0.insert(entry.code as u32);
        self.all.1.insert(entry.code.mnemonic() as u32);
        let reason = match entry.verdict {
            Verdict::Run => return,
            Verdict::Skip(reason) => format!("by rule: {reason}"),
            Verdict::HostLacks(feature) => format!("this host lacks {feature:?}"),
        };
        *self.skipped.entry(reason).or_default() += 1;
    }

    pub fn case(&mut self, insn: &Instruction, kind: Kind, silicon: &Outcome) {
        self.ran.0.insert(insn.code() as u32);
        self.ran.1.insert(insn.mnemonic() as u32);
        *self.kinds.entry(kind).or_default() += 1;
        *self.vectors.entry(silicon.trap.vector).or_default() += 1;
        self.cases += 1;
    }

    /// Counts a block and the encodings in it.
    pub fn block(&mut self, insns: impl Iterator<Item = Instruction>, silicon: &Outcome) {
        for insn in insns {
            self.ran.0.insert(insn.code() as u32);
            self.ran.1.insert(insn.mnemonic() as u32);
            self.instructions += 1;
        }
        *self.vectors.entry(silicon.trap.vector).or_default() += 1;
        self.cases += 1;
    }

    /// Counts an outcome that is the one of this maker's processors.
    pub fn by_maker(&mut self, rule: &'static str) {
        *self.by_maker.entry(rule).or_default() += 1;
    }

    /// `what` names the kind of failure: only the first of each is shown.
    pub fn failure(&mut self, what: String, line: impl FnOnce() -> String) {
        self.failures.entry(what).or_insert_with(|| Failure { count: 0, line: line() }).count += 1;
    }

    /// The coverage table.
    pub fn table(&self, title: &str) -> String {
        let (ran, all) = (&self.ran, &self.all);
        let mut text = format!("{title}: {} cases", self.cases);
        let _ = match self.instructions {
            0 => writeln!(
                text,
                "; {} of the model's {} encodings, {} of {} mnemonics",
                ran.0.len(),
                all.0.len(),
                ran.1.len(),
                all.1.len()
            ),
            n => writeln!(text, " of {n} instructions; {} encodings, {} mnemonics", ran.0.len(), ran.1.len()),
        };
        for (reason, count) in &self.skipped {
            let _ = writeln!(text, "  {count:5} encodings not run, {reason}");
        }
        for (rule, count) in &self.by_maker {
            let _ = writeln!(text, "  {count:5} outcomes of this maker's processors: {rule}");
        }
        let kinds: Vec<_> = self.kinds.iter().map(|(kind, n)| format!("{kind:?} {n}")).collect();
        if !kinds.is_empty() {
            let _ = writeln!(text, "  cases by kind: {}", kinds.join(", "));
        }
        let vectors: Vec<_> =
            self.vectors.iter().map(|(vector, n)| format!("{} {n}", name(*vector))).collect();
        let _ = writeln!(text, "  ends by vector: {}", vectors.join(", "));
        text
    }

    /// Encodings that could have run and did not.
    pub fn missing(&self) -> usize {
        let skipped: u32 = self.skipped.values().sum();
        self.all.0.len().saturating_sub(self.ran.0.len() + skipped as usize)
    }

    /// Panics with one line for each kind of failure.
    pub fn assert_none(&self) {
        let lines: Vec<_> =
            self.failures.values().map(|f| format!("{} times: {}", f.count, f.line)).collect();
        assert!(lines.is_empty(), "{} kinds of difference:\n{}", lines.len(), lines.join("\n"));
    }
}

fn name(vector: u64) -> String {
    match trapgate_x86::exception::Vector::from_number(vector as u8) {
        Some(known) if vector < 32 => known.name().to_owned(),
        _ => format!("end {vector:#x}"),
    }
}

/// What kind of thing differs.
pub fn field(difference: &str) -> &str {
    let name = difference.split(':').next().unwrap_or_default();
    match name {
        _ if NAMES.contains(&name) => "register",
        _ if name.starts_with("xmm") => "xmm",
        _ if name.starts_with("ymm") => "ymm",
        _ if name.starts_with("st") => "st",
        _ if name.starts_with('[') => "memory",
        _ => name,
    }
}

/// Instructions in Intel syntax.
pub fn text(case: &Case) -> String {
    let mut formatter = IntelFormatter::new();
    let mut all = Vec::new();
    let bits = case.mode.bits();
    let mut decoder = Decoder::with_ip(bits, case.code(), case.state.rip, DecoderOptions::NONE);
    for insn in &mut decoder {
        let mut line = String::new();
        formatter.format(&insn, &mut line);
        all.push(line);
    }
    all.join("; ")
}

/// One line with which a case can be understood and run again.
pub fn line(case: &Case, again: &str, difference: &str, silicon: &Outcome, ours: &Outcome) -> String {
    let bytes: Vec<_> = case.code().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut line = format!("{} \"{}\" {difference} |", bytes.join(" "), text(case));
    let _ = write!(line, " before: {}", state(&case.state));
    for (who, outcome) in [("silicon", silicon), ("ours", ours)] {
        let trap = &outcome.trap;
        let _ = write!(
            line,
            " | {who}: {} error {:#x} cr2 {:#x}; {}",
            name(trap.vector),
            trap.error,
            trap.address,
            changes(case, outcome)
        );
    }
    let _ = write!(line, " | again: {again}");
    line
}

fn state(state: &State) -> String {
    let mut text = format!("rip {:#x} rflags {:#x}", state.rip, state.rflags);
    for (name, value) in NAMES.iter().zip(state.gpr) {
        let _ = write!(text, " {name} {value:#x}");
    }
    let _ = write!(
        text,
        " mxcsr {:#x} fcw {:#x} fsw {:#x} tags {:#x}",
        state.mxcsr(),
        state.fcw(),
        state.fsw(),
        state.fx[fx::FTW]
    );
    text
}

/// What an outcome changed.
fn changes(case: &Case, outcome: &Outcome) -> String {
    let (old, new) = (&case.state, &outcome.state);
    let mut text = format!("rip {:#x} rflags {:#x}", new.rip, new.rflags);
    for n in (0..16).filter(|&n| old.gpr[n] != new.gpr[n]) {
        let _ = write!(text, " {} {:#x}", NAMES[n], new.gpr[n]);
    }
    if old.mxcsr() != new.mxcsr() {
        let _ = write!(text, " mxcsr {:#x}", new.mxcsr());
    }
    if (old.fcw(), old.fsw()) != (new.fcw(), new.fsw()) {
        let _ = write!(text, " fcw {:#x} fsw {:#x}", new.fcw(), new.fsw());
    }
    text
}
