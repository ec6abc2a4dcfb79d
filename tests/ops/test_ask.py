import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ops.ask import AskError, Ending, Piece, ask, collect, connect, served_model


def event(delta=None, **more):
    choices = [] if delta is None else [{"delta": delta, "finish_reason": more.pop("finish_reason", None)}]
    return f"data: {json.dumps({'choices': choices} | more)}\n\n"


@pytest.fixture
def server():
    """A server that answers with what the test puts into `answer`, and keeps the body that it got."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.respond(200, "application/json", json.dumps({"data": [{"id": "tiny-r1"}]}))

        def do_POST(self):
            there.got = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.respond(*there.answer)

        def respond(self, status, kind, text, **headers):
            self.send_response(status)
            for name, value in {"content-type": kind, **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    there = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=there.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    with connect(f"http://127.0.0.1:{there.server_port}") as there.client:
        yield there
    there.shutdown()
    there.server_close()


def stream(*events):
    return 200, "text/event-stream", "".join(events) + "data: [DONE]\n\n"


BODY = {"model": "tiny-r1", "messages": [{"role": "user", "content": "2+3"}]}


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thinking_and_answer_come_apart_with_the_usage_at_the_end(server, field):
    usage = {"prompt_tokens": 4, "completion_tokens": 3}
    server.answer = stream(
        event({"role": "assistant", "content": ""}),
        event({field: "2+3 is "}),
        ": a comment\n\n",
        event({field: "5"}),
        event({"content": "5"}, finish_reason="stop"),
        event(usage=usage),
    )
    items = list(ask(server.client, BODY))
    assert items == [Piece("thinking", "2+3 is "), Piece("thinking", "5"), Piece("answer", "5"), Ending("stop", usage)]
    assert collect(iter(items)) == {"thinking": "2+3 is 5", "answer": "5", "finish_reason": "stop", "usage": usage}
    assert server.got["stream"] is True and server.got["stream_options"] == {"include_usage": True}


def test_the_first_served_model_is_the_default(server):
    assert served_model(server.client) == "tiny-r1"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            (404, "application/json", json.dumps({"error": {"message": "no model x"}})),
            "the server answered 404: no model x",
        ),
        ((400, "application/json", json.dumps({"message": "bad"})), "400: bad"),
        ((502, "text/html", "<h1>bad gateway</h1>"), "502: <h1>bad gateway"),
        ((503, "text/plain", ""), "503: Service Unavailable"),
        (stream(event(error={"message": "the engine died"})), "gave up: the engine died"),
        ((200, "text/event-stream", event({"content": "5"})), "broke off"),
        ((200, "text/event-stream", "data: <html>\n\n"), "not as an OpenAI server does"),
    ],
)
def test_what_goes_wrong_is_one_sentence(server, answer, said):
    server.answer = answer
    with pytest.raises(AskError, match=said):
        list(ask(server.client, BODY))


def test_nothing_listens():
    with (
        connect("http://127.0.0.1:9") as client,
        pytest.raises(AskError, match=r"nothing answers at http://127\.0\.0\.1:9"),
    ):
        served_model(client)
