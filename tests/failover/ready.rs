//! A client that asks `/readyz` and `/livez` all the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::http::{Answer, Http};
use crate::support::{Spcd, eventually_now, value};

/// What was answered so far.
pub struct Ready {
    samples: Arc<Mutex<Vec<Sample>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// An answer of `/readyz`.
#[derive(Debug, Clone)]
pub struct Sample {
    began: Instant,
    ended: Instant,
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: serde_json::Value,
}

impl Sample {
    /// The reason that one of its checks gives.
    pub fn reason(&self, check: &str) -> &str {
        self.body["checks"][check]["reason"].as_str().unwrap()
    }

    /// Whether a check that failed says this.
    pub fn says(&self, text: &str) -> bool {
        ["lead", "hub"].iter().any(|check| {
            let check = &self.body["checks"][check];
            check["ok"] == false && check["reason"].as_str().unwrap().contains(text)
        })
    }
}

impl Ready {
    /// Starts a daemon, and asks it from then on.
    pub fn start(spcd: &mut Spcd) -> Self {
        let http = Http::of(spcd);
        spcd.start();
        http.is_there();
        let samples = Arc::<Mutex<Vec<Sample>>>::default();
        let ends = Arc::<AtomicBool>::default();
        let (told, end) = (samples.clone(), ends.clone());
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let began = Instant::now();
                let Answer { status, body, .. } = http.get("/readyz");
                let ended = Instant::now();
                let body = serde_json::from_str(&body).unwrap();
                told.lock().unwrap().push(Sample {
                    began,
                    ended,
                    status,
                    body,
                });
                // That the database is away is no reason to be started anew.
                assert_eq!(http.get("/livez").status, 200);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self {
            samples,
            ends,
            thread: Some(thread),
        }
    }

    /// Waits until it is ready.
    pub fn until_ready(&self) -> Sample {
        self.until("it is ready", |sample| sample.status == 200)
    }

    /// Waits until it is not ready, then until what it says of that contains this text, and on for
    /// some answers more. From the first to the last of them it was never ready.
    pub fn until_away(&self, why: &str) -> Away {
        let first = self.until("it is not ready", |sample| sample.status == 503);
        let what = format!("it says {why:?}");
        let away = Away(first.began);
        let told = self.until(&what, |sample| sample.says(why));
        for _ in 0..5 {
            self.until("another answer", |_| true);
        }
        self.never_ready(&away);
        assert_eq!(told.body["ready"], false);
        away
    }

    /// That it was not ready since it was away, in any answer that is known by now.
    pub fn never_ready(&self, away: &Away) {
        let now = Instant::now();
        let samples = self.samples.lock().unwrap();
        let since = samples
            .iter()
            .filter(|sample| sample.began >= away.0 && sample.ended <= now);
        for sample in since {
            assert_eq!(sample.status, 503, "{sample:?}");
        }
    }

    /// That it never was away since it was first ready, but for answers that took too long: the
    /// machine may be busy.
    pub fn always_ready(&self, since: &Sample) {
        let samples = self.samples.lock().unwrap();
        let since = samples
            .iter()
            .filter(|sample| sample.began >= since.began && !sample.says("in time"));
        for sample in since {
            assert_eq!(sample.status, 200, "{sample:?}");
        }
    }

    /// Waits for an answer to a question that is asked from now on.
    pub fn until(&self, what: &str, is: impl Fn(&Sample) -> bool) -> Sample {
        let now = Instant::now();
        let mut seen = 0;
        eventually_now(what, || {
            let thread = self.thread.as_ref().unwrap();
            assert!(!thread.is_finished(), "it was not answered");
            let samples = self.samples.lock().unwrap();
            let new = samples[seen..].iter();
            seen = samples.len();
            let mut new = new.filter(|sample| sample.began >= now);
            new.find(|sample| is(sample)).cloned()
        })
    }

    /// Ends it.
    pub fn end(mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

/// Since when it was not ready.
pub struct Away(Instant);

/// The epoch of who leads, or led last.
pub async fn epoch(url: &str) -> i64 {
    let epoch = value(url, "SELECT epoch FROM spcd.daemon").await;
    epoch.parse().unwrap()
}
