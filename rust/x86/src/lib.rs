//! x86 as data: decode, classification, registers, flags, CPUID and MSR tables. Nothing here has running state.
pub mod exception;
pub mod insn;
pub mod op;
pub mod regs;
