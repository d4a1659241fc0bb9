//! The interpreter and the translator side by side on a boot, in virtual time: the same state at the same count.
//!
//! Without the image the test says so and passes. `TRAPGATE_FULL=1` goes through all of the boot.
//!
//! AF is undefined after logic operations and shifts, and the interpreter's and the host's differ after some. So where hashes
//! differ states are compared but for bit 4 of the flags, of R11, where SYSCALL puts them, and of words in memory, where an
//! interrupt may have saved them. Nothing else is left out.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod common;

use trapgate_engine::memory::PAGE;
use trapgate_engine::translate::TranslateOptions;
use trapgate_lockstep::guest::Guest;
use trapgate_machine::{Exit, Limits, Machine};
use trapgate_x86::regs::rflags;

use common::{debian, full};

/// Runs a boot to `start`, then on both engines and compares at every step.
#[track_caller]
fn same(guest: &Guest, options: TranslateOptions, shadow: bool, start: u64, end: u64, step: u64) {
    let (mut one, mut other) = (guest.machine().unwrap(), guest.machine().unwrap());
    run(&mut one, start);
    run(&mut other, start);
    assert!(other.set_translate(Some(options)), "this host cannot translate");
    other.set_shadow_paging(shadow);
    let mut at = start;
    while at < end {
        at += step;
        let exits = (run(&mut one, at), run(&mut other, at));
        assert_eq!((exits.0, one.count()), (exits.1, other.count()), "{options:?}");
        same_but_for_af(&mut one, &mut other);
        if exits.0 != Exit::CountReached {
            break;
        }
    }
    let stats = other.translator_stats().unwrap();
    assert!(stats.interpreted * 4 < other.count() - start, "little was translated: {stats:?}");
}

#[test]
fn debian_boots_the_same_way_translated() {
    let Some(guest) = debian() else { return };
    let end = if full() { 3_000_000_000 } else { 200_000_000 };
    same(&guest, TranslateOptions::default(), false, 0, end, 20_000_000);
}

/// Past the point where the kernel has page tables of its own.
#[test]
fn debian_boots_the_same_way_with_shadow_page_tables() {
    let Some(guest) = debian() else { return };
    let end = if full() { 3_000_000_000 } else { 200_000_000 };
    same(&guest, TranslateOptions::default(), true, 0, end, 20_000_000);
}

/// Each of the translator's short cuts taken away, over less of it: page tables of the kernel's own, from 18 million
/// instructions on.
#[test]
fn debian_boots_the_same_way_without_short_cuts() {
    let Some(guest) = debian() else { return };
    let usual = TranslateOptions::default();
    let more = if full() { 100_000_000 } else { 2_000_000 };
    for options in [
        TranslateOptions { longest: 1, ..usual },
        TranslateOptions { link: false, ..usual },
        TranslateOptions { cache: 0, ..usual },
        TranslateOptions { elide: false, ..usual },
        TranslateOptions { keep: false, ..usual },
        TranslateOptions::PARANOID,
    ] {
        same(&guest, options, false, 18_000_000, 18_000_000 + more, 500_000);
    }
}

fn run(machine: &mut Machine, to: u64) -> Exit {
    machine.run(&Limits { count: Some(to), ..Limits::default() })
}

/// Words of memory that may differ in AF alone: so many flags are saved somewhere at most.
const MOST_WORDS: usize = 4096;

#[track_caller]
fn same_but_for_af(one: &mut Machine, other: &mut Machine) {
    if one.digest() == other.digest() {
        return;
    }
    let count = one.count();
    let states = [&*one, &*other].map(|machine| {
        let mut state = machine.cpu().save();
        state.rflags &= !rflags::AF;
        state.regs[11] &= !rflags::AF;
        state
    });
    assert_eq!(states[0], states[1], "after {count} instructions");
    assert!(devices(one) == devices(other), "devices differ after {count} instructions");
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
}

/// State records of the devices of a PC.
fn devices(machine: &Machine) -> Vec<trapgate_devices::State> {
    machine.pc().map(|board| board.save()).unwrap_or_default()
}
