#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trapgate_lockstep::fuzz::hypercalls::run(data));
