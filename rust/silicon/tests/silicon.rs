//! Every unprivileged encoding of the CPU model, on the host's processor and on the engine.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod suite {
    use std::io::Write;

    use trapgate_engine::translate::explain::{Done, explain};
    use trapgate_silicon::MODEL;
    use trapgate_silicon::blocks;
    use trapgate_silicon::case::Mode;
    use trapgate_silicon::catalog::{Group, Verdict, catalog};
    use trapgate_silicon::guest::Guest;
    use trapgate_silicon::host::x87_environment;
    use trapgate_silicon::prepare::is_gather;
    use trapgate_silicon::report::Report;
    use trapgate_silicon::suite::{Pair, Plan, one, run, run_on};

    /// Prints the coverage, past the test runner's capture.
    fn finish(title: &str, report: &Report) {
        let _ = std::io::stdout().write_all(report.table(title).as_bytes());
        report.assert_none();
        let one = std::env::var_os("TRAPGATE_CASE").is_some();
        assert!(one || report.missing() == 0, "{} encodings were forgotten", report.missing());
    }

    #[test]
    fn integer_instructions_do_what_the_processor_does() {
        let plan = Plan::from_environment(300, 20_000);
        finish("integer", &run(Mode::Long, Some(Group::Integer), &plan));
    }

    #[test]
    fn x87_instructions_do_what_the_processor_does() {
        let plan = Plan::from_environment(600, 40_000);
        finish("x87", &run(Mode::Long, Some(Group::X87), &plan));
    }

    #[test]
    fn mmx_and_sse_instructions_do_what_the_processor_does() {
        let plan = Plan::from_environment(300, 20_000);
        finish("mmx and sse", &run(Mode::Long, Some(Group::Vector), &plan));
    }

    #[test]
    fn avx_instructions_do_what_the_processor_does() {
        let plan = Plan::from_environment(300, 20_000);
        finish("avx", &run(Mode::Long, Some(Group::Avx), &plan));
    }

    #[test]
    fn instructions_of_compatibility_mode_do_what_the_processor_does() {
        let plan = Plan::from_environment(150, 10_000);
        finish("compatibility mode", &run(Mode::Compatibility, None, &plan));
    }

    /// The same cases on the translator, fewer of them: each is translated anew.
    #[test]
    fn translated_instructions_do_what_the_processor_does() {
        let Some(mut pair) = Pair::translated() else {
            panic!("this host does not let the engine translate");
        };
        for (title, group) in [
            ("integer", Group::Integer),
            ("x87", Group::X87),
            ("mmx and sse", Group::Vector),
            ("avx", Group::Avx),
        ] {
            let plan = Plan::from_environment(40, 20_000);
            let report = run_on(&mut pair, Mode::Long, Some(group), &plan);
            finish(&format!("translated, {title}"), &report);
        }
        assert_translated(&pair, 20_000);
    }

    /// Whatever a guest does to the x87 unit, whoever runs it finds it as it was.
    #[test]
    fn translated_code_leaves_the_hosts_x87_unit_as_it_was() {
        let mut guest = Guest::translated().expect("a host that lets the engine translate");
        let before = x87_environment();
        assert_eq!(before[2], 0xffff, "the unit is empty");
        for entry in catalog(Mode::Long).iter().filter(|entry| entry.verdict == Verdict::Run) {
            let mmx = matches!(entry.group, Group::X87 | Group::Vector);
            for number in 0..if mmx { 40 } else { 0 } {
                let prepared = one(entry, Mode::Long, 1, number);
                guest.run(&prepared.case);
                assert_eq!(x87_environment(), before, "{:?} {number}", entry.code);
            }
        }
    }

    #[test]
    fn translated_blocks_of_instructions_do_what_the_processor_does() {
        let Some(mut pair) = Pair::translated() else {
            panic!("this host does not let the engine translate");
        };
        finish("translated, blocks", &blocks::run_on(&mut pair, &Plan::from_environment(10_000, 1_000_000)));
        assert_translated(&pair, 5_000);
    }

    /// All that the processor has becomes host code, but for what may take more than one access, and MXCSR.
    #[test]
    fn avx_instructions_are_translated() {
        use iced_x86::Mnemonic::*;
        for entry in catalog(Mode::Long).iter().filter(|entry| entry.group == Group::Avx) {
            if entry.verdict != Verdict::Run {
                continue;
            }
            for number in 0..20 {
                let prepared = one(entry, Mode::Long, 1, number);
                let case = &prepared.case;
                let code = &case.code[..case.code_len as usize];
                let made = explain(code, 0x1000, true, &MODEL.features);
                let left = is_gather(&prepared.insn)
                    || matches!(entry.code.mnemonic(), Vmaskmovdqu | Vldmxcsr | Vstmxcsr);
                let done = made.guest[0].done;
                assert_eq!(done == Done::Interpreted, left, "{:?} {number}: {done:?}", entry.code);
            }
        }
    }

    fn assert_translated(pair: &Pair, least: u64) {
        let (units, interpreted) = pair.translated.as_ref().map_or((0, 0), |guest| guest.translations());
        let _ =
            writeln!(std::io::stdout(), "{units} units, {interpreted} instructions left to the interpreter");
        let one = std::env::var_os("TRAPGATE_CASE").is_some();
        assert!(one || units > least, "{units} units");
    }

    #[test]
    fn blocks_of_instructions_do_what_the_processor_does() {
        let plan = Plan::from_environment(40_000, 4_000_000);
        finish("blocks", &blocks::run(&plan));
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[test]
#[ignore = "the oracle is the host's processor: it takes Linux on x86-64"]
fn instructions_do_what_the_processor_does() {}
