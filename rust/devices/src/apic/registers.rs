//! The registers of a local APIC: their numbers and bits, and their values after reset (Intel SDM volume 3A, 11.4 to 11.12).
use serde::{Deserialize, Serialize};

use super::TscClock;
use super::port::LVT_MASKED;
use super::timer::Timer;

/// Version 14h (an integrated APIC), six vector table entries, EOI-broadcast suppression (SDM 3A, 11.4.8).
pub(super) const VERSION: u32 = 0x0105_0014;
pub(super) const DEFAULT_BASE: u64 = 0xFEE0_0000;

pub(super) const MSR_APIC_BASE: u32 = 0x1B;
pub(super) const MSR_TSC_DEADLINE: u32 = 0x6E0;
pub(super) const MSR_X2APIC_FIRST: u32 = 0x800;
pub(super) const MSR_X2APIC_LAST: u32 = 0x8FF;

/// IA32_APIC_BASE.
pub(super) const BASE_BSP: u64 = 1 << 8;
pub(super) const BASE_X2APIC: u64 = 1 << 10;
pub(super) const BASE_ENABLE: u64 = 1 << 11;

/// Register numbers: offset divided by 16, or MSR minus 800h.
pub(super) const ID: u8 = 0x02;
pub(super) const VERSION_REGISTER: u8 = 0x03;
pub(super) const TPR: u8 = 0x08;
pub(super) const APR: u8 = 0x09;
pub(super) const PPR: u8 = 0x0A;
pub(super) const EOI: u8 = 0x0B;
pub(super) const RRD: u8 = 0x0C;
pub(super) const LDR: u8 = 0x0D;
pub(super) const DFR: u8 = 0x0E;
pub(super) const SVR: u8 = 0x0F;
pub(super) const ISR: u8 = 0x10;
pub(super) const TMR: u8 = 0x18;
pub(super) const IRR: u8 = 0x20;
pub(super) const ESR: u8 = 0x28;
pub(super) const ICR: u8 = 0x30;
pub(super) const ICR_HIGH: u8 = 0x31;
pub(super) const LVT_TIMER: u8 = 0x32;
pub(super) const LVT_ERROR: u8 = 0x37;
pub(super) const INITIAL_COUNT: u8 = 0x38;
pub(super) const CURRENT_COUNT: u8 = 0x39;
pub(super) const DIVIDE: u8 = 0x3E;
pub(super) const SELF_IPI: u8 = 0x3F;

pub(super) const SVR_ENABLE: u32 = 0x100;
pub(super) const SVR_NO_EOI_BROADCAST: u32 = 0x1000;
pub(super) const SVR_WRITABLE: u32 = SVR_NO_EOI_BROADCAST | SVR_ENABLE | 0xFF;

/// Error status register.
pub(super) const ERROR_SENT_VECTOR: u32 = 0x20;
pub(super) const ERROR_REGISTER: u32 = 0x80;

/// Entries of the vector table, in register order.
pub(super) const TIMER: usize = 0;
pub(super) const LINT0: usize = 3;
pub(super) const ERROR: usize = 5;
pub(super) const LVT_WRITABLE: [u32; 6] = [0x7_00FF, 0x1_07FF, 0x1_07FF, 0x1_A7FF, 0x1_A7FF, 0x1_00FF];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    pub(super) base: u64,
    pub(super) tpr: u8,
    pub(super) ldr: u32,
    pub(super) dfr: u32,
    pub(super) svr: u32,
    pub(super) isr: [u64; 4],
    pub(super) esr: u32,
    pub(super) icr: u64,
    pub(super) lvt: [u32; 6],
    pub(super) timer: Timer,
    pub(super) tsc: TscClock,
}

impl Registers {
    /// SDM 3A, 11.4.7.1: the state after power-up or reset.
    pub(super) fn power_up(base: u64, timer_hz: u64, tsc: TscClock) -> Registers {
        Registers {
            base,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xFF,
            isr: [0; 4],
            esr: 0,
            icr: 0,
            lvt: [LVT_MASKED; 6],
            timer: Timer::new(timer_hz),
            tsc,
        }
    }
}
