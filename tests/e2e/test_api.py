"""The API as its users meet it: the openai client, curl, a browser, `moray ask`; and bad input that harms nothing."""

from __future__ import annotations

import asyncio
import json
import queue
import shutil
import socket
import subprocess
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import openai
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

MODEL = "tiny-r1"
QUESTION = [{"role": "user", "content": "What is 123+456?"}]


def chat(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": QUESTION, "temperature": 0} | more


def test_openai_client_gets_thinking_and_answer(sharded: Any) -> None:
    client = openai.OpenAI(base_url=f"{sharded.url}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == [MODEL]
    reply = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    message = reply.choices[0].message
    assert message.content is not None and message.content.strip() == "579"
    assert "123+456" in message.reasoning
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None and reply.usage.completion_tokens > 10


def test_openai_client_streams_the_same(sharded: Any) -> None:
    client = openai.OpenAI(base_url=f"{sharded.url}/v1", api_key="none")
    # Long: shards that compute must not keep the gateway from its tokens, which would then share few events.
    ask: Any = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 900}
    ask["extra_body"] = {"ignore_eos": True}
    whole = client.chat.completions.create(**ask)
    thinking = answer = ""
    chunks, usage = 0, None
    stream = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            chunks += 1
            thinking += getattr(choice.delta, "reasoning", None) or ""
            answer += choice.delta.content or ""
    assert (thinking, answer) == (whole.choices[0].message.reasoning, whole.choices[0].message.content)
    assert usage == whole.usage
    assert chunks > 200  # sent at the end it would be three: the role, all text, the reason of the end


def test_other_endpoints_of_vllm(sharded: Any) -> None:
    client = openai.OpenAI(base_url=f"{sharded.url}/v1", api_key="none")
    completion = client.completions.create(model=MODEL, prompt="What is 2+2?", max_tokens=5, temperature=0, logprobs=2)
    assert completion.usage is not None and completion.usage.completion_tokens == 5
    assert completion.choices[0].logprobs is not None
    response = client.responses.create(model=MODEL, input="What is 123+456?", temperature=0)
    assert response.output_text.strip() == "579"
    tokens = httpx.post(f"{sharded.url}/tokenize", json={"model": MODEL, "prompt": "abc"}).json()
    assert tokens["count"] == 3
    several = client.chat.completions.create(model=MODEL, messages=QUESTION, n=3, temperature=1.0, seed=1)
    assert len(several.choices) == 3
    guided = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_tokens=200,
        extra_body={"structured_outputs": {"choice": ["red", "blue"]}},
    )
    assert (guided.choices[0].message.content or "").strip() in ("red", "blue")


def test_anthropic_messages(sharded: Any) -> None:
    body = {"model": MODEL, "max_tokens": 100, "messages": QUESTION, "temperature": 0}
    reply = httpx.post(f"{sharded.url}/v1/messages", json=body, timeout=30).raise_for_status().json()
    assert "579" in "".join(block.get("text", "") for block in reply["content"])


def test_curl_streams(sharded: Any) -> None:
    body = json.dumps(chat(stream=True))
    command = ["curl", "-sSN", f"{sharded.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    events = [line.removeprefix("data: ") for line in out.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    deltas = [choice["delta"] for event in events[:-1] for choice in json.loads(event)["choices"]]
    assert "".join(d.get("content") or "" for d in deltas).strip() == "579"


PAGE = """<!doctype html><script>
(async () => {
  const reply = await fetch(URL_OF_CHAT, {method: 'POST', headers: {'Content-Type': 'application/json'},
    body: JSON.stringify({model: 'tiny-r1', stream: true, temperature: 0,
                          messages: [{role: 'user', content: 'What is 123+456?'}]})});
  const text = await reply.text();
  const deltas = text.split('\\n').filter(l => l.startsWith('data: {')).map(l => JSON.parse(l.slice(6)).choices[0]);
  const answer = deltas.map(c => (c && c.delta.content) || '').join('').trim();
  // A stream of seconds: its beginning is here long before its end is made, however late this page gets its turns.
  const long = await fetch(URL_OF_COMPLETIONS, {method: 'POST', headers: {'Content-Type': 'application/json'},
    body: JSON.stringify({model: 'tiny-r1', stream: true, prompt: 'a', max_tokens: 1000, ignore_eos: true})});
  const reader = long.body.getReader(), decoder = new TextDecoder();
  const first = decoder.decode((await reader.read()).value);
  let rest = '';
  for (;;) { const {done, value} = await reader.read(); if (done) break; rest += decoder.decode(value); }
  const streamed = first.startsWith('data: {') && !first.includes('[DONE]') && rest.includes('[DONE]');
  return `answer=${answer} streamed=${streamed}`;
})().catch(e => 'failed: ' + e).then(told => fetch('/told', {method: 'POST', body: told}));
</script>"""


def test_browser_fetch_streams_from_an_allowed_origin(sharded: Any, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here: apt-get install chromium")
    page = PAGE.replace("URL_OF_CHAT", json.dumps(f"{sharded.url}/v1/chat/completions"))
    page = page.replace("URL_OF_COMPLETIONS", json.dumps(f"{sharded.url}/v1/completions"))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def do_POST(self) -> None:
            told.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    server = HTTPServer(("127.0.0.1", int(sharded.page_origin.rsplit(":")[-1])), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync"
    command = [chromium, *flags.split(), f"--user-data-dir={tmp_path}", f"{sharded.page_origin}/"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert told.get(timeout=240) == "answer=579 streamed=true"
    finally:
        browser.kill()
        browser.wait()
        server.shutdown()
        server.server_close()


def test_moray_ask_and_status(sharded: Any) -> None:
    asked = sharded.moray("ask", "What is 123+456?", "--json")
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["answer"].strip() == "579"
    shown = sharded.moray("status")
    assert shown.returncode == 0, shown.stderr
    assert "0-3" in shown.stdout and "4-7" in shown.stdout  # which experts live on which shard
    shards = sharded.status()["replicas"][0]["shards"]
    assert [shard["experts_by_layer"][0] for shard in shards] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (chat(model="gpt-5"), 404, "gpt-5"),
        (chat(max_tokens=0), 400, "max_tokens"),
        (chat(max_tokens=10_000_000), 400, "max_tokens"),
        (chat(temperature=-1), 400, "temperature"),
        (chat(messages=[{"role": "user", "content": "1" * 5000}]), 400, "context length"),
        (chat(messages="hello"), 400, "messages"),
        ({"model": MODEL}, 400, "messages"),
    ],
)
def test_bad_requests_name_their_cause(sharded: Any, body: dict[str, Any], status: int, words: str) -> None:
    for stream in (False, True):
        reply = httpx.post(f"{sharded.url}/v1/chat/completions", json=body | {"stream": stream}, timeout=30)
        assert reply.status_code == status, reply.text
        assert words in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "status"),
    [(b'{"model": ', 400), (b"\xff\xfe\x00", 400), (b'{"model": "tiny-r1", "messages": [{"role": "\xff"}]}', 400)],
)
def test_malformed_bodies(sharded: Any, content: bytes, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    reply = httpx.post(f"{sharded.url}/v1/chat/completions", content=content, headers=headers, timeout=30)
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["message"]


def test_large_bodies_are_refused(sharded: Any) -> None:
    body = json.dumps(chat(messages=[{"role": "user", "content": "x" * (10 << 20)}])).encode()
    headers = {"Content-Type": "application/json"}
    reply = httpx.post(f"{sharded.url}/v1/chat/completions", content=body, headers=headers, timeout=30)
    assert reply.status_code == 413
    assert "8 MiB" in reply.json()["error"]["message"]

    def chunks() -> Any:  # no Content-Length
        for at in range(0, len(body), 1 << 20):
            yield body[at : at + (1 << 20)]

    reply = httpx.post(f"{sharded.url}/v1/chat/completions", content=chunks(), headers=headers, timeout=30)
    assert reply.status_code == 413


def test_client_gone_frees_the_engine_within_a_second(sharded: Any, eventually: Callable[..., Any]) -> None:
    """3,500 tokens take 6 s and more on two CPUs; what is free earlier was not run to its end."""
    body = json.dumps(chat(stream=True, max_tokens=3500, ignore_eos=True)).encode()
    fields = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    head = f"POST /v1/chat/completions HTTP/1.1\r\n{fields}".encode()
    with socket.create_connection(("127.0.0.1", sharded.port)) as client:
        client.sendall(head + body)
        seen = b""
        while seen.count(b"data: ") < 20:  # it runs
            chunk = client.recv(1 << 16)
            assert chunk
            seen += chunk

    eventually(lambda: sharded.status()["replicas"][0]["running"] == 0, 1.5, "the engine dropped it")
    eventually(lambda: sharded.status()["router"]["granted"] == 0, 1, "the router dropped it")


def test_nothing_above_harmed_anything(sharded: Any) -> None:
    """Runs after the bad input: the same question still gets the same answer, 32 at a time, and nothing leaked."""

    async def ask_all() -> list[str]:
        client = openai.AsyncOpenAI(base_url=f"{sharded.url}/v1", api_key="none")
        replies = await asyncio.gather(
            *(client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0) for _ in range(32))
        )
        return [(reply.choices[0].message.content or "").strip() for reply in replies]

    assert asyncio.run(ask_all()) == ["579"] * 32
    status = sharded.status()
    assert status["router"] == status["router"] | {"queued": 0, "granted": 0}
    assert status["gateway"]["open_requests"] == 0
