//! The state of a vCPU of ours as a program that puts a freshly reset QEMU into it.
//!
//! The gdb stub sets general and control registers and selectors, but not descriptor-table registers, LDTR, TR, MSRs or
//! the FPU. So a stub of code loads those, in memory above the guest's RAM: it starts in flat 32-bit code without paging
//! and, for a vCPU in long mode, goes on in 64-bit code that is mapped to itself. TR and LDTR are loaded from a table of
//! our own, so that their hidden parts come out as they are here, whatever lies in the guest's table.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trapgate_engine::state::Segment;
use trapgate_engine::state::record::VcpuState;
use trapgate_engine::vector::VectorState;
use trapgate_x86::msr;
use trapgate_x86::regs::{cr0, cr4, efer};

/// Bytes of memory above the guest's RAM that the stub takes.
pub const SCRATCH: u64 = 0x1_0000;

/// Offsets in the scratch memory.
const CODE64: u64 = 0x1000;
const DATA: u64 = 0x2000;
const PML4: u64 = 0x3000;
const PDPT: u64 = 0x4000;
/// In the data page: pointers to descriptor tables, and the FXSAVE image.
const OWN_GDT: u64 = DATA;
const GDTR: u64 = DATA + 0x10;
const IDTR: u64 = DATA + 0x20;
const FXSAVE: u64 = DATA + 0x200;

/// Selectors of the stub: high ones, so that no guest's are equal to them (the stub ignores a selector that is set to what
/// it is), in a table at address 0, where GDTR points after reset.
pub const STUB_CODE32: u16 = 0xf80;
pub const STUB_DATA: u16 = 0xf88;
const STUB_CODE64: u16 = 0xf90;
/// Size of the table at address 0.
pub const TABLE: usize = 0x1000;

/// What is to be written and run.
#[derive(Debug)]
pub struct Stub {
    /// The descriptor table at address 0.
    pub table: Vec<u8>,
    /// Pieces of scratch memory: guest-physical address and content.
    pub pieces: Vec<(u64, Vec<u8>)>,
    /// Where it starts.
    pub entry: u64,
    /// The instruction at which all is loaded; it jumps to itself.
    pub end: u64,
}

/// Why a state cannot be transplanted.
#[derive(Debug, thiserror::Error)]
pub enum TransplantError {
    #[error("the stub cannot be assembled: {0}")]
    Assembler(#[from] IcedError),
    #[error("selector {0:#x} of TR or LDTR is above {STUB_CODE32:#x}")]
    Selector(u16),
    #[error("the vCPU is in real mode")]
    RealMode,
    #[error("the scratch memory at {0:#x} is beyond the 32-bit address space")]
    Scratch(u64),
}

/// Makes the stub for a state, with its scratch memory at `base`.
pub fn stub(state: &VcpuState, base: u64) -> Result<Stub, TransplantError> {
    if state.cr0 & cr0::PE == 0 {
        return Err(TransplantError::RealMode);
    }
    if base + SCRATCH > u64::from(u32::MAX) {
        return Err(TransplantError::Scratch(base));
    }
    let long = state.efer & efer::LMA != 0;
    let mut table = vec![0; TABLE];
    let mut put = |selector: u16, descriptor: &[u8]| -> Result<(), TransplantError> {
        let at = usize::from(selector & !7);
        let slot = table.get_mut(at..at + descriptor.len());
        slot.ok_or(TransplantError::Selector(selector))?.copy_from_slice(descriptor);
        Ok(())
    };
    put(STUB_CODE32, &0x00cf_9b00_0000_ffffu64.to_le_bytes())?;
    put(STUB_DATA, &0x00cf_9300_0000_ffffu64.to_le_bytes())?;
    put(STUB_CODE64, &0x00af_9b00_0000_ffffu64.to_le_bytes())?;
    for (segment, kind) in [(&state.tr, TSS_AVAILABLE), (&state.ldtr, LDT)] {
        if segment.selector & !7 != 0 {
            if segment.selector >= STUB_CODE32 - 8 {
                return Err(TransplantError::Selector(segment.selector));
            }
            put(segment.selector, &system_descriptor(segment, kind, long))?;
        }
    }
    let pointer = |base: u64, limit: u16| [&limit.to_le_bytes()[..], &base.to_le_bytes()].concat();
    let mut pieces = vec![
        (base + OWN_GDT, pointer(0, TABLE as u16 - 1)),
        (base + GDTR, pointer(state.gdtr.base, state.gdtr.limit)),
        (base + IDTR, pointer(state.idtr.base, state.idtr.limit)),
        (base + FXSAVE, fxsave_image(&state.vector)),
    ];
    let end = if long {
        let entry = CodeAssembler::new(32).and_then(|a| enter_long(a, base, state))?;
        let (code, at) = CodeAssembler::new(64).and_then(|a| load(a, base, base + CODE64, state, true))?;
        pieces.extend([(base, entry), (base + CODE64, code)]);
        pieces.extend([(base + PML4, word((base + PDPT) | 3)), (base + PDPT, identity())]);
        at
    } else {
        let (code, at) = CodeAssembler::new(32).and_then(|a| load(a, base, base, state, false))?;
        pieces.push((base, code));
        at
    };
    Ok(Stub { table, pieces, entry: base, end })
}

fn word(value: u64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

/// The first 4 GiB, in pages of 1 GiB.
fn identity() -> Vec<u8> {
    (0..4u64).flat_map(|gib| (gib << 30 | 0x83).to_le_bytes()).collect()
}

/// Types of system descriptors (SDM vol. 3, table 3-2).
const TSS_AVAILABLE: u64 = 9;
const LDT: u64 = 2;

fn system_descriptor(segment: &Segment, kind: u64, long: bool) -> Vec<u8> {
    // A limit beyond 20 bits needs granularity, and then ends in ones.
    let (limit, granular) = match segment.limit {
        limit @ 0..=0xf_ffff => (u64::from(limit), 0),
        limit => (u64::from(limit >> 12), 1 << 55),
    };
    let low = limit & 0xffff
        | (segment.base & 0xff_ffff) << 16
        | (0x80 | kind) << 40
        | (limit >> 16) << 48
        | granular
        | (segment.base >> 24 & 0xff) << 56;
    let mut bytes = word(low);
    if long {
        bytes.extend(word(segment.base >> 32));
    }
    bytes
}

/// From 32-bit code without paging to [`load`] in 64-bit code.
fn enter_long(mut a: CodeAssembler, base: u64, state: &VcpuState) -> Result<Vec<u8>, IcedError> {
    a.mov(eax, cr4::PAE as u32)?;
    a.mov(cr4, eax)?;
    a.mov(eax, (base + PML4) as u32)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, msr::IA32_EFER)?;
    a.mov(eax, (state.efer & !efer::LMA) as u32)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.mov(eax, (cr0::PE | cr0::ET | cr0::NE | cr0::PG) as u32)?;
    a.mov(cr0, eax)?;
    // JMP FAR ptr16:32.
    a.db(&[0xea])?;
    a.db(&((base + CODE64) as u32).to_le_bytes())?;
    a.db(&STUB_CODE64.to_le_bytes())?;
    a.assemble(base)
}

/// Loads what the gdb stub cannot; gives the code and the address of its last instruction.
fn load(
    mut a: CodeAssembler,
    base: u64,
    at: u64,
    state: &VcpuState,
    long: bool,
) -> Result<(Vec<u8>, u64), IcedError> {
    let mut end = a.create_label();
    // Every address of the stub is below 2 GiB or reached by zero extension from EBX.
    a.mov(ebx, base as u32)?;
    let field = |offset: u64| if long { rbx + offset as i32 } else { ebx + offset as i32 };
    a.lgdt(ptr(field(OWN_GDT)))?;
    if state.ldtr.selector & !7 != 0 {
        a.mov(eax, u32::from(state.ldtr.selector))?;
        a.lldt(ax)?;
    }
    if state.tr.selector & !7 != 0 {
        a.mov(eax, u32::from(state.tr.selector))?;
        a.ltr(ax)?;
    }
    for (number, value) in msrs(state) {
        a.mov(ecx, number)?;
        a.mov(eax, value as u32)?;
        a.mov(edx, (value >> 32) as u32)?;
        a.wrmsr()?;
    }
    let features = cr4::OSFXSR | cr4::OSXMMEXCPT | state.cr4 & cr4::OSXSAVE | if long { cr4::PAE } else { 0 };
    a.mov(eax, features as u32)?;
    if long {
        a.mov(cr4, rax)?
    } else {
        a.mov(cr4, eax)?
    }
    if state.cr4 & cr4::OSXSAVE != 0 {
        a.xor(ecx, ecx)?;
        a.mov(eax, state.xcr0 as u32)?;
        a.mov(edx, (state.xcr0 >> 32) as u32)?;
        a.xsetbv()?;
    }
    if long {
        a.fxrstor64(ptr(field(FXSAVE)))?
    } else {
        a.fxrstor(ptr(field(FXSAVE)))?
    }
    a.lidt(ptr(field(IDTR)))?;
    a.lgdt(ptr(field(GDTR)))?;
    a.set_label(&mut end)?;
    a.jmp(end)?;
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = a.assemble_options(at, options)?;
    let end = result.label_ip(&end)?;
    Ok((result.inner.code_buffer, end))
}

/// MSRs that decide what later instructions do.
fn msrs(state: &VcpuState) -> Vec<(u32, u64)> {
    let [code, stack, entry] = state.sysenter;
    let mut all = vec![
        (msr::IA32_SYSENTER_CS, code),
        (msr::IA32_SYSENTER_ESP, stack),
        (msr::IA32_SYSENTER_EIP, entry),
        (msr::IA32_STAR, state.star),
        (msr::IA32_LSTAR, state.lstar),
        (msr::IA32_FMASK, state.fmask),
        (msr::IA32_TSC_AUX, state.tsc_aux),
    ];
    // Where there is no long mode, EFER has not been loaded on the way.
    if state.efer & efer::LMA == 0 {
        all.push((msr::IA32_EFER, state.efer));
    }
    all
}

/// The 512 bytes that FXRSTOR takes (SDM vol. 1, 10.5.1), in the form with 64-bit pointers.
fn fxsave_image(vector: &VectorState) -> Vec<u8> {
    let x87 = &vector.x87;
    let mut image = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &x87.fcw.to_le_bytes());
    put(2, &x87.fsw.to_le_bytes());
    put(4, &[x87.tags]);
    put(6, &x87.fop.to_le_bytes());
    put(8, &x87.fip.to_le_bytes());
    put(16, &x87.fdp.to_le_bytes());
    put(24, &vector.mxcsr.to_le_bytes());
    for i in 0..8u8 {
        put(32 + 16 * usize::from(i), &x87.st(i).to_bytes());
    }
    for (i, xmm) in vector.xmm.iter().enumerate() {
        put(160 + 16 * i, &xmm.to_le_bytes());
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Guest;
    use trapgate_x86::insn::Bits;

    #[test]
    fn descriptors_unfold_to_their_segments() {
        let segment = Segment { selector: 0x40, base: 0xffff_fe00_1234_5678, limit: 0x206f, access: 0x8b };
        let bytes = system_descriptor(&segment, TSS_AVAILABLE, true);
        let low = trapgate_engine::state::Descriptor(u64::from_le_bytes(bytes[..8].try_into().unwrap()));
        assert_eq!((low.base(), low.limit(), low.kind()), (0x1234_5678, 0x206f, 9));
        assert_eq!(bytes[8..12], 0xffff_fe00u32.to_le_bytes());
    }

    #[test]
    fn stubs_of_both_kinds_fit_their_pages() {
        for bits in [Bits::B32, Bits::B64] {
            let machine = Guest::code(bits, &[0xf4]).machine().unwrap();
            let stub = stub(&machine.cpu().save(), 0x40_0000).unwrap();
            assert!(
                stub.pieces
                    .iter()
                    .all(|(at, bytes)| (0x40_0000..0x41_0000).contains(at) && bytes.len() <= 0x1000)
            );
            assert!(stub.end > stub.entry);
        }
        let mut state = Guest::code(Bits::B32, &[0xf4]).machine().unwrap().cpu().save();
        assert!(matches!(super::stub(&state, 1 << 32), Err(TransplantError::Scratch(_))));
        state.cr0 = 0;
        assert!(matches!(super::stub(&state, 0x40_0000), Err(TransplantError::RealMode)));
    }
}
