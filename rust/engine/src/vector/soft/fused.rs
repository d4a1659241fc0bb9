//! Fused multiply-add: the exact product, the sum, one rounding (Intel SDM vol. 1, 14.5.2 and tables 14-16 and 14-17).

use super::super::fp::mxcsr::IE;
use super::super::fp::{Form, Fused, SseResult};
use super::lane::{Exceptions, Layout, Value};
use super::sse::{lane, layout, width, with_lane};

/// The signs of product and addend in lane `i`: whether each is negated.
fn signs(op: Fused, i: usize) -> (bool, bool) {
    match op {
        Fused::MulAdd => (false, false),
        Fused::MulSub => (false, true),
        Fused::NegatedMulAdd => (true, false),
        Fused::NegatedMulSub => (true, true),
        Fused::MulAddSub => (false, i % 2 == 0),
        Fused::MulSubAdd => (false, i % 2 != 0),
    }
}

pub(super) fn fused(op: Fused, form: Form, [x, y, z]: [u128; 3], mxcsr: u32) -> SseResult {
    let mut exceptions = Exceptions::new(mxcsr);
    let (layout, width) = (layout(form), width(form));
    let value = (0..form.lanes()).fold(z, |result, i| {
        let operands = [x, y, z].map(|value| lane(value, width, i));
        with_lane(result, width, i, exceptions.fused(layout, signs(op, i), operands))
    });
    exceptions.result(value)
}

impl Exceptions {
    fn fused(
        &mut self,
        layout: Layout,
        (negate_product, negate_addend): (bool, bool),
        operands: [u64; 3],
    ) -> u64 {
        let [x, y, z] = operands.map(|bits| self.source(layout, bits));
        let [vx, vy, vz] = [x, y, z].map(|bits| layout.unpack(bits));
        if [vx, vy, vz].iter().any(|value| matches!(value, Value::Nan { .. })) {
            return self.fused_nan(layout, [x, y, z]);
        }
        let negative = |bits: u64, negate| (bits & layout.sign_bit() != 0) != negate;
        let sign = negative(x ^ y, negate_product);
        let addend_sign = negative(z, negate_addend);
        let infinite = |value| matches!(value, Value::Infinite { .. });
        let zero = |value| matches!(value, Value::Zero { .. });
        let infinite_product = infinite(vx) || infinite(vy);
        if infinite_product && (zero(vx) || zero(vy) || infinite(vz) && sign != addend_sign) {
            return self.invalid(layout);
        }
        self.denormals(layout, x, y);
        self.denormals(layout, z, z);
        if infinite_product {
            return layout.infinity(sign);
        }
        let product = match (vx, vy) {
            (Value::Finite(x), Value::Finite(y)) => {
                let product = x.multiply(y);
                // Operands of up to 53 bits leave the product exact.
                Some(if product.sign == sign { product } else { product.negate() })
            }
            _ => None,
        };
        let addend = match vz {
            Value::Infinite { .. } => return layout.infinity(addend_sign),
            Value::Finite(z) => Some(if z.sign == addend_sign { z } else { z.negate() }),
            _ => None,
        };
        let sum = match (product, addend) {
            (Some(product), Some(addend)) => product.add(addend),
            (None, None) if sign == addend_sign => return layout.zero(sign),
            (one, other) => one.or(other),
        };
        match sum {
            Some(sum) => self.round(layout, sum),
            None => self.zero_sum(layout),
        }
    }

    /// The first NaN, quiet. A quiet NaN keeps zero times infinity from being invalid.
    fn fused_nan(&mut self, layout: Layout, operands: [u64; 3]) -> u64 {
        let nan = |bits: &u64| matches!(layout.unpack(*bits), Value::Nan { .. });
        let signaling = |bits: &u64| layout.unpack(*bits) == (Value::Nan { signaling: true });
        if operands.iter().any(signaling) {
            self.raise(IE);
        }
        layout.quiet(operands.into_iter().find(nan).unwrap_or(operands[0]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fp::mxcsr::PE;
    use super::*;

    fn single(op: Fused, operands: [f32; 3]) -> (u32, u32) {
        let result = fused(op, Form::Ss, operands.map(|value| value.to_bits().into()), 0x1f80);
        (result.value as u32, result.flags)
    }

    #[test]
    fn one_rounding_keeps_what_two_would_lose() {
        // (1 + e)(1 - e) - 1 is -e * e, which is lost if the product is rounded to 1.
        let (above, below) = (f32::from_bits(0x3f80_0001), f32::from_bits(0x3f7f_fffe));
        let exact = 0xa880_0000;
        assert_eq!(single(Fused::MulSub, [above, below, 1.0]), (exact, 0));
        assert_eq!(single(Fused::NegatedMulAdd, [above, below, 1.0]), (exact ^ 1 << 31, 0));
        // A tie of the product that the addend decides.
        let tiny = f32::from_bits(1);
        let (value, flags) = single(Fused::MulAdd, [above, f32::from_bits(0x3f80_0800), tiny]);
        assert_eq!((value, flags & PE), (0x3f80_0801, PE));
    }

    #[test]
    fn signs_alternate_from_lane_to_lane() {
        let one = 0x3f80_0000_3f80_0000_3f80_0000_3f80_0000;
        let two = 0x4000_0000_4000_0000_4000_0000_4000_0000;
        let value = |op| fused(op, Form::Ps, [one, two, one], 0x1f80).value;
        assert_eq!(value(Fused::MulAddSub), 0x4040_0000_3f80_0000_4040_0000_3f80_0000);
        assert_eq!(value(Fused::MulSubAdd), 0x3f80_0000_4040_0000_3f80_0000_4040_0000);
    }
}
