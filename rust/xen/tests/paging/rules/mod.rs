//! The rules of direct paging one by one, each test named after its rule. The world checks all counts besides.

mod frames;
mod types;
mod updates;
