//! VEX encodings (Intel SDM vol. 2, tables, entries marked v).

use super::Row;

pub(super) const ROWS_0F: &[&[Row]] = &[];
pub(super) const ROWS_0F38: &[&[Row]] = &[];
pub(super) const ROWS_0F3A: &[&[Row]] = &[];
