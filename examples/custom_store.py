"""A store of your own: four methods, plain or async.

This one keeps every session as JSON in a SQLite table.
"""

import json
import sqlite3
from typing import Any

from actorbot import ConsoleBot, Context


class SqliteSessionStore:
    def __init__(self, path: str) -> None:
        self.path = path

    def init(self) -> None:
        self.db = sqlite3.connect(self.path)
        self.db.execute("create table if not exists sessions (id text primary key, data text)")

    def read(self, session_id: str) -> dict[str, Any] | None:
        row = self.db.execute("select data from sessions where id = ?", (session_id,)).fetchone()
        return None if row is None else json.loads(row[0])

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        with self.db:
            self.db.execute("replace into sessions values (?, ?)", (session_id, json.dumps(data)))

    def destroy(self, session_id: str) -> None:
        with self.db:
            self.db.execute("delete from sessions where id = ?", (session_id,))

    def close(self) -> None:
        self.db.close()


bot = ConsoleBot(session_store=SqliteSessionStore("sessions.db"))


@bot.on_event
def count(context: Context) -> None:
    context.session["n"] = context.session.get("n", 0) + 1
    context.send_text(f"That was number {context.session['n']}")


if __name__ == "__main__":
    bot.run()
