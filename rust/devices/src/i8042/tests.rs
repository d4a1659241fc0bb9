use super::*;
use crate::debug::RecordedControl;
use crate::line::Probe;

struct Rig {
    chip: I8042,
    control: Arc<RecordedControl>,
    irq: [Arc<Probe>; 2],
    a20: Arc<Probe>,
}

fn rig() -> Rig {
    let control = Arc::new(RecordedControl::default());
    let (irq, a20) = ([Probe::new(), Probe::new()], Probe::new());
    let chip = I8042::new(control.clone(), irq[0].clone(), irq[1].clone(), a20.clone());
    Rig { chip, control, irq, a20 }
}

impl Rig {
    fn command(&mut self, command: u8) {
        self.chip.write(4, 1, command.into(), 0);
    }
    fn data(&mut self, value: u8) {
        self.chip.write(0, 1, value.into(), 0);
    }
    fn status(&mut self) -> u8 {
        self.chip.read(4, 1, 0) as u8
    }
    /// Everything that waits, each with whether it is the mouse's.
    fn drain(&mut self) -> Vec<(u8, bool)> {
        let mut bytes = Vec::new();
        while self.status() & STATUS_OUTPUT_FULL != 0 {
            let aux = self.status() & STATUS_AUX != 0;
            bytes.push((self.chip.read(0, 1, 0) as u8, aux));
        }
        bytes
    }
    fn keyboard(&mut self) -> Vec<u8> {
        let bytes = self.drain();
        assert!(bytes.iter().all(|&(_, aux)| !aux), "{bytes:?}");
        bytes.into_iter().map(|(byte, _)| byte).collect()
    }
    fn mouse(&mut self, bytes: &[u8]) -> Vec<u8> {
        for &byte in bytes {
            self.command(0xD4);
            self.data(byte);
        }
        let bytes = self.drain();
        assert!(bytes.iter().all(|&(_, aux)| aux), "{bytes:?}");
        bytes.into_iter().map(|(byte, _)| byte).collect()
    }
}

#[test]
fn linux_finds_the_controller_and_its_aux_port() {
    let mut r = rig();
    assert_eq!(r.status(), STATUS_UNLOCKED | STATUS_COMMAND | STATUS_SYSTEM);
    r.command(0x20);
    assert_eq!(r.keyboard(), [COMMAND_BYTE_AFTER_POST]);
    r.command(0xAA);
    assert_eq!(r.keyboard(), [0x55]);
    for command in [0xA9, 0xAB] {
        r.command(command);
        assert_eq!(r.keyboard(), [0]);
    }
    // The AUX loop: what is written comes back as the mouse's, and no multiplexer answers.
    for value in [0x5A, 0xF0, 0x56, 0xA4] {
        r.command(0xD3);
        r.data(value);
        assert_eq!(r.drain(), [(value, true)]);
    }
    for (command, disabled) in [(0xA7, true), (0xA8, false)] {
        r.command(command);
        r.command(0x20);
        assert_eq!(r.keyboard()[0] & AUX_DISABLED != 0, disabled);
    }
    // The interrupt test.
    r.command(0x60);
    r.data(AUX_INTERRUPT);
    r.command(0xD3);
    r.data(0xA5);
    assert!(r.irq[1].level() && !r.irq[0].level());
    assert_eq!(r.drain(), [(0xA5, true)]);
    assert!(!r.irq[1].level());
}

#[test]
fn linux_finds_the_keyboard() {
    let mut r = rig();
    r.command(0x60);
    r.data(KEYBOARD_INTERRUPT); // Untranslated.
    for (bytes, answer) in [
        (&[0xF2][..], &[0xFA, 0xAB, 0x83][..]),
        (&[0xED, 0x02], &[0xFA, 0xFA]),
        (&[0xF3, 0x00], &[0xFA, 0xFA]),
        (&[0xF4], &[0xFA]),
        (&[0xF0, 0x00], &[0xFA, 0xFA, 2]),
        (&[0xF0, 0x03], &[0xFA, 0xFE]),
        (&[0xEE], &[0xEE]),
        (&[0xFE], &[0xEE]),
        (&[0xEF], &[0xFE]),
        (&[0xED, 0xFF], &[0xFA, 0xFA, 0xAA]),
    ] {
        bytes.iter().for_each(|&byte| r.data(byte));
        assert_eq!(r.keyboard(), answer, "{bytes:x?}");
    }
    assert_eq!(r.chip.leds(), 0);
}

#[test]
fn keys_come_translated_and_one_edge_per_byte() {
    let mut r = rig();
    r.irq[0].take_rises();
    r.chip.key(Key::Code(0x1E), true);
    r.chip.key(Key::Code(0x1E), false);
    r.chip.key(Key::Extended(0x1D), true);
    r.chip.key(Key::Extended(0x1D), false);
    assert_eq!(r.keyboard(), [0x1E, 0x9E, 0xE0, 0x1D, 0xE0, 0x9D]);
    assert_eq!(r.irq[0].take_rises(), 6);
    r.chip.key(Key::Pause, true);
    r.chip.key(Key::Pause, false);
    assert_eq!(r.keyboard(), [0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5]);
    r.chip.key(Key::PrintScreen, true);
    r.chip.key(Key::PrintScreen, false);
    assert_eq!(r.keyboard(), [0xE0, 0x2A, 0xE0, 0x37, 0xE0, 0xB7, 0xE0, 0xAA]);
}

#[test]
fn translation_of_set_2_gives_set_1_for_every_key() {
    for code in 1..0x7F {
        for down in [true, false] {
            let (mut translated, mut native) = (rig(), rig());
            native.command(0x60);
            native.data(0);
            native.data(0xF0);
            native.data(0x01);
            native.keyboard();
            translated.chip.key(Key::Code(code), down);
            native.chip.key(Key::Code(code), down);
            assert_eq!(translated.keyboard(), native.keyboard(), "{code:#x}");
        }
    }
}

#[test]
fn disabled_interfaces_hold_their_bytes_back() {
    let mut r = rig();
    r.command(0xAD);
    r.chip.key(Key::Code(0x1C), true);
    assert_eq!(r.keyboard(), []);
    r.command(0xAE);
    assert_eq!(r.keyboard(), [0x1C]);
    r.data(0xF5);
    r.chip.key(Key::Code(0x1C), true);
    assert_eq!(r.keyboard(), [0xFA]);
}

#[test]
fn a_full_keyboard_loses_keys_and_says_so() {
    let mut r = rig();
    r.command(0xAD);
    for _ in 0..20 {
        r.chip.key(Key::Code(0x1E), true);
        r.chip.key(Key::Code(0x1E), false);
    }
    assert_eq!(r.chip.keyboard_room(), 0);
    r.command(0x60);
    r.data(KEYBOARD_INTERRUPT);
    let bytes = r.keyboard();
    assert_eq!((bytes.len(), bytes[0], bytes[15]), (16, 0x1C, 0x00));
}

#[test]
fn a20_and_reset() {
    let mut r = rig();
    assert!(r.a20.level());
    r.command(0xDD);
    assert!(!r.a20.level());
    r.command(0xD0);
    assert_eq!(r.keyboard()[0] & (PORT_A20 | PORT_NOT_RESET), PORT_NOT_RESET);
    r.command(0xD1);
    r.data(0xDF);
    assert!(r.a20.level());
    r.command(0xFF);
    r.command(0xF2);
    assert_eq!(r.control.take(), ["reset"]);
    r.command(0xFE);
    r.command(0xD1);
    r.data(0xDE);
    assert_eq!(r.control.take(), ["reset", "reset"]);
}

#[test]
fn the_mouse_answers_and_becomes_an_intellimouse() {
    let mut r = rig();
    assert_eq!(r.mouse(&[0xFF]), [0xFA, 0xAA, 0x00]);
    assert_eq!(r.mouse(&[0xF2]), [0xFA, 0x00]);
    assert_eq!(r.mouse(&[0xE9]), [0xFA, 0x00, 2, 100]);
    assert_eq!(r.mouse(&[0xF3, 200, 0xF3, 100, 0xF3, 80]), [0xFA; 6]);
    assert_eq!(r.mouse(&[0xF2]), [0xFA, 3]);
    assert_eq!(
        r.mouse(&[0xF3, 200, 0xF3, 200, 0xF3, 80, 0xF2]),
        [0xFA, 0xFA, 0xFA, 0xFA, 0xFA, 0xFA, 0xFA, 4]
    );
    assert_eq!(r.mouse(&[0xE8, 3, 0xE7, 0xE9]), [0xFA, 0xFA, 0xFA, 0xFA, 0x10, 3, 80]);
    assert_eq!(r.mouse(&[0xE1]), [0xFE]);
}

#[test]
fn the_mouse_reports_motion_in_packets() {
    let mut r = rig();
    r.chip.mouse(MouseEvent { dx: 5, ..Default::default() });
    assert_eq!(r.drain(), []);
    r.mouse(&[0xF4]);
    r.chip.mouse(MouseEvent { dx: 300, dy: -2, wheel: 1, buttons: 1 });
    let first: Vec<u8> = r.drain().into_iter().map(|(byte, _)| byte).collect();
    assert_eq!(first, [0x29, 255, 0xFE, 0x09, 45, 0]);
    assert_eq!(r.mouse(&[0xF0, 0xEB]), [0xFA, 0xFA, 0x09, 0, 0]);
}

#[test]
fn text_has_keys() {
    assert_eq!(us_layout('a'), Some((Key::Code(0x1E), false)));
    assert_eq!(us_layout('?'), Some((Key::Code(0x35), true)));
    assert_eq!(us_layout('|'), Some((Key::Code(0x2B), true)));
    assert_eq!(us_layout('~'), Some((Key::Code(0x29), true)));
    assert_eq!(us_layout('\n'), Some((Key::Code(0x1C), false)));
    assert_eq!(us_layout('é'), None);
    assert!((' '..='~').all(|c| us_layout(c).is_some()));
}
