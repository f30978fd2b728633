#![no_main]

#[path = "../spill.rs"]
mod spill;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir().expect("no folder for the spill");
    spill::spill(data, folder.path());
});
