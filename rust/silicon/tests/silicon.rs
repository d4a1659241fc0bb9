//! Every unprivileged encoding of the CPU model, on the processor and on the engine.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::io::Write;

use trapgate_silicon::catalog::Group;
use trapgate_silicon::report::Report;
use trapgate_silicon::suite::{Plan, run};

/// Prints the coverage, past the test runner's capture.
fn finish(title: &str, report: &Report) {
    let _ = std::io::stdout().write_all(report.table(title).as_bytes());
    report.assert_none();
    assert!(report.missing() == 0 || std::env::var_os("TRAPGATE_CASE").is_some(), "encodings were forgotten");
}

#[test]
fn integer_instructions_do_what_the_processor_does() {
    let plan = Plan::from_environment(100, 20_000);
    finish("integer", &run(Group::Integer, &plan, |_| true));
}

#[test]
fn x87_instructions_do_what_the_processor_does() {
    let plan = Plan::from_environment(200, 40_000);
    finish("x87", &run(Group::X87, &plan, |_| true));
}

#[test]
fn mmx_and_sse_instructions_do_what_the_processor_does() {
    let plan = Plan::from_environment(100, 20_000);
    finish("mmx and sse", &run(Group::Vector, &plan, |_| true));
}
