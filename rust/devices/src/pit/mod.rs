//! 8254 programmable interval timer (Intel data sheet, order 231164). The counters are pure functions of machine time:
//! what is kept is the tick at which each was loaded. Channel 0's output drives IRQ 0, channel 2 belongs to the speaker
//! and its gate and output are reached through port 61h ([`crate::port61`]).
mod channel;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::line::Output;
use crate::state::damaged;
use crate::{Device, Frequency, Line, Nanos, State, StateError, all_ones};
use channel::Channel;

const KIND: &str = "pit-8254";
/// The PC's timer input: the 14.31818 MHz crystal divided by twelve.
pub const PIT_HZ: u64 = 1_193_182;
const CLOCK: Frequency = Frequency::hz(PIT_HZ);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    channels: [Channel; 3],
    /// Up to which tick channel 0's edges have been delivered.
    seen: i64,
}

/// The timer: counters at offsets 0 to 2, the control word at 3.
#[derive(Debug)]
pub struct Pit {
    registers: Registers,
    irq: Output,
}

/// The tick that `now` falls into. 2^64 ns are 2.2e16 ticks, far inside an i64.
fn tick(now: Nanos) -> i64 {
    CLOCK.ticks(now) as i64
}

impl Pit {
    /// A timer whose channel 0 drives `irq`. The gates of channels 0 and 1 are tied high, that of channel 2 is low until
    /// port 61h raises it.
    pub fn new(irq: Arc<dyn Line>) -> Pit {
        Pit { registers: Self::initial(0), irq: Output::new(irq) }
    }

    fn initial(now: Nanos) -> Registers {
        let channels = [Channel::new(true), Channel::new(true), Channel::new(false)];
        Registers { channels, seen: tick(now) }
    }

    /// The output of `channel` (0 to 2).
    pub fn output(&self, channel: usize, now: Nanos) -> bool {
        self.registers.channels[channel.min(2)].output(tick(now))
    }

    /// Drives the gate of `channel` (0 to 2).
    pub fn set_gate(&mut self, channel: usize, level: bool, now: Nanos) {
        self.advance(now);
        self.registers.channels[channel.min(2)].set_gate(level, tick(now));
        self.follow_output(now);
    }

    /// Puts the pin at the level that channel 0's output has now.
    fn follow_output(&mut self, now: Nanos) {
        let level = self.output(0, now);
        self.irq.set(level);
    }

    fn read_byte(&mut self, offset: u64, now: Nanos) -> u8 {
        match offset {
            0..=2 => self.registers.channels[offset as usize].read(tick(now)),
            _ => all_ones(1) as u8, // The control word cannot be read; the bus floats.
        }
    }

    fn write_byte(&mut self, offset: u64, value: u8, now: Nanos) {
        // Between edges the pin is left high (see `advance`); whether this write makes an edge depends on its true level.
        let channel_0_is_set = offset == 0 || offset == 3 && value & 0xC0 == 0 && value & 0x30 != 0;
        if channel_0_is_set {
            self.follow_output(now);
        }
        let tick = tick(now);
        match offset {
            0..=2 => self.registers.channels[offset as usize].write(value, tick),
            3 if value >= 0xC0 => self.read_back(value, tick),
            3 => self.registers.channels[usize::from(value >> 6)].control(value, tick),
            _ => {}
        }
        if channel_0_is_set {
            self.follow_output(now);
        }
    }

    /// The read-back command: latch count (bit 5 clear) and status (bit 4 clear) of the chosen channels.
    fn read_back(&mut self, value: u8, tick: i64) {
        for (i, channel) in self.registers.channels.iter_mut().enumerate() {
            if value & 2 << i == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                channel.latch_count(tick);
            }
            if value & 0x10 == 0 {
                channel.latch_status(tick);
            }
        }
    }
}

impl Device for Pit {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, offset: u64, size: u8, now: Nanos) -> u64 {
        self.advance(now);
        crate::read_bytes(offset, size, |offset| self.read_byte(offset, now))
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, now: Nanos) {
        self.advance(now);
        crate::write_bytes(offset, size, value, |offset, byte| self.write_byte(offset, byte, now));
    }

    fn reset(&mut self, now: Nanos) {
        self.registers = Self::initial(now);
        self.irq.set(false);
    }

    fn deadline(&self) -> Option<Nanos> {
        let rise = self.registers.channels[0].next_rise(self.registers.seen)?;
        CLOCK.time(u64::try_from(rise).ok()?)
    }

    /// Delivers one rising edge if channel 0's output has risen since the last call, however often. The falling edge of a
    /// running counter is not delivered by itself: the 8259A would drop a request that the CPU has not yet taken, and an
    /// emulated CPU can be much later than a real one.
    fn advance(&mut self, now: Nanos) {
        let now = tick(now);
        if now <= self.registers.seen {
            return;
        }
        let rise = self.registers.channels[0].next_rise(self.registers.seen);
        if rise.is_some_and(|rise| rise <= now) {
            self.irq.rise();
        }
        for channel in &mut self.registers.channels {
            channel.settle(now);
        }
        self.registers.seen = now;
    }

    fn save(&self) -> State {
        State::encode(KIND, 1, &(self.registers, self.irq.level()))
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        let (registers, level): (Registers, bool) = state.decode(KIND, 1)?;
        if !registers.channels.iter().all(Channel::is_sound) || registers.seen < 0 {
            return Err(damaged(KIND, "a count or tick is out of range"));
        }
        self.registers = registers;
        self.irq.assume(level);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
