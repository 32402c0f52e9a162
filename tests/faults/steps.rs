//! Carrying out the steps of a schedule.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use spcd_core::sql::{ident, literal};
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::people::{AGGREGATOR, Thing};
use super::schedule::{MEMBERS, Server, Step, Stray, ThingKind};
use super::sql_session::{insist, must};
use super::world::World;
use crate::support::link::{Link, Traffic};
use crate::support::{Cluster, DEADLINE, Spcd, connect, try_query};

/// How long a waiting client waits.
pub const WAIT: Duration = Duration::from_secs(20);

impl World {
    pub async fn step(&mut self, step: &Step) {
        match step.clone() {
            Step::Edit { member, source } => {
                self.model.members[member].source = source;
                self.model.members[member].fetch_size += 1;
                self.save_present(member);
            }
            Step::Break { member, broken } => {
                self.model.members[member].is_broken = broken;
                self.save_present(member);
            }
            Step::Remove { member } => self.remove(member),
            Step::Restore { member } => {
                self.model.members[member].is_present = true;
                self.save_member(member);
            }
            Step::Rename { member } => self.rename(member),
            Step::Enable { member, enabled } => {
                if !enabled {
                    self.model.may_lose_tables(MEMBERS[member]);
                }
                self.model.members[member].is_enabled = enabled;
                self.save_present(member);
            }
            Step::HalfWrite { member, pause } => self.half_write(member, pause).await,
            Step::Token { wrapper } => {
                self.model.tokens[wrapper] += 1;
                self.save_wrapper(wrapper);
            }
            Step::Source { source, sql } => drop(must(&self.sources[source], &sql).await),
            Step::Make { member, thing } => self.make(member, thing).await,
            Step::Unmake { pick } => self.unmake(pick).await,
            Step::Damage { member, sql } => self.damage(member, &sql).await,
            Step::Refresh { member } => {
                let names = member.map(|member| names_of(&[MEMBERS[member]]));
                let names = names.unwrap_or_else(|| "NULL".to_owned());
                // Before the first start there is no such function.
                let _ = insist(&self.hub, &format!("SELECT spcd.refresh({names})")).await;
            }
            Step::Wait { member } => self.wait(member),
            Step::Rest { pause } => sleep(Duration::from_millis(pause)).await,
            Step::Kill { pause } => {
                let mut spcd = self.spcd.lock().await;
                spcd.kill9();
                sleep(Duration::from_millis(pause)).await;
                spcd.start();
            }
            Step::Freeze { pause } => self.freeze(pause),
            Step::Crash {
                server,
                kill,
                pause,
            } => self.crash(server, kill, pause),
            Step::FreezeServer { server, pause } => self.freeze_server(server, pause),
            Step::Replace { by, pause } => self.replace(by, pause).await,
            Step::Second { stop } => self.second_daemon(stop).await,
            Step::Lock { member, sql, pause } => self.lock(member, &sql, pause),
            Step::Password { pause } => self.change_password(pause).await,
            Step::Csv { name, exists } => self.change_csv(name as usize, exists),
            Step::Panic { wrapper } => {
                let url = self.hub.clone();
                let sql = format!("SELECT * FROM w{wrapper}.panic");
                self.faults.spawn(async move {
                    let ended = tokio::time::timeout(DEADLINE, try_query(&url, &sql)).await;
                    assert!(
                        ended.is_ok(),
                        "a query of a wrapper that crashes did not end"
                    );
                });
            }
            Step::BadWrapper { wrapper, pause } => {
                self.save_wrapper_with(wrapper, "panic = \"import\"");
                sleep(Duration::from_millis(pause)).await;
                self.model.tokens[wrapper] += 1;
                self.save_wrapper(wrapper);
            }
            Step::Disturb {
                server,
                traffic,
                pause,
                cut,
            } => self.disturb(server, traffic, pause, cut),
            Step::Cut { server, half: true } => self.link(server).half_close(),
            Step::Cut {
                server,
                half: false,
            } => self.link(server).cut(),
            Step::Terminate { pick } => {
                let sql = format!(
                    "SELECT pg_terminate_backend(pid) FROM (
                         SELECT pid FROM pg_stat_activity
                         WHERE datname = current_database() AND application_name LIKE 'spcd%'
                         ORDER BY md5(application_name || '{pick}') LIMIT 1 + {pick} % 3) s"
                );
                let _ = try_query(&self.hub, &sql).await;
            }
        }
    }

    fn save_present(&self, member: usize) {
        if self.model.members[member].is_present {
            self.save_member(member);
        }
    }

    fn remove(&mut self, member: usize) {
        if !self.model.members[member].is_present {
            return;
        }
        self.has_removed = true;
        self.model.may_lose_tables(MEMBERS[member]);
        self.model.members[member].is_present = false;
        fs::remove_file(self.config_dir.join(self.model.file_name(member))).unwrap();
    }

    fn rename(&mut self, member: usize) {
        let from = self.config_dir.join(self.model.file_name(member));
        self.has_removed = true;
        self.model.members[member].file += 1;
        if self.model.members[member].is_present {
            let to = self.config_dir.join(self.model.file_name(member));
            fs::rename(from, to).unwrap();
        }
    }

    async fn half_write(&self, member: usize, pause: u64) {
        if !self.model.members[member].is_present {
            return;
        }
        let text = self.model.file_text(member, &self.addresses);
        let path = self.config_dir.join(self.model.file_name(member));
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        sleep(Duration::from_millis(pause)).await;
        fs::write(&path, &text).unwrap();
    }

    /// Makes an object of a user, unless the table that it needs is not there.
    async fn make(&mut self, member: usize, kind: ThingKind) {
        let thing = Thing::new(kind, MEMBERS[member], self.model.next_number);
        self.model.next_number += 1;
        if insist(&self.hub, &thing.make()).await.is_err() {
            return;
        }
        // The table may have been about to go with all that hangs on it.
        let block = &self.model.members[member];
        let stays = thing.on == AGGREGATOR || block.is_present && block.is_enabled;
        if thing.goes_with_table() && !stays {
            return;
        }
        self.model.things.retain(|other| !thing.replaces(other));
        self.model.things.push(thing);
    }

    async fn unmake(&mut self, pick: u64) {
        if self.model.things.is_empty() {
            return;
        }
        let n = pick as usize % self.model.things.len();
        let thing = self.model.things.remove(n);
        let _ = insist(&self.hub, &thing.unmake()).await;
    }

    /// Damages a connection, unless the object is not there. What is `ready` meanwhile lacks what was
    /// damaged, until the daemon has noticed.
    async fn damage(&mut self, member: usize, sql: &str) {
        let name = MEMBERS[member];
        self.model.members[member].is_damaged = true;
        let damage = self.watch.damage([name, AGGREGATOR]);
        let sql = sql.replace("{}", &ident(name));
        let _ = insist(&self.hub, &sql).await;
        self.watch.damaged(damage);
    }

    fn wait(&mut self, member: Option<usize>) {
        let names = member.map(|member| names_of(&[MEMBERS[member]]));
        let names = names.unwrap_or_else(|| "NULL".to_owned());
        let sql = format!(
            "SET search_path = \"all\", m0, m1; SELECT status FROM spcd.wait_until_ready({names}, '{} s')",
            WAIT.as_secs()
        );
        let url = self.hub.clone();
        self.waiters.spawn(async move {
            let limit = WAIT + Duration::from_secs(10);
            let ended = match tokio::time::timeout(limit, try_query(&url, &sql)).await {
                Ok(Ok(rows)) => {
                    let moving = (rows.iter().flatten().flatten())
                        .find(|status| !["ready", "error", "disabled"].contains(&status.as_str()));
                    moving.map_or(Ok(()), |status| Err(format!("returned a row {status}")))
                }
                // The session was lost, or the answer is an error: it has returned.
                Ok(Err(_)) => Ok(()),
                Err(_) => Err("did not return".to_owned()),
            };
            (sql, ended)
        });
    }

    fn freeze(&mut self, pause: u64) {
        let spcd = self.spcd.clone();
        self.faults.spawn(async move {
            // Nothing else may happen to it meanwhile.
            let spcd = spcd.lock().await;
            spcd.signal(Signal::SIGSTOP);
            sleep(Duration::from_millis(pause)).await;
            spcd.signal(Signal::SIGCONT);
        });
    }

    fn crash(&mut self, server: Server, kill: bool, pause: u64) {
        let servers = self.servers.clone();
        let pause = Duration::from_millis(pause);
        self.faults.spawn(async move {
            let restart = async |cluster: &mut Cluster| {
                match kill {
                    true => cluster.kill9(),
                    false => cluster.stop_immediately(),
                }
                sleep(pause).await;
                cluster.start_again();
            };
            servers.with(server, restart).await;
        });
    }

    fn freeze_server(&mut self, server: Server, pause: u64) {
        let servers = self.servers.clone();
        let pause = Duration::from_millis(pause);
        self.faults.spawn(async move {
            let freeze = async |cluster: &mut Cluster| {
                cluster.freeze(true);
                sleep(pause).await;
                cluster.freeze(false);
            };
            servers.with(server, freeze).await;
        });
    }

    /// The config directory is away for a time, or is something else.
    async fn replace(&mut self, by: Stray, pause: u64) {
        let (dir, aside) = (
            self.config_dir.clone(),
            self.config_dir.with_file_name("aside"),
        );
        fs::rename(&dir, &aside).unwrap();
        match by {
            Stray::Nothing => {}
            Stray::EmptyDirectory => fs::create_dir(&dir).unwrap(),
            Stray::File => fs::write(&dir, "no directory").unwrap(),
            Stray::LinkToItself => symlink(&dir, &dir).unwrap(),
            Stray::LinkToFile => symlink("/etc/hostname", &dir).unwrap(),
            Stray::LinkToDirectory => symlink(&aside, &dir).unwrap(),
        }
        sleep(Duration::from_millis(pause)).await;
        if fs::remove_file(&dir).is_err() && by == Stray::EmptyDirectory {
            fs::remove_dir(&dir).unwrap();
        }
        fs::rename(&aside, &dir).unwrap();
        self.has_vanished = true;
    }

    /// Starts a second daemon, or ends the first one, so that the second takes over.
    async fn second_daemon(&mut self, stop: bool) {
        let Some(second) = self.second.take() else {
            let mut second = Spcd::beside(&*self.spcd.lock().await);
            for (name, value) in &self.env {
                second.env(name, value);
            }
            second.start();
            // It handles signals before it logs anything.
            second.logged("{");
            self.second = Some(second);
            return;
        };
        let mut first = self.spcd.lock().await;
        match stop {
            true => first.stop(),
            false => first.kill9(),
        }
        drop(first);
        let first = std::mem::replace(&mut self.spcd, Arc::new(Mutex::new(second)));
        self.retired.push(first);
    }

    /// A user's transaction that ends by itself.
    fn lock(&mut self, member: usize, sql: &str, pause: u64) {
        let url = self.hub.clone();
        let sql = format!("BEGIN; {}", sql.replace("{}", &ident(MEMBERS[member])));
        self.faults.spawn(async move {
            if let Ok(session) = connect(&url).await
                && session.batch_execute(&sql).await.is_ok()
            {
                sleep(Duration::from_millis(pause)).await;
                let _ = session.batch_execute("ROLLBACK").await;
            }
        });
    }

    async fn change_password(&mut self, pause: u64) {
        self.addresses.password.push('x');
        let password = literal(&self.addresses.password);
        let sql = format!("ALTER ROLE source_reader PASSWORD {password}");
        must(&self.sources[0], &sql).await;
        sleep(Duration::from_millis(pause)).await;
        self.save_base();
        for member in 0..MEMBERS.len() {
            // A broken block keeps the old password in the hub.
            self.model.members[member].is_damaged = true;
            self.save_present(member);
        }
    }

    fn change_csv(&mut self, name: usize, exists: bool) {
        let path = self.data_dir().join(format!("d{name}.csv"));
        match exists {
            true => fs::write(path, "day\n2026-01-01\n").unwrap(),
            // It may never have been there.
            false => drop(fs::remove_file(path)),
        }
        self.model.csv[name] = exists;
    }

    fn link(&self, server: Server) -> &Arc<Link> {
        match server {
            Server::Hub => &self.hub_link,
            Server::Source => &self.source_link,
            Server::Gateway => self.gateway_link.as_ref().expect("a gateway"),
        }
    }

    fn disturb(&mut self, server: Server, traffic: Traffic, pause: u64, cut: bool) {
        let link = self.link(server).clone();
        self.faults.spawn(async move {
            link.set(traffic);
            sleep(Duration::from_millis(pause)).await;
            link.set(Traffic::Flows);
            if cut {
                link.cut();
            }
        });
    }

    /// Ends all faults: the servers run, the daemon runs, and everything flows.
    pub async fn end_faults(&mut self) {
        while let Some(ended) = self.faults.join_next().await {
            ended.expect("a fault that ends in order");
        }
    }
}

/// An array of names.
fn names_of(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| literal(name)).collect();
    format!("ARRAY[{}]", names.join(", "))
}
