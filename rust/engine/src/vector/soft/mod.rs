//! The portable floating-point unit: single, double and double extended arithmetic in integers, exact in results and
//! flags. Transcendental functions have an error below one unit in the last place of a double extended result.

mod lane;
mod number;
mod sse;
