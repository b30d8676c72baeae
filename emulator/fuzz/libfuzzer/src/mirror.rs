//! The target of this name under libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| svadev_fuzz::check("mirror", data));
