//! The local APIC (Intel SDM volume 3A, chapter 11): xAPIC registers in memory, x2APIC registers as MSRs. One per vCPU and
//! driven by it; everyone else goes through its [`ApicPort`].
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::port::{
    LVT_LEVEL, LVT_MASKED, LVT_REMOTE_IRR, MODE_HARDWARE, MODE_SOFTWARE, MODE_X2APIC, PortState, highest,
};
use super::registers::*;
use super::timer::Mode;
use super::{ApicBus, ApicPort, Delivery, Destination, Kick, Message, TscClock, byte_destination};
use crate::{Device, Nanos, PhysAddr, State, StateError, all_ones};

const KIND: &str = "local-apic";

/// A general-protection fault, to be raised by the instruction that accessed the MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp;

/// What a vCPU can be interrupted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// A vector above the processor priority.
    Fixed(u8),
    /// The 8259A controllers want to be acknowledged.
    ExtInt,
}

/// What is particular to one local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalApicConfig {
    /// The initial APIC ID, as CPUID gives it.
    pub id: u32,
    /// This is the bootstrap processor's.
    pub bootstrap: bool,
    /// x2APIC mode can be entered.
    pub x2apic: bool,
    /// Physical address width, which bounds IA32_APIC_BASE.
    pub physical_bits: u8,
    /// The timer's input clock: the core crystal clock of CPUID leaf 15h.
    pub timer_hz: u64,
    /// The vCPU's time-stamp counter.
    pub tsc: TscClock,
    /// Reset leaves the APIC as a PC's firmware does and not as the SDM says: enabled, on the bootstrap processor LINT0
    /// as ExtINT (the "virtual wire" to the 8259A) and LINT1 as NMI.
    pub virtual_wire: bool,
}

impl Default for LocalApicConfig {
    fn default() -> Self {
        LocalApicConfig {
            id: 0,
            bootstrap: true,
            x2apic: true,
            physical_bits: 40,
            timer_hz: 25_000_000,
            tsc: TscClock { hz: 1_000_000_000, offset: 0 },
            virtual_wire: false,
        }
    }
}

/// One vCPU's local APIC. As a [`Device`] it is the 4 KiB of registers at [`LocalApic::base`].
#[derive(Debug)]
pub struct LocalApic {
    config: LocalApicConfig,
    registers: Registers,
    port: Arc<ApicPort>,
    bus: Arc<dyn ApicBus>,
}

impl LocalApic {
    /// A local APIC that sends to `bus`, which it joins, and wakes its vCPU by `kick`.
    pub fn new(config: LocalApicConfig, bus: Arc<dyn ApicBus>, kick: Arc<dyn Kick>) -> LocalApic {
        let port = ApicPort::new(config.id, kick);
        bus.attach(Arc::clone(&port));
        let registers = Registers::power_up(0, config.timer_hz, config.tsc);
        let mut apic = LocalApic { config, registers, port, bus };
        apic.power_up();
        apic
    }

    /// The part that other chips and the run loop use.
    pub fn port(&self) -> &Arc<ApicPort> {
        &self.port
    }

    /// Where the registers are in memory; `None` while the APIC is disabled or in x2APIC mode.
    pub fn base(&self) -> Option<PhysAddr> {
        (self.hardware_enabled() && !self.x2apic()).then_some(PhysAddr(self.registers.base & !0xFFF))
    }

    /// What the vCPU would be interrupted with if it allowed interrupts now.
    pub fn pending(&self) -> Option<Pending> {
        if self.port.extint_pending() {
            return Some(Pending::ExtInt);
        }
        let vector = highest(self.port.irr.load()).filter(|_| self.hardware_enabled())?;
        (vector >> 4 > self.ppr() >> 4).then_some(Pending::Fixed(vector))
    }

    /// Takes what [`LocalApic::pending`] tells into service and gives its vector; `None` if it has gone. `pic` is the
    /// acknowledge cycle to the 8259A pair. A vCPU that asks and acknowledges in one step never sees the vector in the
    /// spurious-interrupt register.
    pub fn acknowledge(&mut self, pic: impl FnOnce() -> u8) -> Option<u8> {
        match self.pending()? {
            Pending::ExtInt => {
                self.port.take_extint();
                Some(pic())
            }
            Pending::Fixed(vector) => {
                self.port.irr.clear(vector);
                self.registers.isr[usize::from(vector >> 6)] |= 1 << (vector & 63);
                self.publish();
                Some(vector)
            }
        }
    }

    /// CR8: the upper half of the task priority.
    pub fn cr8(&self) -> u8 {
        self.registers.tpr >> 4
    }

    /// Writes CR8; the vCPU has checked the reserved bits.
    pub fn set_cr8(&mut self, value: u8) {
        self.registers.tpr = value << 4;
        self.publish();
    }

    /// The INIT state (SDM 3A, 11.4.7.3): as after power-up, but the ID and IA32_APIC_BASE stay.
    pub fn init(&mut self) {
        let (base, tsc) = (self.registers.base, self.registers.tsc);
        self.registers = Registers::power_up(base, self.config.timer_hz, tsc);
        self.port.clear_requests();
        self.publish();
    }

    /// The vCPU's time-stamp counter has been moved.
    pub fn set_tsc(&mut self, tsc: TscClock, now: Nanos) {
        self.run_timer(now);
        self.registers.tsc = tsc;
        self.registers.timer.tsc_changed(tsc, now);
        self.run_timer(now);
    }

    /// Whether `msr` belongs to the local APIC.
    pub fn has_msr(msr: u32) -> bool {
        matches!(msr, MSR_APIC_BASE | MSR_TSC_DEADLINE | MSR_X2APIC_FIRST..=MSR_X2APIC_LAST)
    }

    /// RDMSR of one of the MSRs of [`LocalApic::has_msr`].
    pub fn read_msr(&mut self, msr: u32, now: Nanos) -> Result<u64, Gp> {
        self.run_timer(now);
        match msr {
            MSR_APIC_BASE => Ok(self.registers.base),
            MSR_TSC_DEADLINE => Ok(self.registers.timer.tsc_deadline()),
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST if self.x2apic() => match (msr - MSR_X2APIC_FIRST) as u8 {
                ICR => Ok(self.registers.icr),
                APR | EOI | RRD | DFR | ICR_HIGH | SELF_IPI => Err(Gp),
                index => self.read_register(index, now).map(u64::from).ok_or(Gp),
            },
            _ => Err(Gp),
        }
    }

    /// WRMSR of one of the MSRs of [`LocalApic::has_msr`].
    pub fn write_msr(&mut self, msr: u32, value: u64, now: Nanos) -> Result<(), Gp> {
        self.run_timer(now);
        let result = match msr {
            MSR_APIC_BASE => self.write_base(value),
            MSR_TSC_DEADLINE => {
                if Mode::of(self.registers.lvt[TIMER]) == Mode::TscDeadline {
                    self.registers.timer.set_tsc_deadline(value, self.registers.tsc, now);
                    self.run_timer(now);
                }
                Ok(())
            }
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST if self.x2apic() => {
                self.write_x2apic((msr - MSR_X2APIC_FIRST) as u8, value, now)
            }
            _ => Err(Gp),
        };
        self.publish();
        result
    }

    fn hardware_enabled(&self) -> bool {
        self.registers.base & BASE_ENABLE != 0
    }

    fn software_enabled(&self) -> bool {
        self.registers.svr & SVR_ENABLE != 0
    }

    fn x2apic(&self) -> bool {
        self.registers.base & BASE_X2APIC != 0
    }

    fn power_up(&mut self) {
        let base = DEFAULT_BASE | BASE_ENABLE | if self.config.bootstrap { BASE_BSP } else { 0 };
        self.registers = Registers::power_up(base, self.config.timer_hz, self.config.tsc);
        if self.config.virtual_wire {
            self.registers.svr |= SVR_ENABLE;
            self.registers.lvt[LINT0 + 1] = 0x400;
            if self.config.bootstrap {
                self.registers.lvt[LINT0] = 0x700;
            }
        }
        self.port.clear_requests();
        self.publish();
    }

    /// Brings the port up to date with the registers, and has the vCPU look again.
    fn publish(&mut self) {
        let (port, r) = (&self.port, &self.registers);
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let mode = flag(self.hardware_enabled(), MODE_HARDWARE)
            | flag(self.software_enabled(), MODE_SOFTWARE)
            | flag(self.x2apic(), MODE_X2APIC);
        port.mode.store(mode, SeqCst);
        port.id.store(if self.x2apic() { self.config.id } else { self.config.id & 0xFF }, SeqCst);
        port.logical.store(self.logical_id(), SeqCst);
        port.format.store(r.dfr, SeqCst);
        port.processor_priority.store(self.ppr(), SeqCst);
        port.error_lvt.store(r.lvt[ERROR], SeqCst);
        for pin in 0..2 {
            let remote = port.lint[pin].load(SeqCst) & LVT_REMOTE_IRR;
            // Remote IRR has a meaning only while the pin is level-triggered.
            let remote = if r.lvt[LINT0 + pin] & LVT_LEVEL != 0 { remote } else { 0 };
            port.lint[pin].store(r.lvt[LINT0 + pin] | remote, SeqCst);
        }
        // It may have been told before, when something more urgent was in service or the priority was higher.
        if self.pending().is_some() { port.notify() } else { port.raise_attention() }
    }

    /// In x2APIC mode the logical ID follows from the ID (SDM 3A, 11.12.10.2).
    fn logical_id(&self) -> u32 {
        if self.x2apic() {
            self.config.id >> 4 << 16 | 1 << (self.config.id & 0xF)
        } else {
            self.registers.ldr
        }
    }

    /// Processor priority (SDM 3A, 11.8.3.1).
    fn ppr(&self) -> u8 {
        let in_service = highest(self.registers.isr).unwrap_or(0);
        if self.registers.tpr >> 4 >= in_service >> 4 { self.registers.tpr } else { in_service & 0xF0 }
    }

    fn run_timer(&mut self, now: Nanos) {
        if self.registers.timer.expired(now) {
            let lvt = self.registers.lvt[TIMER];
            if lvt & LVT_MASKED == 0 {
                self.port.deliver(Delivery::Fixed, lvt as u8, false);
            }
        }
    }

    fn end_of_interrupt(&mut self) {
        let Some(vector) = highest(self.registers.isr) else { return };
        self.registers.isr[usize::from(vector >> 6)] &= !(1 << (vector & 63));
        self.publish();
        if self.port.tmr.load()[usize::from(vector >> 6)] & 1 << (vector & 63) != 0 {
            self.port.end_pin_interrupt(vector);
            if self.registers.svr & SVR_NO_EOI_BROADCAST == 0 {
                self.bus.end_of_interrupt(vector);
            }
        }
    }

    /// The interrupt command register (SDM 3A, 11.6.1).
    fn send(&mut self, command: u64) {
        let vector = command as u8;
        let Some(delivery) = Delivery::from_bits((command >> 8) as u8) else { return };
        let vectored = matches!(delivery, Delivery::Fixed | Delivery::LowestPriority);
        if vectored && vector < 16 {
            self.port.note_error(ERROR_SENT_VECTOR);
            return;
        }
        // INIT level de-assert synchronised arbitration IDs on processors before the P6; it does nothing now.
        if delivery == Delivery::Init && command & 0xC000 == 0x8000 || delivery == Delivery::ExtInt {
            return;
        }
        let logical = command & 0x800 != 0;
        let destination = match command >> 18 & 3 {
            1 => {
                if delivery == Delivery::Fixed {
                    self.port.deliver(delivery, vector, false);
                }
                return;
            }
            2 => Destination::All,
            3 => Destination::Others,
            _ if !self.x2apic() => byte_destination((command >> 56) as u8, logical),
            _ if logical => Destination::Logical((command >> 32) as u32),
            _ if command >> 32 == u64::from(u32::MAX) => Destination::All,
            _ => Destination::Physical((command >> 32) as u32),
        };
        self.bus.send(Message { destination, delivery, vector, level: false }, Some(self.config.id));
    }

    fn read_register(&self, index: u8, now: Nanos) -> Option<u32> {
        let r = &self.registers;
        let part = |words: [u64; 4], first: u8| {
            let i = index - first;
            (words[usize::from(i / 2)] >> (32 * u32::from(i % 2))) as u32
        };
        Some(match index {
            ID if self.x2apic() => self.config.id,
            ID => self.config.id << 24,
            VERSION_REGISTER => VERSION,
            TPR => r.tpr.into(),
            // Arbitration priority: a register of the Pentium's three-wire bus, kept as the processor priority.
            APR | PPR => self.ppr().into(),
            EOI | RRD => 0,
            LDR => self.logical_id(),
            DFR => r.dfr,
            SVR => r.svr,
            ISR..TMR => part(r.isr, ISR),
            TMR..IRR => part(self.port.tmr.load(), TMR),
            IRR..ESR => part(self.port.irr.load(), IRR),
            ESR => r.esr,
            ICR => r.icr as u32,
            ICR_HIGH => (r.icr >> 32) as u32,
            LVT_TIMER..=LVT_ERROR => {
                let entry = usize::from(index - LVT_TIMER);
                match entry.checked_sub(LINT0).and_then(|pin| self.port.lint.get(pin)) {
                    Some(pin) => pin.load(SeqCst),
                    None => r.lvt[entry],
                }
            }
            INITIAL_COUNT => r.timer.initial(),
            CURRENT_COUNT if Mode::of(r.lvt[TIMER]) == Mode::TscDeadline => 0,
            CURRENT_COUNT => r.timer.current(now),
            DIVIDE => r.timer.divide().into(),
            _ => return None,
        })
    }

    /// Writes a register that both modes have, or that only the memory interface has. False if there is none.
    fn write_register(&mut self, index: u8, value: u32, now: Nanos) -> bool {
        let r = &mut self.registers;
        match index {
            TPR => r.tpr = value as u8,
            EOI => self.end_of_interrupt(),
            LDR => r.ldr = value & 0xFF00_0000,
            DFR => r.dfr = value | 0x0FFF_FFFF,
            SVR => {
                r.svr = value & SVR_WRITABLE;
                if value & SVR_ENABLE == 0 {
                    r.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
                }
            }
            // A write latches what has been noted since the last one (SDM 3A, 11.5.3).
            ESR => r.esr = self.port.errors.swap(0, SeqCst),
            ICR => {
                r.icr = r.icr >> 32 << 32 | u64::from(value & 0x000C_CFFF);
                let command = r.icr;
                self.send(command);
            }
            ICR_HIGH => r.icr = u64::from(value & 0xFF00_0000) << 32 | r.icr & 0xFFFF_FFFF,
            LVT_TIMER..=LVT_ERROR => self.write_lvt(usize::from(index - LVT_TIMER), value, now),
            INITIAL_COUNT => {
                if Mode::of(r.lvt[TIMER]) != Mode::TscDeadline {
                    r.timer.set_initial(value, now);
                }
            }
            DIVIDE => r.timer.set_divide(value as u8, now),
            // Read-only, or model-specific in that writes do nothing.
            ID | VERSION_REGISTER | APR | PPR | RRD | ISR..ESR | CURRENT_COUNT => {}
            _ => return false,
        }
        true
    }

    fn write_lvt(&mut self, entry: usize, value: u32, now: Nanos) {
        let forced = if self.software_enabled() { 0 } else { LVT_MASKED };
        let (old, new) = (self.registers.lvt[entry], value & LVT_WRITABLE[entry] | forced);
        self.registers.lvt[entry] = new;
        if entry == TIMER {
            self.registers.timer.set_mode(Mode::of(old), Mode::of(new), now);
        }
        self.publish();
        // A pin that is high and level-triggered, or ExtINT, is noticed when it is unmasked.
        if entry == LINT0 && (new & LVT_LEVEL != 0 || new >> 8 & 7 == 7) {
            self.port.trigger_pin(0);
        }
    }

    fn write_x2apic(&mut self, index: u8, value: u64, now: Nanos) -> Result<(), Gp> {
        let allowed: u64 = match index {
            ICR => {
                self.registers.icr = value & 0xFFFF_FFFF_000C_CFFF;
                let command = self.registers.icr;
                self.send(command);
                return Ok(());
            }
            SELF_IPI if value <= 0xFF => {
                self.send(value & 0xFF | 1 << 18);
                return Ok(());
            }
            TPR => 0xFF,
            SVR => SVR_WRITABLE.into(),
            EOI | ESR => 0,
            LVT_TIMER..=LVT_ERROR => u64::from(LVT_WRITABLE[usize::from(index - LVT_TIMER)] | 0x1000),
            INITIAL_COUNT => u32::MAX.into(),
            DIVIDE => 0x0B,
            _ => return Err(Gp),
        };
        // Reserved bits fault (SDM 3A, 11.12.1.3).
        if value & !allowed != 0 || !self.write_register(index, value as u32, now) {
            return Err(Gp);
        }
        Ok(())
    }

    /// IA32_APIC_BASE and the state machine of SDM 3A, figure 11-27.
    fn write_base(&mut self, value: u64) -> Result<(), Gp> {
        let address = ((1u64 << self.config.physical_bits.clamp(32, 52)) - 1) & !0xFFF;
        let modes = BASE_ENABLE | if self.config.x2apic { BASE_X2APIC } else { 0 };
        let (old, new) =
            (self.registers.base & (BASE_ENABLE | BASE_X2APIC), value & (BASE_ENABLE | BASE_X2APIC));
        let x2apic_alone = new == BASE_X2APIC;
        let skips_xapic = old == 0 && new & BASE_X2APIC != 0;
        let back_to_xapic = old & BASE_X2APIC != 0 && new == BASE_ENABLE;
        if value & !(address | modes | BASE_BSP) != 0 || x2apic_alone || skips_xapic || back_to_xapic {
            return Err(Gp);
        }
        if new == 0 && old != 0 {
            let tsc = self.registers.tsc;
            self.registers = Registers::power_up(value, self.config.timer_hz, tsc);
            self.port.clear_requests();
        }
        self.registers.base = value;
        Ok(())
    }
}

impl Device for LocalApic {
    fn name(&self) -> &'static str {
        KIND
    }

    /// Registers are 32 bits wide, one every 16 bytes. Narrower reads give their part; the bytes between read as zero.
    fn read(&mut self, offset: u64, size: u8, now: Nanos) -> u64 {
        self.run_timer(now);
        if self.base().is_none() {
            return all_ones(size);
        }
        let byte = offset & 0xF;
        if byte > 3 {
            return 0;
        }
        let Some(value) = self.read_register((offset >> 4) as u8, now) else {
            self.port.note_error(ERROR_REGISTER);
            return 0;
        };
        u64::from(value) >> (8 * byte) & all_ones(size)
    }

    /// Only the 32 bits at the start of a register can be written; anything else is ignored (SDM 3A, 11.4.1).
    fn write(&mut self, offset: u64, size: u8, value: u64, now: Nanos) {
        self.run_timer(now);
        if self.base().is_none() || offset & 0xF != 0 || size < 4 {
            return;
        }
        if !self.write_register((offset >> 4) as u8, value as u32, now) {
            self.port.note_error(ERROR_REGISTER);
        }
        self.publish();
    }

    fn reset(&mut self, _now: Nanos) {
        self.power_up();
    }

    fn deadline(&self) -> Option<Nanos> {
        self.registers.timer.due().filter(|_| self.registers.lvt[TIMER] & LVT_MASKED == 0)
    }

    fn advance(&mut self, now: Nanos) {
        self.run_timer(now);
    }

    fn save(&self) -> State {
        State::encode(KIND, 1, &(self.registers, self.port.save()))
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        let (registers, port): (Registers, PortState) = state.decode(KIND, 1)?;
        self.registers = registers;
        for pin in 0..2 {
            let remote = if port.remote_irr[pin] { LVT_REMOTE_IRR } else { 0 };
            self.port.lint[pin].store(remote, SeqCst);
        }
        self.port.restore(&port);
        self.publish();
        Ok(())
    }
}
