//! Random programs on both engines: whatever the translator is made to do, registers, defined flags, memory, the count and
//! what devices saw are those of the interpreter at every stop.
//!
//! `TRAPGATE_SEED=<n>` runs program `n` alone, `TRAPGATE_FULL=1` many more. A program that ends differently is made shorter
//! and shown with the first instruction that did.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod machine;
mod pair;
mod place;
mod write;

use std::io::Write;

use pair::{Totals, Variant};

/// Runs programs in a variant.
#[track_caller]
fn programs(name: &str, variant: Variant, few: u64, many: u64) -> Totals {
    let full = std::env::var_os("TRAPGATE_FULL").is_some_and(|value| value == "1");
    let only = std::env::var("TRAPGATE_SEED").ok().map(|seed| seed.parse::<u64>().expect("a number"));
    let seeds = match only {
        Some(seed) => seed..seed + 1,
        None => 1..1 + if full { many } else { few },
    };
    let mut totals = Totals::default();
    for seed in seeds {
        if let Some(difference) = pair::try_program(seed, variant, &mut totals) {
            panic!("program {seed} ({name}, TRAPGATE_SEED={seed}) differs:\n{difference}");
        }
    }
    let _ = writeln!(std::io::stdout(), "{name}: {totals:?}");
    if only.is_none() {
        assert!(totals.invalid * 50 <= totals.programs, "too many programs say nothing: {totals:?}");
        assert!(totals.translated * 4 > totals.instructions, "little was translated: {totals:?}");
    }
    totals
}

#[test]
fn random_programs_do_the_same_translated() {
    programs("translator", Variant::of("translator"), 1000, 100_000);
}

#[test]
fn random_programs_do_the_same_in_units_of_one_instruction() {
    programs("single", Variant::of("single"), 500, 50_000);
}

#[test]
fn random_programs_do_the_same_without_links() {
    programs("unlinked", Variant::of("unlinked"), 500, 50_000);
}

#[test]
fn random_programs_do_the_same_with_a_check_for_each_access() {
    programs("checked", Variant::of("checked"), 500, 50_000);
}

#[test]
fn random_programs_do_the_same_with_little_room_for_code() {
    let totals = programs("small", Variant::of("small"), 500, 50_000);
    assert!(totals.flushes > 0, "{totals:?}");
}

#[test]
fn random_programs_do_the_same_when_nothing_is_kept() {
    programs("forgetful", Variant::of("forgetful"), 500, 50_000);
}

#[test]
fn random_programs_do_the_same_without_any_short_cut() {
    programs("paranoid", Variant::of("paranoid"), 500, 50_000);
}

#[test]
fn random_programs_do_the_same_when_code_is_forgotten_at_stops() {
    programs("fresh", Variant { fresh: true, ..Variant::of("translator") }, 500, 50_000);
}
