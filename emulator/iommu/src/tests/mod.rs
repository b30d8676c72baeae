//! Tests of the unit through its public face: registers, requests and tables in memory.
mod adversarial;
mod against_model;
mod audit;
mod coverage;
mod faults;
mod gate;
mod interrupts;
mod invalidation;
mod memory;
mod model;
mod page_request;
mod paging_caches;
mod races;
mod registers;
mod scalable;
mod walks;
mod world;
