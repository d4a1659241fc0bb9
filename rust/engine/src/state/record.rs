//! The versioned record of a vCPU's architectural state: what snapshots, forks, migration and state hashes are made of.

use serde::{Deserialize, Serialize};

use super::{Segment, Shadow, Table, Vcpu};
use crate::vector::VectorState;

/// Layout of [`VcpuState`]; counted up when a field changes its meaning. 2 has the upper halves of the YMM registers.
pub const VCPU_STATE_VERSION: u16 = 2;

/// Everything that a guest can observe of its processor, and what is about to happen to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    pub version: u16,
    pub regs: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub segments: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: Table,
    pub idtr: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
    pub pdptes: [u64; 4],
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub cpl: u8,
    pub vector: VectorState,
    pub star: u64,
    pub lstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    pub tsc_adjust: u64,
    pub debugctl: u64,
    pub sysenter: [u64; 3],
    /// Stored MSRs: number and value, ascending.
    pub msrs: Vec<(u32, u64)>,
    pub halted: bool,
    pub shadow: Shadow,
    pub nmi_blocked: bool,
    pub pending_debug: u64,
    pub count: u64,
}

/// Why a record cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("vCPU state version {found} is not known to this program, which knows {VCPU_STATE_VERSION}")]
    Version { found: u16 },
    #[error("the record has MSR {number:#x}, which CPU model {model} does not store")]
    Msr { number: u32, model: &'static str },
}

impl Vcpu {
    /// The state between two instructions.
    pub fn save(&self) -> VcpuState {
        let mut regs = [0; 16];
        regs.copy_from_slice(&self.regs[..16]);
        VcpuState {
            version: VCPU_STATE_VERSION,
            regs,
            rip: self.rip,
            rflags: self.rflags(),
            segments: self.seg,
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            xcr0: self.xcr0,
            pdptes: self.pdptes,
            dr: self.dr,
            dr6: self.dr6,
            dr7: self.dr7,
            cpl: self.cpl,
            vector: self.vector.as_deref().cloned().unwrap_or_else(VectorState::reset),
            star: self.star,
            lstar: self.lstar,
            fmask: self.fmask,
            kernel_gs_base: self.kernel_gs_base,
            tsc_aux: self.tsc_aux,
            tsc_adjust: self.tsc_adjust,
            debugctl: self.debugctl,
            sysenter: [self.sysenter_cs, self.sysenter_esp, self.sysenter_eip],
            msrs: self.msrs.iter().map(|(number, value)| (*number, *value)).collect(),
            halted: self.halted,
            shadow: self.shadow,
            nmi_blocked: self.nmi_blocked,
            pending_debug: self.pending_debug,
            count: self.count,
        }
    }

    /// Takes a state that [`Self::save`] gave; on an error nothing has changed.
    pub fn restore(&mut self, s: &VcpuState) -> Result<(), RecordError> {
        if s.version != VCPU_STATE_VERSION {
            return Err(RecordError::Version { found: s.version });
        }
        if let Some((number, _)) = s.msrs.iter().find(|(number, _)| !self.msrs.contains_key(number)) {
            return Err(RecordError::Msr { number: *number, model: self.model.name });
        }
        self.regs[..16].copy_from_slice(&s.regs);
        (self.rip, self.seg, self.ldtr, self.tr) = (s.rip, s.segments, s.ldtr, s.tr);
        (self.gdtr, self.idtr) = (s.gdtr, s.idtr);
        (self.cr0, self.cr2, self.cr3, self.cr4) = (s.cr0, s.cr2, s.cr3, s.cr4);
        (self.efer, self.xcr0, self.pdptes) = (s.efer, s.xcr0, s.pdptes);
        (self.dr, self.dr6, self.dr7, self.cpl) = (s.dr, s.dr6, s.dr7, s.cpl & 3);
        *self.vector() = s.vector.clone();
        (self.star, self.lstar, self.fmask) = (s.star, s.lstar, s.fmask);
        (self.kernel_gs_base, self.tsc_aux, self.tsc_adjust) = (s.kernel_gs_base, s.tsc_aux, s.tsc_adjust);
        self.debugctl = s.debugctl;
        [self.sysenter_cs, self.sysenter_esp, self.sysenter_eip] = s.sysenter;
        self.msrs.extend(s.msrs.iter().copied());
        (self.halted, self.shadow, self.nmi_blocked) = (s.halted, s.shadow, s.nmi_blocked);
        (self.pending_debug, self.count) = (s.pending_debug, s.count);
        self.flags.set_bits(s.rflags);
        self.update_mode();
        self.flush_tlb();
        self.shadow_tables.switch(self.pcid());
        (self.attention, self.recheck, self.interrupt_waiting) = (true, true, true);
        Ok(())
    }
}
