//! A stand-in for the service of Steampipe: its tables, its channel and its habits.

use crate::support::{Cluster, query};

/// The table of connections, as the service makes it.
const TABLE: &str = "
CREATE SCHEMA steampipe_internal;
CREATE TABLE steampipe_internal.steampipe_connection (
    name text PRIMARY KEY, state text NOT NULL, type text, connections text[], import_schema text NOT NULL,
    error text, plugin text NOT NULL, plugin_instance text, schema_mode text NOT NULL,
    schema_hash text NOT NULL, comments_set boolean NOT NULL, connection_mod_time timestamptz NOT NULL,
    plugin_mod_time timestamptz NOT NULL, file_name text NOT NULL, start_line_number integer NOT NULL,
    end_line_number integer NOT NULL);
GRANT USAGE ON SCHEMA steampipe_internal TO steampipe_users;
GRANT SELECT ON steampipe_internal.steampipe_connection TO steampipe_users;";

const NOTIFY: &str = r#"NOTIFY steampipe_notification, '{"StructVersion":20230306,"Type":1}';"#;

/// The password of the role `steampipe`.
pub const PASSWORD: &str = "p4ss_of_the_service";

/// A service.
pub struct Service {
    pub server: Cluster,
    pub url: String,
}

impl Service {
    /// Starts one without connections. It asks for passwords.
    pub async fn start() -> Self {
        Self::on(Cluster::start(&[])).await
    }

    /// The same on a server that is there.
    pub async fn on(server: Cluster) -> Self {
        let roles = format!(
            "CREATE ROLE steampipe_users; CREATE ROLE steampipe LOGIN PASSWORD '{PASSWORD}' IN ROLE \
             steampipe_users"
        );
        query(&server.url("postgres"), &roles).await;
        query(&server.url("postgres"), "CREATE DATABASE steampipe").await;
        let url = server.url("steampipe");
        query(&url, TABLE).await;
        let hba = "host all steampipe all scram-sha-256\nhost all all all trust\n";
        server.write("pg_hba.conf", hba);
        server.reload();
        Self { server, url }
    }

    /// The block that mirrors it.
    pub fn mirror(&self, more: &str) -> String {
        format!(
            "mirror \"cloud\" {{\n  source = \"postgresql://steampipe@127.0.0.1:{}/steampipe\"\n  \
             password = \"{PASSWORD}\"\n{more}}}\n",
            self.server.port()
        )
    }

    /// Lists a connection without tables.
    pub async fn list(&self, name: &str, state: &str, error: &str) {
        let sql = format!(
            "INSERT INTO steampipe_internal.steampipe_connection VALUES (
                 '{name}', '{state}', NULL, NULL, 'enabled', nullif('{error}', ''),
                 'hub.steampipe.io/plugins/turbot/chaos@latest', 'chaos', 'static', '', false, now(),
                 now(), '/etc/a.spc', 1, 3)
             ON CONFLICT (name) DO UPDATE SET state = excluded.state, error = excluded.error,
                 connection_mod_time = now()"
        );
        query(&self.url, &sql).await;
    }

    /// Announces that schemas changed.
    pub async fn announce(&self) {
        query(&self.url, NOTIFY).await;
    }

    /// Makes or reloads a connection as the service does: the schema is dropped and made again, in
    /// transactions of their own, between two states. `tables` are its statements.
    pub async fn load(&self, name: &str, tables: &str) {
        self.list(name, "updating", "").await;
        self.drop_schema(name).await;
        self.make_schema(name, tables).await;
        self.list(name, "ready", "").await;
        self.announce().await;
    }

    pub async fn drop_schema(&self, name: &str) {
        query(
            &self.url,
            &format!("DROP SCHEMA IF EXISTS \"{name}\" CASCADE"),
        )
        .await;
    }

    pub async fn make_schema(&self, name: &str, tables: &str) {
        let sql = format!(
            "CREATE SCHEMA \"{name}\"; SET search_path = \"{name}\", public; {tables};
             GRANT USAGE ON SCHEMA \"{name}\" TO steampipe_users;
             GRANT SELECT ON ALL TABLES IN SCHEMA \"{name}\" TO steampipe_users"
        );
        query(&self.url, &sql).await;
    }

    /// Removes a connection as the service does.
    pub async fn remove(&self, name: &str) {
        self.list(name, "deleting", "").await;
        self.drop_schema(name).await;
        let sql =
            format!("DELETE FROM steampipe_internal.steampipe_connection WHERE name = '{name}'");
        query(&self.url, &sql).await;
        self.announce().await;
    }
}

/// Tables with one row, which names the connection.
pub fn tables(connection: &str) -> String {
    format!(
        "CREATE TABLE account (id integer, title text); COMMENT ON TABLE account IS 'An account.';
         INSERT INTO account VALUES (1, '{connection}');
         CREATE TABLE bucket (name text, _ctx jsonb)"
    )
}
