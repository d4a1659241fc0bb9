//! x86 as data: decode, classification, registers, flags, CPUID and MSR tables. Nothing here has running state, nothing depends
//! on the host, and every answer is a function of its arguments.
//!
//! **One opcode table.** The rows under `table` are the manual's opcode maps: opcode, prefixes, ModRM conditions, operand codes,
//! what features they need. The compiler derives from them what the layout scan must know of each opcode and the short list of
//! rows that may fit it, so that length, validity, operands and the enumeration of encodings cannot disagree.
//!
//! **Two steps.** [`layout`] finds the parts of an instruction without knowing a CPU model; [`decode`] chooses the row that
//! fits bytes, mode and model, and builds the [`insn::Insn`]. An executor that copies instructions uses the first step's
//! offsets and [`slots`], [`columns`] stops after the choice, [`enumerate`] runs the way backwards.
//!
//! **Facts.** [`class`] and [`flags`] are tables of our own; register and memory use and text come from iced-x86 behind the
//! types of [`facts`].
//!
//! **Models.** [`model`] says what a processor is, [`msr`] what registers it has; both are values.

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
pub mod slots;
mod table;

pub use table::Map;
