"""haproxy.cfg and nginx.conf by the real programs, before two gateways: what is promised of streams and requests."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from balancers import FILES, HAPROXY, NGINX, Balancer, Kind, balancing, free_port, placed, until
from sse_gateway import CHAT, SseGateway, gateway_process, serving

from cluster.settings import Gateway as GatewaySettings

STREAMS = 200
UNREACHABLE = "http://127.0.0.1:1"


def _needed(kind: Kind) -> pytest.MarkDecorator:
    return pytest.mark.skipif(kind.program is None, reason=f"needs {kind.name}: apt-get install {kind.package}")


KINDS = [pytest.param(kind, id=kind.name, marks=_needed(kind)) for kind in (HAPROXY, NGINX)]
each = pytest.mark.parametrize("kind", KINDS)
needs_haproxy = _needed(HAPROXY)


class Stream:
    """A client of one stream; `events` are those that have come."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.events: list[str] = []
        self.gateway = ""
        self.task = asyncio.ensure_future(self._read(client))
        # A test that ends first cuts it; those that wait for its end still get what it raised.
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _read(self, client: httpx.AsyncClient) -> None:
        async with client.stream("POST", CHAT, json={"stream": True}) as answer:
            assert answer.status_code == 200
            self.gateway = answer.headers["x-gateway"]
            async for line in answer.aiter_lines():
                if line:
                    self.events.append(line.removeprefix("data: "))


@asynccontextmanager
async def _two_gateways(kind: Kind) -> AsyncIterator[tuple[Balancer, SseGateway, SseGateway, httpx.AsyncClient]]:
    async with (
        serving(SseGateway("first")) as first,
        serving(SseGateway("second")) as second,
        balancing(kind, first.url, second.url) as balancer,
        _client(balancer) as client,
    ):
        yield balancer, first, second, client


def _client(balancer: Balancer) -> httpx.AsyncClient:
    none = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=balancer.url, timeout=20, limits=none, trust_env=False)


async def _open(client: httpx.AsyncClient, count: int) -> list[Stream]:
    """Twenty at a time: no listener's backlog is what is tested."""
    streams: list[Stream] = []
    while len(streams) < count:
        some = [Stream(client) for _ in range(20)]
        await until(lambda some=some: all(stream.events for stream in some))
        streams += some
    return streams


async def _ask(client: httpx.AsyncClient, **more: object) -> httpx.Response:
    return await client.post(CHAT, json={"model": "m"}, **more)


async def _raw(balancer: Balancer, rest: str) -> str:
    """The answer to a request of which the `rest` is given; an error of the load balancer's own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", balancer.port)
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{rest}".encode())
    answer = await asyncio.wait_for(reader.readuntil(b"}}"), 20)
    writer.close()
    return answer.decode()


async def _who_answers(client: httpx.AsyncClient, count: int = 12) -> set[str]:
    answers = [await _ask(client) for _ in range(count)]
    assert {answer.status_code for answer in answers} == {200}
    return {answer.json()["gateway"] for answer in answers}


async def _until_only(gateway: str, client: httpx.AsyncClient) -> None:
    for _ in range(100):
        if await _who_answers(client) == {gateway}:
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"not only {gateway} answers")


@each
def test_the_file_as_it_stands_is_without_a_warning(kind, tmp_path) -> None:
    file = placed(kind, tmp_path, ("127.0.0.1:1", "127.0.0.1:2"), 8999, str)
    done = subprocess.run(kind.check(kind.program, file), capture_output=True, text=True, timeout=20)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert not re.search(r"warn|alert|emerg|deprecat", said, re.IGNORECASE), said


@each
async def test_a_reload_under_200_streams_cuts_none_and_takes_a_gateway_out(kind) -> None:
    async with _two_gateways(kind) as (balancer, first, second, client):
        first.tell(), second.tell()
        streams = await _open(client, STREAMS)
        assert first.open_streams == second.open_streams == STREAMS // 2
        old = balancer.workers()
        balancer.take_out_the_second()
        await balancer.reload()
        await _until_only("first", client)
        # An event is sent when the one before it has come to all: a proxy that held one back would wait for ever.
        for _ in range(3):
            event = first.tell()
            assert second.tell() == event
            await until(lambda event=event: all(len(stream.events) == event for stream in streams))
        assert old & balancer.workers()  # they serve their streams, beside the new ones
        first.finish(), second.finish()
        await asyncio.wait_for(asyncio.gather(*(stream.task for stream in streams)), 20)
        assert {tuple(stream.events) for stream in streams} == {("1", "2", "3", "4", "[DONE]")}
        assert {stream.gateway for stream in streams} == {"first", "second"}
        await until(lambda: not old & balancer.workers())


@each
async def test_an_event_waits_neither_for_the_next_nor_for_the_kernel(kind) -> None:
    async with _two_gateways(kind) as (_, first, second, client):
        first.tell(), second.tell()
        stream = Stream(client)
        took_s = []
        for count in range(1, 20):
            sent = time.monotonic()
            await until(lambda count=count: len(stream.events) == count)
            took_s.append(time.monotonic() - sent)
            first.tell(), second.tell()
        first.finish(), second.finish()
        await stream.task
        assert min(took_s[1:]) < 0.15  # each takes 200 ms where the kernel is told that more is to come


@each
async def test_an_answer_is_not_collected_for_a_client_that_does_not_read(kind) -> None:
    async with _two_gateways(kind) as (balancer, first, second, _):
        first.padding = second.padding = 1 << 20
        for _ in range(100):
            first.tell(), second.tell()
        _, writer = await asyncio.open_connection("127.0.0.1", balancer.port)
        writer.write(f'POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n"stream"'.encode())
        await until(lambda: first.sent_events + second.sent_events)
        taken = 0
        for _ in range(20):  # until no more is taken
            if taken == (taken := first.sent_events + second.sent_events):
                break
            await asyncio.sleep(0.5)
        assert taken < 50  # a few sockets' buffers
        writer.close()


@each
async def test_whoever_has_fewest_streams_gets_the_next(kind) -> None:
    async with _two_gateways(kind) as (_, first, second, client):
        first.tell(), second.tell()
        streams = await _open(client, 20)
        for stream in streams:
            if stream.gateway == "first":
                stream.task.cancel()
        await until(lambda: first.open_streams == 0)
        new = [Stream(client) for _ in range(8)]
        await until(lambda: all(stream.events for stream in new))
        assert {stream.gateway for stream in new} == {"first"}


@needs_haproxy
async def test_a_gateway_that_drains_gets_nothing_new_and_keeps_its_streams() -> None:
    async with _two_gateways(HAPROXY) as (balancer, first, second, client):
        first.tell(), second.tell()
        streams = await _open(client, 20)
        second.draining = True
        await until(lambda: balancer.state("gateway-2") == "DOWN")
        assert await _who_answers(client) == {"first"}
        first.tell(), second.tell()
        await until(lambda: all(len(stream.events) == 2 for stream in streams))
        assert second.open_streams == 10
        second.draining = False
        await until(lambda: balancer.state("gateway-2") == "UP")
        assert await _who_answers(client) == {"first", "second"}
        first.finish(), second.finish()
        await asyncio.gather(*(stream.task for stream in streams))
        assert {stream.events[-1] for stream in streams} == {"[DONE]"}


@needs_haproxy
async def test_an_operator_drains_one_by_a_command() -> None:
    async with _two_gateways(HAPROXY) as (balancer, first, second, client):
        first.tell(), second.tell()
        streams = await _open(client, 20)
        assert balancer.command("set server gateways/gateway-1 state drain").strip() == ""
        assert await _who_answers(client) == {"second"}
        first.tell(), second.tell()
        await until(lambda: all(len(stream.events) == 2 for stream in streams))
        balancer.command("set server gateways/gateway-1 state ready")
        await until(lambda: balancer.state("gateway-1") == "UP")
        assert await _who_answers(client) == {"first", "second"}


@each
async def test_requests_of_a_killed_gateway_go_to_the_other(kind) -> None:
    with gateway_process("first") as (doomed, process):
        async with (
            serving(SseGateway("second")) as second,
            balancing(kind, doomed, second.url) as balancer,
            _client(balancer) as client,
        ):
            assert await _who_answers(client) == {"first", "second"}
            process.kill()
            process.wait()
            answers = await asyncio.gather(*(_ask(client) for _ in range(50)))
            assert {(answer.status_code, answer.json()["gateway"]) for answer in answers} == {(200, "second")}


@each
async def test_a_request_that_was_sent_is_not_sent_again(kind) -> None:
    with gateway_process("first") as (doomed, process):
        async with (
            serving(SseGateway("second")) as second,
            balancing(kind, doomed, second.url) as balancer,
            _client(balancer) as client,
        ):
            while (await _ask(client)).json()["gateway"] != "second":
                pass  # both programs go round: it is the first one's turn
            before = len(second.headers)
            # Head and body at once: a proxy that could send both again has both.
            answer = await _raw(balancer, 'Content-Length: 6\r\n\r\n"exit"')
            process.wait()
            assert len(second.headers) == before
            status = {HAPROXY.name: 502, NGINX.name: 503}[kind.name]
            assert answer.startswith(f"HTTP/1.1 {status} ") and f'"code": {status}' in answer


@each
async def test_a_client_that_goes_ends_its_stream_at_the_gateway(kind) -> None:
    async with _two_gateways(kind) as (_, first, second, client):
        first.tell(), second.tell()
        stream = Stream(client)
        await until(lambda: stream.events)
        assert first.open_streams + second.open_streams == 1
        stream.task.cancel()
        await until(lambda: first.open_streams + second.open_streams == 0)


@each
async def test_a_request_has_one_id_all_the_way_and_its_clients_address(kind) -> None:
    async with _two_gateways(kind) as (balancer, first, second, client):
        made = await _ask(client, headers={"X-Forwarded-For": "6.6.6.6"})
        brought = await _ask(client, headers={"X-Request-Id": "mine-7"})
        arrived = {headers["x-request-id"]: headers for headers in first.headers + second.headers}
        assert brought.headers.get_list("x-request-id") == ["mine-7"] and "mine-7" in arrived
        own = made.headers["x-request-id"]
        assert len(own) >= 32 and own in arrived
        assert {headers["x-forwarded-for"] for headers in arrived.values()} == {"127.0.0.1"}
        assert {headers["x-forwarded-proto"] for headers in arrived.values()} == {"http"}
        log = balancer.file.parent / ("access.log" if kind is NGINX else "log")
        await until(lambda: own in log.read_text() and "mine-7" in log.read_text())


@each
async def test_a_body_may_be_as_large_as_the_gateways_take(kind) -> None:
    limit = int(GatewaySettings().max_body_mib * (1 << 20))
    async with _two_gateways(kind) as (balancer, first, second, client):
        most = await client.post(CHAT, content=b"x" * limit)
        assert most.status_code == 200 and first.bodies + second.bodies == [limit]
        # As curl does: its body waits until it is asked for.
        more = await _raw(balancer, f"Content-Length: {limit + 1}\r\nExpect: 100-continue\r\n\r\n")
        assert more.startswith("HTTP/1.1 413 ") and '"code": 413' in more
        assert len(first.bodies + second.bodies) == 1


@each
async def test_no_gateway_is_an_error_that_openais_clients_read(kind) -> None:
    async with balancing(kind, UNREACHABLE, UNREACHABLE) as balancer, _client(balancer) as client:
        answer = await _ask(client)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
        assert answer.json()["error"]["code"] == 503 and answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("kind", "seconds_more", "size"),
    [
        (HAPROXY, {"timeout client": 30, "timeout server": 30, "hard-stop-after": 60}, "content-length) gt {bytes} }}"),
        (NGINX, {"proxy_read_timeout": 30, "worker_shutdown_timeout": 60}, "client_max_body_size {mib}m;"),
    ],
    ids=["haproxy", "nginx"],
)
def test_times_and_sizes_follow_from_the_settings(kind, seconds_more, size) -> None:
    """As the comments say, for the defaults of `gateway`: whoever changes these has to change the files."""
    text = (FILES / kind.file).read_text()
    timeout_s, mib = int(GatewaySettings().request_timeout_s), int(GatewaySettings().max_body_mib)
    assert f"gateway.request_timeout_s ({timeout_s}) and gateway.max_body_mib ({mib})" in text
    for words, more in seconds_more.items():
        assert re.findall(rf"^ *{words} (\d+)s", text, re.MULTILINE) == [str(timeout_s + more)], words
    assert size.format(bytes=mib << 20, mib=mib) in text


def _certificate(directory: Path) -> tuple[Path, Path]:
    certificate, key = directory / "moray.pem", directory / "moray.key"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], capture_output=True, check=True)
    certificate.write_text(certificate.read_text() + key.read_text())  # HAProxy wants both in one file
    return certificate, key


@each
@pytest.mark.skipif(shutil.which("openssl") is None or shutil.which("curl") is None, reason="needs openssl and curl")
async def test_the_lines_for_tls_give_http2(kind, tmp_path) -> None:
    certificate, key = _certificate(tmp_path)
    tls_port = free_port()

    def with_tls(text: str) -> str:
        text = text.replace("#TLS ", "").replace("bind :443", f"bind 127.0.0.1:{tls_port}")
        text = text.replace("listen 443", f"listen 127.0.0.1:{tls_port}")
        for there in ("/etc/haproxy/moray.pem", "/etc/nginx/moray.pem"):
            text = text.replace(there, str(certificate))
        return text.replace("/etc/nginx/moray.key", str(key))

    async with (
        serving(SseGateway("first")) as first,
        balancing(kind, first.url, first.url, edit=with_tls) as balancer,
        _client(balancer) as client,
    ):
        first.tell()
        first.finish()
        url = f"https://127.0.0.1:{tls_port}{CHAT}"
        curl = ["curl", "-sk", "--http2", "--noproxy", "*", "-w", "|%{http_version}", "-d", '{"stream": 1}', url]
        process = await asyncio.create_subprocess_exec(*curl, stdout=asyncio.subprocess.PIPE)
        said, _ = await asyncio.wait_for(process.communicate(), 20)
        assert said.decode() == "data: 1\n\ndata: [DONE]\n\n|2"
        assert first.headers[-1]["x-forwarded-proto"] == "https"
        assert (await _ask(client)).status_code == 308
