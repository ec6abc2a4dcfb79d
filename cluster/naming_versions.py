"""What vLLM's OpenAI serving classes have to do with model versions: they tell the version, and are told the session.

vLLM makes `system_fingerprint` once for a server (vllm/entrypoints/generate/base/serving.py, 0.32) and puts it on
answers and on the last chunk of a stream. Here the version that computed the answer is added, which is known by then:
one look-up for an answer, nothing for a token.

vLLM takes the session from its own header and fields. Of a client that sends none of these, what OpenAI's clients send
says as much: `prompt_cache_key` or `user`.
"""

from typing import Any

from cluster.outcomes import context_of_request


def naming_versions(serving_class: Any) -> Any:
    """A subclass of a `GenerateBaseServing`; an object of that one may be made one of this by its `__class__`."""

    class Serving(serving_class):  # type: ignore[misc]
        @property
        def system_fingerprint(self) -> str | None:
            fingerprint: str | None = self.__dict__["system_fingerprint"]
            context = context_of_request.get()
            if fingerprint is None or context is None or not context.version:
                return fingerprint
            return f"{fingerprint}-{context.version}"

        @staticmethod
        def _get_session_id(request: Any, raw_request: Any) -> str | None:
            session: str | None = serving_class._get_session_id(request, raw_request)
            context = context_of_request.get()
            if context is not None and not context.session_key:
                told = (session, getattr(request, "prompt_cache_key", None), getattr(request, "user", None))
                context.session_key = next((key for key in told if key and isinstance(key, str)), "")
            return session

    return Serving
