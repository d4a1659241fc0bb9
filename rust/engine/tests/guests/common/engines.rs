//! Which engine the guests run on: the interpreter, or the one that the environment names.

use std::io::Write;

use trapgate_engine::Engine;
use trapgate_engine::translate::{TranslateOptions, TranslatorStats};

/// Variable that names the engine of a whole run of the suite: one of [`TRANSLATORS`] or [`INTERPRETER`], which nothing
/// means as well, and behind it [`SHADOW`] for shadow page tables.
pub const ENGINE: &str = "TRAPGATE_ENGINE";
pub const INTERPRETER: &str = "interpreter";
pub const SHADOW: &str = "+shadow";
/// Variable that asks for a line of statistics from each guest, on the standard error.
pub const STATISTICS: &str = "TRAPGATE_ENGINE_STATISTICS";

/// The translator as it is, and with each of its short cuts taken away.
pub const TRANSLATORS: [(&str, TranslateOptions); 7] = [
    ("translator", DEFAULT),
    ("single", TranslateOptions { longest: 1, ..DEFAULT }),
    ("unlinked", TranslateOptions { link: false, ..DEFAULT }),
    // As small as it gets: it is emptied all the time.
    ("small", TranslateOptions { cache: 0, ..DEFAULT }),
    ("checked", TranslateOptions { elide: false, ..DEFAULT }),
    ("forgetful", TranslateOptions { keep: false, ..DEFAULT }),
    ("paranoid", TranslateOptions::PARANOID),
];

const DEFAULT: TranslateOptions =
    TranslateOptions { cache: 32 << 20, longest: 48, link: true, elide: true, keep: true };

/// The options of an engine by name.
pub fn translator(name: &str) -> TranslateOptions {
    let found = TRANSLATORS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("{ENGINE}={name} is none of {:?}", TRANSLATORS.map(|(name, _)| name))).1
}

/// Gives an engine what the environment asks for.
pub fn choose(engine: &mut Engine) {
    if let Ok(name) = std::env::var(ENGINE) {
        engine.cpu.set_shadow_paging(name.ends_with(SHADOW));
        let options = Some(name.trim_end_matches(SHADOW)).filter(|name| *name != INTERPRETER).map(translator);
        assert!(engine.set_translate(options), "this host cannot translate");
    }
}

/// Writes the line that [`sum`] reads.
pub fn tell(engine: &Engine) {
    if std::env::var_os(STATISTICS).is_some()
        && let Some(stats) = engine.translator_stats()
    {
        let TranslatorStats { units, entries, interpreted, flushes, .. } = stats;
        let count = engine.cpu.count;
        let line = format!("translated {units} {entries} {interpreted} {flushes} {count}\n");
        // One write a line: guests of other threads do the same.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// What all guests of a run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    pub units: u64,
    pub entries: u64,
    pub interpreted: u64,
    pub flushes: u64,
    pub count: u64,
}

/// Adds up the lines of [`tell`].
pub fn sum(text: &str) -> Sum {
    let mut sum = Sum::default();
    for line in text.lines().filter_map(|line| line.strip_prefix("translated ")) {
        let numbers: Vec<u64> = line.split(' ').map(|n| n.parse().expect("a number")).collect();
        sum.units += numbers[0];
        sum.entries += numbers[1];
        sum.interpreted += numbers[2];
        sum.flushes += numbers[3];
        sum.count += numbers[4];
    }
    sum
}
