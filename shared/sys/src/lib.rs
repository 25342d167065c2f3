//! The only unsafe code of Rehome: safe wrappers of the few system calls that neither the
//! standard library nor `rustix` offers as a safe function.
//!
//! Each wrapper upholds by its signature what the call needs; descriptors are borrowed or owned,
//! never plain numbers. Nothing here decides anything.

#![expect(
    unsafe_code,
    reason = "this crate exists to hold the unsafe code of the workspace"
)]

pub mod btrfs;
pub mod child;
#[cfg(feature = "mapping")]
pub mod mapping;
pub mod namespace;
pub mod readiness;
