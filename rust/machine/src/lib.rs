//! Boards, loaders, run loop and time.

pub mod boot;
pub mod firmware;
