#![no_main]

// The loaders catch panics of the decompression libraries; libFuzzer's own hook would abort at once. Those that are not
// caught still end the run.
libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |data: &[u8]| {
    trapgate_lockstep::fuzz::loaders::run(data)
});
