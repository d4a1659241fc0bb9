//! Two cascaded 8237A DMA controllers with their page registers (Intel data sheet 231466; PIIX4 data sheet 82371AB, 4.2.1):
//! all registers with their flip-flops and masks. No chip of this board asks for a transfer, so there is no data path.
//!
//! Offsets: 0 to 0Fh the first controller (ports 00h-0Fh), 10h to 1Fh the page registers (80h-8Fh), 20h to 3Fh the second
//! controller, whose registers lie at even offsets (C0h-DFh). Page register 0 is port 80h, where firmware writes its
//! progress codes.
use serde::{Deserialize, Serialize};

use crate::{Device, Nanos, State, StateError, all_ones};

const KIND: &str = "dma-8237";
/// Where the page registers begin.
pub const DMA_PAGES: u64 = 0x10;
/// Where the second controller begins.
pub const DMA_SECOND: u64 = 0x20;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    base_address: u16,
    base_count: u16,
    address: u16,
    count: u16,
    mode: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Controller {
    channels: [Channel; 4],
    command: u8,
    /// Terminal counts reached, cleared by reading the status register.
    terminal: u8,
    /// Software requests.
    requests: u8,
    mask: u8,
    /// The next 16-bit access moves the high byte.
    high: bool,
}

impl Controller {
    fn new() -> Controller {
        Controller {
            channels: [Channel::default(); 4],
            command: 0,
            terminal: 0,
            requests: 0,
            mask: 0x0F,
            high: false,
        }
    }

    /// The data sheet's "Master Clear", which is also what the RESET pin does.
    fn clear(&mut self) {
        *self = Controller { channels: self.channels, ..Controller::new() };
    }

    fn read(&mut self, register: u64) -> u8 {
        match register {
            0..=7 => {
                let channel = &self.channels[(register >> 1) as usize];
                let word = if register & 1 == 0 { channel.address } else { channel.count };
                let high = self.high;
                self.high = !high;
                word.to_le_bytes()[usize::from(high)]
            }
            8 => std::mem::take(&mut self.terminal) | self.requests << 4,
            0xD => 0, // The temporary register belongs to memory-to-memory transfers, which PCs cannot do.
            0xF => self.mask | 0xF0,
            _ => all_ones(1) as u8,
        }
    }

    fn write(&mut self, register: u64, value: u8) {
        let channel = usize::from(value & 3);
        let set_bit = |bits: u8| if value & 4 != 0 { bits | 1 << channel } else { bits & !(1 << channel) };
        match register {
            0..=7 => {
                let high = self.high;
                self.high = !high;
                let channel = &mut self.channels[(register >> 1) as usize];
                let word =
                    if register & 1 == 0 { &mut channel.base_address } else { &mut channel.base_count };
                *word = if high {
                    *word & 0x00FF | u16::from(value) << 8
                } else {
                    *word & 0xFF00 | u16::from(value)
                };
                // Base and current registers are written together.
                (channel.address, channel.count) = match register & 1 {
                    0 => (channel.base_address, channel.count),
                    _ => (channel.address, channel.base_count),
                };
            }
            8 => self.command = value,
            9 => self.requests = set_bit(self.requests),
            0xA => self.mask = set_bit(self.mask),
            0xB => self.channels[channel].mode = value & 0xFC,
            0xC => self.high = false,
            0xD => self.clear(),
            0xE => self.mask = 0,
            0xF => self.mask = value & 0x0F,
            _ => {}
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    controllers: [Controller; 2],
    pages: [u8; 16],
}

/// The controllers.
#[derive(Debug)]
pub struct Dma {
    registers: Registers,
}

impl Default for Dma {
    fn default() -> Self {
        Self::new()
    }
}

impl Dma {
    /// Controllers with all channels masked.
    pub fn new() -> Dma {
        Dma { registers: Registers { controllers: [Controller::new(); 2], pages: [0; 16] } }
    }

    /// The progress code last written to port 80h.
    pub fn post_code(&self) -> u8 {
        self.registers.pages[0]
    }

    fn read_byte(&mut self, offset: u64) -> u8 {
        match offset {
            0..=0xF => self.registers.controllers[0].read(offset),
            0x10..=0x1F => self.registers.pages[(offset & 0xF) as usize],
            0x20..=0x3F if offset & 1 == 0 => self.registers.controllers[1].read(offset >> 1 & 0xF),
            _ => all_ones(1) as u8,
        }
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        match offset {
            0..=0xF => self.registers.controllers[0].write(offset, value),
            0x10..=0x1F => self.registers.pages[(offset & 0xF) as usize] = value,
            0x20..=0x3F if offset & 1 == 0 => self.registers.controllers[1].write(offset >> 1 & 0xF, value),
            _ => {}
        }
    }
}

impl Device for Dma {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, offset: u64, size: u8, _now: Nanos) -> u64 {
        crate::read_bytes(offset, size, |offset| self.read_byte(offset))
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, _now: Nanos) {
        crate::write_bytes(offset, size, value, |offset, byte| self.write_byte(offset, byte));
    }

    fn reset(&mut self, _now: Nanos) {
        *self = Dma::new();
    }

    fn save(&self) -> State {
        State::encode(KIND, 1, &self.registers)
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        self.registers = state.decode(KIND, 1)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_move_by_the_flip_flop() {
        let mut dma = Dma::new();
        for (first, stride) in [(0, 1), (DMA_SECOND, 2)] {
            let register = |n: u64| first + n * stride;
            dma.write(register(0xC), 1, 0, 0);
            dma.write(register(5), 1, 0x34, 0);
            dma.write(register(5), 1, 0x12, 0);
            assert_eq!([dma.read(register(5), 1, 0), dma.read(register(5), 1, 0)], [0x34, 0x12]);
            dma.read(register(5), 1, 0);
            dma.write(register(0xC), 1, 0, 0);
            assert_eq!(dma.read(register(5), 1, 0), 0x34);
        }
    }

    #[test]
    fn masks_requests_and_clears() {
        let mut dma = Dma::new();
        assert_eq!(dma.read(0xF, 1, 0), 0xFF);
        dma.write(0xA, 1, 0x02, 0);
        assert_eq!(dma.read(0xF, 1, 0), 0xFB);
        dma.write(9, 1, 0x05, 0);
        assert_eq!(dma.read(8, 1, 0), 0x20);
        dma.write(0xE, 1, 0, 0);
        assert_eq!(dma.read(0xF, 1, 0), 0xF0);
        dma.write(0xD, 1, 0, 0);
        assert_eq!((dma.read(0xF, 1, 0), dma.read(8, 1, 0)), (0xFF, 0));
    }

    #[test]
    fn pages_hold_what_is_written_and_the_first_is_the_post_code() {
        let mut dma = Dma::new();
        for page in 0..16 {
            dma.write(DMA_PAGES + page, 1, 0x50 + page, 0);
        }
        assert_eq!(dma.read(DMA_PAGES + 7, 1, 0), 0x57);
        assert_eq!(dma.post_code(), 0x50);
    }
}
