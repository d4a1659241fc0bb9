//! All of these guests once more on the binary translator, as it is and with its short cuts taken away (a small code cache
//! is left to the random programs: these guests would not fill it). Each is a run of this very program with another
//! engine, so a guest that fails is named as always; alone it fails with
//! `TRAPGATE_ENGINE=<engine> cargo test --test guests <its name>`.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::process::Command;

use crate::common::engines::{ENGINE, STATISTICS, Sum, sum};

/// Guests that fill tables to their limits: long, and with little in them that is translated.
const LONG: [&str; 2] = ["bounds::", "hostile::"];
/// A guest that fills the second level of translation, of which shadow page tables take the place.
const PCIDS: &str = "bounds::translations_under_every_pcid_are_bounded";
/// What has no place in such a run: this module; programs that are run on both engines anyway, or of which the interpreter
/// must run some (they see flags that the manual leaves undefined); the budget of the interpreter's blocks.
const OTHERS: [&str; 4] =
    ["engines::", "programs::", "property::", "bounds::blocks_of_one_instruction_each_are_bounded"];

/// Runs the suite on an engine; `skipped` are parts of the names of guests to leave out.
#[track_caller]
fn suite(engine: &str, skipped: &[&str]) -> Option<Sum> {
    if std::env::var_os(ENGINE).is_some() {
        return None;
    }
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    for name in OTHERS.iter().chain(skipped) {
        command.args(["--skip", name]);
    }
    command.env(ENGINE, engine).env(STATISTICS, "1").env("RUST_BACKTRACE", "0");
    let output = command.output().expect("the suite starts");
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let failed: String = match out.split_once("\nfailures:\n") {
        Some((_, failures)) => failures.into(),
        None => format!(
            "{out}\n{}",
            errors.lines().filter(|line| !line.starts_with("translated ")).collect::<String>()
        ),
    };
    assert!(output.status.success(), "with {ENGINE}={engine}, {}:\n{failed}", output.status);
    Some(sum(&errors))
}

#[test]
fn guests_do_the_same_on_the_translator() {
    let Some(sum) = suite("translator", &[]) else { return };
    assert!(sum.units > 1_000 && sum.entries > 8_000, "little was translated: {sum:?}");
}

#[test]
fn guests_do_the_same_with_units_of_one_instruction() {
    let Some(sum) = suite("single", &LONG) else { return };
    assert!(sum.units > 8_000, "little was translated: {sum:?}");
}

#[test]
fn guests_do_the_same_without_links() {
    let Some(sum) = suite("unlinked", &LONG) else { return };
    assert!(sum.entries > 8_000, "little was translated: {sum:?}");
}

#[test]
fn guests_do_the_same_with_shadow_page_tables() {
    let Some(sum) = suite("translator+shadow", &[PCIDS]) else { return };
    assert!(sum.units > 1_000 && sum.entries > 8_000, "little was translated: {sum:?}");
}

#[test]
fn guests_do_the_same_interpreted_with_shadow_page_tables() {
    suite("interpreter+shadow", &LONG);
}

#[test]
fn guests_do_the_same_without_any_short_cut() {
    let Some(sum) = suite("paranoid", &LONG) else { return };
    assert!(sum.units > 8_000, "little was translated: {sum:?}");
}
