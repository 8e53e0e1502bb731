"""Distance: a TCP proxy through which every byte arrives half a round trip after it was sent.

    python -m benchmarks.delay PORT HOST:PORT RTT_MS

A connection's first bytes wait a whole round trip more, for the handshake that the proxy answered at once. What it does
not imitate is slow start: a far server sends a large answer a little slower than this.
"""

import asyncio
import contextlib
import errno
import sys

_BLOCK = 64 << 10


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float, first_s: float) -> None:
    """Bytes from one side to the other, in order, each `delay_s` after it came."""
    clock = asyncio.get_running_loop().time
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        earliest = clock() + first_s
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(due, earliest) - clock())
            if not data:
                try:
                    writer.write_eof()
                except OSError as error:
                    if error.errno != errno.ENOTCONN:  # reset by the other side, which nothing else has noticed yet
                        raise
                return
            writer.write(data)
            await writer.drain()

    async def take() -> None:
        data = b"-"
        while data:
            data = await reader.read(_BLOCK)
            queue.put_nowait((clock() + delay_s, data))

    async with asyncio.TaskGroup() as group:
        group.create_task(deliver())
        group.create_task(take())


async def _connect(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: tuple[str, int], rtt_s: float
) -> None:
    """Both directions of one connection, until both have ended or one broke off."""
    with contextlib.closing(writer):
        far_reader, far_writer = await asyncio.open_connection(*target)
        with contextlib.closing(far_writer):
            async with asyncio.TaskGroup() as group:
                group.create_task(_carry(reader, far_writer, rtt_s / 2, first_s=rtt_s * 1.5))
                group.create_task(_carry(far_reader, writer, rtt_s / 2, first_s=0.0))


async def _serve(port: int, target: tuple[str, int], rtt_s: float) -> None:
    # The event loop itself refers to its tasks only weakly.
    connections: set[asyncio.Task[None]] = set()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _connect(reader, writer, target, rtt_s)
        except* ConnectionError:
            pass  # one side has gone, and the other is closed now

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(connect(reader, writer))
        connections.add(connection)
        connection.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, port=port)
    await server.serve_forever()


def main() -> None:
    port, target, rtt_ms = sys.argv[1:]
    host, _, host_port = target.rpartition(":")
    asyncio.run(_serve(int(port), (host, int(host_port)), float(rtt_ms) / 1000))


if __name__ == "__main__":
    main()
