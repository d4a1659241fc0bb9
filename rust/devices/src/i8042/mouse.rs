//! A PS/2 mouse with wheel and five buttons (IBM PS/2 Hardware Interface Technical Reference, "Mouse"; the IntelliMouse
//! extensions are entered by the well-known sequences of sample rates).
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

const BUFFER: usize = 16;
const REPLIES: usize = 16;

const ACK: u8 = 0xFA;
const RESEND: u8 = 0xFE;
const SELF_TEST_PASSED: u8 = 0xAA;

const ID_PLAIN: u8 = 0;
const ID_WHEEL: u8 = 3;
const ID_FIVE_BUTTONS: u8 = 4;

/// Motion since the last event and the buttons as they are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MouseEvent {
    /// To the right.
    pub dx: i32,
    /// Up.
    pub dy: i32,
    /// Wheel towards the user.
    pub wheel: i32,
    /// Bit 0 left, 1 right, 2 middle, 3 and 4 the side buttons.
    pub buttons: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mouse {
    replies: VecDeque<u8>,
    packets: VecDeque<u8>,
    /// Reports motion by itself: enabled and in stream mode.
    reporting: bool,
    remote: bool,
    wrap: bool,
    scaling_2_1: bool,
    resolution: u8,
    rate: u8,
    /// The last three sample rates set.
    rates: [u8; 3],
    id: u8,
    /// Motion not yet reported.
    motion: (i32, i32, i32),
    buttons: u8,
    parameter_of: Option<u8>,
    last_sent: u8,
}

impl Mouse {
    pub(super) fn new() -> Mouse {
        Mouse {
            replies: VecDeque::new(),
            packets: VecDeque::new(),
            reporting: false,
            remote: false,
            wrap: false,
            scaling_2_1: false,
            resolution: 2,
            rate: 100,
            rates: [0; 3],
            id: ID_PLAIN,
            motion: (0, 0, 0),
            buttons: 0,
            parameter_of: None,
            last_sent: 0,
        }
    }

    pub(super) fn send(&mut self) -> Option<u8> {
        if self.replies.is_empty() && self.packets.is_empty() && self.streaming() && self.motion != (0, 0, 0)
        {
            let packet = self.packet();
            self.packets.extend(packet);
        }
        let byte = self.replies.pop_front().or_else(|| self.packets.pop_front())?;
        self.last_sent = byte;
        Some(byte)
    }

    fn streaming(&self) -> bool {
        self.reporting && !self.remote && !self.wrap
    }

    pub(super) fn event(&mut self, event: MouseEvent) {
        self.motion.0 = self.motion.0.saturating_add(event.dx);
        self.motion.1 = self.motion.1.saturating_add(event.dy);
        self.motion.2 = self.motion.2.saturating_add(event.wheel);
        let pressed = event.buttons & 0x1F;
        let changed = std::mem::replace(&mut self.buttons, pressed) != pressed;
        // A change of buttons has its own packet; motion may wait until there is room and then comes in one.
        if self.streaming() && (changed || self.motion != (0, 0, 0)) && self.packets.len() + 4 <= BUFFER {
            let packet = self.packet();
            self.packets.extend(packet);
        }
    }

    /// A packet of up to 255 steps each way; the rest waits for the next.
    fn packet(&mut self) -> Vec<u8> {
        let take = |value: &mut i32, low: i32, high: i32| {
            let taken = (*value).clamp(low, high);
            *value -= taken;
            taken
        };
        let dx = take(&mut self.motion.0, -255, 255);
        let dy = take(&mut self.motion.1, -255, 255);
        let sign = |value: i32, bit: u8| if value < 0 { bit } else { 0 };
        let mut packet = vec![0x08 | self.buttons & 7 | sign(dx, 0x10) | sign(dy, 0x20), dx as u8, dy as u8];
        match self.id {
            ID_WHEEL => packet.push(take(&mut self.motion.2, -128, 127) as u8),
            ID_FIVE_BUTTONS => {
                let wheel = take(&mut self.motion.2, -8, 7) as u8 & 0x0F;
                packet.push(wheel | self.buttons >> 3 << 4);
            }
            _ => self.motion.2 = 0,
        }
        packet
    }

    fn reply(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.replies.len() < REPLIES {
                self.replies.push_back(byte);
            }
        }
    }

    fn forget_motion(&mut self) {
        self.packets.clear();
        self.motion = (0, 0, 0);
    }

    fn set_defaults(&mut self) {
        self.forget_motion();
        self.reporting = false;
        self.remote = false;
        self.scaling_2_1 = false;
        self.resolution = 2;
        self.rate = 100;
    }

    /// A byte from the controller.
    pub(super) fn receive(&mut self, byte: u8) {
        if self.wrap && byte != 0xEC && byte != 0xFF {
            self.reply(&[byte]);
            return;
        }
        match self.parameter_of.take() {
            Some(0xE8) => {
                self.resolution = byte & 3;
                self.reply(&[ACK]);
            }
            Some(_) => {
                self.set_rate(byte);
                self.reply(&[ACK]);
            }
            None => self.command(byte),
        }
    }

    fn set_rate(&mut self, rate: u8) {
        self.rate = rate;
        self.rates = [self.rates[1], self.rates[2], rate];
        match (self.rates, self.id) {
            ([200, 100, 80], ID_PLAIN) => self.id = ID_WHEEL,
            ([200, 200, 80], ID_WHEEL) => self.id = ID_FIVE_BUTTONS,
            _ => {}
        }
    }

    fn status(&self) -> u8 {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let buttons =
            flag(self.buttons & 1 != 0, 4) | flag(self.buttons & 4 != 0, 2) | flag(self.buttons & 2 != 0, 1);
        flag(self.remote, 0x40) | flag(self.reporting, 0x20) | flag(self.scaling_2_1, 0x10) | buttons
    }

    fn command(&mut self, command: u8) {
        match command {
            0xE6 | 0xE7 => self.scaling_2_1 = command == 0xE7,
            0xE8 | 0xF3 => self.parameter_of = Some(command),
            0xEA => self.remote = false,
            0xEC => self.wrap = false,
            0xEE => self.wrap = true,
            0xF0 => self.remote = true,
            0xF4 => {
                self.forget_motion();
                self.reporting = true;
            }
            0xF5 => self.reporting = false,
            0xF6 => self.set_defaults(),
            0xE9 | 0xEB | 0xF2 | 0xFE | 0xFF => {}
            _ => {
                self.reply(&[RESEND]);
                return;
            }
        }
        match command {
            0xE9 => self.reply(&[ACK, self.status(), self.resolution, self.rate]),
            0xEB => {
                let packet = self.packet();
                self.reply(&[ACK]);
                self.reply(&packet);
            }
            0xF2 => self.reply(&[ACK, self.id]),
            0xFE => self.reply(&[self.last_sent]),
            0xFF => {
                *self = Mouse::new();
                self.reply(&[ACK, SELF_TEST_PASSED, ID_PLAIN]);
            }
            _ => self.reply(&[ACK]),
        }
    }
}
