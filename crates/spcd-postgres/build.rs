//! Lists the numbered files of `migrations/`, so that a migration is a file and nothing else.

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../migrations");
    println!("cargo::rerun-if-changed={}", directory.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(&directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            files.push(path);
        }
    }
    files.sort();
    let mut list = String::from("&[");
    for path in files {
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let (number, name) = stem
            .and_then(|stem| stem.split_once('_'))
            .ok_or_else(|| format!("{} is not NUMBER_NAME.sql", path.display()))?;
        let number: u32 = number.parse()?;
        write!(
            list,
            "Migration {{ number: {number}, name: {name:?}, text: include_str!({path:?}) }},"
        )?;
    }
    list.push(']');
    let out = PathBuf::from(env::var("OUT_DIR")?).join("migrations.rs");
    Ok(fs::write(out, list)?)
}
