//! What the engine needs to know of a CPU model.

use std::collections::BTreeMap;

use trapgate_x86::features::Features;

/// A CPU model as the engine asks for it.
#[derive(Debug)]
pub struct Model {}

impl Model {
    pub fn features(&self) -> Features {
        Features::all()
            & !(Features::AVX
                | Features::AVX2
                | Features::BMI1
                | Features::BMI2
                | Features::LZCNT
                | Features::SHA
                | Features::SMAP
                | Features::UMIP)
    }
    pub fn signature(&self) -> u32 {
        0x000906ea
    }
    pub fn physical_bits(&self) -> u8 {
        39
    }
    pub fn gigabyte_pages(&self) -> bool {
        true
    }
    pub fn xcr0(&self) -> u64 {
        3
    }
    pub fn stored_msrs(&self) -> BTreeMap<u32, u64> {
        BTreeMap::from([(0x277, 0x0007_0406_0007_0406), (0x1a0, 1)])
    }
    pub fn msr_value(&self, _msr: u32, _old: u64, new: u64) -> Option<u64> {
        Some(new)
    }
    pub fn cpuid(&self, _leaf: u32, _sub: u32) -> [u32; 4] {
        [0; 4]
    }
}
