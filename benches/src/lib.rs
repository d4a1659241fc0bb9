//! Guests for the benchmarks: a flat 64-bit machine without chips that runs an assembled loop.

use std::sync::Arc;

use iced_x86::code_asm::CodeAssembler;
use trapgate_engine::memory::{GuestMemory, Region};
use trapgate_engine::platform::Platform;
use trapgate_engine::state::{Processor, Segment};
use trapgate_engine::{Engine, Requests, Vcpu};
use trapgate_x86::model::{Topology, X86_64_V2};
use trapgate_x86::regs::{cr0, cr4, efer};

/// Where the code of a bench guest starts.
pub const CODE: u64 = 0x10_0000;
/// Where it may keep data: 2 MiB.
pub const DATA: u64 = 0x20_0000;

/// Surroundings with nothing in them.
#[derive(Debug)]
struct Nothing;

impl Platform for Nothing {
    fn tsc(&mut self, count: u64) -> u64 {
        count
    }
    fn random(&mut self) -> u64 {
        0
    }
    fn apic_enabled(&self) -> bool {
        true
    }
}

/// A guest in 64-bit mode at CPL 0, its first GiB mapped to itself by 2 MiB pages, about to run `code`.
pub fn guest(code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Engine {
    let mut assembler = CodeAssembler::new(64).expect("64 is a bitness");
    code(&mut assembler).expect("the guest assembles");
    let bytes = assembler.assemble(CODE).expect("the guest assembles");
    let memory =
        GuestMemory::new(&[Region { start: 0, len: 8 << 20, read_only: false }]).expect("8 MiB of memory");
    memory.write(CODE, &bytes).expect("the code fits");
    let entry = |at: u64, value: u64| memory.write(at, &value.to_le_bytes()).expect("tables fit");
    entry(0x1000, 0x2003);
    entry(0x2000, 0x3003);
    (0..512).for_each(|i| entry(0x3000 + 8 * i, i << 21 | 0x83));
    let processor = Processor { topology: Topology::SINGLE, tsc_khz: 1_000_000 };
    let mut cpu = Vcpu::new(
        Arc::new(X86_64_V2),
        processor,
        Arc::new(memory),
        Box::new(Nothing),
        Arc::new(Requests::default()),
    );
    (cpu.cr0, cpu.cr3, cpu.cr4) = (cr0::PE | cr0::PG | cr0::ET | cr0::NE, 0x1000, cr4::PAE | cr4::OSFXSR);
    cpu.efer = efer::LME | efer::LMA;
    cpu.seg = [Segment::flat(0x18, 0xc093); 6];
    cpu.seg[1] = Segment::flat(0x10, 0xa09b);
    cpu.regs[4] = DATA + (1 << 20);
    cpu.rip = CODE;
    cpu.update_mode();
    cpu.flush_tlb();
    Engine::new(cpu)
}
