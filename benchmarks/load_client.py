"""Put load on a server: read what to send from stdin, write the outcome to stdout.

Both are JSON. A separate process on plain sockets, because it competes with the server for the
processors.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import uvloop

_API = "/api/2.0/mlflow/runs"
_CURVES = 4
_WARM_UP = 0.5  # seconds
_LONGEST = 60.0  # seconds for one response


@dataclass(frozen=True)
class Load:
    """The load.

    Attributes:
        clients: number of concurrent clients, each with its own connection.
        points: number of points in each log-batch.
        seconds: how long it is measured, after half a second of warm-up.
        period: seconds between two batches of a trainer; None to send the next one as soon as the
            last one has got a response.
    """

    clients: int
    points: int
    seconds: float
    period: float | None = None


@dataclass
class Outcome:
    """What the server responded.

    Attributes:
        latencies: seconds that each request in the measured time took; for a trainer, from the
            moment when it was due until everything due then had got a response.
        requests: how many were answered with 200 in the measured time.
        answered: how many were answered with 200, also before and after it.
        acknowledged: points of all batches that were answered with 200, also in the warm-up.
        doubtful: points of all other batches.
        errors: how often each request got another result than 200.
    """

    latencies: list[float] = field(default_factory=list)
    requests: int = 0
    answered: int = 0
    acknowledged: int = 0
    doubtful: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class _Clients:
    def __init__(self, load: Load, port: int, headers: Mapping[str, str]) -> None:
        self._load = load
        self._all = [_Client(port, headers, load.points) for _ in range(load.clients)]
        self._outcome = Outcome()
        self._begins = self._ends = float("inf")

    async def run(self) -> Outcome:
        # At intervals, as real connections arrive.
        for client in self._all:
            await self._is_answered("create", client.create_run())
        now = time.perf_counter()
        self._begins, self._ends = now + _WARM_UP, now + _WARM_UP + self._load.seconds
        period = self._load.period
        if period is None:
            turns = [self._send_on(client) for client in self._all]
        else:
            step = period / len(self._all)
            turns = [
                self._train(client, now + step * number, period, itertools.count(number))
                for number, client in enumerate(self._all)
            ]
        await asyncio.gather(*turns)
        return self._outcome

    async def _send_on(self, client: _Client) -> None:
        while (began := time.perf_counter()) < self._ends:
            await self._log_batch(client)
            self._took(began)

    async def _train(
        self, client: _Client, due: float, period: float, turns: Iterator[int]
    ) -> None:
        """Send trials of two turns: a batch; then another, the end of the run, and the next run."""
        while due < self._ends:
            await asyncio.sleep(due - time.perf_counter())
            await self._log_batch(client)
            if next(turns) % 2:
                await self._is_answered("update", client.end_run())
                await self._is_answered("create", client.create_run())
            self._took(due)
            due += period

    async def _log_batch(self, client: _Client) -> None:
        if await self._is_answered("log-batch", client.log_batch()):
            self._outcome.acknowledged += self._load.points
        else:
            self._outcome.doubtful += self._load.points

    async def _is_answered(self, name: str, request: Coroutine[Any, Any, int]) -> bool:
        try:
            status = str(await asyncio.wait_for(request, _LONGEST))
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            status = type(error).__name__
        if status != "200":
            self._outcome.errors[f"{name} {status}"] += 1
            return False
        self._outcome.answered += 1
        self._outcome.requests += self._begins <= time.perf_counter() <= self._ends
        return True

    def _took(self, since: float) -> None:
        now = time.perf_counter()
        # Including responses after the measured time, which took longest.
        if now >= self._begins:
            self._outcome.latencies.append(now - since)


class _Client:
    """A kept connection, and the run that it writes to."""

    def __init__(self, port: int, headers: Mapping[str, str], points: int) -> None:
        self._port = port
        self._headers = headers
        self._points = points
        self._run_id = ""
        self._steps = itertools.count()
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def create_run(self) -> int:
        status, answer = await self._send("create", experiment_id="0", start_time=_now_ms())
        if status == 200:
            self._run_id = json.loads(answer)["run"]["info"]["run_id"]
        return status

    async def log_batch(self) -> int:
        now = _now_ms()
        metrics = [
            {"key": f"valid.{number % _CURVES}", "value": 0.123, "timestamp": now, "step": step}
            for number, step in zip(range(self._points), self._steps, strict=False)
        ]
        return (await self._send("log-batch", run_id=self._run_id, metrics=metrics))[0]

    async def end_run(self) -> int:
        ended = {"run_id": self._run_id, "status": "FINISHED", "end_time": _now_ms()}
        return (await self._send("update", **ended))[0]

    async def _send(self, name: str, **content: object) -> tuple[int, bytes]:
        body = json.dumps(content).encode()
        lines = [f"POST {_API}/{name} HTTP/1.1", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self._headers.items()]
        # A connection that failed or that the server closed is not used again.
        stream, self._stream = self._stream, None
        if stream is None or stream[0].at_eof():
            stream = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = stream
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        answer = await reader.readexactly(int(length))
        self._stream = stream
        return int(head.split(b" ", 2)[1]), answer


def _now_ms() -> int:
    return int(time.time() * 1000)


if __name__ == "__main__":
    # Not in the command line, which every user of the machine can read.
    given = json.load(sys.stdin)
    clients = _Clients(Load(**given["load"]), given["port"], given["headers"])
    json.dump(vars(uvloop.run(clients.run())), sys.stdout)
