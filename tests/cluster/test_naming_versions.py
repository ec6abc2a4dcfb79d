"""What vLLM's serving classes are taught of versions; test_versions_api.py has the real ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cluster.naming_versions import naming_versions
from cluster.outcomes import RequestContext, context_of_request


class Serving:
    """As `GenerateBaseServing`, so far as it matters here."""

    def __init__(self, fingerprint: str | None) -> None:
        self.system_fingerprint = fingerprint

    @staticmethod
    def _get_session_id(request: SimpleNamespace, raw_request: object) -> str | None:
        return request.session_id


def taught(fingerprint: str | None = "vllm-0.32.0-abc") -> Serving:
    made = Serving(fingerprint)
    made.__class__ = naming_versions(Serving)
    return made


@pytest.mark.parametrize(
    ("fingerprint", "version", "told"),
    [("f", "v2", "f-v2"), ("f", "", "f"), (None, "v2", None)],
)
def test_the_fingerprint_is_that_of_the_request_that_asks(fingerprint, version, told):
    serving = taught(fingerprint)
    assert serving.system_fingerprint == fingerprint
    token = context_of_request.set(context := RequestContext())
    context.version = version
    assert serving.system_fingerprint == told
    context_of_request.reset(token)
    assert serving.system_fingerprint == fingerprint and Serving("other").system_fingerprint == "other"


@pytest.mark.parametrize(
    ("header", "fields", "key"),
    [
        ("h", {"session_id": "s", "prompt_cache_key": "p", "user": "u"}, "h"),
        ("", {"session_id": "s", "prompt_cache_key": "p", "user": "u"}, "s"),
        ("", {"prompt_cache_key": "p", "user": "u"}, "p"),
        ("", {"user": "u"}, "u"),
        ("", {"prompt_cache_key": 7, "user": ""}, ""),  # whatever a client sends
        ("", {}, ""),
    ],
)
def test_a_session_has_the_first_name_that_it_is_given(header, fields, key):
    request = SimpleNamespace(**{"session_id": None} | fields)
    token = context_of_request.set(context := RequestContext(session_key=header))
    assert taught()._get_session_id(request, None) == request.session_id  # vLLM's own is as it was
    context_of_request.reset(token)
    assert context.session_key == key
    assert taught()._get_session_id(request, None) == request.session_id  # outside of any HTTP request
