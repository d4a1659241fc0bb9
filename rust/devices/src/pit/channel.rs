//! One counter of the 8254: its six modes as functions of the tick. "Elapsed" is the number of clock pulses since the
//! counting element was loaded, which happens on the pulse after a count is written or the gate rises.
use serde::{Deserialize, Serialize};

/// How a count is moved over the eight-bit bus (control word bits 5 and 4).
const ACCESS_LOW: u8 = 1;
const ACCESS_HIGH: u8 = 2;

/// A count that is loaded at the end of a running cycle (modes 2 and 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Next {
    count: u32,
    at: i64,
    /// Mode 3: the boundary ends the high half, so the new count begins with its low half.
    low_half: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Channel {
    mode: u8,
    bcd: bool,
    access: u8,
    gate: bool,
    /// The count register: what the next load takes.
    initial: u32,
    /// What the counting element was loaded with.
    count: u32,
    /// The tick at which it was (or will be) loaded.
    start: i64,
    /// Whether it has been loaded since the control word was written.
    counting: bool,
    /// Elapsed pulses at which a low gate stopped it.
    stopped: Option<i64>,
    next: Option<Next>,
    /// The count register holds a count that has not reached the counting element (modes 1 and 5).
    waiting: bool,
    written_low: Option<u8>,
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Channel {
    pub(super) fn new(gate: bool) -> Self {
        Channel {
            mode: 3,
            bcd: false,
            access: ACCESS_LOW | ACCESS_HIGH,
            gate,
            initial: 0x1_0000,
            count: 0x1_0000,
            start: 0,
            counting: false,
            stopped: None,
            next: None,
            waiting: false,
            written_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// Whether a restored channel can be computed with.
    pub(super) fn is_sound(&self) -> bool {
        let count = |count: u32| (1..=0x1_0000).contains(&count);
        let tick = |tick: i64| (-0x2_0000..1 << 60).contains(&tick);
        self.mode <= 5
            && count(self.initial)
            && count(self.count)
            && tick(self.start)
            && self.stopped.is_none_or(|stopped| (0..1 << 60).contains(&stopped))
            && self.next.is_none_or(|next| count(next.count) && tick(next.at))
    }

    fn periodic(&self) -> bool {
        self.mode == 2 || self.mode == 3
    }

    /// Modes whose count is loaded by the gate's rising edge.
    fn triggered(&self) -> bool {
        self.mode == 1 || self.mode == 5
    }

    fn modulus(&self) -> i64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    fn elapsed(&self, tick: i64) -> i64 {
        self.stopped.unwrap_or_else(|| tick.saturating_sub(self.start).max(0))
    }

    fn period(&self) -> i64 {
        i64::from(self.count)
    }

    /// Mode 3: how long the output is high. An odd count is high for one pulse longer than low.
    fn high_half(count: i64) -> i64 {
        (count + 1) / 2
    }

    /// The channel as it is at `tick`, with a count that was to be loaded by then.
    fn at(mut self, tick: i64) -> Self {
        if let Some(next) = self.next.filter(|next| next.at <= tick) {
            let count = i64::from(next.count);
            self.start = if next.low_half { next.at - Self::high_half(count) } else { next.at };
            self.count = next.count;
            self.next = None;
        }
        self
    }

    /// Loads a count that is due, so that `at` need not be asked forever.
    pub(super) fn settle(&mut self, tick: i64) {
        *self = self.at(tick);
    }

    pub(super) fn output(&self, tick: i64) -> bool {
        let c = self.at(tick);
        if !c.counting || c.stopped.is_none() && tick < c.start {
            return c.mode != 0;
        }
        let (elapsed, period) = (c.elapsed(tick), c.period());
        match c.mode {
            0 | 1 => elapsed >= period,
            2 => c.stopped.is_some() || period < 2 || elapsed % period != period - 1,
            3 => c.stopped.is_some() || elapsed % period < Self::high_half(period),
            _ => elapsed != period,
        }
    }

    /// The first tick after `tick` at which the output rises by itself.
    pub(super) fn next_rise(&self, tick: i64) -> Option<i64> {
        let rise = self.at(tick).rise_without_reload(tick)?;
        match self.next {
            Some(next) if next.at > tick && rise > next.at => self.at(next.at).rise_without_reload(tick),
            _ => Some(rise),
        }
    }

    fn rise_without_reload(&self, tick: i64) -> Option<i64> {
        if !self.counting || self.stopped.is_some() {
            return None;
        }
        let period = self.period();
        let rise = match self.mode {
            0 | 1 => self.start + period,
            // The output falls for the pulse after the last and rises on the one after that.
            4 | 5 => self.start + period + 1,
            // A period of one is illegal (the output would never change).
            _ if period < 2 => return None,
            _ => self.start + ((tick - self.start).max(0) / period + 1) * period,
        };
        (rise > tick).then_some(rise)
    }

    /// The counting element, 1 to 10000h, or 0 past the end.
    fn value(&self, tick: i64) -> u16 {
        let c = self.at(tick);
        let (elapsed, period) = (c.elapsed(tick), c.period());
        let value = match c.mode {
            2 => period - elapsed % period,
            3 => {
                let (phase, high) = (elapsed % period, Self::high_half(period));
                let even = period & !1;
                even - 2 * if phase < high { phase } else { phase - high }
            }
            _ => (period - elapsed).rem_euclid(c.modulus()),
        };
        let value = value.rem_euclid(c.modulus()) as u16;
        if c.bcd { to_bcd(value) } else { value }
    }

    pub(super) fn set_gate(&mut self, level: bool, tick: i64) {
        if self.gate == level {
            return;
        }
        self.gate = level;
        self.settle(tick);
        match (level, self.mode) {
            (true, 1 | 5) if self.counting || self.waiting => self.load(self.initial, tick),
            (true, 2 | 3) if self.counting => self.load(self.initial, tick),
            (true, 0 | 4) => {
                if let Some(stopped) = self.stopped.take() {
                    self.start = tick - stopped;
                }
            }
            (false, 0 | 2 | 3 | 4) if self.counting => self.stopped = Some(self.elapsed(tick)),
            _ => {}
        }
    }

    /// Loads the counting element on the next pulse.
    fn load(&mut self, count: u32, tick: i64) {
        self.count = count;
        self.start = tick + 1;
        self.counting = true;
        self.waiting = false;
        self.next = None;
        self.stopped = if self.gate || self.triggered() { None } else { Some(0) };
    }

    /// A control word for this channel, or the counter latch command.
    pub(super) fn control(&mut self, value: u8, tick: i64) {
        let access = value >> 4 & 3;
        if access == 0 {
            self.latch_count(tick);
            return;
        }
        let mode = value >> 1 & 7;
        *self = Channel {
            mode: if mode > 5 { mode & 3 } else { mode },
            bcd: value & 1 != 0,
            access,
            initial: self.initial,
            count: self.count,
            start: tick,
            ..Channel::new(self.gate)
        };
    }

    pub(super) fn latch_count(&mut self, tick: i64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.value(tick));
        }
    }

    pub(super) fn latch_status(&mut self, tick: i64) {
        if self.latched_status.is_none() {
            let output = u8::from(self.output(tick)) << 7;
            let null = u8::from(self.null_count(tick)) << 6;
            self.latched_status =
                Some(output | null | self.access << 4 | self.mode << 1 | u8::from(self.bcd));
        }
    }

    /// The count last written has not yet reached the counting element.
    fn null_count(&self, tick: i64) -> bool {
        let c = self.at(tick);
        !c.counting || c.waiting || c.next.is_some() || c.stopped.is_none() && tick < c.start
    }

    pub(super) fn read(&mut self, tick: i64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let value = self.latched_count.unwrap_or_else(|| self.value(tick));
        let high = match self.access {
            ACCESS_LOW => false,
            ACCESS_HIGH => true,
            _ => {
                self.read_high = !self.read_high;
                !self.read_high
            }
        };
        // A two-byte latch is released by its second byte.
        if !self.read_high {
            self.latched_count = None;
        }
        value.to_le_bytes()[usize::from(high)]
    }

    pub(super) fn write(&mut self, value: u8, tick: i64) {
        match (self.access, self.written_low.take()) {
            (ACCESS_LOW, _) => self.write_count(value.into(), tick),
            (ACCESS_HIGH, _) => self.write_count(u16::from(value) << 8, tick),
            (_, Some(low)) => self.write_count(u16::from_le_bytes([low, value]), tick),
            (_, None) => {
                self.written_low = Some(value);
                // Mode 0: the first byte stops the counting and takes the output low.
                if self.mode == 0 {
                    self.counting = false;
                }
            }
        }
    }

    fn write_count(&mut self, value: u16, tick: i64) {
        self.settle(tick);
        let count = if self.bcd { from_bcd(value) } else { value.into() };
        let count = if count == 0 { self.modulus() as u32 } else { count };
        self.initial = count;
        if self.triggered() {
            self.waiting = true;
        } else if self.periodic() && self.counting && self.stopped.is_none() {
            self.next = Some(self.next_at_boundary(count, tick));
        } else {
            self.load(count, tick);
        }
    }

    /// Where the running cycle (mode 2) or half cycle (mode 3) ends.
    fn next_at_boundary(&self, count: u32, tick: i64) -> Next {
        let period = self.period();
        let begin = self.start + self.elapsed(tick) / period * period;
        let middle = begin + Self::high_half(period);
        if self.mode == 3 && tick < middle {
            Next { count, at: middle, low_half: true }
        } else {
            Next { count, at: begin + period, low_half: false }
        }
    }
}

fn from_bcd(value: u16) -> u32 {
    let digit = |shift: u16| u32::from(value >> shift & 0xF);
    (digit(12) * 1000 + digit(8) * 100 + digit(4) * 10 + digit(0)) % 10_000
}

fn to_bcd(value: u16) -> u16 {
    let digit = |unit: u16| value / unit % 10;
    digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
}
