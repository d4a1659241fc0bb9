//! MMX and SSE instructions: moves, packed integers, floating point through [`super::fp::FpUnit`], conversions, AES,
//! CRC and string comparisons. Integer work is portable code on `u128`.

pub(super) mod crypto;
pub(super) mod float;
pub(super) mod integer;
pub(super) mod lanes;
pub(super) mod moves;
pub(super) mod shuffle;
pub(super) mod strings;
