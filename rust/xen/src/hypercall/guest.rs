//! Arguments in guest memory: read once into a buffer, then looked at.

use trapgate_engine::state::Vcpu;

use crate::errno::Errno;

/// Little-endian fields of a structure that was read from guest memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<const N: usize>(pub [u8; N]);

impl<const N: usize> Fields<N> {
    pub fn read(cpu: &mut Vcpu, at: u64) -> Result<Self, Errno> {
        let mut bytes = [0; N];
        cpu.copy_in(at, &mut bytes).map_err(|_| Errno::Fault)?;
        Ok(Fields(bytes))
    }

    fn get<const M: usize>(&self, at: usize) -> [u8; M] {
        let mut bytes = [0; M];
        bytes.copy_from_slice(&self.0[at..at + M]);
        bytes
    }
    pub fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.get(at))
    }
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.get(at))
    }
    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.get(at))
    }
}

pub(super) fn write(cpu: &mut Vcpu, at: u64, bytes: &[u8]) -> Result<(), Errno> {
    cpu.copy_out(at, bytes).map_err(|_| Errno::Fault)
}

pub(super) fn write_u32(cpu: &mut Vcpu, at: u64, value: u32) -> Result<(), Errno> {
    write(cpu, at, &value.to_le_bytes())
}

pub(super) fn write_u64(cpu: &mut Vcpu, at: u64, value: u64) -> Result<(), Errno> {
    cpu.store_u64(at, value).map_err(|_| Errno::Fault)
}

pub(super) fn read_u64(cpu: &mut Vcpu, at: u64) -> Result<u64, Errno> {
    cpu.load_u64(at).map_err(|_| Errno::Fault)
}

pub(super) fn read_u32(cpu: &mut Vcpu, at: u64) -> Result<u32, Errno> {
    Fields::<4>::read(cpu, at).map(|fields| fields.u32(0))
}
