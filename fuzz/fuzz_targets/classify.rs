//! `cargo +nightly fuzz run classify`: what a client's first bytes say. More bytes never change a
//! verdict, and what hyper's parser takes for a request is never TCP: that would be a way round a
//! limit per request.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::conn::classify::{Verdict, classify};

fuzz_target!(|bytes: &[u8]| {
    let mut known = Verdict::More;
    for end in 0..=bytes.len() {
        let verdict = classify(&bytes[..end]);
        assert!(known == Verdict::More || verdict == known, "{known:?} became {verdict:?}");
        known = verdict;
    }
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut headers);
    if matches!(request.parse(bytes), Ok(httparse::Status::Complete(_))) {
        assert_ne!(known, Verdict::Tcp, "{:?}", bytes.escape_ascii().to_string());
    }
});
