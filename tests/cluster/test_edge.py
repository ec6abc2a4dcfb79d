"""The HTTP edge, with ASGI apps made for the purpose and with FastAPI, which vLLM's app is."""

import asyncio
import json
import time

import pytest
from edge_call import HEAD, LIMIT, Call, answering, chunk
from fastapi import FastAPI, Request

from cluster.edge import Edge
from cluster.journal import Ended, Journal, Listener
from cluster.outcomes import Ending, Verdict, context_of_request


async def reading(scope, receive, send):
    """Reads its whole body, as apps do, then answers with its length."""
    length = 0
    while True:
        message = await receive()
        length += len(message["body"])
        if not message["more_body"]:
            break
    await send(HEAD)
    await send(chunk(str(length).encode()))


fastapi = FastAPI()


@fastapi.post("/")
async def parsed(request: Request, fields: dict) -> dict:
    return {"keys": len(fields)}


def test_what_the_app_sends_comes_out_unchanged():
    messages = [HEAD, chunk(b"a", more=True), chunk(b"b", more=True), chunk(b"")]
    assert Call(answering(*messages)).sent == messages


def test_an_answer_without_a_body_has_its_head():
    assert Call(answering(HEAD, chunk(b""))).sent == [HEAD, chunk(b"")]


@pytest.mark.parametrize("app", [reading, fastapi])
def test_a_declared_body_over_the_limit_is_refused_unread(app):
    call = Call(app, headers=[(b"content-length", str(LIMIT + 1).encode())], body=(b"x" * 10,))
    assert call.status == 413 and len(call._incoming) == 2
    assert call.error == {
        "message": "The request's body is larger than 0.5 MiB.",
        "type": "RequestEntityTooLarge",
        "param": None,
        "code": 413,
    }
    assert b"retry-after" not in call.headers


@pytest.mark.parametrize("app", [reading, fastapi])
@pytest.mark.parametrize("headers", [[], [(b"content-length", b"no number")]])
def test_a_body_over_the_limit_is_refused_while_it_comes(app, headers):
    """FastAPI would answer whatever goes wrong with a body with 400."""
    half = b"x" * (LIMIT // 2)
    call = Call(app, headers=[*headers, (b"content-type", b"application/json")], body=(half, half, b"x"))
    assert (call.status, call.error["code"], call.raised) == (413, 413, None)


def test_a_body_at_the_limit_is_read():
    declared = [(b"content-length", str(LIMIT).encode())]
    half = b"x" * (LIMIT // 2)
    assert Call(reading, headers=declared, body=(half, half)).body == str(LIMIT).encode()
    small = Call(fastapi, headers=[(b"content-type", b"application/json")], body=(b'{"a"', b": 1}"))
    assert (small.status, small.body) == (200, b'{"keys":1}')


def test_a_body_that_overflows_under_a_running_answer_breaks_it_off():
    async def echo(scope, receive, send):
        await send(HEAD)
        while True:
            await send(chunk((await receive())["body"], more=True))

    call = Call(echo, body=(b"a", b"x" * LIMIT))
    assert call.sent == [HEAD, chunk(b"a", more=True)] and type(call.raised).__name__ == "_BodyTooLarge"


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize(
    ("ending", "status", "retry"),
    [
        (Ending.NO_REPLICA, 503, b"7"),
        (Ending.LOST, 503, b"7"),
        (Ending.QUEUE_FULL, 429, b"7"),
        (Ending.REJECTED, 400, None),
    ],
)
def test_the_verdict_replaces_head_and_body(before, ending, status, retry):
    stream = [HEAD, chunk(b"data: error", more=True), chunk(b"data: [DONE]", more=True), chunk(b"")]
    call = Call(answering(*stream, verdict_before=before, ending=ending))
    assert (call.status, call.headers.get(b"retry-after")) == (status, retry)
    assert call.error == {"message": ending.sentence, "type": ending.error_type, "param": None, "code": status}
    assert b"x" not in call.headers and len(call.sent) == 2


def test_the_engines_own_words_go_to_the_client():
    call = Call(answering(HEAD, chunk(b"x"), verdict_before=1, ending=Ending.REJECTED, detail="ValueError: too long"))
    assert call.error["message"] == "ValueError: too long"


def test_an_empty_chunk_is_no_beginning():
    call = Call(answering(HEAD, chunk(b"", more=True), chunk(b"x"), verdict_before=2))
    assert call.status == 503 and call.error["code"] == 503


def test_once_the_body_has_begun_nothing_is_replaced():
    messages = [HEAD, chunk(b"a", more=True), chunk(b"b")]
    assert Call(answering(*messages, verdict_before=2)).sent == messages


def test_in_a_stream_that_has_begun_the_error_event_says_which_ending_it_was():
    said = chunk(b'data: {"error": {"message": "Internal server error"}}\n\n', more=True)
    token, done = chunk(b'data: {"choices": []}\n\n', more=True), chunk(b"data: [DONE]\n\n")
    told = answering(HEAD, token, said, done, verdict_before=2, ending=Ending.QUARANTINED, detail="Request 7: twice.")
    call = Call(told)
    assert [call.sent[1], call.sent[3]] == [token, done] and call.sent[2]["more_body"]
    error = json.loads(call.sent[2]["body"].removeprefix(b"data: "))["error"]
    assert (error["message"], error["code"]) == ("Request 7: twice.", 500)
    assert Call(answering(HEAD, token, said, done)).sent == [HEAD, token, said, done]  # not the cluster's ending


def test_the_head_is_held_until_the_first_byte():
    order = []

    async def app(scope, receive, send):
        for message in (HEAD, chunk(b"a", more=True), chunk(b"b")):
            await send(message)
            order.append(len(call_sent))

    call_sent: list = []

    async def send(message):
        call_sent.append(message)

    asyncio.run(Edge(app, LIMIT, 1)({"type": "http", "headers": []}, None, send))
    assert order == [0, 2, 3]


def test_what_comes_before_the_head_is_not_held():
    hint = {"type": "http.response.early_hint", "links": []}
    assert Call(answering(hint, HEAD, chunk(b"a"))).sent == [hint, HEAD, chunk(b"a")]


def test_exceptions_pass():
    async def app(scope, receive, send):
        await send(HEAD)
        raise KeyError("app")

    call = Call(app)
    assert isinstance(call.raised, KeyError) and call.sent == []


def test_other_scopes_pass_untouched():
    seen = []

    async def app(scope, receive, send):
        seen.append((scope["type"], context_of_request.get()))
        await send({"type": "lifespan.startup.complete"})

    call = Call(app, kind="lifespan", headers=[(b"content-length", b"9999999999")])
    assert seen == [("lifespan", None)] and call.sent == [{"type": "lifespan.startup.complete"}]


def test_the_app_is_told_of_a_disconnect():
    got = []

    async def app(scope, receive, send):
        got.extend([await receive(), await receive()])

    Call(app, body=(b"x",))
    assert [message["type"] for message in got] == ["http.request", "http.disconnect"]


def test_every_request_has_a_verdict_of_its_own_in_all_it_starts():
    verdicts = []

    async def app(scope, receive, send):
        async def engine():
            verdicts.append(context_of_request.get().verdict)

        await asyncio.create_task(engine())

    async def two():
        for _ in range(2):
            await Edge(app, LIMIT, 1)({"type": "http", "headers": []}, None, None)
        assert context_of_request.get() is None

    asyncio.run(two())
    assert all(isinstance(v, Verdict) for v in verdicts) and verdicts[0] is not verdicts[1]


def test_retryable_is_what_another_try_may_mend():
    no_room = {Ending.QUEUE_FULL, Ending.TOO_LATE, Ending.RATE_LIMITED}
    none_there = {Ending.NO_REPLICA, Ending.LOST, Ending.VERSION_GONE}
    assert {e for e in Ending if e.retryable} == none_there | no_room


class Heard(Listener):
    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def ended(self, record):
        self.told.append(("ended", record.request_id))

    def streamed(self, seconds):
        self.told.append(("streamed", round(seconds, 2)))

    def answered(self, context, at):
        self.told.append(("answered", [r.request_id for r in context.records], context.traceparent))

    def refused(self, ending):
        self.told.append(("refused", ending))


def record(request_id: str, ending: str = "DONE", last_token_at: float | None = None) -> Ended:
    fields = dict.fromkeys(Ended._fields, None) | {"request_id": request_id, "ending": ending}
    return Ended(**fields | {"last_token_at": last_token_at})


@pytest.fixture
def journal():
    made = Journal("m")
    made.listeners.append(Heard())
    return made


def engine_requests(journal, *records: Ended, late: Ended | None = None):
    """An app whose engine requests end before its answer's last byte but for the late one."""

    async def app(scope, receive, send):
        context = context_of_request.get()
        context.open_requests = len(records) + (late is not None)
        for one in records:
            journal.ended(context, one)
        await send(HEAD)
        await send(chunk(b"text"))
        if late is not None:
            asyncio.get_running_loop().call_soon(journal.ended, context, late)

    return app


def test_the_journal_hears_how_long_an_answer_took_from_its_last_token(journal):
    records = (record("a", last_token_at=time.monotonic() - 3), record("b", last_token_at=time.monotonic() - 2))
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    app = engine_requests(journal, *records)
    assert Call(app, headers=[(b"traceparent", trace.encode())], journal=journal).status == 200
    assert journal.listeners[0].told == [
        ("ended", "a"),
        ("ended", "b"),
        ("streamed", pytest.approx(2, abs=0.5)),
        ("answered", ["a", "b"], trace),
    ]


def test_an_answer_is_told_whole_when_its_last_engine_request_ends_after_it(journal):
    aborted = record("a", "ABORTED", last_token_at=1.0)

    async def app(scope, receive, send):
        await engine_requests(journal, aborted, late=record("b"))(scope, receive, send)

    async def and_a_moment(scope, receive, send):
        await Edge(app, LIMIT, 7, journal=journal)(scope, receive, send)
        await asyncio.sleep(0)

    Call(and_a_moment)
    assert journal.listeners[0].told == [("ended", "a"), ("ended", "b"), ("answered", ["a", "b"], "")]


def test_the_journal_hears_of_what_the_edge_refuses(journal):
    assert Call(reading, headers=[(b"content-length", b"9999999")], journal=journal).status == 413
    assert Call(reading, headers=[(b"x-slo-ttft-ms", b"soon")], journal=journal).status == 400
    assert Call(reading, body=[b"x" * LIMIT, b"y"], journal=journal).status == 413
    assert Call(reading, journal=journal).status == 200
    told = [("refused", name) for name in ("BODY_TOO_LARGE", "BAD_HEADER", "BODY_TOO_LARGE")]
    assert journal.listeners[0].told == told
