//! Filled in with the header comparison.
