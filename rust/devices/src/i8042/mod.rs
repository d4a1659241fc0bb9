//! i8042 keyboard controller with PS/2 keyboard and mouse (IBM PS/2 Hardware Interface Technical Reference, "Keyboard and
//! Auxiliary Device Controller"; PIIX4 data sheet for A20 and reset). Offset 0 is port 60h, offset 4 is port 64h.
//!
//! Bytes move without transmission time: as soon as the output buffer is read the next one is in it.
mod keyboard;
mod mouse;

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::line::Output;
use crate::state::damaged;
use crate::{Device, Line, MachineControl, Nanos, State, StateError, all_ones};
use keyboard::Keyboard;
pub use keyboard::{Key, us_layout};
use mouse::Mouse;
pub use mouse::MouseEvent;

const KIND: &str = "i8042";

/// Answers that a guest has asked for and not read; more are lost.
const REPLIES: usize = 8;

/// Status register.
const STATUS_OUTPUT_FULL: u8 = 0x01;
const STATUS_SYSTEM: u8 = 0x04;
const STATUS_COMMAND: u8 = 0x08;
const STATUS_UNLOCKED: u8 = 0x10;
const STATUS_AUX: u8 = 0x20;

/// Command byte, the controller's RAM byte 0.
const KEYBOARD_INTERRUPT: u8 = 0x01;
const AUX_INTERRUPT: u8 = 0x02;
const SYSTEM_FLAG: u8 = 0x04;
const KEYBOARD_DISABLED: u8 = 0x10;
const AUX_DISABLED: u8 = 0x20;
const TRANSLATE: u8 = 0x40;
/// What firmware leaves: keyboard on, interrupting and translated, mouse off.
const COMMAND_BYTE_AFTER_POST: u8 = TRANSLATE | AUX_DISABLED | SYSTEM_FLAG | KEYBOARD_INTERRUPT;

/// Output port.
const PORT_NOT_RESET: u8 = 0x01;
const PORT_A20: u8 = 0x02;
const PORT_KEYBOARD_FULL: u8 = 0x10;
const PORT_AUX_FULL: u8 = 0x20;

/// Responses of the controller itself.
const SELF_TEST_PASSED: u8 = 0x55;
const INTERFACE_GOOD: u8 = 0x00;
const NO_PASSWORD: u8 = 0xF1;
/// Keyboard not locked, manufacturing jumper not installed.
const INPUT_PORT: u8 = 0xB0;

/// Whose byte is in the output buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    Keyboard,
    Aux,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    /// Byte 0 is the command byte, the rest is scratch.
    ram: Vec<u8>,
    /// The byte in the output buffer.
    output: Option<(u8, Source)>,
    /// What port 60h reads as while the buffer is empty.
    last_output: u8,
    /// Bytes of the controller that wait for the output buffer.
    replies: VecDeque<(u8, Source)>,
    /// The command whose parameter the next write to port 60h is.
    parameter_of: Option<u8>,
    last_was_command: bool,
    a20: bool,
    /// A break prefix has been taken from the keyboard and belongs to the next byte.
    break_prefix: bool,
    keyboard: Keyboard,
    mouse: Mouse,
}

impl Registers {
    fn new() -> Registers {
        let mut ram = vec![0; 32];
        ram[0] = COMMAND_BYTE_AFTER_POST;
        Registers {
            ram,
            output: None,
            last_output: 0,
            replies: VecDeque::new(),
            parameter_of: None,
            last_was_command: true,
            a20: true,
            break_prefix: false,
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
        }
    }
}

/// The controller with its two devices.
#[derive(Debug)]
pub struct I8042 {
    registers: Registers,
    control: Arc<dyn MachineControl>,
    keyboard_irq: Output,
    mouse_irq: Output,
    a20: Output,
}

impl I8042 {
    /// A controller that interrupts on `keyboard_irq` (IRQ 1) and `mouse_irq` (IRQ 12), asks `control` for resets, and
    /// opens the A20 gate with `a20`, which it raises at once.
    pub fn new(
        control: Arc<dyn MachineControl>,
        keyboard_irq: Arc<dyn Line>,
        mouse_irq: Arc<dyn Line>,
        a20: Arc<dyn Line>,
    ) -> I8042 {
        let mut chip = I8042 {
            registers: Registers::new(),
            control,
            keyboard_irq: Output::new(keyboard_irq),
            mouse_irq: Output::new(mouse_irq),
            a20: Output::new(a20),
        };
        chip.update();
        chip
    }

    /// A key goes down or up. What the keyboard has no room for is lost, as on a real one.
    pub fn key(&mut self, key: Key, down: bool) {
        self.registers.keyboard.key(key, down);
        self.update();
    }

    /// How many more scan code bytes the keyboard can hold.
    pub fn keyboard_room(&self) -> usize {
        self.registers.keyboard.room()
    }

    /// The mouse moves or a button changes.
    pub fn mouse(&mut self, event: MouseEvent) {
        self.registers.mouse.event(event);
        self.update();
    }

    /// The keyboard's lights: bit 0 scroll lock, 1 num lock, 2 caps lock.
    pub fn leds(&self) -> u8 {
        self.registers.keyboard.leds()
    }

    fn command_byte(&self) -> u8 {
        self.registers.ram[0]
    }

    fn reply(&mut self, byte: u8, source: Source) {
        if self.registers.replies.len() < REPLIES {
            self.registers.replies.push_back((byte, source));
        }
    }

    /// Moves the next byte into the output buffer if that is empty: the controller's own first, then the keyboard's, then
    /// the mouse's.
    fn fill(&mut self) {
        while self.registers.output.is_none() {
            let command_byte = self.command_byte();
            let r = &mut self.registers;
            if let Some(reply) = r.replies.pop_front() {
                r.output = Some(reply);
            } else if let Some(byte) =
                (command_byte & KEYBOARD_DISABLED == 0).then(|| r.keyboard.send()).flatten()
            {
                let byte = if command_byte & TRANSLATE != 0 { self.translate(byte) } else { Some(byte) };
                self.registers.output = byte.map(|byte| (byte, Source::Keyboard));
            } else if let Some(byte) = (command_byte & AUX_DISABLED == 0).then(|| r.mouse.send()).flatten() {
                r.output = Some((byte, Source::Aux));
            } else {
                return;
            }
        }
    }

    /// Set 2 to set 1: a break prefix becomes the high bit of the next code.
    fn translate(&mut self, byte: u8) -> Option<u8> {
        if byte == keyboard::BREAK {
            self.registers.break_prefix = true;
            return None;
        }
        let high = if std::mem::take(&mut self.registers.break_prefix) { 0x80 } else { 0 };
        Some(keyboard::translate(byte) | high)
    }

    fn levels(&self) -> (bool, bool) {
        let source = self.registers.output.map(|(_, source)| source);
        let enabled = self.command_byte();
        (
            source == Some(Source::Keyboard) && enabled & KEYBOARD_INTERRUPT != 0,
            source == Some(Source::Aux) && enabled & AUX_INTERRUPT != 0,
        )
    }

    fn update(&mut self) {
        self.fill();
        let (keyboard, mouse) = self.levels();
        self.keyboard_irq.set(keyboard);
        self.mouse_irq.set(mouse);
        self.a20.set(self.registers.a20);
    }

    fn read_data(&mut self) -> u8 {
        if let Some((byte, _)) = self.registers.output.take() {
            self.registers.last_output = byte;
            // The request falls before the next byte raises it again.
            let (keyboard, mouse) = self.levels();
            self.keyboard_irq.set(keyboard);
            self.mouse_irq.set(mouse);
        }
        self.registers.last_output
    }

    fn status(&self) -> u8 {
        let output = match self.registers.output {
            None => 0,
            Some((_, Source::Keyboard)) => STATUS_OUTPUT_FULL,
            Some((_, Source::Aux)) => STATUS_OUTPUT_FULL | STATUS_AUX,
        };
        let command = if self.registers.last_was_command { STATUS_COMMAND } else { 0 };
        let system = if self.command_byte() & SYSTEM_FLAG != 0 { STATUS_SYSTEM } else { 0 };
        output | command | system | STATUS_UNLOCKED
    }

    fn output_port(&self) -> u8 {
        let full = match self.registers.output {
            None => 0,
            Some((_, Source::Keyboard)) => PORT_KEYBOARD_FULL,
            Some((_, Source::Aux)) => PORT_AUX_FULL,
        };
        0xC0 | PORT_NOT_RESET | full | if self.registers.a20 { PORT_A20 } else { 0 }
    }

    fn write_output_port(&mut self, value: u8) {
        self.registers.a20 = value & PORT_A20 != 0;
        if value & PORT_NOT_RESET == 0 {
            self.control.reset();
        }
    }

    fn write_command(&mut self, command: u8) {
        self.registers.last_was_command = true;
        self.registers.parameter_of = None;
        let command_byte = self.command_byte();
        match command {
            0x20..=0x3F => self.reply(self.registers.ram[usize::from(command & 0x1F)], Source::Keyboard),
            0x60..=0x7F | 0xD1..=0xD4 => self.registers.parameter_of = Some(command),
            0xA4 => self.reply(NO_PASSWORD, Source::Keyboard),
            0xA7 => self.registers.ram[0] = command_byte | AUX_DISABLED,
            0xA8 => self.registers.ram[0] = command_byte & !AUX_DISABLED,
            0xA9 | 0xAB => self.reply(INTERFACE_GOOD, Source::Keyboard),
            0xAA => {
                // The self-test leaves both interfaces off (PS/2 Technical Reference, command AAh).
                self.registers.ram[0] = command_byte | SYSTEM_FLAG | KEYBOARD_DISABLED | AUX_DISABLED;
                self.registers.output = None;
                self.registers.replies.clear();
                self.reply(SELF_TEST_PASSED, Source::Keyboard);
            }
            0xAD => self.registers.ram[0] = command_byte | KEYBOARD_DISABLED,
            0xAE => self.registers.ram[0] = command_byte & !KEYBOARD_DISABLED,
            0xC0 => self.reply(INPUT_PORT, Source::Keyboard),
            0xD0 => self.reply(self.output_port(), Source::Keyboard),
            0xDD => self.registers.a20 = false,
            0xDF => self.registers.a20 = true,
            0xE0 => self.reply(0, Source::Keyboard), // Test inputs: clock and data low.
            // Pulses the output lines whose bit is clear; the lowest is the processor's reset.
            0xF0..=0xFF if command & PORT_NOT_RESET == 0 => self.control.reset(),
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        self.registers.last_was_command = false;
        match self.registers.parameter_of.take() {
            Some(command @ 0x60..=0x7F) => self.registers.ram[usize::from(command & 0x1F)] = value,
            Some(0xD1) => self.write_output_port(value),
            Some(0xD2) => self.reply(value, Source::Keyboard),
            Some(0xD3) => self.reply(value, Source::Aux),
            Some(0xD4) => {
                self.registers.ram[0] &= !AUX_DISABLED;
                self.registers.mouse.receive(value);
            }
            _ => {
                // Sending to the keyboard opens its interface.
                self.registers.ram[0] &= !KEYBOARD_DISABLED;
                self.registers.keyboard.receive(value);
            }
        }
    }
}

impl Device for I8042 {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, offset: u64, size: u8, _now: Nanos) -> u64 {
        let value = crate::read_bytes(offset, size, |offset| match offset {
            0 => self.read_data(),
            4 => self.status(),
            _ => all_ones(1) as u8,
        });
        self.update();
        value
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, _now: Nanos) {
        crate::write_bytes(offset, size, value, |offset, byte| match offset {
            0 => self.write_data(byte),
            4 => self.write_command(byte),
            _ => {}
        });
        self.update();
    }

    fn reset(&mut self, _now: Nanos) {
        self.registers = Registers::new();
        self.update();
    }

    fn save(&self) -> State {
        State::encode(KIND, 1, &self.registers)
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        let registers: Registers = state.decode(KIND, 1)?;
        if registers.ram.len() != 32 {
            return Err(damaged(KIND, format!("{:#x} bytes of RAM", registers.ram.len())));
        }
        self.registers = registers;
        let (keyboard, mouse) = self.levels();
        self.keyboard_irq.assume(keyboard);
        self.mouse_irq.assume(mouse);
        self.a20.assume(self.registers.a20);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
