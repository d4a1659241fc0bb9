use super::super::fp::{X87Binary, X87Result, X87Unary};
use super::super::state::F80;
pub(super) fn unary(_op: X87Unary, a: F80, _fcw: u16) -> X87Result { X87Result { value: a, pushed: None, status: 0 } }
pub(super) fn binary(_op: X87Binary, st0: F80, _st1: F80, _fcw: u16) -> X87Result { X87Result { value: st0, pushed: None, status: 0 } }
