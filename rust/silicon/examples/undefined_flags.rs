//! Prints what this processor and the interpreter leave in the flags that the manual calls undefined:
//! `cargo run --release -p trapgate-silicon --example undefined_flags`. docs/testing-silicon.md has the results.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod table {
    use std::collections::BTreeMap;

    use iced_x86::{Instruction, Mnemonic, OpKind};
    use trapgate_silicon::case::{Case, Mode, Outcome};
    use trapgate_silicon::catalog::{Group, Verdict, catalog};
    use trapgate_silicon::compare::undefined;
    use trapgate_silicon::host::BATCH;
    use trapgate_silicon::prepare::{Kind, Prepared};
    use trapgate_silicon::suite::{Pair, one};

    const FLAGS: [(&str, u32); 6] = [("CF", 0), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("OF", 11)];
    /// Cases of an encoding.
    const CASES: u64 = 2000;

    /// Values of a flag that are always right, as long as they are.
    #[derive(Default)]
    struct Guesses(BTreeMap<&'static str, bool>);

    impl Guesses {
        fn note(&mut self, flag: bool, guesses: &[(&'static str, bool)]) {
            for &(name, value) in guesses {
                *self.0.entry(name).or_insert(true) &= value == flag;
            }
        }

        fn text(&self) -> String {
            let right: Vec<_> = self.0.iter().filter(|(_, right)| **right).map(|(name, _)| *name).collect();
            if right.is_empty() { "varies".to_owned() } else { right.join(" = ") }
        }
    }

    #[derive(Default)]
    struct Row {
        silicon: Guesses,
        ours: Guesses,
        cases: u64,
        equal: u64,
    }

    fn operand(insn: &Instruction, n: u32, gpr: &[u64; 16]) -> Option<(u64, u32)> {
        if n >= insn.op_count() || insn.op_kind(n) != OpKind::Register || !insn.op_register(n).is_gpr() {
            return None;
        }
        let register = insn.op_register(n);
        let value = gpr[register.full_register().number()];
        let high = format!("{register:?}").ends_with('H');
        let bits = 8 * register.size() as u32;
        Some((if high { value >> 8 } else { value } & u64::MAX >> (64 - bits), bits))
    }

    /// The value and width of the result: the first operand, or the accumulator of a multiplication or division.
    fn result(insn: &Instruction, gpr: &[u64; 16]) -> Option<(u64, u32)> {
        use Mnemonic::*;
        let (value, bits) = operand(insn, 0, gpr)?;
        let implicit = matches!(insn.mnemonic(), Mul | Div | Idiv) || insn.op_count() == 1;
        let value = if implicit && insn.mnemonic() != Neg { gpr[0] & u64::MAX >> (64 - bits) } else { value };
        Some((value, bits))
    }

    fn upper(gpr: &[u64; 16], bits: u32) -> u64 {
        if bits == 8 { gpr[0] >> 8 & 0xff } else { gpr[2] & u64::MAX >> (64 - bits) }
    }

    /// In which circumstances the row holds.
    fn circumstances(insn: &Instruction, case: &Case) -> Option<String> {
        use Mnemonic::*;
        let gpr = &case.state.gpr;
        Some(match insn.mnemonic() {
            Bsf | Bsr => {
                let (source, _) = operand(insn, 1, gpr)?;
                format!(" of {}", if source == 0 { "zero" } else { "another value" })
            }
            Rol | Ror | Rcl | Rcr | Shl | Sal | Shr | Sar | Shld | Shrd => {
                let last = insn.op_count() - 1;
                let count = match insn.op_kind(last) {
                    OpKind::Register => gpr[1],
                    _ => u64::from(insn.immediate8()),
                };
                let (_, bits) = operand(insn, 0, gpr)?;
                let count = count & if bits == 64 { 63 } else { 31 };
                match count {
                    0 => return None,
                    1 => " by 1".to_owned(),
                    _ if count < u64::from(bits) => " by 2 to width - 1".to_owned(),
                    _ if count == u64::from(bits) => " by the width".to_owned(),
                    _ => " by more than the width".to_owned(),
                }
            }
            _ => String::new(),
        })
    }

    fn guesses(
        insn: &Instruction,
        case: &Case,
        outcome: &Outcome,
        flag: &str,
        bit: u32,
    ) -> Vec<(&'static str, bool)> {
        let (before, after) = (&case.state, &outcome.state);
        let mut list = vec![("0", false), ("1", true), ("kept", before.rflags >> bit & 1 != 0)];
        if flag != "CF" {
            list.push(("CF", after.rflags & 1 != 0));
        }
        let Some((value, bits)) = result(insn, &after.gpr) else { return list };
        let sign = |value: u64| value >> (bits - 1) & 1 != 0;
        let parity = |value: u64| (value as u8).count_ones().is_multiple_of(2);
        let high = upper(&after.gpr, bits);
        match flag {
            "ZF" => list.extend([
                ("result is 0", value == 0),
                ("upper half is 0", high == 0),
                ("both halves are 0", value | high == 0),
            ]),
            "SF" => list.extend([("sign of result", sign(value)), ("sign of upper half", sign(high))]),
            "PF" => {
                list.extend([("parity of result", parity(value)), ("parity of upper half", parity(high))])
            }
            _ => {}
        }
        let Some((old, _)) = operand(insn, 0, &before.gpr) else { return list };
        if let Some((source, _)) = operand(insn, 1, &before.gpr) {
            match flag {
                "ZF" => list.push(("source is 0", source == 0)),
                "SF" => list.push(("sign of source", sign(source))),
                "PF" => list.push(("parity of source", parity(source))),
                _ => {}
            }
        }
        if matches!(flag, "OF" | "CF") {
            list.extend([
                ("top bit ^ CF", sign(value) != (after.rflags & 1 != 0)),
                ("top bit ^ next", sign(value) != sign(value << 1)),
                ("top bit of operand", sign(old)),
                ("top bit changed", sign(old) != sign(value)),
                ("low bit of operand", old & 1 != 0),
            ]);
        }
        list
    }

    pub fn print() {
        let mut pair = Pair::default();
        let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
        for mode in [Mode::Long, Mode::Compatibility] {
            for entry in catalog(mode) {
                if entry.group != Group::Integer || entry.verdict != Verdict::Run {
                    continue;
                }
                let all: Vec<Prepared> = (0..CASES).map(|number| one(&entry, mode, 1, number)).collect();
                for some in all.chunks(BATCH) {
                    let cases: Vec<Case> = some.iter().map(|prepared| prepared.case).collect();
                    for (prepared, silicon) in some.iter().zip(pair.host.run(&cases)) {
                        let (case, insn) = (&prepared.case, &prepared.insn);
                        let flags = undefined(case, insn, &silicon).flags;
                        if flags == 0 || prepared.kind != Kind::Normal || silicon.trap.vector != 3 {
                            continue;
                        }
                        let Some(circumstances) = circumstances(insn, case) else { continue };
                        let ours = pair.guest.run(case);
                        let name = format!("{:?}{circumstances}", insn.mnemonic());
                        for (flag, bit) in FLAGS.into_iter().filter(|(_, bit)| flags >> bit & 1 != 0) {
                            let row = rows.entry((name.clone(), flag.to_owned())).or_default();
                            let value = |outcome: &Outcome| outcome.state.rflags >> bit & 1 != 0;
                            row.silicon.note(value(&silicon), &guesses(insn, case, &silicon, flag, bit));
                            row.ours.note(value(&ours), &guesses(insn, case, &ours, flag, bit));
                            row.cases += 1;
                            row.equal += u64::from(value(&silicon) == value(&ours));
                        }
                    }
                }
            }
        }
        for ((name, flag), row) in &rows {
            let percent = 100 * row.equal / row.cases;
            println!(
                "{name:32} {flag}  this processor: {:40} ours: {:40} equal {percent}% of {}",
                row.silicon.text(),
                row.ours.text(),
                row.cases
            );
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn main() {
    table::print();
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn main() {}
