//! Two cascaded 8259A interrupt controllers with the edge/level registers of a PCI south bridge (Intel 8259A data sheet,
//! order 231468; PIIX4 data sheet, 4.2.7 for ELCR). One device, because a board never has them apart.
//!
//! Register offsets: 0 and 1 master (ports 20h, 21h), 2 and 3 slave (A0h, A1h), 4 and 5 ELCR (4D0h, 4D1h).
//! Trigger mode comes from ELCR alone, as in the PIIX; ICW1's LTIM bit, the single mode and the 8080 mode are ignored.
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::line::Output;
use crate::{Device, Line, Nanos, State, StateError, all_ones, lock};

const KIND: &str = "pic-8259a";
/// The master's input that the slave's INT drives.
const CASCADE: u8 = 2;
/// What a request that has vanished by the time it is acknowledged is reported as.
const SPURIOUS: u8 = 7;
/// Inputs that can be made level-sensitive: not the timer, the keyboard, the cascade, the clock and the coprocessor.
const ELCR_WRITABLE: [u8; 2] = [0xF8, 0xDE];

const ICW1: u8 = 0x10;
const ICW1_IC4: u8 = 0x01;
const ICW1_SINGLE: u8 = 0x02;
const ICW4_AUTO_EOI: u8 = 0x02;
const ICW4_SPECIAL_FULLY_NESTED: u8 = 0x10;
const OCW3: u8 = 0x08;

/// Which initialisation word the chip expects next at its odd address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Expects {
    #[default]
    Ocw1,
    Icw2,
    Icw3,
    Icw4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chip {
    /// Levels at the inputs.
    lines: u8,
    /// Rising edges seen and not yet acknowledged; a bit falls with its input.
    edges: u8,
    /// Inputs that are level-sensitive.
    elcr: u8,
    mask: u8,
    in_service: u8,
    vector_base: u8,
    /// The input with the lowest priority; the next one up has the highest.
    lowest: u8,
    expects: Expects,
    single: bool,
    wants_icw4: bool,
    auto_eoi: bool,
    special_fully_nested: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    read_in_service: bool,
    poll: bool,
}

impl Chip {
    fn new() -> Self {
        Chip {
            lines: 0,
            edges: 0,
            elcr: 0,
            mask: 0,
            in_service: 0,
            vector_base: 0,
            lowest: 7,
            expects: Expects::Ocw1,
            single: false,
            wants_icw4: false,
            auto_eoi: false,
            special_fully_nested: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            read_in_service: false,
            poll: false,
        }
    }

    fn irr(&self) -> u8 {
        self.lines & self.elcr | self.edges & !self.elcr
    }

    /// The most urgent of `inputs`, and how many are above it: 0 is the highest priority.
    fn highest(&self, inputs: u8) -> Option<(u8, u8)> {
        (0..8)
            .map(|rank| (self.lowest.wrapping_add(1).wrapping_add(rank) & 7, rank))
            .find(|&(input, _)| inputs & 1 << input != 0)
    }

    /// The input for which INT is raised, if any.
    fn request(&self) -> Option<u8> {
        let (input, rank) = self.highest(self.irr() & !self.mask)?;
        // In special mask mode a masked level in service holds nobody back (data sheet, "Special Mask Mode").
        let holding = if self.special_mask { self.in_service & !self.mask } else { self.in_service };
        let free = match self.highest(holding) {
            None => true,
            // A slave in service does not hold back a more urgent request of its own in special fully nested mode.
            Some((_, held)) if self.special_fully_nested && input == CASCADE => rank <= held,
            Some((_, held)) => rank < held,
        };
        free.then_some(input)
    }

    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << (input & 7);
        if level {
            self.edges |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
            self.edges &= !bit;
        }
    }

    /// The acknowledge cycle for the request that is there now; the spurious input without any effect if there is none.
    fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.request() else { return SPURIOUS };
        let bit = 1 << input;
        self.edges &= !bit;
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.lowest = input;
            }
        } else {
            self.in_service |= bit;
        }
        input
    }

    fn read(&mut self, odd: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return match self.request() {
                Some(_) => 0x80 | self.acknowledge(),
                None => 0,
            };
        }
        match odd {
            true => self.mask,
            false if self.read_in_service => self.in_service,
            false => self.irr(),
        }
    }

    fn write(&mut self, odd: bool, value: u8) {
        match (odd, self.expects) {
            (false, _) if value & ICW1 != 0 => self.write_icw1(value),
            (false, _) if value & OCW3 != 0 => self.write_ocw3(value),
            (false, _) => self.write_ocw2(value),
            (true, Expects::Ocw1) => self.mask = value,
            (true, Expects::Icw2) => {
                self.vector_base = value & 0xF8;
                self.expects = if !self.single { Expects::Icw3 } else { self.after_icw3() };
            }
            // The slave's number is wired on this board.
            (true, Expects::Icw3) => self.expects = self.after_icw3(),
            (true, Expects::Icw4) => {
                self.auto_eoi = value & ICW4_AUTO_EOI != 0;
                self.special_fully_nested = value & ICW4_SPECIAL_FULLY_NESTED != 0;
                self.expects = Expects::Ocw1;
            }
        }
    }

    fn after_icw3(&self) -> Expects {
        if self.wants_icw4 { Expects::Icw4 } else { Expects::Ocw1 }
    }

    /// The list under "Initialization Command Words 1 and 2" in the data sheet.
    fn write_icw1(&mut self, value: u8) {
        *self = Chip {
            lines: self.lines,
            elcr: self.elcr,
            vector_base: self.vector_base,
            expects: Expects::Icw2,
            single: value & ICW1_SINGLE != 0,
            wants_icw4: value & ICW1_IC4 != 0,
            ..Chip::new()
        };
    }

    fn write_ocw2(&mut self, value: u8) {
        let level = value & 7;
        let (rotate, specific, eoi) = (value & 0x80 != 0, value & 0x40 != 0, value & 0x20 != 0);
        if !eoi {
            match (rotate, specific) {
                (true, true) => self.lowest = level,
                (false, true) => {} // No operation.
                (rotate, false) => self.rotate_on_auto_eoi = rotate,
            }
            return;
        }
        // In special mask mode a non-specific end of interrupt does not see masked levels.
        let candidates = if self.special_mask { self.in_service & !self.mask } else { self.in_service };
        let ended = if specific { Some(level) } else { self.highest(candidates).map(|(input, _)| input) };
        if let Some(input) = ended {
            self.in_service &= !(1 << input);
            if rotate {
                self.lowest = input;
            }
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        if value & 0x04 != 0 {
            self.poll = true;
        } else if value & 0x02 != 0 {
            self.read_in_service = value & 0x01 != 0;
        }
    }
}

/// The two controllers of a PC.
#[derive(Debug)]
pub struct PicPair {
    master: Chip,
    slave: Chip,
    intr: Output,
}

impl PicPair {
    /// Controllers whose INT output drives `intr`.
    pub fn new(intr: Arc<dyn Line>) -> PicPair {
        PicPair { master: Chip::new(), slave: Chip::new(), intr: Output::new(intr) }
    }

    /// Drives interrupt request `irq`, 0 to 15. IRQ 2 is the cascade and has no pin.
    pub fn set_irq(&mut self, irq: u8, level: bool) {
        match irq {
            CASCADE => {}
            0..=7 => self.master.set_line(irq, level),
            8..=15 => self.slave.set_line(irq - 8, level),
            _ => {}
        }
        self.update();
    }

    /// Whether the INT output is high.
    pub fn interrupting(&self) -> bool {
        self.master.request().is_some()
    }

    /// The interrupt acknowledge cycle: takes the most urgent request into service and gives its vector. If the request
    /// has gone in the meantime, the vector is that of input 7 and nothing is in service.
    pub fn acknowledge(&mut self) -> u8 {
        let input = self.master.acknowledge();
        let vector = if input == CASCADE {
            self.master.set_line(CASCADE, false);
            self.slave.vector_base | self.slave.acknowledge()
        } else {
            self.master.vector_base | input
        };
        // INT falls during the cycle and rises again for the next request, which an edge-sensitive input must see.
        self.intr.set(false);
        self.update();
        vector
    }

    fn update(&mut self) {
        let cascade = self.slave.request().is_some();
        self.master.set_line(CASCADE, cascade);
        let level = self.interrupting();
        self.intr.set(level);
    }

    fn read_byte(&mut self, offset: u64) -> u8 {
        match offset {
            0 | 1 => self.master.read(offset & 1 != 0),
            2 | 3 => {
                if self.slave.poll {
                    self.master.set_line(CASCADE, false);
                }
                self.slave.read(offset & 1 != 0)
            }
            4 => self.master.elcr,
            5 => self.slave.elcr,
            _ => all_ones(1) as u8,
        }
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        match offset {
            0 | 1 => self.master.write(offset & 1 != 0, value),
            2 | 3 => self.slave.write(offset & 1 != 0, value),
            4 => self.master.elcr = value & ELCR_WRITABLE[0],
            5 => self.slave.elcr = value & ELCR_WRITABLE[1],
            _ => {}
        }
    }
}

impl Device for PicPair {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, offset: u64, size: u8, _now: Nanos) -> u64 {
        let value = crate::read_bytes(offset, size, |offset| self.read_byte(offset));
        self.update();
        value
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, _now: Nanos) {
        crate::write_bytes(offset, size, value, |offset, byte| self.write_byte(offset, byte));
        self.update();
    }

    fn reset(&mut self, _now: Nanos) {
        // The inputs belong to the chips at their other end, which are reset in their own time.
        self.master = Chip { lines: self.master.lines, ..Chip::new() };
        self.slave = Chip { lines: self.slave.lines, ..Chip::new() };
        self.update();
    }

    fn save(&self) -> State {
        State::encode(KIND, 1, &(self.master, self.slave))
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        let (master, slave): (Chip, Chip) = state.decode(KIND, 1)?;
        self.master = Chip { lowest: master.lowest & 7, ..master };
        self.slave = Chip { lowest: slave.lowest & 7, ..slave };
        let level = self.interrupting();
        self.intr.assume(level);
        Ok(())
    }
}

/// One interrupt request line into a [`PicPair`].
#[derive(Debug)]
pub struct PicInput {
    pic: Arc<Mutex<PicPair>>,
    irq: u8,
}

impl PicInput {
    /// The line of request `irq`, 0 to 15.
    #[expect(clippy::new_ret_no_self, reason = "a line is only ever held as one")]
    pub fn new(pic: &Arc<Mutex<PicPair>>, irq: u8) -> Arc<dyn Line> {
        Arc::new(PicInput { pic: Arc::clone(pic), irq })
    }
}

impl Line for PicInput {
    fn set(&self, level: bool) {
        lock(&self.pic).set_irq(self.irq, level);
    }
}

#[cfg(test)]
mod tests;
