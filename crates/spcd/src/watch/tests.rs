//! With a real file system and the kernel's own events.

use std::fs;
use std::future::Future;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use notify::event::{CreateKind, Flag};

use super::*;
use crate::files::{ConfigReader, ConfigScan, DirState, Extensions};

/// How long a change may take to be noticed before the test is given up.
const DEADLINE: Duration = Duration::from_secs(30);

/// A config directory `conf`, the files in it, and a watch on them that has come to rest.
struct Fixture {
    dir: tempfile::TempDir,
    files: ConfigReader,
    watcher: Watcher,
    last: Arc<ConfigScan>,
}

impl Fixture {
    async fn new(prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("conf")).unwrap();
        prepare(&dir.path().join("conf"));
        let roots = [dir.path().join("conf")];
        let mut fixture = Self {
            dir,
            files: ConfigReader::new(&roots, Extensions::Spc),
            watcher: Watcher::new(),
            last: Arc::default(),
        };
        fixture.rest().await;
        fixture
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join("conf").join(below)
    }

    fn scan(&mut self) {
        self.last = self.files.scan();
        self.watcher.follow(self.files.watch_points());
    }

    /// Follows wakes until there is none for a while, so that the next one has its own cause.
    async fn rest(&mut self) {
        self.scan();
        while tokio::time::timeout(DEBOUNCE * 5, self.watcher.settled())
            .await
            .is_ok()
        {
            self.scan();
        }
    }

    /// Makes a change, and follows wakes until a scan shows it: only a wake leads to a scan.
    async fn sees(
        &mut self,
        what: &str,
        change: impl FnOnce(&Path),
        seen: impl Fn(&ConfigScan) -> bool,
    ) {
        change(&self.dir.path().join("conf"));
        self.awaits(what, seen).await;
        self.rest().await;
    }

    async fn awaits(&mut self, what: &str, seen: impl Fn(&ConfigScan) -> bool) {
        loop {
            in_time(what, self.watcher.settled()).await;
            self.scan();
            if seen(&self.last) {
                return;
            }
        }
    }
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("not noticed: {what}"))
}

/// The text of the file that is called so.
fn text(scan: &ConfigScan, name: &str) -> Option<String> {
    scan.sources
        .iter()
        .find(|source| source.path.ends_with(name))
        .and_then(|source| source.text.clone().ok())
}

fn is(scan: &ConfigScan, name: &str, expected: &str) -> bool {
    text(scan, name).as_deref() == Some(expected)
}

#[tokio::test]
async fn files_that_are_made_written_replaced_renamed_and_deleted_are_noticed() {
    let mut fixture = Fixture::new(|_| ()).await;
    fixture
        .sees(
            "create",
            |conf| fs::write(conf.join("a.spc"), "1").unwrap(),
            |scan| is(scan, "a.spc", "1"),
        )
        .await;
    fixture
        .sees(
            "write",
            |conf| fs::write(conf.join("a.spc"), "2").unwrap(),
            |scan| is(scan, "a.spc", "2"),
        )
        .await;
    let replace = |conf: &Path| {
        fs::write(conf.join(".a.swp"), "3").unwrap();
        fs::rename(conf.join(".a.swp"), conf.join("a.spc")).unwrap();
    };
    fixture
        .sees("replace", replace, |scan| is(scan, "a.spc", "3"))
        .await;
    let rename = |conf: &Path| fs::rename(conf.join("a.spc"), conf.join("b.spc")).unwrap();
    fixture
        .sees("rename", rename, |scan| {
            is(scan, "b.spc", "3") && text(scan, "a.spc").is_none()
        })
        .await;
    fixture
        .sees(
            "delete",
            |conf| fs::remove_file(conf.join("b.spc")).unwrap(),
            |scan| scan.sources.is_empty(),
        )
        .await;
}

#[tokio::test]
async fn a_new_directory_is_watched_to_its_depth() {
    let mut fixture = Fixture::new(|_| ()).await;
    let deep = |conf: &Path| fs::create_dir_all(conf.join("x/y/z")).unwrap();
    let watch_points = |fixture: &Fixture| fixture.files.watch_points().len();
    let before = watch_points(&fixture);
    deep(&fixture.path(""));
    while watch_points(&fixture) < before + 3 {
        in_time("new directories", fixture.watcher.settled()).await;
        fixture.scan();
    }
    fixture.rest().await;
    let write = |conf: &Path| fs::write(conf.join("x/y/z/a.spc"), "1").unwrap();
    fixture
        .sees("a file in a new directory", write, |scan| {
            is(scan, "a.spc", "1")
        })
        .await;
}

#[tokio::test]
async fn a_directory_that_is_removed_and_made_anew_is_watched_again() {
    let mut fixture = Fixture::new(|conf| {
        fs::create_dir(conf.join("sub")).unwrap();
        fs::write(conf.join("sub/a.spc"), "1").unwrap();
    })
    .await;
    for round in 0..5 {
        let anew = |conf: &Path| {
            fs::remove_dir_all(conf.join("sub")).unwrap();
            fs::create_dir(conf.join("sub")).unwrap();
            fs::write(conf.join("sub/b.spc"), format!("made {round}")).unwrap();
        };
        fixture
            .sees("made anew", anew, |scan| {
                is(scan, "b.spc", &format!("made {round}"))
            })
            .await;
        let write =
            |conf: &Path| fs::write(conf.join("sub/b.spc"), format!("written {round}")).unwrap();
        fixture
            .sees("written there", write, |scan| {
                is(scan, "b.spc", &format!("written {round}"))
            })
            .await;
    }
}

#[tokio::test]
async fn the_config_directory_itself_may_vanish_and_come_back() {
    let mut fixture = Fixture::new(|conf| fs::write(conf.join("a.spc"), "1").unwrap()).await;
    let state = |scan: &ConfigScan| scan.dirs.first().map(|(_, state)| *state);
    let remove = |conf: &Path| fs::remove_dir_all(conf).unwrap();
    fixture
        .sees("removed", remove, |scan| {
            state(scan) == Some(DirState::Missing)
        })
        .await;
    let again = |conf: &Path| {
        fs::create_dir(conf).unwrap();
        fs::write(conf.join("a.spc"), "2").unwrap();
    };
    fixture
        .sees("made again", again, |scan| is(scan, "a.spc", "2"))
        .await;
    fixture
        .sees(
            "written",
            |conf| fs::write(conf.join("a.spc"), "3").unwrap(),
            |scan| is(scan, "a.spc", "3"),
        )
        .await;
    let moved = |conf: &Path| {
        fs::rename(conf, conf.with_file_name("old")).unwrap();
        fs::create_dir(conf).unwrap();
        fs::write(conf.join("a.spc"), "4").unwrap();
    };
    fixture
        .sees("replaced by another", moved, |scan| is(scan, "a.spc", "4"))
        .await;
    fixture
        .sees(
            "written",
            |conf| fs::write(conf.join("a.spc"), "5").unwrap(),
            |scan| is(scan, "a.spc", "5"),
        )
        .await;
}

#[tokio::test]
async fn a_config_map_that_is_swapped_is_noticed() {
    let mut fixture = Fixture::new(|conf| {
        fs::create_dir(conf.join("..1")).unwrap();
        fs::write(conf.join("..1/a.spc"), "1").unwrap();
        symlink("..1", conf.join("..data")).unwrap();
        symlink("..data/a.spc", conf.join("a.spc")).unwrap();
    })
    .await;
    for version in 2..5 {
        let swap = |conf: &Path| {
            fs::create_dir(conf.join(format!("..{version}"))).unwrap();
            fs::write(conf.join(format!("..{version}/a.spc")), version.to_string()).unwrap();
            symlink(format!("..{version}"), conf.join("..new")).unwrap();
            fs::rename(conf.join("..new"), conf.join("..data")).unwrap();
            fs::remove_dir_all(conf.join(format!("..{}", version - 1))).unwrap();
        };
        fixture
            .sees("swap", swap, |scan| is(scan, "a.spc", &version.to_string()))
            .await;
    }
}

#[tokio::test]
async fn what_links_lead_to_is_watched_also_when_a_link_on_the_way_changes() {
    let mut fixture = Fixture::new(|conf| {
        let top = conf.parent().unwrap();
        for version in ["v1", "v2"] {
            fs::create_dir(top.join(version)).unwrap();
            fs::write(top.join(version).join("a.spc"), version).unwrap();
        }
        symlink("v1", top.join("current")).unwrap();
        symlink(top.join("current/a.spc"), conf.join("file.spc")).unwrap();
        symlink("../current", conf.join("directory")).unwrap();
    })
    .await;
    let both = |text: &'static str| {
        move |scan: &ConfigScan| is(scan, "file.spc", text) && is(scan, "directory/a.spc", text)
    };
    assert!(both("v1")(&fixture.last));
    fixture
        .sees(
            "target",
            |conf| fs::write(conf.join("../v1/a.spc"), "new").unwrap(),
            both("new"),
        )
        .await;
    let swap = |conf: &Path| {
        symlink("v2", conf.join("../next")).unwrap();
        fs::rename(conf.join("../next"), conf.join("../current")).unwrap();
    };
    fixture.sees("a link on the way", swap, both("v2")).await;
    fixture
        .sees(
            "its target",
            |conf| fs::write(conf.join("../v2/a.spc"), "3").unwrap(),
            both("3"),
        )
        .await;
}

#[tokio::test]
async fn a_burst_settles_into_few_wakes() {
    let mut fixture = Fixture::new(|_| ()).await;
    for n in 0..50 {
        fs::write(fixture.path(&format!("{n}.spc")), "x").unwrap();
    }
    // The events of all writes are in the queue by now; a wake for each would be fifty.
    let mut wakes = 0;
    while fixture.last.sources.len() < 50 {
        in_time("the burst", fixture.watcher.settled()).await;
        fixture.scan();
        wakes += 1;
    }
    assert!(wakes <= 5, "{wakes}");
}

#[tokio::test]
async fn someone_who_never_stops_writing_is_not_waited_for() {
    let mut fixture = Fixture::new(|_| ()).await;
    let (stop, file) = (
        Arc::new(std::sync::atomic::AtomicBool::new(false)),
        fixture.path("a.spc"),
    );
    let stopped = stop.clone();
    let writer = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            fs::write(&file, "x").unwrap();
        }
    });
    in_time("a busy directory", fixture.watcher.settled()).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
}

#[tokio::test]
async fn a_change_before_the_wait_or_during_one_that_is_given_up_is_not_lost() {
    let mut fixture = Fixture::new(|_| ()).await;
    fs::write(fixture.path("a.spc"), "1").unwrap();
    // The first part of the wait takes the wake; then something else is more urgent.
    let first_part = async {
        while fixture.watcher.since.is_none() {
            let _ = tokio::time::timeout(Duration::from_millis(1), fixture.watcher.settled()).await;
        }
    };
    in_time("the change", first_part).await;
    fixture
        .awaits("the change", |scan| is(scan, "a.spc", "1"))
        .await;
}

#[tokio::test]
async fn a_scan_does_not_wake_the_watcher() {
    let mut fixture = Fixture::new(|conf| fs::write(conf.join("a.spc"), "1").unwrap()).await;
    let dir = fixture.path("");
    let event = |kind| Event::new(kind).add_path(dir.join("a.spc"));
    let takes = |event: &Event| fixture.watcher.state.lock().takes(event);
    for mode in [AccessMode::Read, AccessMode::Any, AccessMode::Execute] {
        assert!(!takes(&event(EventKind::Access(AccessKind::Open(mode)))));
        assert!(!takes(&event(EventKind::Access(AccessKind::Close(mode)))));
    }
    assert!(takes(&event(EventKind::Access(AccessKind::Close(
        AccessMode::Write
    )))));
    assert!(takes(&event(EventKind::Create(CreateKind::Any))));
    // And in the real world: reading it all again, unasked, leads to no wake.
    for _ in 0..3 {
        fixture.files = ConfigReader::new(std::slice::from_ref(&dir), Extensions::Spc);
        fixture.scan();
    }
    assert!(
        tokio::time::timeout(DEBOUNCE * 5, fixture.watcher.wake.notified())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn changes_beside_the_config_directory_do_not_wake_the_watcher() {
    let fixture = Fixture::new(|_| ()).await;
    let top = fs::canonicalize(fixture.dir.path()).unwrap();
    let mut state = fixture.watcher.state.lock();
    let create = |path: PathBuf| Event::new(EventKind::Create(CreateKind::Any)).add_path(path);
    assert!(state.takes(&create(top.join("conf"))));
    assert!(!state.takes(&create(top.join("other"))));
}

#[tokio::test]
async fn after_an_overflow_everything_is_watched_anew() {
    let fixture = Fixture::new(|_| ()).await;
    let mut state = fixture.watcher.state.lock();
    assert!(state.takes(&Event::new(EventKind::Other).set_flag(Flag::Rescan)));
    assert_eq!(state.gone.len(), fixture.files.watch_points().len());
}

#[tokio::test]
async fn without_the_kernel_s_help_changes_are_found_by_looking() {
    let mut fixture = Fixture::new(|_| ()).await;
    fixture.watcher.notify = None;
    fixture
        .watcher
        .poll(&notify::Error::new(notify::ErrorKind::MaxFilesWatch));
    fs::write(fixture.path("a.spc"), "1").unwrap();
    fixture
        .awaits("the change", |scan| is(scan, "a.spc", "1"))
        .await;
}

#[tokio::test]
async fn a_wake_up_that_is_no_change_of_files_waits_for_nothing() {
    let mut fixture = Fixture::new(|_| ()).await;
    fixture.watcher.waker().notify_one();
    tokio::select! {
        biased;
        () = fixture.watcher.settled() => {}
        () = std::future::ready(()) => panic!("it waits for files to settle"),
    }
}

#[tokio::test]
async fn a_file_that_is_renamed_into_place_is_complete_and_one_being_written_is_not() {
    let quiet = |kind, names: &[&str]| {
        let event = names
            .iter()
            .fold(Event::new(kind), |event, name| event.add_path(name.into()));
        debounce_of(&event)
    };
    let rename = |mode| EventKind::Modify(ModifyKind::Name(mode));
    assert_eq!(quiet(rename(RenameMode::To), &["/c/a.spc"]), BRIEF_DEBOUNCE);
    let both = ["/c/.new", "/c/a.spc"];
    assert_eq!(quiet(rename(RenameMode::Both), &both), BRIEF_DEBOUNCE);
    let create = EventKind::Create(CreateKind::Any);
    assert_eq!(quiet(create, &["/c/.new"]), BRIEF_DEBOUNCE);
    assert_eq!(quiet(create, &["/c/a.spc"]), DEBOUNCE);
    // Some editors rename the file away before they write it.
    assert_eq!(quiet(rename(RenameMode::From), &["/c/a.spc"]), DEBOUNCE);
    assert_eq!(quiet(EventKind::Other, &[]), DEBOUNCE);

    let mut state = WatchState::default();
    state.extend_burst(DEBOUNCE);
    state.extend_burst(BRIEF_DEBOUNCE);
    assert!(state.burst.is_some_and(|burst| burst.quiet == DEBOUNCE));
}

#[tokio::test(start_paused = true)]
async fn polling_goes_on_although_other_events_cancel_each_wait() {
    let mut watcher = Watcher::new();
    watcher.poll(&notify::Error::generic("out of watches"));
    for _ in 0..3 {
        let mut cancelled = 0;
        while tokio::time::timeout(POLL / 2, watcher.settled())
            .await
            .is_err()
        {
            cancelled += 1;
            assert!(cancelled < 10);
        }
    }
}
