"""A gateway's ClusterCore on this event loop, with real core hosts and a RouterState behind it. Imports vLLM (10 s)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from local_router import LocalRouter
from scripted_core import Hosted, continuation, until
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest, FinishReason

from cluster.cluster_core import ClusterCore
from cluster.journal import Ended, Listener
from cluster.outcomes import RequestContext, Verdict, context_of_request


class Heard(Listener):
    """What the journal told."""

    def __init__(self) -> None:
        self.records: list[Ended] = []
        self.resumes: list[tuple[str, float]] = []

    def ended(self, record: Ended) -> None:
        self.records.append(record)

    def resumed(self, cause: str, gap_s: float) -> None:
        self.resumes.append((cause, gap_s))

    def of(self, request_id: str) -> Ended:
        (record,) = [r for r in self.records if r.request_id == request_id]
        return record


class Cluster:
    """A gateway's ClusterCore and all that is behind it."""

    HANG_TIMEOUT_S = 30.0

    def __init__(self, no_replica_wait_s: float) -> None:
        self.router = LocalRouter(no_replica_wait_s)
        self.core = ClusterCore(self.router, "g", hang_timeout_s=self.HANG_TIMEOUT_S)
        self.core.journal.model = "m"
        self.core.journal.listeners.append(heard := Heard())
        self.heard = heard
        self.hosts: list[Hosted] = []
        self.tokens: dict[str, list[int]] = {}
        self.ended: dict[str, FinishReason] = {}
        self.verdicts: dict[str, Verdict] = {}
        self.prompts: dict[str, tuple[list[int], int]] = {}
        self._reading = asyncio.ensure_future(self._read())

    def host(self, version: str = "", **script: object) -> Hosted:
        """A new replica."""
        made = Hosted(replica_id=f"r{len(self.hosts)}", epoch=len(self.hosts) + 1, **script)
        made.info = msgspec.structs.replace(made.info, version=version)
        self.hosts.append(made)
        self.router.alive.append(made.info)
        return made

    def kill(self, host: Hosted) -> None:
        """The host's sockets close, without a word and in the middle of whatever it does."""
        self.router.alive.remove(host.info)
        host.kill()

    async def _read(self) -> None:
        while True:
            for output in (await self.core.get_output_async()).outputs:
                assert output.request_id not in self.ended, "an output after the last one"
                self.tokens[output.request_id] += output.new_token_ids
                if output.finish_reason is not None:
                    self.ended[output.request_id] = output.finish_reason

    async def ask(
        self,
        request_id: str,
        prompt: list[int],
        max_tokens: int,
        context: RequestContext | None = None,
        **sampling: object,
    ) -> None:
        self.tokens[request_id] = []
        self.prompts[request_id] = prompt, max_tokens
        token = context_of_request.set(context := context or RequestContext())
        self.verdicts[request_id] = context.verdict
        await self.core.add_request_async(request(request_id, prompt, max_tokens, **sampling))
        context_of_request.reset(token)

    async def ask_many(self, count: int, max_tokens: int = 40) -> None:
        for n in range(count):
            await self.ask(f"q{n}", [n, 7, n], max_tokens)

    async def all_end(self, limit_s: float = 20.0) -> None:
        await until(lambda: len(self.ended) == len(self.prompts), limit_s)

    def streaming(self, at_least: int = 3) -> Callable[[], bool]:
        """Whether every request has some tokens."""
        return lambda: all(len(tokens) >= at_least for tokens in self.tokens.values())

    def assert_exact(self) -> None:
        """Each stream is the very one that an undisturbed core makes."""
        assert self.tokens == {r: continuation(prompt, count) for r, (prompt, count) in self.prompts.items()}
        assert set(self.ended.values()) <= {FinishReason.LENGTH}
        assert all(verdict.ending is None for verdict in self.verdicts.values())

    async def nothing_is_left(self) -> None:
        await until(lambda: self.router.placed == self.router.queued == self.core.open_requests == 0)
        await until(lambda: not any(host.core.requests for host in self.hosts if host.thread.is_alive()))
        written = sorted(record.request_id for record in self.heard.records)
        assert written == sorted(self.prompts), "each request is written down once"

    async def close(self) -> None:
        self.core.shutdown()
        for task in (self._reading, self.router._ticking):
            task.cancel()
        for host in self.hosts:
            host.kill()


def request(request_id: str, prompt: list[int], max_tokens: int, **sampling: object) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=SamplingParams(temperature=0, max_tokens=max_tokens, **sampling),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
