//! Address translation: the walker of the guest's tables, the inline TLB, and the accesses that go through both.

pub mod access;
pub(crate) mod direct;
pub mod inspect;
pub(crate) mod kept;
mod place;
mod reading;
pub(crate) mod shadow;
pub(crate) mod shadow_pages;
pub mod tlb;
pub mod walk;

pub use walk::{Access, Format, Mapping, Missing, PageFault, Paging, Step};
