//! A PS/2 keyboard (IBM PS/2 Hardware Interface Technical Reference, "101-/102-Key Keyboard"): commands, scan code sets 1
//! and 2. Set 3 is answered with "resend", as by keyboards that do not have it.
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// The buffer of a real keyboard.
const BUFFER: usize = 16;
/// Answers are short, but a guest can send commands faster than it reads answers.
const REPLIES: usize = 16;

const ACK: u8 = 0xFA;
const RESEND: u8 = 0xFE;
const SELF_TEST_PASSED: u8 = 0xAA;
const ECHO: u8 = 0xEE;
const EXTENDED: u8 = 0xE0;
pub(super) const BREAK: u8 = 0xF0;
const ID: [u8; 2] = [0xAB, 0x83];

/// A key, named by its set 1 scan code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A key with a plain code, 01h to 7Fh.
    Code(u8),
    /// A key whose code has the prefix E0h.
    Extended(u8),
    /// Pause, which has a make sequence only.
    Pause,
    /// Print Screen, whose sequence carries a shift of its own.
    PrintScreen,
}

/// Set 2 code of each set 1 code. Read backwards it is the controller's translation.
#[rustfmt::skip]
const SET_2: [u8; 128] = [
    0x00, 0x76, 0x16, 0x1E, 0x26, 0x25, 0x2E, 0x36, 0x3D, 0x3E, 0x46, 0x45, 0x4E, 0x55, 0x66, 0x0D,
    0x15, 0x1D, 0x24, 0x2D, 0x2C, 0x35, 0x3C, 0x43, 0x44, 0x4D, 0x54, 0x5B, 0x5A, 0x14, 0x1C, 0x1B,
    0x23, 0x2B, 0x34, 0x33, 0x3B, 0x42, 0x4B, 0x4C, 0x52, 0x0E, 0x12, 0x5D, 0x1A, 0x22, 0x21, 0x2A,
    0x32, 0x31, 0x3A, 0x41, 0x49, 0x4A, 0x59, 0x7C, 0x11, 0x29, 0x58, 0x05, 0x06, 0x04, 0x0C, 0x03,
    0x0B, 0x83, 0x0A, 0x01, 0x09, 0x77, 0x7E, 0x6C, 0x75, 0x7D, 0x7B, 0x6B, 0x73, 0x74, 0x79, 0x69,
    0x72, 0x7A, 0x70, 0x71, 0x84, 0x60, 0x61, 0x78, 0x07, 0x0F, 0x17, 0x1F, 0x27, 0x2F, 0x37, 0x3F,
    0x47, 0x4F, 0x56, 0x5E, 0x08, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38, 0x40, 0x48, 0x50, 0x57, 0x6F,
    0x13, 0x19, 0x39, 0x51, 0x53, 0x5C, 0x5F, 0x62, 0x63, 0x64, 0x65, 0x67, 0x68, 0x6A, 0x6D, 0x6E,
];

/// The controller's translation of one byte from set 2 to set 1. Codes that are none pass unchanged.
pub(super) fn translate(byte: u8) -> u8 {
    match byte {
        0x00 => 0xFF, // Overrun, in both sets.
        // These two lie where the table has no room: they stand for F7 and Alt+SysRq as well.
        0x02 => 0x41,
        0x7F => 0x54,
        _ => SET_2.iter().position(|&code| code == byte).map_or(byte, |set_1| set_1 as u8),
    }
}

/// The key and shift state that give `c` on a United States keyboard.
pub fn us_layout(c: char) -> Option<(Key, bool)> {
    const ROWS: [(u8, &str, &str); 4] = [
        (0x02, "1234567890-=", "!@#$%^&*()_+"),
        (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
        (0x1E, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
        (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    ];
    let plain = match c {
        ' ' => Some(0x39),
        '\n' | '\r' => Some(0x1C),
        '\t' => Some(0x0F),
        '\u{8}' | '\u{7F}' => Some(0x0E),
        '\u{1B}' => Some(0x01),
        _ => None,
    };
    let in_rows = || {
        ROWS.iter().find_map(|&(first, lower, upper)| {
            let find = |row: &str| row.chars().position(|have| have == c).map(|i| first + i as u8);
            find(lower).map(|code| (code, false)).or_else(|| find(upper).map(|code| (code, true)))
        })
    };
    plain.map(|code| (code, false)).or_else(in_rows).map(|(code, shift)| (Key::Code(code), shift))
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keyboard {
    /// Answers to commands, which go before scan codes.
    replies: VecDeque<u8>,
    codes: VecDeque<u8>,
    scanning: bool,
    set_1: bool,
    leds: u8,
    /// The command that waits for its parameter.
    parameter_of: Option<u8>,
    last_sent: u8,
}

impl Keyboard {
    pub(super) fn new() -> Keyboard {
        Keyboard {
            replies: VecDeque::new(),
            codes: VecDeque::new(),
            scanning: true,
            set_1: false,
            leds: 0,
            parameter_of: None,
            last_sent: 0,
        }
    }

    pub(super) fn leds(&self) -> u8 {
        self.leds
    }

    pub(super) fn room(&self) -> usize {
        // The last place is for the overrun code.
        (BUFFER - 1).saturating_sub(self.codes.len())
    }

    /// The next byte on its way to the controller.
    pub(super) fn send(&mut self) -> Option<u8> {
        let byte = self.replies.pop_front().or_else(|| self.codes.pop_front())?;
        self.last_sent = byte;
        Some(byte)
    }

    pub(super) fn key(&mut self, key: Key, down: bool) {
        if !self.scanning {
            return;
        }
        let sequence = if self.set_1 { set_1(key, down) } else { set_2(key, down) };
        if sequence.len() <= self.room() {
            self.codes.extend(sequence);
        } else if self.codes.len() < BUFFER && self.codes.back() != Some(&self.overrun()) {
            self.codes.push_back(self.overrun());
        }
    }

    fn overrun(&self) -> u8 {
        if self.set_1 { 0xFF } else { 0x00 }
    }

    fn reply(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.replies.len() < REPLIES {
                self.replies.push_back(byte);
            }
        }
    }

    fn set_defaults(&mut self, scanning: bool) {
        self.codes.clear();
        self.scanning = scanning;
        self.set_1 = false;
    }

    /// A byte from the controller.
    pub(super) fn receive(&mut self, byte: u8) {
        // A command is recognised even where a parameter is expected.
        match self.parameter_of.take().filter(|_| byte < 0xED) {
            Some(command) => self.parameter(command, byte),
            None => self.command(byte),
        }
    }

    fn parameter(&mut self, command: u8, value: u8) {
        match (command, value) {
            (0xED, _) => {
                self.leds = value & 7;
                self.reply(&[ACK]);
            }
            (0xF0, 0) => self.reply(&[ACK, if self.set_1 { 1 } else { 2 }]),
            (0xF0, 1 | 2) => {
                self.set_1 = value == 1;
                self.codes.clear();
                self.reply(&[ACK]);
            }
            (0xF0, _) => self.reply(&[RESEND]),
            _ => self.reply(&[ACK]), // Typematic rate: the host repeats keys itself.
        }
    }

    fn command(&mut self, command: u8) {
        match command {
            0xED | 0xF0 | 0xF3 => {
                self.parameter_of = Some(command);
                self.reply(&[ACK]);
            }
            0xEE => self.reply(&[ECHO]),
            0xF2 => self.reply(&[ACK, ID[0], ID[1]]),
            0xF4 => {
                self.codes.clear();
                self.scanning = true;
                self.reply(&[ACK]);
            }
            0xF5 => {
                self.set_defaults(false);
                self.reply(&[ACK]);
            }
            0xF6 => {
                self.set_defaults(true);
                self.reply(&[ACK]);
            }
            0xF7..=0xFA => self.reply(&[ACK]), // Key types of set 3.
            0xFE => self.reply(&[self.last_sent]),
            0xFF => {
                *self = Keyboard::new();
                self.reply(&[ACK, SELF_TEST_PASSED]);
            }
            _ => self.reply(&[RESEND]),
        }
    }
}

fn set_1(key: Key, down: bool) -> Vec<u8> {
    let high = if down { 0 } else { 0x80 };
    match key {
        Key::Code(code) => vec![code & 0x7F | high],
        Key::Extended(code) => vec![EXTENDED, code & 0x7F | high],
        Key::Pause if down => vec![0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5],
        Key::Pause => vec![],
        Key::PrintScreen if down => vec![EXTENDED, 0x2A, EXTENDED, 0x37],
        Key::PrintScreen => vec![EXTENDED, 0xB7, EXTENDED, 0xAA],
    }
}

fn set_2(key: Key, down: bool) -> Vec<u8> {
    let code = |code: u8| SET_2[usize::from(code & 0x7F)];
    match (key, down) {
        (Key::Code(key), true) => vec![code(key)],
        (Key::Code(key), false) => vec![BREAK, code(key)],
        (Key::Extended(key), true) => vec![EXTENDED, code(key)],
        (Key::Extended(key), false) => vec![EXTENDED, BREAK, code(key)],
        (Key::Pause, true) => vec![0xE1, 0x14, 0x77, 0xE1, BREAK, 0x14, BREAK, 0x77],
        (Key::Pause, false) => vec![],
        (Key::PrintScreen, true) => vec![EXTENDED, 0x12, EXTENDED, 0x7C],
        (Key::PrintScreen, false) => vec![EXTENDED, BREAK, 0x7C, EXTENDED, BREAK, 0x12],
    }
}
