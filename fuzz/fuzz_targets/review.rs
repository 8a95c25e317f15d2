//! `cargo +nightly fuzz run review`
#![no_main]

#[path = "../entries/review.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    entry::review(bytes);
});
