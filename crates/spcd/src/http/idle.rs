//! Idle connections of a listener. The one that has been idle longest is closed for a new client.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

/// The idle connections of a listener.
#[derive(Default)]
pub struct IdleConnections(Mutex<IdleQueue>);

/// Connections by the order in which they became idle.
#[derive(Default)]
struct IdleQueue {
    last: u64,
    connections: BTreeMap<u64, Arc<Notify>>,
}

/// A connection: idle from its start to its first request, and between requests.
pub struct Activity {
    all: Arc<IdleConnections>,
    close: Arc<Notify>,
    /// Key in `IdleQueue`; `None` during a request.
    key: Mutex<Option<u64>>,
}

/// A request in progress. Dropping it makes its connection idle.
pub struct ActiveRequest(Arc<Activity>);

/// Body of a response. Its end ends the request.
pub struct ActiveBody<B> {
    body: B,
    _request: ActiveRequest,
}

impl IdleConnections {
    /// Adds a connection.
    pub fn add(self: &Arc<Self>) -> Arc<Activity> {
        let activity = Arc::new(Activity {
            all: self.clone(),
            close: Arc::default(),
            key: Mutex::default(),
        });
        activity.become_idle();
        activity
    }

    /// Asks the connection that has been idle longest to close. Returns whether there is one.
    pub fn close_longest(&self) -> bool {
        let longest = self.lock().connections.pop_first();
        longest.is_some_and(|(_, close)| {
            close.notify_one();
            true
        })
    }

    fn lock(&self) -> MutexGuard<'_, IdleQueue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Activity {
    /// Starts a request: the connection is not idle until its end.
    pub fn begin(self: &Arc<Self>) -> ActiveRequest {
        self.leave();
        ActiveRequest(self.clone())
    }

    /// Waits until the connection is asked to close.
    pub async fn closing(&self) {
        self.close.notified().await;
    }

    /// Whether no request is in progress.
    pub fn is_idle(&self) -> bool {
        self.key().is_some()
    }

    fn become_idle(&self) {
        let mut waiting = self.all.lock();
        waiting.last += 1;
        let key = waiting.last;
        waiting.connections.insert(key, self.close.clone());
        *self.key() = Some(key);
    }

    fn leave(&self) {
        let mut waiting = self.all.lock();
        if let Some(key) = self.key().take() {
            waiting.connections.remove(&key);
        }
    }

    fn key(&self) -> MutexGuard<'_, Option<u64>> {
        self.key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.leave();
    }
}

impl ActiveRequest {
    /// Wraps a response body so that its end ends the request.
    pub fn until_end_of<B>(self, body: B) -> ActiveBody<B> {
        ActiveBody {
            body,
            _request: self,
        }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.become_idle();
    }
}

impl<B: Body + Unpin> Body for ActiveBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
