//! State that the loops of the hub and of the gateways share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use spcd_core::gateway::{
    Address, Availability, Gateway, GatewayRow, GatewayView, Gateways, HubLanes, PresenceRecord,
};
use spcd_core::scheduler::Action;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use spcd_postgres::connection::Endpoint;
use spcd_postgres::gateway_reader::DatabaseIdentity;
use spcd_postgres::{gateway, gateway_reader};

/// Interval of polling for the answer to a request.
const ANSWER_POLL: Duration = Duration::from_millis(50);

/// State that the loops of the hub and of the gateways share.
pub struct Links {
    /// Whether a connection needs a gateway.
    pub requested: watch::Sender<bool>,
    state: watch::Sender<Arc<Gateways>>,
    places: Vec<Place>,
    began: Instant,
    /// Requests a pass of the hub's loop.
    waker: Arc<Notify>,
}

/// Sessions, presence and identity of one gateway.
struct Place {
    /// Endpoint, as soon as the gateway accepts sessions.
    endpoint: watch::Sender<Option<Arc<Endpoint>>>,
    presence: Mutex<PresenceRecord>,
    identity: Mutex<Option<DatabaseIdentity>>,
    /// Notified when rows of its `spcd.connection_state` were written, also without an event.
    written: Notify,
}

/// One of the gateways.
#[derive(Clone)]
pub struct Link {
    links: Arc<Links>,
    index: usize,
}

impl Links {
    /// Returns the state of gateways that have not been requested, from their names and the options of
    /// their servers.
    pub fn new(list: Vec<(String, BTreeMap<String, String>)>, waker: Arc<Notify>) -> Arc<Self> {
        let place = |_| Place {
            endpoint: watch::channel(None).0,
            presence: Mutex::new(PresenceRecord::new(0)),
            identity: Mutex::new(None),
            written: Notify::new(),
        };
        let places = (0..list.len()).map(place).collect();
        let gateway = |(name, options)| Gateway {
            name,
            options,
            ..Gateway::default()
        };
        let gateways = Gateways {
            list: list.into_iter().map(gateway).collect(),
            hub: None,
        };
        Arc::new(Self {
            requested: watch::channel(false).0,
            state: watch::channel(Arc::new(gateways)).0,
            places,
            began: Instant::now(),
            waker,
        })
    }

    /// Returns each gateway, in the order of the settings.
    pub fn all(self: &Arc<Self>) -> Vec<Link> {
        let link = |index| Link {
            links: self.clone(),
            index,
        };
        (0..self.places.len()).map(link).collect()
    }

    /// Returns the current states.
    pub fn gateways(&self) -> Arc<Gateways> {
        self.state.borrow().clone()
    }

    /// Sets the connections that the hub reads. The gateways may drop all others.
    pub fn set_hub(&self, lanes: HubLanes) {
        self.change(|gateways| {
            let is_same = gateways.hub.as_deref() == Some(&lanes);
            if !is_same {
                gateways.hub = Some(Arc::new(lanes));
            }
        });
    }

    /// Starts the gateways, unless they are running.
    pub fn request(&self) {
        self.requested
            .send_if_modified(|requested| !std::mem::replace(requested, true));
    }

    /// Resets the time since which each gateway has or has not answered.
    pub fn restart_presences(&self) {
        let now = self.now();
        for place in &self.places {
            place.presence.lock().restart(now);
        }
    }

    /// Updates the availability of each gateway.
    pub fn update_availability(&self, patience: Duration) {
        let now = self.now();
        let patience = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let availabilities: Vec<Availability> = (self.places.iter())
            .map(|place| place.presence.lock().availability(now, patience))
            .collect();
        let before = self.gateways();
        let is_changed = self.change(|gateways| {
            for (gateway, availability) in gateways.list.iter_mut().zip(availabilities) {
                gateway.availability = availability;
            }
        });
        if is_changed {
            log_availability(&before, &self.gateways());
            self.waker.notify_one();
        }
    }

    /// Groups connections by the gateways in which the hub reads them.
    pub fn split(self: &Arc<Self>, names: &[String]) -> Vec<(Link, Vec<String>)> {
        let gateways = self.gateways();
        let mut split: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for name in names {
            for index in gateways.read_in(name) {
                split.entry(index).or_default().push(name.clone());
            }
        }
        let link = |(index, names)| {
            let links = self.clone();
            (Link { links, index }, names)
        };
        split.into_iter().map(link).collect()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn change(&self, change: impl FnOnce(&mut Gateways)) -> bool {
        self.state.send_if_modified(|state| {
            let mut other = Gateways::clone(state);
            change(&mut other);
            let is_other = other != **state;
            *state = Arc::new(other);
            is_other
        })
    }
}

fn log_availability(before: &Gateways, now: &Gateways) {
    for (before, now) in before.list.iter().zip(&now.list) {
        if before.availability == now.availability {
            continue;
        }
        let gateway = now.name.as_str();
        match now.availability {
            Availability::Away => {
                tracing::warn!(gateway, "away: other gateways take over its lanes");
            }
            Availability::Returning => {
                tracing::info!(gateway, "answers again: its tables are created");
            }
            Availability::Settled if before.availability == Availability::Returning => {
                tracing::info!(gateway, "has settled: it takes its lanes back");
            }
            Availability::Settled | Availability::Present => {}
        }
    }
}

impl Link {
    /// Returns its index in the settings.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Returns whether there are other gateways.
    pub fn has_others(&self) -> bool {
        self.links.places.len() > 1
    }

    /// Returns the shared state of all gateways.
    pub fn links(&self) -> &Arc<Links> {
        &self.links
    }

    /// Returns its label in metrics.
    pub fn label(&self) -> String {
        let gateways = self.links.gateways();
        let Some(gateway) = gateways.list.get(self.index) else {
            return String::new();
        };
        match (gateway.name.as_str(), gateway.options.is_empty()) {
            ("", true) => "private".to_owned(),
            ("", false) => place_name(&gateway.options),
            (name, _) => name.to_owned(),
        }
    }

    /// Returns its name in messages.
    pub fn title(&self) -> String {
        let gateways = self.links.gateways();
        let gateway = gateways.list.get(self.index);
        gateway.map(Gateway::title).unwrap_or_default()
    }

    /// Returns the current state of the gateway.
    pub fn view(&self) -> Arc<GatewayView> {
        let gateways = self.links.gateways();
        let gateway = gateways.list.get(self.index);
        gateway
            .map(|gateway| gateway.view.clone())
            .unwrap_or_default()
    }

    /// Returns whether the gateway answers; `None` while no connection needs it.
    pub fn is_up(&self) -> Option<bool> {
        let view = self.view();
        (*self.links.requested.borrow()).then(|| view.address.is_some() && view.error.is_none())
    }

    /// Returns its availability.
    pub fn availability(&self) -> Availability {
        let gateways = self.links.gateways();
        let gateway = gateways.list.get(self.index);
        gateway
            .map(|gateway| gateway.availability)
            .unwrap_or_default()
    }

    /// Sets the endpoint of its sessions.
    pub fn set_endpoint(&self, endpoint: Option<Arc<Endpoint>>) {
        if let Some(place) = self.place() {
            place.endpoint.send_replace(endpoint);
        }
    }

    /// Sets whether it answers.
    pub fn set_answers(&self, answers: bool) {
        if let Some(place) = self.place() {
            place.presence.lock().set(answers, self.links.now());
        }
    }

    /// Sets the identity of its database. Returns the name of another gateway with the same database.
    pub fn set_identity(&self, identity: DatabaseIdentity) -> Option<String> {
        let mut others = self.links.places.iter().enumerate();
        let same = others.find(|(index, place)| {
            *index != self.index && place.identity.lock().as_ref() == Some(&identity)
        });
        let Some((index, _)) = same else {
            if let Some(place) = self.place() {
                *place.identity.lock() = Some(identity);
            }
            return None;
        };
        let gateways = self.links.gateways();
        gateways.list.get(index).map(|gateway| gateway.name.clone())
    }

    /// Returns the number of sessions in which hubs read the gateway.
    ///
    /// # Errors
    /// A gateway that cannot be reached.
    pub async fn sessions(&self) -> anyhow::Result<i64> {
        let session = self.endpoint()?.connect("metrics").await?;
        Ok(gateway_reader::sessions(&session.client).await?)
    }

    /// Posts a request to the gateway's daemon and waits for the answer. Returns the error; `None`
    /// means success.
    ///
    /// # Errors
    /// A gateway that cannot be reached.
    pub async fn request(
        &self,
        action: Action,
        names: &[String],
    ) -> anyhow::Result<Option<String>> {
        let session = self.endpoint()?.connect("gateway request").await?;
        let id = gateway::request(&session.client, action, names).await?;
        loop {
            if let Some(answer) = gateway::answer(&session.client, id).await? {
                return Ok(answer);
            }
            tokio::time::sleep(ANSWER_POLL).await;
        }
    }

    /// Sets the address and the rows of the gateway.
    pub fn set(&self, address: Address, rows: BTreeMap<String, GatewayRow>) {
        self.change(|view| {
            *view = GatewayView {
                address: Some(address),
                rows,
                error: None,
                write_error: view.write_error.take(),
            };
        });
    }

    /// Changes the view. Requests a pass of the hub's loop if the hub's plan may change.
    pub fn change(&self, change: impl FnOnce(&mut GatewayView)) {
        let mut differs = false;
        self.links.change(|gateways| {
            if let Some(gateway) = gateways.list.get_mut(self.index) {
                let mut view = GatewayView::clone(&gateway.view);
                change(&mut view);
                differs = view.differs_for_hub(&gateway.view);
                gateway.view = Arc::new(view);
            }
        });
        if differs {
            self.links.waker.notify_one();
        }
    }

    /// Records that the gateway's loop has written rows. Columns may change without an event, and so
    /// without a notification of the database: the patterns of a lane, for example.
    pub fn rows_written(&self) {
        if let Some(place) = self.place() {
            place.written.notify_one();
        }
    }

    /// Waits until rows are written.
    pub async fn until_rows_are_written(&self) {
        match self.place() {
            Some(place) => place.written.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Notifies `waker` whenever the assignment of connections to gateways may have changed.
    pub async fn wake_on_changes(&self, waker: Arc<Notify>) {
        let mut state = self.links.state.subscribe();
        let mut known = placement(&state.borrow_and_update());
        // The links hold the sender.
        while state.changed().await.is_ok() {
            let now = placement(&state.borrow_and_update());
            if now != known {
                known = now;
                waker.notify_one();
            }
        }
    }

    /// Waits until the hub has reported what it reads.
    pub async fn until_hub_is_known(&self) {
        let mut state = self.links.state.subscribe();
        let _ = state.wait_for(|gateways| gateways.hub.is_some()).await;
    }

    fn endpoint(&self) -> anyhow::Result<Arc<Endpoint>> {
        let endpoint = self
            .place()
            .and_then(|place| place.endpoint.borrow().clone());
        endpoint.context("it has not started yet")
    }

    fn place(&self) -> Option<&Place> {
        self.links.places.get(self.index)
    }
}

/// Returns host, port and database of a server's options, which are the gateway's name.
pub fn place_name(options: &BTreeMap<String, String>) -> String {
    let option = |name: &str| options.get(name).map_or("", String::as_str);
    let (host, port, dbname) = (option("host"), option("port"), option("dbname"));
    format!("{host}:{port}/{dbname}")
}

/// Returns the values that determine the assignment of connections to gateways.
fn placement(gateways: &Gateways) -> (Vec<Availability>, Option<Arc<HubLanes>>) {
    let availabilities = gateways.list.iter().map(|gateway| gateway.availability);
    (availabilities.collect(), gateways.hub.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rows_that_were_written_before_the_wait_end_it() {
        let list = vec![
            ("a".to_owned(), BTreeMap::new()),
            ("b".to_owned(), BTreeMap::new()),
        ];
        let links = Links::new(list, Arc::default()).all();
        links[0].rows_written();
        // Ends only if the first wait ends, and the second does not.
        tokio::select! {
            biased;
            () = links[1].until_rows_are_written() => panic!("the other gateway's"),
            () = links[0].until_rows_are_written() => {}
        }
    }
}
