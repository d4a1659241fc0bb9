//! `x86-64-v3`: the psABI's level 3 on the processor of `x86-64-v2`.

use super::{Model, x86_64_v2};
use crate::features::Features;

/// What level 3 adds, and XSAVEC: with a component beyond x87 and SSE there is something to compact.
const LEVEL_3: Features = Features::AVX
    .union(Features::AVX2)
    .union(Features::BMI1)
    .union(Features::BMI2)
    .union(Features::F16C)
    .union(Features::FMA)
    .union(Features::LZCNT)
    .union(Features::MOVBE)
    .union(Features::XSAVEC);

/// The model of the name.
pub static X86_64_V3: Model = Model {
    name: "x86-64-v3",
    brand: "Intel(R) Processor, x86-64-v3",
    features: x86_64_v2::PROCESSOR.features.union(LEVEL_3),
    ..x86_64_v2::PROCESSOR
};
