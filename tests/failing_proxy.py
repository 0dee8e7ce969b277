"""A TCP proxy before an HTTP server that does to connections what bad networks and busy servers do."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class FailingProxy:
    """Of its connections a share gets a 500 to its first request, another share is reset after some bytes of answers,
    and what remains is whole. By default nothing does. `counts` says how many of each there were."""

    target: int
    port: int = 0
    errors: float = 0.25
    resets: float = 0.75
    most_bytes: int = 40_000
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    counts: Counter[str] = field(default_factory=Counter)

    def handle(self, client: socket.socket) -> None:
        drawn = self.chance.random()
        with client, suppress(OSError):
            if drawn < self.errors:
                client.recv(65536)
                client.sendall(_ERROR)
                self.counts["500"] += 1
                return
            with socket.create_connection(("127.0.0.1", self.target)) as server:
                threading.Thread(target=_pass_on, args=(client, server), daemon=True).start()
                if drawn < self.errors + self.resets:
                    self._answer(client, server, self.chance.randrange(1, self.most_bytes))
                    _reset(client)
                    self.counts["reset"] += 1
                else:
                    self._answer(client, server, None)
                    self.counts["whole"] += 1

    def _answer(self, client: socket.socket, server: socket.socket, left: int | None) -> None:
        """Pass answers on; with `left`, no more bytes than that."""
        while left is None or left > 0:
            data = server.recv(4096 if left is None else min(4096, left))
            if not data:
                return
            client.sendall(data)
            left = None if left is None else left - len(data)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def _reset(client: socket.socket) -> None:
    """An RST instead of an end: what was not read yet is thrown away."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.shutdown(socket.SHUT_RD)


@contextmanager
def failing_proxy(target: int) -> Iterator[FailingProxy]:
    """Before the server at the port `target` of the loopback interface, until the block ends."""
    proxy = FailingProxy(target)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy.port = int(listener.getsockname()[1])

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=proxy.handle, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield proxy
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
