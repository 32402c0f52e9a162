//! Any text as the payload of a notification: it is refused or read, and what was read is written and
//! read again as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spcd_protocol::Notification;

fuzz_target!(|payload: &str| {
    let Ok(message) = serde_json::from_str::<Notification>(payload) else { return };
    let written = serde_json::to_string(&message).expect("a notification is JSON");
    let again: Notification = serde_json::from_str(&written).expect("it can be read again");
    assert_eq!(again, message);
});
