//! x86 as data: decode, classification, registers, flags, CPUID and MSR tables. Nothing here has running state.
pub mod class;
pub mod columns;
pub mod decode;
pub mod enumerate;
pub mod exception;
pub mod facts;
pub mod features;
pub mod flags;
pub mod insn;
pub mod layout;
pub mod model;
pub mod msr;
pub mod op;
pub mod regs;
mod table;

pub use table::Map;
