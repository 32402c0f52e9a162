//! What Prometheus says of metrics and rules.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::fresh_dir;

/// Runs `promtool` with these arguments where files of these names have these texts; what it said, and
/// whether all is well.
pub fn promtool(args: &[&str], files: &[(&str, &str)], input: &str) -> (String, bool) {
    let dir = fresh_dir("promtool");
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
    let mut child = Command::new(program())
        .args(args)
        .current_dir(&dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool (scripts/lib.sh: need_promtool)");
    let mut stdin = child.stdin.take().unwrap();
    // It may have seen enough before the end.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (said, output.status.success())
}

/// The one that scripts/lib.sh unpacked, or one that is installed.
fn program() -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let unpacked = target.join("prometheus/usr/bin/promtool");
    unpacked.canonicalize().unwrap_or("promtool".into())
}
