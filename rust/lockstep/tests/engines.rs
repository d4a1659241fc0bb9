//! The interpreter and the translator side by side on a boot, in virtual time: the same state at the same count.
//!
//! Without the image the test says so and passes. `TRAPGATE_FULL=1` goes through all of the boot.
//!
//! AF is undefined after logic operations and shifts, and the interpreter's and the host's differ after some. Once the guest has
//! saved such a flag (an interrupt is enough; in Debian's boot the first one that stays is after 60 million instructions) the
//! hashes differ for good, so from there on states are compared but for bit 4 of the flags, of R11, where SYSCALL puts them,
//! and of words in memory.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod common;

use trapgate_engine::memory::PAGE;
use trapgate_engine::translate::TranslateOptions;
use trapgate_lockstep::paranoid::{Against, Plan, Verdict, compare};
use trapgate_machine::{Exit, Limits, Machine};
use trapgate_x86::regs::rflags;

use common::{debian, full};

/// Up to here nothing that is undefined shows.
const ALL_DEFINED: u64 = 60_000_000;

#[test]
fn debian_boots_the_same_way_translated() {
    let Some(guest) = debian() else { return };
    let against = Against::Translated(TranslateOptions::default());
    let (end, step) = (ALL_DEFINED, 20_000_000);
    let plan = Plan { against, start: 0, end, every: step, hash_every: step };
    match compare(&guest, &plan).unwrap() {
        Verdict::Same { count, exit } => assert_eq!((count, exit), (end, None)),
        Verdict::Differs(divergence) => panic!("{divergence}"),
    }
}

/// Each of the translator's short cuts taken away, over less of it.
#[test]
fn debian_boots_the_same_way_translated_otherwise() {
    let Some(guest) = debian() else { return };
    let usual = TranslateOptions::default();
    let more = if full() { 40_000_000 } else { 2_000_000 };
    for options in [
        TranslateOptions { longest: 1, ..usual },
        TranslateOptions { link: false, ..usual },
        TranslateOptions { cache: 0, ..usual },
    ] {
        let start = 18_000_000;
        let plan = Plan {
            against: Against::Translated(options),
            start,
            end: start + more,
            every: 500_000,
            hash_every: 1_000_000,
        };
        match compare(&guest, &plan).unwrap() {
            Verdict::Same { count, exit } => assert_eq!((count, exit), (plan.end, None)),
            Verdict::Differs(divergence) => panic!("{options:?}: {divergence}"),
        }
    }
}

#[test]
fn debian_boots_the_same_way_translated_but_for_undefined_flags() {
    let Some(guest) = debian() else { return };
    let end = if full() { 3_000_000_000 } else { 200_000_000 };
    let (mut one, mut other) = (guest.machine().unwrap(), guest.machine().unwrap());
    assert!(other.set_translate(Some(TranslateOptions::default())), "this host cannot translate");
    let mut at = 0;
    while at < end {
        at += 50_000_000;
        let exits = (run(&mut one, at), run(&mut other, at));
        assert_eq!((exits.0, one.count()), (exits.1, other.count()));
        same_but_for_af(&mut one, &mut other);
        if exits.0 != Exit::CountReached {
            break;
        }
    }
    let stats = other.translator_stats().unwrap();
    assert!(stats.interpreted * 4 < other.count(), "little was translated: {stats:?}");
}

fn run(machine: &mut Machine, to: u64) -> Exit {
    machine.run(&Limits { count: Some(to), ..Limits::default() })
}

/// Words of memory that may differ in AF alone: so many flags are saved somewhere at most.
const MOST_WORDS: usize = 4096;

#[track_caller]
fn same_but_for_af(one: &mut Machine, other: &mut Machine) {
    let count = one.count();
    let states = [&*one, &*other].map(|machine| {
        let mut state = machine.cpu().save();
        state.rflags &= !rflags::AF;
        state.regs[11] &= !rflags::AF;
        state
    });
    assert_eq!(states[0], states[1], "after {count} instructions");
    assert!(
        one.board().save().iter().eq(other.board().save().iter()),
        "devices differ after {count} instructions"
    );
    let mut words = 0;
    let (first, second) = (one.cpu().memory(), other.cpu().memory());
    let mut check = |gpa: u64, page: &[u8; PAGE as usize], memory: &trapgate_engine::GuestMemory| {
        let mut bytes = [0; PAGE as usize];
        if memory.read(gpa, &mut bytes).is_err() || bytes == *page {
            return;
        }
        for (n, (a, b)) in page.chunks_exact(8).zip(bytes.chunks_exact(8)).enumerate() {
            let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
            let (a, b) = (word(a), word(b));
            if a != b {
                let at = gpa + 8 * n as u64;
                assert_eq!(a & !rflags::AF, b & !rflags::AF, "memory at {at:#x} after {count} instructions");
                words += 1;
            }
        }
    };
    first.each_page_in_use(|gpa, page| check(gpa, page, second));
    second.each_page_in_use(|gpa, page| check(gpa, page, first));
    // Each word was counted for both.
    assert!(words <= 2 * MOST_WORDS, "{words} words differ in AF after {count} instructions");
    println!("equal after {count} instructions, {} words differ in AF", words / 2);
}
