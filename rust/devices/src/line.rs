//! Interrupt and signal lines: one level each, set by a chip, seen by whatever the board connected. Also the few passive
//! parts that a board solders between chips: splitters, wired-OR, and a selector.
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::{State, StateError, lock};

/// An interrupt or signal line. A receiver ignores a level that it already has; edges are the receiver's business.
pub trait Line: Send + Sync {
    /// Drives the line.
    fn set(&self, level: bool);
}

impl fmt::Debug for dyn Line + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

/// A part of the wiring that remembers levels. It has no registers, so it is not a [`crate::Device`], but its state belongs
/// to the board's.
pub trait Junction: Send + Sync {
    /// The levels that it remembers.
    fn save(&self) -> State;

    /// Takes the levels of a record without driving anything.
    fn restore(&self, state: &State) -> Result<(), StateError>;
}

impl fmt::Debug for dyn Junction + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Junction")
    }
}

/// A line that leads nowhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLine;

impl Line for NoLine {
    fn set(&self, _level: bool) {}
}

impl NoLine {
    /// An unconnected line, ready to hand to a chip.
    #[expect(clippy::new_ret_no_self, reason = "a line is only ever held as one")]
    pub fn new() -> Arc<dyn Line> {
        Arc::new(NoLine)
    }
}

/// An output pin: a line and the level last driven, so that only changes travel.
#[derive(Debug)]
pub(crate) struct Output {
    line: Arc<dyn Line>,
    level: bool,
}

impl Output {
    /// A pin that is low.
    pub(crate) fn new(line: Arc<dyn Line>) -> Output {
        Output { line, level: false }
    }

    /// Drives the line if the level changes.
    pub(crate) fn set(&mut self, level: bool) {
        if self.level != level {
            self.level = level;
            self.line.set(level);
        }
    }

    /// Gives the receiver a rising edge, whatever the level was, and leaves the line high.
    pub(crate) fn rise(&mut self) {
        self.set(false);
        self.set(true);
    }

    /// The level last driven.
    pub(crate) fn level(&self) -> bool {
        self.level
    }

    /// Takes over a restored level without driving the line.
    pub(crate) fn assume(&mut self, level: bool) {
        self.level = level;
    }
}

/// One line that drives several, in order.
#[derive(Debug)]
pub struct Splitter(Vec<Arc<dyn Line>>);

impl Splitter {
    /// Drives all of `lines`.
    #[expect(clippy::new_ret_no_self, reason = "a line is only ever held as one")]
    pub fn new(lines: Vec<Arc<dyn Line>>) -> Arc<dyn Line> {
        Arc::new(Splitter(lines))
    }
}

impl Line for Splitter {
    fn set(&self, level: bool) {
        for line in &self.0 {
            line.set(level);
        }
    }
}

/// Several sources on one line: high while any of them is. Up to 32 sources.
#[derive(Debug)]
pub struct WiredOr {
    target: Arc<dyn Line>,
    /// Locked while the target is driven, so that two sources on two threads cannot overtake each other.
    sources: Mutex<u32>,
}

impl WiredOr {
    const KIND: &'static str = "wired-or";

    /// A junction that drives `target`.
    pub fn new(target: Arc<dyn Line>) -> Arc<WiredOr> {
        Arc::new(WiredOr { target, sources: Mutex::new(0) })
    }

    /// The input for source `index`, 0 to 31; a higher index is taken modulo 32.
    pub fn source(self: &Arc<Self>, index: u8) -> Arc<dyn Line> {
        Arc::new(WiredOrSource { junction: Arc::clone(self), bit: 1u32 << (index % 32) })
    }

    /// The level at the output.
    pub fn level(&self) -> bool {
        *lock(&self.sources) != 0
    }
}

impl Junction for WiredOr {
    fn save(&self) -> State {
        State::encode(Self::KIND, 1, &*lock(&self.sources))
    }

    fn restore(&self, state: &State) -> Result<(), StateError> {
        *lock(&self.sources) = state.decode(Self::KIND, 1)?;
        Ok(())
    }
}

#[derive(Debug)]
struct WiredOrSource {
    junction: Arc<WiredOr>,
    bit: u32,
}

impl Line for WiredOrSource {
    fn set(&self, level: bool) {
        let mut sources = lock(&self.junction.sources);
        let before = *sources;
        *sources = if level { before | self.bit } else { before & !self.bit };
        if (before == 0) != (*sources == 0) {
            self.junction.target.set(level);
        }
    }
}

/// Two sources of which one at a time reaches the target: IRQ 0 and IRQ 8, which the HPET takes over from the PIT and the
/// RTC in its legacy replacement mode (HPET specification 1.0a, 2.3.4).
#[derive(Debug)]
pub struct Selector {
    target: Arc<dyn Line>,
    state: Mutex<SelectorState>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct SelectorState {
    levels: [bool; 2],
    second: bool,
}

impl Selector {
    const KIND: &'static str = "selector";

    /// A selector that lets source 0 through.
    pub fn new(target: Arc<dyn Line>) -> Arc<Selector> {
        Arc::new(Selector { target, state: Mutex::default() })
    }

    /// The input for source 0 or 1.
    pub fn source(self: &Arc<Self>, index: usize) -> Arc<dyn Line> {
        Arc::new(SelectorSource { selector: Arc::clone(self), second: index != 0 })
    }

    /// The control input: high lets source 1 through.
    pub fn select(self: &Arc<Self>) -> Arc<dyn Line> {
        Arc::new(SelectorControl(Arc::clone(self)))
    }
}

impl Junction for Selector {
    fn save(&self) -> State {
        State::encode(Self::KIND, 1, &*lock(&self.state))
    }

    fn restore(&self, state: &State) -> Result<(), StateError> {
        *lock(&self.state) = state.decode(Self::KIND, 1)?;
        Ok(())
    }
}

#[derive(Debug)]
struct SelectorSource {
    selector: Arc<Selector>,
    second: bool,
}

impl Line for SelectorSource {
    fn set(&self, level: bool) {
        let mut state = lock(&self.selector.state);
        state.levels[usize::from(self.second)] = level;
        if state.second == self.second {
            self.selector.target.set(level);
        }
    }
}

#[derive(Debug)]
struct SelectorControl(Arc<Selector>);

impl Line for SelectorControl {
    fn set(&self, level: bool) {
        let mut state = lock(&self.0.state);
        if state.second != level {
            state.second = level;
            self.0.target.set(state.levels[usize::from(level)]);
        }
    }
}

/// A line that remembers its level and counts its rising edges: a passive end for boards and tests.
#[derive(Debug, Default)]
pub struct Probe {
    level: AtomicBool,
    rises: AtomicU32,
}

impl Probe {
    /// A probe that has seen nothing.
    pub fn new() -> Arc<Probe> {
        Arc::default()
    }

    /// The present level.
    pub fn level(&self) -> bool {
        self.level.load(Ordering::SeqCst)
    }

    /// Rising edges since the last call.
    pub fn take_rises(&self) -> u32 {
        self.rises.swap(0, Ordering::SeqCst)
    }
}

impl Line for Probe {
    fn set(&self, level: bool) {
        if !self.level.swap(level, Ordering::SeqCst) && level {
            self.rises.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wired_or_is_high_while_any_source_is() {
        let probe = Probe::new();
        let or = WiredOr::new(probe.clone());
        let (a, b) = (or.source(0), or.source(5));
        a.set(true);
        b.set(true);
        a.set(false);
        assert!(probe.level());
        let saved = or.save();
        b.set(false);
        assert!(!probe.level());
        assert_eq!(probe.take_rises(), 1);
        or.restore(&saved).unwrap();
        assert!(or.level() && !probe.level(), "restore must not drive the line");
    }

    #[test]
    fn a_selector_passes_the_selected_source_only() {
        let probe = Probe::new();
        let selector = Selector::new(probe.clone());
        let (pit, hpet, control) = (selector.source(0), selector.source(1), selector.select());
        hpet.set(true);
        assert!(!probe.level());
        pit.set(true);
        assert!(probe.level());
        hpet.set(false);
        control.set(true);
        assert!(!probe.level());
        pit.set(false);
        hpet.set(true);
        assert!(probe.level());
        control.set(false);
        assert!(!probe.level());
    }

    #[test]
    fn an_output_only_sends_changes() {
        let probe = Probe::new();
        let mut output = Output::new(probe.clone());
        output.set(true);
        output.set(true);
        output.rise();
        assert_eq!(probe.take_rises(), 2);
        output.assume(false);
        assert!(probe.level());
        output.set(true);
        assert_eq!(probe.take_rises(), 0);
    }
}
