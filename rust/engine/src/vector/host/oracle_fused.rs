//! The portable unit against the host's own for what only VEX instructions ask for.

use super::super::fp::{Form, FpUnit, Fused};
use super::super::soft::SoftFp;
use super::HostFp;
use super::sample::Random;

const FORMS: [Form; 4] = [Form::Ps, Form::Pd, Form::Ss, Form::Sd];

#[test]
fn fused_operations_agree_between_the_units() {
    use Fused::*;
    if !std::arch::is_x86_feature_detected!("fma") {
        println!("this host lacks FMA: nothing to compare with");
        return;
    }
    let mut random = Random::new(3);
    for n in 0..200_000 {
        let form = FORMS[n % 4];
        let op = match n / 4 % 6 {
            0 => MulAdd,
            1 => MulSub,
            2 => NegatedMulAdd,
            3 => NegatedMulSub,
            // The alternating operations have no scalar form.
            4 if n % 4 < 2 => MulAddSub,
            _ if n % 4 < 2 => MulSubAdd,
            _ => MulAdd,
        };
        let (x, y) = (random.vector(), random.vector());
        // Often an addend near the product, so that much cancels.
        let z = match random.below(3) {
            0 => {
                SoftFp.arith(super::super::fp::Arith::Mul, form, x, y, 0x1f80).value ^ random.below(4) as u128
            }
            _ => random.vector(),
        };
        let mxcsr = 0x1f80 | random.bits() as u32 & 0xe040;
        let (ours, silicon) =
            (SoftFp.fused(op, form, x, y, z, mxcsr), HostFp.fused(op, form, x, y, z, mxcsr));
        assert_eq!(ours, silicon, "{op:?} {form:?} {x:#x} {y:#x} {z:#x} mxcsr {mxcsr:#x}");
    }
}

#[test]
fn all_predicates_agree_between_the_units() {
    let mut random = Random::new(4);
    for n in 0..100_000 {
        let (form, predicate) = (FORMS[n % 4], (n / 4 % 32) as u8);
        let a = random.vector();
        let b = if random.below(4) == 0 { a } else { random.vector() };
        let mxcsr = 0x1f80 | random.bits() as u32 & 0xe040;
        let of = |unit: &dyn FpUnit| unit.compare(predicate, form, a, b, mxcsr);
        assert_eq!(of(&SoftFp), of(&HostFp), "{predicate} {form:?} {a:#x} {b:#x} mxcsr {mxcsr:#x}");
    }
}
