//! Any pattern against any name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spcd_core::pattern::Pattern;

fuzz_target!(|input: (&str, &str)| {
    if let Ok(pattern) = Pattern::new(input.0) {
        pattern.matches(input.1);
    }
});
