"""A small TCP proxy between clients and a server, which can hurt their connections.

It knows nothing of what passes through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable

__all__ = ["Proxy"]

_CHUNK = 1 << 16


class Proxy:
    """Listens on ``port`` of 127.0.0.1 and passes everything on to ``target_port`` there.

    Runs in a thread of its own; its methods may be called from any other. Usable as a context
    manager.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._cut = 0
        self.port = 0

    def __enter__(self) -> Proxy:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset(self) -> None:
        """Break every connection with a TCP reset."""
        self._call(self._reset)

    def hold(self) -> None:
        """Pass nothing on, and say nothing, until ``release``: a black hole."""
        self._call(self._flows.clear)

    def release(self) -> None:
        """End a black hole; its connections are broken, as a router that comes back does."""
        self._call(self._reset)
        self._call(self._flows.set)

    def truncate(self) -> None:
        """Break the next connection that sends something, in the middle of what it sends."""
        self._cut = 1

    def _call(self, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(function)

    async def _listen(self) -> int:
        self._flows.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _end(self) -> None:
        self._server.close()
        self._reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._flows.wait()
            there = await asyncio.open_connection("127.0.0.1", self._target_port)
        except (OSError, asyncio.CancelledError):
            _break(writer)  # the server is away, and a client of it would be told the same
            return
        ends = {writer, there[1]}
        self._writers |= ends
        try:
            passing = [
                asyncio.ensure_future(self._pass(reader, there[1])),
                asyncio.ensure_future(self._pass(there[0], writer)),
            ]
            # Cancelled when the proxy ends, which asyncio would log as an error of this server.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            for way in passing:
                way.cancel()
            await asyncio.gather(*passing, return_exceptions=True)
        finally:
            self._writers -= ends
            for end in ends:
                end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._flows.wait()
            if self._cut and len(data) > 1:
                self._cut = 0
                writer.write(data[: len(data) // 2])
                await writer.drain()
                return
            writer.write(data)
            await writer.drain()

    def _reset(self) -> None:
        for writer in self._writers:
            _break(writer)


def _break(writer: asyncio.StreamWriter) -> None:
    held = writer.get_extra_info("socket")
    if held is not None and held.fileno() >= 0:
        # Closed without lingering, a connection ends in a reset.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
