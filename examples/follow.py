"""Waits until a connection is ready, and prints what happens to it meanwhile.

    python3 follow.py URL NAME

Needs psycopg 3 (Debian: python3-psycopg; else: pip install psycopg).
"""

import asyncio
import json
import sys

import psycopg

# Messages are lost with a session, so a long wait reads the table again.
READ_AGAIN = 30.0


async def status(connection, name):
    sql = "SELECT status, error FROM spcd.connection_state WHERE connection_name = %s"
    cursor = await connection.execute(sql, (name,))
    return await cursor.fetchone()


async def follow(url, name):
    """LISTEN, read the table, wait; after a lost session the same again."""
    while True:
        try:
            return await settled(url, name)
        except psycopg.OperationalError as error:
            print(f"connecting again: {error}", file=sys.stderr)
            await asyncio.sleep(0.5)


async def settled(url, name):
    # One session listens and does nothing else, so that no message is missed; another one reads.
    connect = psycopg.AsyncConnection.connect
    async with await connect(url, autocommit=True) as ears, await connect(url, autocommit=True) as eyes:
        await ears.execute("LISTEN connection_state")
        print(f"waiting for {name}", flush=True)
        arrived = asyncio.Event()
        listener = asyncio.create_task(listen(ears, name, arrived))
        try:
            while True:
                arrived.clear()
                row = await status(eyes, name)
                if row and row[0] in ("ready", "error", "disabled"):
                    return row
                waiter = asyncio.create_task(arrived.wait())
                await asyncio.wait({waiter, listener}, timeout=READ_AGAIN, return_when=asyncio.FIRST_COMPLETED)
                waiter.cancel()
                if listener.done():
                    # It ends only by losing its session.
                    listener.result()
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)


async def listen(connection, name, arrived):
    async for message in connection.notifies():
        content = json.loads(message.payload)
        ours = [c for c in content.get("changes", []) if c["connection"] == name]
        for change in ours:
            print(f"{name}: {change['status']}", flush=True)
        if ours or content.get("resync"):
            arrived.set()


async def main():
    if len(sys.argv) != 3:
        sys.exit("usage: follow.py URL NAME")
    url, name = sys.argv[1:]
    state, error = await follow(url, name)
    print(f"{name} is {state}" + (f": {error}" if error else ""))
    sys.exit(0 if state == "ready" else 1)


asyncio.run(main())
