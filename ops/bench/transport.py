"""`moray bench transport`: why frames travel over a connection of ours and not through Ray.

The same frames, one every few milliseconds, from one actor's process to another's: through a Ray streaming generator,
and over `replicas.wire`. Both ends' CPU and the latency of each frame, in turns.
"""

import asyncio
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

from replicas.wire import Connection, Kind

FRAME_BYTES = 32 * 60  # about one engine step of 32 streams
FRAMES_PER_S = 200


class Sender:
    """A replica that only sends."""

    def __init__(self) -> None:
        self._cpu = 0.0

    def stream(self, frames: int) -> Iterator[tuple[float, bytes]]:
        """As a Ray streaming generator."""
        began = time.process_time()
        for _ in range(frames):
            time.sleep(1 / FRAMES_PER_S)
            yield time.time(), bytes(FRAME_BYTES)
        self._cpu = time.process_time() - began

    def serve(self, frames: int) -> int:
        """Over `wire`, to whoever connects; returns the port."""
        started: list[int] = []
        ready = threading.Event()

        async def serve() -> None:
            loop = asyncio.get_running_loop()
            done = loop.create_future()
            peer: asyncio.Future[Connection] = loop.create_future()

            def on_message(connection: Connection, kind: Kind, buffers: list[bytes]) -> None:
                peer.set_result(connection)

            server = await loop.create_server(
                lambda: Connection(on_message, lambda _: done.set_result(None)), "127.0.0.1", 0
            )
            started.append(server.sockets[0].getsockname()[1])
            ready.set()
            gateway = await peer

            def send(sent: float) -> None:
                gateway.send(Kind.FRAME, [repr(sent).encode(), bytes(FRAME_BYTES)])

            def feed() -> None:  # as the engine thread does
                began = time.process_time()
                for _ in range(frames):
                    time.sleep(1 / FRAMES_PER_S)
                    loop.call_soon_threadsafe(send, time.time())
                self._cpu = time.process_time() - began

            await asyncio.to_thread(feed)
            await asyncio.sleep(0.1)
            gateway.close()
            await done
            server.close()

        threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
        ready.wait()
        return started[0]

    def cpu(self) -> float:
        """CPU seconds of the last run."""
        return self._cpu


class Receiver:
    """A gateway that only receives."""

    async def through_ray(self, sender: Any, frames: int) -> tuple[float, list[float]]:
        """(CPU seconds, latency of each frame in seconds)."""
        began, latencies = time.process_time(), []
        async for reference in sender.stream.options(num_returns="streaming").remote(frames):
            sent, _ = await reference
            latencies.append(time.time() - sent)
        return time.process_time() - began, latencies

    async def over_wire(self, port: int) -> tuple[float, list[float]]:
        """(CPU seconds, latency of each frame in seconds)."""
        latencies: list[float] = []
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def on_message(_: Connection, kind: Kind, buffers: list[bytes]) -> None:
            latencies.append(time.time() - float(buffers[0]))

        began = time.process_time()
        _, connection = await loop.create_connection(
            lambda: Connection(on_message, lambda _: done.set_result(None)), "127.0.0.1", port
        )
        connection.send(Kind.HELLO, [b""])
        await done
        return time.process_time() - began, latencies


def measure(rounds: int, frames: int) -> dict[str, Any]:
    """Figures of both ways, medians over rounds."""
    import logging

    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        sender = ray.remote(num_cpus=0, max_concurrency=4)(Sender).remote()
        receiver = ray.remote(num_cpus=0)(Receiver).remote()
        runs: dict[str, list[tuple[float, float, float]]] = {"ray": [], "wire": []}
        for _ in range(rounds):
            cpu, latencies = ray.get(receiver.through_ray.remote(sender, frames))
            runs["ray"].append((cpu, ray.get(sender.cpu.remote()), statistics.median(latencies)))
            port = ray.get(sender.serve.remote(frames))
            cpu, latencies = ray.get(receiver.over_wire.remote(port))
            runs["wire"].append((cpu, ray.get(sender.cpu.remote()), statistics.median(latencies)))
    finally:
        ray.shutdown()
    figures: dict[str, Any] = {"rounds": rounds, "frames": frames, "frame_bytes": FRAME_BYTES}
    for way, results in runs.items():
        figures[f"{way}_receiver_us_per_frame"] = round(1e6 * statistics.median(r[0] for r in results) / frames)
        figures[f"{way}_sender_us_per_frame"] = round(1e6 * statistics.median(r[1] for r in results) / frames)
        figures[f"{way}_latency_p50_ms"] = round(1e3 * statistics.median(r[2] for r in results), 3)
    figures["cpu_ratio"] = round(figures["ray_receiver_us_per_frame"] / figures["wire_receiver_us_per_frame"], 1)
    return figures
