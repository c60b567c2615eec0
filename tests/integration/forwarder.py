"""A network that can be cut: forwards TCP connections, until it is told to keep what it has."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Self

CHUNK_BYTES = 65536


class Forwarder:
    """Listens on one port of 127.0.0.1 and forwards to another, in a thread of its own.

    A cut is that of a cable: nothing is closed, nothing is answered, and what either side sends is
    delivered when the cable is back, if somebody still waits for it.
    """

    def __init__(self, port: int, target_port: int) -> None:
        self._port, self._target_port = port, target_port
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._open.set()
        starting = asyncio.start_server(self._accept, "127.0.0.1", self._port)
        asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def cut(self) -> None:
        """Deliver nothing from now on."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def mend(self) -> None:
        """Deliver again, what was kept first."""
        self._loop.call_soon_threadsafe(self._open.set)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            target = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.close()
            return
        # Cancelled at the end only; asyncio would report it as an error of the connection.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(self._pump(reader, target[1]), self._pump(target[0], writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while data := await reader.read(CHUNK_BYTES):
                await self._open.wait()
                writer.write(data)
                await writer.drain()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
