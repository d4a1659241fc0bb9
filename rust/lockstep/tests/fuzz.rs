//! The fuzz targets on repeatable noise and mutated seeds. `TRAPGATE_FULL=1` runs fifty times as many.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::full;
use trapgate_lockstep::fuzz::{Noise, TARGETS};

#[track_caller]
fn target(name: &str, runs: u64, longest: usize) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    let seeds = (target.seeds)();
    for seed in &seeds {
        (target.run)(seed);
    }
    (target.run)(&[]);
    let runs = if full() { 50 * runs } else { runs };
    for seed in 0..runs {
        let input = Noise(seed).input(&seeds, longest);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(&input))) {
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("{name}, seed {seed}: {hex}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn decoder() {
    target("decoder", 300_000, 40);
}

#[test]
fn devices() {
    target("devices", 1_000, 4_000);
}

#[test]
fn guest() {
    target("guest", 500, 600);
}

#[test]
fn hypercalls() {
    target("hypercalls", 400, 4_000);
}

#[test]
fn loaders() {
    target("loaders", 20_000, 1_000);
}

#[test]
fn walker() {
    target("walker", 4_000, 250);
}
