//! The traces that a PC's BIOS leaves in the first MiB: interrupt vectors, data areas, and the end of its ROM.

use super::layout;
use crate::boot::Segment;

const VECTORS: usize = 256;
/// The release date that the end of the ROM and SMBIOS both give.
pub(super) const DATE: &str = "06/15/20";
/// The model byte of an AT.
const MODEL_AT: u8 = 0xFC;

/// Offsets in the BIOS data area, from 400h.
mod data_area {
    pub(super) const SIZE: usize = 0x100;
    pub(super) const SERIAL_PORTS: usize = 0x00;
    pub(super) const EBDA_SEGMENT: usize = 0x0E;
    pub(super) const EQUIPMENT: usize = 0x10;
    pub(super) const MEMORY_KIB: usize = 0x13;
    pub(super) const KEYBOARD_TYPE: usize = 0x96;
}

/// Equipment word: coprocessor (bit 1), PS/2 mouse (bit 2), two serial ports (bits 9 to 11).
const EQUIPMENT: u16 = 1 << 1 | 1 << 2 | 2 << 9;
/// A keyboard with 101 or 102 keys.
const ENHANCED_KEYBOARD: u8 = 1 << 4;

/// Code at [`layout::BIOS_TAIL`], reached from the reset vector: resets the machine by port CF9h, as code that jumps to
/// FFFF:0 wants. CLI; MOV DX,CF9h; MOV AL,06h; OUT DX,AL; HLT; JMP to the HLT.
const RESET_CODE: [u8; 10] = [0xFA, 0xBA, 0xF9, 0x0C, 0xB0, layout::RESET_VALUE, 0xEE, 0xF4, 0xEB, 0xFD];
/// IRET.
const IRET: u8 = 0xCF;

pub(super) fn build() -> Vec<Segment<'static>> {
    vec![
        Segment::new("the interrupt vectors", 0, vectors()),
        Segment::new("the BIOS data area", layout::BIOS_DATA, data_area()),
        Segment::new("the extended BIOS data area", layout::EBDA, vec![layout::EBDA_KIB]),
        Segment::new("the dummy interrupt handler", layout::DUMMY_INTERRUPT, vec![IRET]),
        Segment::new("the end of the BIOS", layout::BIOS_TAIL, tail()),
    ]
}

/// Every vector leads to an IRET, so that code which calls a BIOS that is not there comes back.
fn vectors() -> Vec<u8> {
    let offset = (layout::DUMMY_INTERRUPT - layout::BIOS) as u16;
    let segment = (layout::BIOS >> 4) as u16;
    [offset.to_le_bytes(), segment.to_le_bytes()].concat().repeat(VECTORS)
}

fn data_area() -> Vec<u8> {
    let mut area = vec![0; data_area::SIZE];
    let mut word = |at: usize, value: u16| area[at..at + 2].copy_from_slice(&value.to_le_bytes());
    word(data_area::SERIAL_PORTS, layout::COM1);
    word(data_area::SERIAL_PORTS + 2, layout::COM2);
    word(data_area::EBDA_SEGMENT, (layout::EBDA >> 4) as u16);
    word(data_area::EQUIPMENT, EQUIPMENT);
    word(data_area::MEMORY_KIB, layout::BASE_MEMORY_KIB);
    area[data_area::KEYBOARD_TYPE] = ENHANCED_KEYBOARD;
    area
}

/// The last 32 bytes: reset code; at FFF0h a jump to it; at FFF5h the date; at FFFEh the model.
fn tail() -> Vec<u8> {
    let mut tail = vec![0; 0x20];
    tail[..RESET_CODE.len()].copy_from_slice(&RESET_CODE);
    // JMP rel16 over the 13h bytes back to the start.
    tail[0x10..0x13].copy_from_slice(&[0xE9, 0xED, 0xFF]);
    tail[0x15..0x1D].copy_from_slice(DATE.as_bytes());
    tail[0x1E] = MODEL_AT;
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_area_has_the_words_that_linux_reads() {
        let area = data_area();
        assert_eq!(area[0x0E..0x10], 0x9FC0u16.to_le_bytes());
        assert_eq!(area[0x13..0x15], 639u16.to_le_bytes());
    }

    #[test]
    fn the_reset_vector_jumps_to_the_reset_code() {
        let tail = tail();
        let displacement = i16::from_le_bytes([tail[0x11], tail[0x12]]);
        assert_eq!(0x13 + i32::from(displacement), 0);
        assert_eq!(layout::BIOS_TAIL + 0x10, 0xFFFF0);
        assert_eq!(&tail[0x15..0x1D], b"06/15/20");
    }

    #[test]
    fn vectors_lead_to_an_iret() {
        let vectors = vectors();
        assert_eq!(vectors.len(), 0x400);
        let (offset, segment) = (&vectors[0x3FC..0x3FE], &vectors[0x3FE..]);
        let address = u64::from(u16::from_le_bytes([segment[0], segment[1]])) * 16
            + u64::from(u16::from_le_bytes([offset[0], offset[1]]));
        assert_eq!(address, layout::DUMMY_INTERRUPT);
    }
}
