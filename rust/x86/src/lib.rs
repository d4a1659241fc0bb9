//! x86 as data: decode, classification, registers, flags, CPUID and MSR tables. Nothing here has running state.
pub mod insn;
pub mod op;
