//! What the targets run in: memory and ports that write down what happens, a unit with tables, an accelerator behind
//! it.
pub(crate) mod accelerator;
pub(crate) mod platform;
pub(crate) mod tables;
pub(crate) mod unit;
pub(crate) mod watched;
