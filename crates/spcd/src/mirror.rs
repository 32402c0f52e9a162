//! Follows the sources of mirrors: one task for each, in a session with the source.
//!
//! A task reports the source's list as a [`MirrorView`]; `spcd_core::mirror` derives the connections
//! from it. The last view of each source is recorded in the hub before it is used, so that it survives
//! a restart.

mod follow;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use spcd_core::config::Mirror;
use spcd_core::mirror::{MirrorView, MirrorViews};
use spcd_postgres::HubError;
use spcd_postgres::mirror::{self, HubIdentity};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::Client;

/// Maximum time for which a one-shot command waits for the first answer of each source.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

/// The sources of all mirrors of a hub.
pub struct Mirrors {
    followers: BTreeMap<String, Follower>,
    shared: Arc<Shared>,
    /// Views as the hub has recorded them.
    recorded: BTreeMap<String, Recorded>,
}

/// State that the tasks and the loop share.
struct Shared {
    views: Mutex<MirrorViews>,
    /// Sources that have answered or failed at least once since their task started.
    answered: Mutex<BTreeSet<String>>,
    /// Notified when a view changes, or a source has answered for the first time.
    changed: Notify,
    /// The hub's own database.
    ours: HubIdentity,
}

/// A task that follows a source. It ends when this is dropped.
struct Follower {
    mirror: Mirror,
    /// Requests a read of the list.
    read_request: Arc<Notify>,
    _task: JoinSet<()>,
}

/// The recorded form of a view.
struct Recorded {
    /// View from which it was derived.
    of: Arc<MirrorView>,
    view: MirrorView,
}

impl Recorded {
    fn of(of: &Arc<MirrorView>) -> Self {
        let mut view = MirrorView::clone(of);
        for one in view.connections.values_mut() {
            let recorded = one.recorded();
            if **one != recorded {
                *one = Arc::new(recorded);
            }
        }
        let of = of.clone();
        Self { of, view }
    }
}

/// Returns the views of all sources, for a command that changes nothing.
pub async fn observe_once(
    hub: &Client,
    desired: &BTreeMap<String, Mirror>,
) -> Result<MirrorViews, HubError> {
    let mut mirrors = Mirrors::begin(hub).await?;
    mirrors.keep(desired);
    mirrors.answered().await;
    let views = mirrors.shared.views.lock().clone();
    Ok(views)
}

impl Mirrors {
    /// Reads the views that the hub has recorded.
    pub async fn begin(hub: &Client) -> Result<Self, HubError> {
        let views = mirror::read(hub).await?;
        let recorded = views.iter();
        let recorded = recorded.map(|(name, view)| (name.clone(), Recorded::of(view)));
        Ok(Self {
            followers: BTreeMap::new(),
            recorded: recorded.collect(),
            shared: Arc::new(Shared {
                ours: mirror::identify(hub).await?,
                views: Mutex::new(views),
                answered: Mutex::default(),
                changed: Notify::new(),
            }),
        })
    }

    /// Starts a task for each of these mirrors, and ends the tasks of all others.
    pub fn keep(&mut self, mirrors: &BTreeMap<String, Mirror>) {
        self.followers.retain(|name, follower| {
            mirrors
                .get(name)
                .is_some_and(|mirror| *mirror == follower.mirror)
        });
        for (name, mirror) in mirrors {
            let Ok(source) = &mirror.target else {
                continue;
            };
            if self.followers.contains_key(name) {
                continue;
            }
            self.shared.answered.lock().remove(name);
            let read_request = Arc::new(Notify::new());
            let mut task = JoinSet::new();
            task.spawn(follow::follow(
                mirror.clone(),
                source.clone(),
                self.shared.clone(),
                read_request.clone(),
            ));
            let follower = Follower {
                mirror: mirror.clone(),
                read_request,
                _task: task,
            };
            self.followers.insert(name.clone(), follower);
        }
    }

    /// Waits until the view of a source has changed.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Requests a read of every list.
    pub fn request_reads(&self) {
        for follower in self.followers.values() {
            follower.read_request.notify_one();
        }
    }

    /// Waits until each source has answered or failed, at most [`FIRST_ANSWER_TIMEOUT`].
    pub async fn answered(&self) {
        let is_answered = || {
            let answered = self.shared.answered.lock();
            self.followers.keys().all(|name| answered.contains(name))
        };
        let all = async {
            while !is_answered() {
                self.shared.changed.notified().await;
            }
        };
        if timeout(FIRST_ANSWER_TIMEOUT, all).await.is_err() {
            tracing::warn!("a mirror's source does not answer");
        }
    }

    /// Records the changed views in the name of a leader's epoch. Returns all views.
    pub async fn views(&mut self, hub: &Client, epoch: i64) -> Result<MirrorViews, HubError> {
        let views = self.shared.views.lock().clone();
        for (name, view) in &views {
            let known = self.recorded.get(name);
            if known.is_some_and(|known| Arc::ptr_eq(&known.of, view)) {
                continue;
            }
            let recorded = Recorded::of(view);
            if known.is_none_or(|known| known.view != recorded.view) {
                mirror::write(hub, epoch, name, view).await?;
            }
            self.recorded.insert(name.clone(), recorded);
        }
        Ok(views)
    }

    /// Deletes the records of mirrors that no block names and that have no connection left.
    pub async fn delete_stale(
        &mut self,
        hub: &Client,
        epoch: i64,
        mirrors: &BTreeMap<String, Mirror>,
    ) -> Result<(), HubError> {
        if self.recorded.keys().all(|name| mirrors.contains_key(name)) {
            return Ok(());
        }
        let names: Vec<&String> = mirrors.keys().collect();
        let left = mirror::forget_stale(hub, epoch, &names).await?;
        self.recorded.retain(|name, _| left.contains(name));
        let mut views = self.shared.views.lock();
        views.retain(|name, _| left.contains(name) || mirrors.contains_key(name));
        Ok(())
    }
}

impl Shared {
    /// Changes the view of a source.
    fn set(&self, name: &str, change: impl FnOnce(&mut MirrorView)) {
        let mut views = self.views.lock();
        let before = views.get(name).cloned().unwrap_or_default();
        let mut view = MirrorView::clone(&before);
        change(&mut view);
        // Equal rows are shared with the previous view, so that their connections are not rebuilt.
        for (name, one) in &mut view.connections {
            if let Some(same) = before.connections.get(name).filter(|same| *same == one) {
                *one = same.clone();
            }
        }
        let is_first = self.answered.lock().insert(name.to_owned());
        if view != *before {
            views.insert(name.to_owned(), Arc::new(view));
            self.changed.notify_one();
        } else if is_first {
            self.changed.notify_one();
        }
    }
}
