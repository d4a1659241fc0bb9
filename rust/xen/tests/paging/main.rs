//! Direct paging seen from outside: every call is followed by a check that recomputes all counts from guest memory.
//!
//! `checker` knows the rules in the other direction than the crate does: not how a count changes, but what it must be.
//! `world` is a domain with its monitor's notes of what succeeded, `tlb` a walker and a TLB that remembers what it may
//! not. The rest are tests: `rules` one by one, `pitfalls` sequences that are easy to get wrong, `attacks` what hostile
//! guests have tried on Xen, `random` everything in any order.

mod attacks;
mod checker;
mod pitfalls;
mod random;
mod rules;
mod tlb;
mod world;
