//! The demonstration's output: JSON lines.
