//! The generated suite: makes cases of every encoding of a group, runs them in batches on both executors and compares.

use std::ops::Range;

use crate::case::{Case, Mode};
use crate::catalog::{Entry, Group, Verdict, catalog};
use crate::compare;
use crate::guest::Guest;
use crate::host::{BATCH, Host};
use crate::prepare::{Kind, Prepared, prepare};
use crate::random::Random;
use crate::report::{self, Report};
use crate::vendor;

/// How much to run; from the environment.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Cases of one encoding.
    pub cases: u64,
    /// Only this encoding, and of that only this case.
    pub only: Option<(String, Option<u64>)>,
}

impl Plan {
    /// `TRAPGATE_SEED` chooses the cases, `TRAPGATE_FULL=1` makes many more, `TRAPGATE_CASE=<encoding>` runs
    /// those of one encoding and `<encoding>:<number>` a single one.
    pub fn from_environment(cases: u64, long: u64) -> Plan {
        let variable = |name| std::env::var(name).ok();
        let seed =
            variable("TRAPGATE_SEED").map_or(1, |text| text.parse().expect("TRAPGATE_SEED is a number"));
        let full = variable("TRAPGATE_FULL").is_some_and(|value| value == "1");
        let only = variable("TRAPGATE_CASE").map(|text| {
            let (code, number) = text.split_once(':').map_or((&*text, None), |(code, n)| (code, Some(n)));
            (code.to_owned(), number.map(|n| n.parse().expect("TRAPGATE_CASE is <encoding>:<number>")))
        });
        Plan { seed, cases: if full { long } else { cases }, only }
    }
}

impl Plan {
    /// The cases of an encoding.
    fn numbers(&self, entry: &Entry) -> Range<u64> {
        match &self.only {
            Some((code, _)) if *code != format!("{:?}", entry.code) => 0..0,
            Some((_, Some(number))) => *number..*number + 1,
            _ => 0..self.cases,
        }
    }

    /// The blocks: `TRAPGATE_CASE=block:<number>` is one.
    pub(crate) fn blocks(&self) -> Range<u64> {
        match &self.only {
            Some((name, Some(number))) if name == "block" => *number..*number + 1,
            Some((name, _)) if name != "block" => 0..0,
            _ => 0..self.cases,
        }
    }
}

/// Both executors, and the engine once more with its translator where that is what is looked at.
#[derive(Debug, Default)]
pub struct Pair {
    pub host: Host,
    pub guest: Guest,
    pub translated: Option<Guest>,
}

impl Pair {
    /// With the translator; `None` where the host does not allow it.
    pub fn translated() -> Option<Pair> {
        Some(Pair { translated: Some(Guest::translated()?), ..Pair::default() })
    }
}

/// Runs every encoding of a group in a mode.
pub fn run(mode: Mode, group: Option<Group>, plan: &Plan) -> Report {
    run_on(&mut Pair::default(), mode, group, plan)
}

/// Runs every encoding of a group in a mode on a pair.
pub fn run_on(pair: &mut Pair, mode: Mode, group: Option<Group>, plan: &Plan) -> Report {
    let mut report = Report::default();
    let mut batch: Vec<(Prepared, u64)> = Vec::with_capacity(BATCH);
    for entry in catalog(mode).iter().filter(|entry| group.is_none_or(|group| entry.group == group)) {
        report.entry(entry);
        if entry.verdict != Verdict::Run {
            continue;
        }
        for number in plan.numbers(entry) {
            batch.push((one(entry, mode, plan.seed, number), number));
            if batch.len() == BATCH {
                compare_batch(pair, &mut batch, plan, &mut report);
            }
        }
    }
    compare_batch(pair, &mut batch, plan, &mut report);
    report
}

/// The case of this number: its own random numbers, so that it can be made alone.
pub fn one(entry: &Entry, mode: Mode, seed: u64, number: u64) -> Prepared {
    let mut random = Random::fork(seed, &[entry.code as u64 | (mode as u64) << 32, number]);
    let kind = if random.one_in(4) { random.pick(&Kind::FAULTS) } else { Kind::Normal };
    for _ in 0..1000 {
        if let Some(prepared) = prepare(entry, mode, kind, &mut random) {
            return prepared;
        }
    }
    panic!("no instance of {:?} can be made", entry.code);
}

fn compare_batch(pair: &mut Pair, batch: &mut Vec<(Prepared, u64)>, plan: &Plan, report: &mut Report) {
    let cases: Vec<Case> = batch.iter().map(|(prepared, _)| prepared.case).collect();
    let outcomes = pair.host.run(&cases);
    for ((prepared, number), silicon) in batch.drain(..).zip(outcomes) {
        let case = &prepared.case;
        let mut ours = pair.guest.checked(case);
        report.case(&prepared.insn, prepared.kind, &silicon);
        let undefined = compare::undefined(case, &prepared.insn, &silicon);
        if let Some(translated) = &mut pair.translated {
            // What the interpreter gets wrong is its own suite's to say.
            if compare::difference(case, undefined, &silicon, &ours).is_some() {
                continue;
            }
            ours = translated.checked(case);
        }
        if let Some(difference) = compare::difference(case, undefined, &silicon, &ours) {
            if let Some(rule) =
                vendor::excuse(&mut pair.guest, case, &prepared.insn, undefined, &silicon, &ours)
            {
                report.by_maker(rule);
                continue;
            }
            let code = prepared.insn.code();
            let field = report::field(&difference);
            let again = format!("TRAPGATE_SEED={} TRAPGATE_CASE={code:?}:{number}", plan.seed);
            let what = format!("{:?} {:?} {field}", code.mnemonic(), prepared.kind);
            report.failure(what, || report::line(case, &again, &difference, &silicon, &ours));
        }
    }
}
