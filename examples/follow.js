// Waits until a connection is ready, and prints what happens to it meanwhile.
//
//     node follow.js URL NAME
//
// Needs node-postgres (Debian: node-pg; else: npm install pg).
'use strict';

const { Client } = require('pg');

// Messages are lost with a session, so a long wait reads the table again.
const READ_AGAIN = 30000;

// LISTEN, read the table, wait. Rejects when the session is lost.
async function settled(url, name) {
  const client = new Client({ connectionString: url });
  await client.connect();
  try {
    return await new Promise((resolve, reject) => {
      const look = async () => {
        const sql = 'SELECT status, error FROM spcd.connection_state WHERE connection_name = $1';
        const { rows } = await client.query(sql, [name]);
        if (rows.length && ['ready', 'error', 'disabled'].includes(rows[0].status)) {
          clearInterval(timer);
          resolve(rows[0]);
        }
      };
      const timer = setInterval(() => look().catch(reject), READ_AGAIN);
      client.on('error', (error) => { clearInterval(timer); reject(error); });
      client.on('notification', ({ payload }) => {
        const message = JSON.parse(payload);
        const ours = (message.changes || []).filter((change) => change.connection === name);
        for (const change of ours) console.log(`${name}: ${change.status}`);
        if (ours.length || message.resync) look().catch(reject);
      });
      client.query('LISTEN connection_state')
        .then(() => { console.log(`waiting for ${name}`); return look(); })
        .catch(reject);
    });
  } finally {
    client.end().catch(() => {});
  }
}

async function main() {
  const [url, name] = process.argv.slice(2);
  if (!url || !name) {
    console.error('usage: follow.js URL NAME');
    process.exit(64);
  }
  for (;;) {
    try {
      const { status, error } = await settled(url, name);
      console.log(`${name} is ${status}${error ? `: ${error}` : ''}`);
      process.exitCode = status === 'ready' ? 0 : 1;
      return;
    } catch (error) {
      console.error(`connecting again: ${error.message}`);
      await new Promise((resume) => setTimeout(resume, 500));
    }
  }
}

main();
