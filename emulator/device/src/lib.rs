//! Placeholder, being written.
pub mod config;
