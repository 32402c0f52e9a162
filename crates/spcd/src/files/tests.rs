//! With a real file system.

use std::os::unix::fs::symlink;

use super::*;

/// A directory `conf` in a directory of its own, with these files.
fn config(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("conf");
    fs::create_dir(&conf).unwrap();
    for (name, text) in files {
        write(&conf.join(name), text);
    }
    (dir, conf)
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Paths below `conf` and texts, in the order of the scan.
fn found(scan: &ConfigScan, conf: &Path) -> Vec<(String, Result<String, String>)> {
    scan.sources
        .iter()
        .map(|source| {
            let path = Path::new(&source.path).strip_prefix(conf).unwrap();
            (path.display().to_string(), source.text.clone())
        })
        .collect()
}

fn names(scan: &ConfigScan, conf: &Path) -> Vec<String> {
    found(scan, conf)
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn every_spc_file_is_found_in_order_and_nothing_else() {
    let (_dir, conf) = config(&[
        ("b.spc", "b"),
        ("a.spc", "\u{feff}a\r\n"),
        ("a/z.spc.json", "{}"),
        ("a/deeper/c.spc", "c"),
        ("directory.spc/inner.spc", "i"),
        (".hidden.spc", "x"),
        (".git/c.spc", "x"),
        ("a.spc~", "x"),
        ("README.md", "x"),
        ("data.json", "x"),
    ]);
    let scan = ConfigReader::new(std::slice::from_ref(&conf), Extensions::Spc).scan();
    let names = names(&scan, &conf);
    assert_eq!(
        names,
        [
            "a/deeper/c.spc",
            "a/z.spc.json",
            "a.spc",
            "b.spc",
            "directory.spc/inner.spc"
        ]
    );
    assert_eq!(found(&scan, &conf)[2].1.as_deref(), Ok("\u{feff}a\r\n"));
    assert_eq!(scan.dirs, [(conf, DirState::Filled)]);
    assert_eq!(scan.unknown_inputs, []);
}

#[test]
fn a_config_map_is_read_through_its_links() {
    let (_dir, conf) = config(&[("..2024/a.spc", "old"), ("..2025/a.spc", "new")]);
    symlink("..2024", conf.join("..data")).unwrap();
    symlink("..data/a.spc", conf.join("a.spc")).unwrap();
    let mut files = ConfigReader::new(std::slice::from_ref(&conf), Extensions::Spc);
    assert_eq!(
        found(&files.scan(), &conf),
        [("a.spc".to_owned(), Ok("old".to_owned()))]
    );
    symlink("..2025", conf.join("..tmp")).unwrap();
    fs::rename(conf.join("..tmp"), conf.join("..data")).unwrap();
    assert_eq!(
        found(&files.scan(), &conf),
        [("a.spc".to_owned(), Ok("new".to_owned()))]
    );
    let real = fs::canonicalize(conf.join("..2025")).unwrap();
    assert!(
        files.watch_points().iter().any(|place| place.dir == real),
        "{:?}",
        files.watch_points()
    );
}

#[test]
fn circles_of_links_end_and_a_directory_is_read_once_under_its_own_name() {
    let (_dir, conf) = config(&[("one/a.spc", "a"), ("two/b.spc", "b")]);
    symlink("..", conf.join("one/up")).unwrap();
    symlink("../two", conf.join("one/two")).unwrap();
    symlink("../one", conf.join("two/one")).unwrap();
    symlink("self.spc", conf.join("self.spc")).unwrap();
    let scan = ConfigReader::new(std::slice::from_ref(&conf), Extensions::Spc).scan();
    assert_eq!(names(&scan, &conf), ["one/a.spc", "self.spc", "two/b.spc"]);
    let own = &found(&scan, &conf)[1].1;
    assert!(own.is_err(), "{own:?}");
    assert_eq!(scan.unknown_inputs, []);
}

#[test]
fn what_cannot_be_read_is_there_with_its_reason() {
    let (_dir, conf) = config(&[("good.spc", "g")]);
    fs::write(conf.join("latin1.spc"), b"ok \xe9").unwrap();
    symlink("nowhere", conf.join("dangling.spc")).unwrap();
    symlink("nowhere", conf.join("directory")).unwrap();
    nix::unistd::mkfifo(&conf.join("pipe.spc"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let huge = File::create(conf.join("huge.spc")).unwrap();
    huge.set_len(MAX_FILE_BYTES + 1).unwrap();
    let scan = ConfigReader::new(std::slice::from_ref(&conf), Extensions::Spc).scan();
    for (name, says) in [
        ("dangling.spc", "leads nowhere"),
        ("huge.spc", "larger than 16 MiB"),
        ("latin1.spc", "not UTF-8 from byte 3"),
        ("pipe.spc", "not a regular file"),
    ] {
        let (_, text) = found(&scan, &conf)
            .into_iter()
            .find(|(found, _)| found == name)
            .unwrap();
        let error = text.unwrap_err();
        assert!(error.contains(says), "{name}: {error}");
    }
    assert_eq!(scan.sources.len(), 5);
    let input = scan.unknown_inputs.first().unwrap();
    assert_eq!(input.path, conf.join("directory").display().to_string());
    assert!(input.is_directory);
}

#[test]
fn missing_empty_and_filled_are_told_apart() {
    let (dir, conf) = config(&[("README", "")]);
    let other = dir.path().join("other");
    let mut files = ConfigReader::new(&[conf.clone(), other.clone()], Extensions::Spc);
    let scan = files.scan();
    assert_eq!(
        scan.dirs,
        [
            (conf.clone(), DirState::Empty),
            (other.clone(), DirState::Missing)
        ]
    );
    assert_eq!(scan.unknown_inputs.len(), 1);
    assert_eq!(scan.unknown_inputs[0].path, other.display().to_string());

    write(&other.join("sub/a.spc"), "a");
    let scan = files.scan();
    assert_eq!(scan.dirs[1], (other, DirState::Filled));
    assert_eq!(scan.unknown_inputs, []);
}

#[test]
fn an_unchanged_directory_gives_the_very_same_look() {
    let (_dir, conf) = config(&[("a.spc", "a"), ("b.spc", "b")]);
    let mut files = ConfigReader::new(std::slice::from_ref(&conf), Extensions::Spc);
    let first = files.scan();
    assert!(Arc::ptr_eq(&first, &files.scan()));
    // Written again with the same text: no change.
    write(&conf.join("a.spc"), "a");
    assert!(Arc::ptr_eq(&first, &files.scan()));
    write(&conf.join("a.spc"), "c");
    assert!(!Arc::ptr_eq(&first, &files.scan()));
}

#[test]
fn a_change_of_the_same_size_right_after_a_look_is_seen() {
    let (_dir, conf) = config(&[("a.spc", "0000")]);
    let mut files = ConfigReader::new(std::slice::from_ref(&conf), Extensions::Spc);
    for round in 1..200 {
        let text = format!("{round:04}");
        fs::write(conf.join("a.spc"), &text).unwrap();
        assert_eq!(found(&files.scan(), &conf)[0].1, Ok(text));
    }
}

#[test]
fn a_rename_is_never_seen_as_a_loss() {
    use std::sync::atomic::{AtomicBool, Ordering};

    // Long names, so that one listing takes several calls, between which a file can move.
    let (_dir, conf) = config(&[]);
    let long = "x".repeat(200);
    for n in 0..1000 {
        fs::write(conf.join(format!("{n:04}{long}.spc")), "").unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut one, mut other) = (
                conf.join(format!("0500{long}.spc")),
                conf.join(format!("again{long}.spc")),
            );
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..101 {
                    fs::rename(&one, &other).unwrap();
                    std::mem::swap(&mut one, &mut other);
                }
                std::thread::sleep(TIMESTAMP_TICK * 3);
            }
        });
        let _stop = Stop(&stop);
        let mut files = ConfigReader::new(std::slice::from_ref(&conf), Extensions::Spc);
        let scans: Vec<_> = (0..20).map(|_| files.scan()).collect();
        stop.store(true, Ordering::Relaxed);
        // If no writer paused for long enough, something may have been missed.
        for scan in scans {
            let count = scan.sources.len();
            assert!(count == 1000 || !scan.unknown_inputs.is_empty(), "{count}");
        }
    });
    let scan = ConfigReader::new(std::slice::from_ref(&conf), Extensions::Spc).scan();
    assert_eq!((scan.sources.len(), scan.unknown_inputs.len()), (1000, 0));
}

#[test]
fn a_file_that_vanishes_while_it_is_read_is_there_whole_or_not_at_all() {
    use std::sync::atomic::{AtomicBool, Ordering};

    let (_dir, conf) = config(&[("a.spc", "a"), ("c.spc", "c")]);
    let text = "b".repeat(1 << 16);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let path = conf.join("b.spc");
            while !stop.load(Ordering::Relaxed) {
                // As an editor saves: written beside it and renamed into place; then gone.
                fs::write(conf.join(".b.new"), &text).unwrap();
                fs::rename(conf.join(".b.new"), &path).unwrap();
                fs::remove_file(&path).unwrap();
            }
        });
        let _stop = Stop(&stop);
        let mut files = ConfigReader::new(std::slice::from_ref(&conf), Extensions::Spc);
        for _ in 0..10 {
            let scan = files.scan();
            let mut found = found(&scan, &conf);
            // It may also be listed and then be gone: that is told, and costs no other file.
            found.retain(|(name, read)| match read {
                _ if name != "b.spc" => true,
                Ok(read) => {
                    assert!(*read == text, "{} bytes", read.len());
                    false
                }
                Err(reason) => {
                    assert!(!reason.is_empty());
                    false
                }
            });
            let whole = |name: &str| (format!("{name}.spc"), Ok(name.to_owned()));
            assert_eq!(found, [whole("a"), whole("c")]);
            assert_eq!(scan.dirs, [(conf.clone(), DirState::Filled)]);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Ends the other thread also where a test fails: it would be waited for forever.
struct Stop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn files_of_steampipe_are_read_from_the_config_directory_itself() {
    let (_dir, conf) = config(&[
        ("a.spc", "a"),
        ("b.json", "b"),
        ("c.spc.json", "c"),
        ("d.yml", "d"),
        ("e.yaml", "e"),
        (".f.yml", "x"),
        ("g.yml.sample", "x"),
        ("key/service-account.json", "x"),
        ("key/h.yml", "x"),
        ("key/i.spc", "i"),
    ]);
    let roots = [conf.clone(), conf.join("key")];
    let both = ["a.spc", "b.json", "c.spc.json", "d.yml", "e.yaml"];
    let below = ["key/h.yml", "key/i.spc", "key/service-account.json"];
    for (roots, steampipe, spc) in [
        (&roots[..1], [&both[..], &below[1..2]].concat(), 3),
        (&roots[..], [&both[..], &below].concat(), 3),
    ] {
        let scan = ConfigReader::new(roots, Extensions::Steampipe).scan();
        assert_eq!(names(&scan, &conf), steampipe);
        assert!(scan.skipped.is_empty());
        let scan = ConfigReader::new(roots, Extensions::Spc).scan();
        assert_eq!(names(&scan, &conf).len(), spc);
        assert_eq!(scan.skipped.len(), steampipe.len() - spc);
    }
    // A link that leads nowhere is a file that cannot be read, and no removal.
    std::os::unix::fs::symlink("/nowhere", conf.join("z.yml")).unwrap();
    let scan = ConfigReader::new(&roots[..1], Extensions::Steampipe).scan();
    assert!(scan.sources.last().unwrap().text.is_err());
}
