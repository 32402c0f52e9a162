//! A clock that jumps, for the processes of one machine.

use std::fs;
use std::path::{Path, PathBuf};

use super::run::fresh_dir;

/// The clock of the processes that are started with its environment. Durations are measured as ever.
pub struct Clock {
    file: PathBuf,
    library: PathBuf,
}

impl Clock {
    /// A clock that is right; `None` where `scripts/test.sh` found that libfaketime cannot be had, and said
    /// so.
    pub fn new() -> Option<Self> {
        if std::env::var_os("SPCD_TEST_WITHOUT_FAKETIME").is_some() {
            eprintln!("skipped: libfaketime cannot be had");
            return None;
        }
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/faketime");
        let library = [unpacked, PathBuf::from("/")]
            .iter()
            .flat_map(|root| {
                fs::read_dir(root.join("usr/lib"))
                    .into_iter()
                    .flatten()
                    .flatten()
            })
            .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
            .find(|library| library.exists())
            .expect("libfaketime, which scripts/test.sh installs");
        let clock = Self {
            file: fresh_dir("clock").join("offset"),
            library: library.canonicalize().unwrap(),
        };
        clock.jump("+0");
        Some(clock)
    }

    /// Variables for the processes that are to have this clock.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        let path = |path: &Path| path.display().to_string();
        vec![
            ("LD_PRELOAD", path(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", path(&self.file)),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            // As the kernel does when a clock is set.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
    }

    /// Sets the clock to this offset from the real one: `+2h`, `-1d`.
    pub fn jump(&self, offset: &str) {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{offset}\n")).unwrap();
        fs::rename(&new, &self.file).unwrap();
    }
}
