//! The bench measures what everything costs, each figure beside a baseline of the same run (`docs/performance.md`).
//!
//! It knows the backend from a client's side (`native`), the words of the guest's program (`guest`), rows with their
//! goals, and the reports made of them. It must not know the command line, nor start a guest: the program does both.
//!
//! The path: a suite of [`native`] drives a running backend and collects [`stats`]; each case becomes a [`row`]; a
//! [`report`] holds the rows and the [`machine`] they were measured on; [`compare`] sets two reports side by side.
//!
//! Where new things go: a case in the suite's module of [`native`], a word of the guest in [`guest`], a column in
//! [`report`].

pub mod compare;
pub mod guest;
pub mod machine;
pub mod native;
pub mod report;
pub mod row;
pub mod stats;
