"""Stored histories of users, behind one small interface: SQLite by default, Redis by its address."""

from __future__ import annotations

import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ALLMRecError
from .service_errors import ServiceError

DAMAGED = (sqlite3.Error, UnicodeDecodeError)  # SQLite tells of a damaged file in bytes of that file
KEPT = 10_000  # events of a user; older ones are dropped
BUSY_SECONDS = 2.0  # that a locked or slow store is waited for
_Found = TypeVar("_Found")
_DROP_OLD = """
    DELETE FROM events WHERE number IN (
        SELECT number FROM events WHERE user_id = ? ORDER BY timestamp DESC, number DESC LIMIT -1 OFFSET ?
    )
"""


@dataclass(frozen=True)
class UserEvent:
    """An interaction.

    Attributes:
        user_id: Who.
        item_id: With what.
        timestamp: When, in milliseconds since 1970; None is now.
    """

    user_id: str
    item_id: str
    timestamp: int | None = None


class UserHistories(ABC):
    """Keeps the last items of users in the order of their times, those of one time in the order they came.

    An event without a time gets the present one, but none before the user's last event: a clock that goes backwards
    changes no order. All methods may be called from any thread, and raise a `ServiceError` with status 503 while the
    store cannot be reached.
    """

    @abstractmethod
    def append(self, events: Sequence[UserEvent]) -> None:
        """Store events, all or none; they are kept when this returns."""

    @abstractmethod
    def history(self, user_id: str) -> list[str]:
        """Return the item ids of a user, oldest first; nothing of an unknown one."""

    @abstractmethod
    def forget(self, user_id: str) -> bool:
        """Delete a user's events, and tell whether there were any."""

    @abstractmethod
    def check(self) -> None:
        """Raise unless the store answers."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the store."""


def now_ms() -> int:
    """Return the present time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def unavailable(error: Exception) -> ServiceError:
    """Return the error of a store that does not answer; its own message may hold an address, and stays inside."""
    told = ServiceError(
        503, "store_unavailable", "the store of user histories does not answer; try again", retry_after=1
    )
    told.__cause__ = error
    return told


class SQLiteHistories(UserHistories):
    """Histories in a file of SQLite, synced to the disk at each call of `append`.

    Args:
        path: The file; made where it does not exist.

    Raises:
        ALLMRecError: when it cannot be opened or is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)
            for statement in (
                "PRAGMA journal_mode=WAL",
                "PRAGMA synchronous=FULL",
                "CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT NOT NULL, "
                "timestamp INTEGER NOT NULL, item_id TEXT NOT NULL)",
                "CREATE INDEX IF NOT EXISTS of_user ON events (user_id, timestamp, number)",
            ):
                self._database.execute(statement)
        except (OSError, *DAMAGED) as error:
            raise ALLMRecError(f"the user histories {path} cannot be opened: {error}") from error

    def _do(self, call: Callable[[], _Found]) -> _Found:
        with self._lock:
            try:
                return call()
            except DAMAGED as error:
                raise unavailable(error) from error

    def append(self, events: Sequence[UserEvent]) -> None:
        """Store events in one transaction."""

        def call() -> None:
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                for event in events:
                    when = event.timestamp
                    if when is None:
                        last = "SELECT MAX(timestamp) FROM events WHERE user_id = ?"
                        when = max(now_ms(), self._database.execute(last, (event.user_id,)).fetchone()[0] or 0)
                    row = (event.user_id, when, event.item_id)
                    self._database.execute("INSERT INTO events (user_id, timestamp, item_id) VALUES (?, ?, ?)", row)
                for user_id in {event.user_id for event in events}:
                    self._database.execute(_DROP_OLD, (user_id, KEPT))

        self._do(call)

    def history(self, user_id: str) -> list[str]:
        """Return a user's items."""
        query = "SELECT item_id FROM events WHERE user_id = ? ORDER BY timestamp, number"
        return self._do(lambda: [row[0] for row in self._database.execute(query, (user_id,))])

    def forget(self, user_id: str) -> bool:
        """Delete a user's events."""
        query = "DELETE FROM events WHERE user_id = ?"
        return self._do(lambda: self._database.execute(query, (user_id,)).rowcount > 0)

    def check(self) -> None:
        """Ask the file something."""
        self._do(lambda: self._database.execute("SELECT 1 FROM events LIMIT 1").fetchone())

    def close(self) -> None:
        """Close the file."""
        self._database.close()


class RedisHistories(UserHistories):
    """Histories in Redis: of each user a sorted set of events by time. What it keeps of a crash is Redis's setting.

    Args:
        url: `redis://[:password@]host:port/database`, `rediss://...` or `unix://...`.

    Raises:
        ALLMRecError: when the package redis is missing, the address is no such one, or nothing answers there.
    """

    _NUMBER = "allmrec:events"
    # KEYS: the number of events so far, then for each event its user's set. ARGV: now, events kept, then for each event
    # its time (empty for now) and item. Members start with a number, so that events of one time stay in their order.
    _APPEND = """
        local now, kept = tonumber(ARGV[1]), tonumber(ARGV[2])
        for place = 1, #KEYS - 1 do
            local key, at = KEYS[place + 1], ARGV[2 * place + 1]
            if at == '' then
                local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
                at = now
                if last[2] and tonumber(last[2]) > now then at = last[2] end
            end
            local number = redis.call('INCR', KEYS[1])
            redis.call('ZADD', key, at, string.format('%016d:', number) .. ARGV[2 * place + 2])
            redis.call('ZREMRANGEBYRANK', key, 0, -kept - 1)
        end
    """

    def __init__(self, url: str) -> None:
        try:
            import redis
        except ImportError as error:
            raise ALLMRecError("user histories in Redis need its client: pip install 'allmrec-hf[serve]'") from error
        self._error: Any = redis.RedisError
        try:
            self._redis = redis.Redis.from_url(
                url, socket_timeout=BUSY_SECONDS, socket_connect_timeout=BUSY_SECONDS, decode_responses=True
            )
            self._append = self._redis.register_script(self._APPEND)
        except ValueError as error:
            raise ALLMRecError(f"the store of user histories is no address of Redis: {error}") from error
        try:
            self._redis.ping()
        except (redis.RedisError, OSError) as error:
            raise ALLMRecError(f"Redis does not answer: {error}; start it, or give its address in the store") from error

    @staticmethod
    def _key(user_id: str) -> str:
        return f"allmrec:history:{user_id}"

    def _do(self, call: Callable[[], _Found]) -> _Found:
        try:
            return call()
        except (self._error, OSError) as error:
            raise unavailable(error) from error

    def append(self, events: Sequence[UserEvent]) -> None:
        """Store events by one script."""
        keys = [self._NUMBER, *(self._key(event.user_id) for event in events)]
        times = (("" if event.timestamp is None else event.timestamp, event.item_id) for event in events)
        arguments = [now_ms(), KEPT, *(value for pair in times for value in pair)]
        self._do(lambda: self._append(keys=keys, args=arguments))

    def history(self, user_id: str) -> list[str]:
        """Return a user's items."""
        members: Any = self._do(lambda: self._redis.zrange(self._key(user_id), 0, -1))
        return [member.partition(":")[2] for member in members]

    def forget(self, user_id: str) -> bool:
        """Delete a user's set."""
        return bool(self._do(lambda: self._redis.delete(self._key(user_id))))

    def check(self) -> None:
        """Ping the server."""
        self._do(self._redis.ping)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


def open_histories(store: str | None, state: Path) -> UserHistories:
    """Return the store of an address; SQLite in the folder of the service's state where there is none.

    Raises:
        ALLMRecError: when it cannot be opened.
    """
    if store is None or store == "sqlite":
        return SQLiteHistories(state / "users.sqlite")
    if store.partition("://")[0] in ("redis", "rediss", "unix"):
        return RedisHistories(store)
    raise ALLMRecError(
        f"the store of user histories is sqlite or redis://HOST:PORT/0, not {store.partition('@')[2] or store!r}"
    )
