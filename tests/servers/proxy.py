"""A TCP proxy that misbehaves as networks do: slow, sliced, silent, cut, and with the reply lost
after the request was carried out.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Self

PATIENCE = 10.0  # seconds for its threads to end
TICK = 0.02  # seconds after which a thread notices that the proxy is closed


class Proxy:
    """Passes on what comes to `port` to *upstream*, a port of the loopback, with TLS on its own
    side if *tls* is given.

    Its attributes may be changed at any time, from any thread.
    """

    def __init__(self, upstream: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.upstream = upstream
        self.latency = 0.0
        """Seconds that each piece waits, in both directions."""
        self.slice = 0
        """The most bytes that are passed on in one piece; 0: as they come."""
        self.black_hole = False
        """Whether what comes is swallowed. Connections are accepted all the same."""
        self.garbage = b""
        """What each piece of a request is answered with, in place of the upstream's reply."""
        self.loses: Callable[[bytes], bool] = lambda request: False
        """Asked with each piece of a request. When it says yes, the request is passed on, and when
        the upstream has replied, the reply is dropped and the connection cut."""
        self.lost = 0
        """How many replies were lost."""
        self.changes: Callable[[bytes], bytes] = lambda reply: reply
        """Makes of each piece of a reply what is passed on."""
        self.changes_requests: Callable[[bytes], bytes] = lambda request: request
        self.holds_requests = False
        self.holds_replies = False
        """Whether what comes is left where it is, and passed on later: so TCP does it while a cable
        is unplugged."""
        self.swallowed = 0
        """How many pieces of requests were swallowed."""
        self.connections = 0
        """How many were made."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._closed = threading.Event()
        self._cut = threading.Event()  # replaced by each reset
        self._forgotten = threading.Event()  # replaced by each `forget`
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()  # guards the last two

    def reset(self) -> None:
        """Cut all connections, and return when they are; new ones are accepted."""
        with self._lock:
            (cut, self._cut), threads = (self._cut, threading.Event()), self._threads
            self._threads = threads[:1]
        cut.set()
        for thread in threads[1:]:
            thread.join(PATIENCE)

    def forget(self) -> None:
        """Swallow what comes on the connections of now, as a firewall does that has forgotten them.

        New ones work.
        """
        forgotten, self._forgotten = self._forgotten, threading.Event()
        forgotten.set()

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cut all connections, and accept none any more."""
        self._closed.set()
        self._threads[0].join(PATIENCE)
        self.reset()
        self._listener.close()

    def _spawn(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, name="proxy", daemon=True)
        with (
            self._lock
        ):  # in one step: it may carry a whole conversation before it is in the list, and `reset` must find it there
            thread.start()
            self._threads.append(thread)

    def _accept(self) -> None:
        while not self._closed.is_set():
            if select.select([self._listener], [], [], TICK)[0]:
                client, _ = self._listener.accept()
                self.connections += 1
                self._spawn(self._carry, client, self._cut, self._forgotten)

    def _carry(self, client: socket.socket, cut: threading.Event, forgotten: threading.Event) -> None:
        try:
            if self._tls is not None:
                client.settimeout(PATIENCE)
                client = self._tls.wrap_socket(client, server_side=True)
            upstream = socket.create_connection(("127.0.0.1", self.upstream), timeout=PATIENCE)
        except OSError:
            client.close()
            return
        with client, upstream:
            for side in (client, upstream):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                self._carry_on(client, upstream, cut, forgotten)
            except OSError:
                pass  # one of the two has gone
            # A reset rather than an orderly end, whoever asked for it.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _carry_on(
        self, client: socket.socket, upstream: socket.socket, cut: threading.Event, forgotten: threading.Event
    ) -> None:
        losing = False
        while not cut.is_set():
            for side in select.select(self._open_sides(client, upstream), [], [], TICK)[0]:
                data = side.recv(65_536)
                if not data:
                    return
                if self.black_hole or forgotten.is_set():
                    self.swallowed += side is client
                    continue
                if self.garbage:
                    client.sendall(self.garbage)
                elif side is client:
                    losing = self.loses(data) or losing
                    self._pass_on(self.changes_requests(data), upstream, cut)
                elif losing:
                    self.lost += 1
                    return
                else:
                    self._pass_on(self.changes(data), client, cut)

    def _open_sides(self, client: socket.socket, upstream: socket.socket) -> list[socket.socket]:
        held = {client: self.holds_requests, upstream: self.holds_replies}
        return [side for side in (client, upstream) if not held[side]]

    def _pass_on(self, data: bytes, to: socket.socket, cut: threading.Event) -> None:
        size = self.slice or len(data)
        for at in range(0, len(data), size):
            if self.latency and cut.wait(self.latency):
                return
            to.sendall(data[at : at + size])
