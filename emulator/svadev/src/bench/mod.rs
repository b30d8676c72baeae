//! `svadev bench`: what everything costs, each figure beside a baseline of the same run (`docs/performance.md`).
pub mod compare;
pub mod guest;
pub mod machine;
pub mod native;
pub mod report;
pub mod row;
pub mod stats;
