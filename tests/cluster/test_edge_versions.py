"""The HTTP edge and model versions: who may choose one, what an answer says of its own, and when it begins again."""

from __future__ import annotations

import json

import pytest
from edge_call import HEAD, Call, answering, chunk

from cluster.outcomes import Ending, context_of_request
from cluster.tenants import Holder, KeyRing, hash_of
from cluster.traffic import session_of
from replicas.messages import Tenant

VERSION, RESTARTED = b"x-moray-version", b"x-moray-restarted"


def serving(*versions: str, breaks: str = "before", stream: bool = False, asked: list[bytes] | None = None):
    """An app whose request is served by these versions in turn, each gone before or after its first byte but the last.

    The answer is the request's own body.
    """

    async def app(scope, receive, send):
        assert "touched" not in scope
        scope["touched"] = True
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        context = context_of_request.get()
        if asked is not None:
            asked.append(body)
        number = len(asked or [None]) - 1
        context.version = versions[number]
        gone = number + 1 < len(versions)
        if gone and breaks == "before":
            context.verdict.ending = Ending.VERSION_GONE
        await send({**HEAD, "headers": [(b"content-type", b"text/event-stream" if stream else b"application/json")]})
        if gone and breaks == "before":  # as vLLM has it: its own words for an error
            await send(chunk(b'data: {"error": 1}\n\n', more=True) if stream else chunk(b"error"))
        elif gone:
            await send(chunk(b"token", more=True))
            context.verdict.ending = Ending.VERSION_GONE
            await send(chunk(b'data: {"error": 1}\n\n', more=True))
        else:
            await send(chunk(body, more=stream))
        if stream:
            await send(chunk(b"data: [DONE]"))

    return app


def test_an_answer_names_the_version_that_it_is_of():
    call = Call(serving("v2"), body=(b"ask",))
    assert call.headers[VERSION] == b"v2" and RESTARTED not in call.headers and call.body == b"ask"
    assert VERSION not in Call(serving("")).headers  # a model that has no versions


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_which_nothing_was_sent_begins_again_on_another_version(stream):
    asked: list[bytes] = []
    call = Call(serving("v1", "v2", asked=asked, stream=stream), body=(b"the ", b"prompt"))
    assert (call.status, asked) == (200, [b"the prompt"] * 2)
    assert (call.headers[VERSION], call.headers[RESTARTED]) == (b"v2", b"v1")
    assert call.body == b"the prompt" + b"data: [DONE]" * stream


def test_it_begins_again_once_only():
    asked: list[bytes] = []
    call = Call(serving("v1", "v2", "v3", asked=asked), body=(b"x",))
    assert (call.status, len(asked), call.headers[b"retry-after"]) == (503, 2, b"7")
    assert call.error["message"] == Ending.VERSION_GONE.sentence
    assert (call.headers[VERSION], call.headers[RESTARTED]) == (b"v2", b"v1")


def test_a_stream_that_somebody_reads_is_told_that_its_version_is_gone():
    asked: list[bytes] = []
    call = Call(serving("v1", "v2", breaks="after", asked=asked, stream=True), body=(b"x",))
    assert call.status == 200 and len(asked) == 1 and call.sent[1]["body"] == b"token"
    error = json.loads(call.sent[2]["body"].removeprefix(b"data: "))["error"]
    assert (error["code"], error["message"]) == (503, Ending.VERSION_GONE.sentence)


def test_what_an_operator_wants_of_one_version_begins_on_no_other():
    asked: list[bytes] = []
    call = Call(
        serving("v1", "v2", asked=asked), headers=[(VERSION, b"v1")], body=(b"x",), versions=lambda: {"v1", "v2"}
    )
    assert call.status == 503 and len(asked) == 1


def test_nothing_begins_again_for_a_client_that_is_gone():
    asked: list[bytes] = []
    inner = serving("v1", "v2", asked=asked)

    async def app(scope, receive, send):
        await inner(scope, receive, send)
        assert (await receive())["type"] == "http.disconnect"

    assert Call(app, body=(b"x",)).sent == [] and len(asked) == 1


def test_what_vllm_says_before_it_asks_the_engine_is_no_beginning():
    created = chunk(b"event: response.created\ndata: {}\n\n", more=True)
    begun = chunk(b"event: response.in_progress\ndata: {}\n\n", more=True)
    token, done = chunk(b"event: response.output_text.delta\ndata: {}\n\n", more=True), chunk(b"")

    async def app(scope, receive, send):
        for message in (HEAD, created, begun):
            await send(message)
        context_of_request.get().version = "v1"
        for message in (token, done):
            await send(message)

    call = Call(app)
    assert call.headers[VERSION] == b"v1" and call.sent[1:] == [created, begun, token, done]
    assert Call(answering(HEAD, created, begun, token, verdict_before=3)).status == 503


async def ring() -> KeyRing:
    return KeyRing({hash_of("op"): Holder(Tenant(name="ops"), 0), hash_of("ann"): Holder(Tenant(name="ann"), 0)})


@pytest.mark.parametrize(
    ("key", "version", "status", "said"),
    [
        ("op", "v2", 200, ""),
        ("ann", "v2", 403, "gateway.operators"),
        ("ann", "v9", 403, "gateway.operators"),
        ("op", "v9", 400, "there is no version 'v9'; there are: v1, v2."),
    ],
)
def test_only_operators_choose_their_version(key, version, status, said):
    headers = [(b"authorization", f"Bearer {key}".encode()), (VERSION, version.encode())]
    call = Call(serving("v2"), headers=headers, keys=ring, operators=["ops"], versions=lambda: ["v2", "v1"])
    assert call.status == status
    if said:
        assert said in call.error["message"] and call.error["code"] == status


def test_where_no_keys_are_asked_for_everybody_chooses_among_what_there_is():
    assert Call(serving("v2"), headers=[(VERSION, b"v2")], versions=lambda: ["v2"]).status == 200
    call = Call(serving(""), headers=[(VERSION, b"v2")])
    assert call.status == 400 and "in no versions" in call.error["message"]


def test_what_is_open_to_all_asks_nobody_for_a_version():
    headers = [(VERSION, b"v9")]
    assert Call(serving(""), headers=headers, keys=ring, path="/health").status == 200


def test_a_session_is_named_by_its_header_and_belongs_to_a_tenant():
    sessions: dict[str, int] = {}

    async def app(scope, receive, send):
        context = context_of_request.get()
        sessions[context.session_key or "none"] = context.session("first")
        assert context.session("second") == context.session("first")
        await send(HEAD)
        await send(chunk(b"x"))

    for headers in ([(b"x-session-id", b"chat 7")], []):
        Call(app, headers=headers)
    assert sessions == {"chat 7": session_of("", "chat 7"), "none": session_of("", "first")}
