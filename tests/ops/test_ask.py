import json
from types import SimpleNamespace

import pytest
from http_server import Answer, Asked, http_server

from ops.ask import AskError, Ending, Piece, ask, collect, connect, served_model


def event(delta=None, **more):
    choices = [] if delta is None else [{"delta": delta, "finish_reason": more.pop("finish_reason", None)}]
    return f"data: {json.dumps({'choices': choices} | more)}\n\n"


@pytest.fixture
def server():
    """A server that answers with what the test puts into `answer`, and keeps the body that it got."""

    there = SimpleNamespace()

    def answer(asked: Asked) -> Answer:
        if asked.method == "GET":
            return Answer(200, {"data": [{"id": "tiny-r1"}]}, {"content-type": "application/json"})
        there.got = asked.json
        status, kind, text = there.answer
        return Answer(status, text.encode(), {"content-type": kind})

    with http_server(answer) as url, connect(url) as there.client:
        yield there


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
