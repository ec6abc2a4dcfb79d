"""The gateway: vLLM's own OpenAI app and `AsyncLLM`, over ClusterCore. A Ray Serve ingress deployment.

One of the four files that know vLLM's engine. Text lives here: templates, tokenising, detokenising, stop strings,
reasoning and tool parsers, structured output's request side, SSE.
"""

import asyncio
import gc
import json
import os
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import ray
from ray import serve

from cluster import short_prompts
from cluster.attainment import Attainment
from cluster.cork import cork_http
from cluster.draining import DrainRefused, DrainRequest
from cluster.edge import Edge
from cluster.extensions import GatewayContext, add_routes
from cluster.journal import Journal
from cluster.naming_versions import naming_versions
from cluster.outcomes import context_of_request
from cluster.request_metrics import Slo
from cluster.router_link import RayRouterLink, RouterGone
from cluster.targets import targets
from cluster.telemetry import TelemetrySpec, start_telemetry
from cluster.tenants import KeyFile
from cluster.thinking import without_rescans
from cluster.vllm_metrics import show_cluster_as_engine
from replicas.engine_spec import EngineSpec
from replicas.importing import no_collections

if TYPE_CHECKING:
    from fastapi import FastAPI, Request


class GatewaySpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway must know, as plain values."""

    engine: EngineSpec
    tool_call_parser: str | None
    allowed_origins: tuple[str, ...]
    max_body_bytes: int
    retry_after_s: int
    stream_interval: int
    keys_file: str | None = None  # None: no key is asked for
    operators: tuple[str, ...] = ()  # tenants who may command the cluster, where keys are asked for
    ttft_s: float | None = None  # seconds in which a request that names no other wants its first token
    tpot_s: float | None = None  # seconds from token to token, on average, that running streams are to have
    telemetry: TelemetrySpec = TelemetrySpec()


@serve.ingress()
class Gateway:
    """Serve's ingress class. Serve awaits the constructor, then asks for the ASGI app."""

    def __init__(self, spec_json: str, replicas: Any = None) -> None:
        self._spec = msgspec.json.decode(spec_json, type=GatewaySpec)
        # Requests do not go through Serve's handle; holding it makes the replicas part of this application.
        self._replicas = replicas
        self._wanted = ""

    def reconfigure(self, user_config: Any) -> None:
        """Serve's call, at the start and when the deployment's user_config has changed: nothing is restarted for it.

        What it says is the controller's affair (ops/rollout/wanted.py). Nothing is raised here: Serve would replace
        this gateway for it.
        """
        self._wanted = json.dumps(user_config, sort_keys=True, default=str)

    async def __serve_build_asgi_app__(self) -> Any:
        _prepare_environment(self._spec.engine)
        cork_http()
        return await build_app(self._spec, RayRouterLink(self._spec.engine.model), lambda: self._wanted)


def _prepare_environment(spec: EngineSpec) -> None:
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if spec.device == "cpu":
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # the gateway computes no tensors


async def build_app(spec: GatewaySpec, router: RayRouterLink, wanted: Callable[[], str] = str) -> Any:
    """vLLM's OpenAI app (vllm/entrypoints/launchers/app.py) over an AsyncLLM whose engine core is the cluster.

    `wanted`: the deployment's user_config as JSON, "" without one.
    """
    keys = KeyFile(Path(spec.keys_file)) if spec.keys_file else None  # first: it fails in no time
    with no_collections():
        import anyio._backends._asyncio  # noqa: F401  # else the first stream would, and stand still for it
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app as vllm_app
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
        from vllm.envs import enable_envs_cache
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.executor import Executor

        from cluster.cluster_core import ClusterCore
        from replicas.vllm_core import engine_args, prompt_blocks

    arguments = engine_args(spec.engine)
    config = arguments.create_engine_config()
    config.cache_config.num_gpu_blocks = 1  # vLLM's start-up log divides by it; the real ones are the replicas'
    gateway = f"gateway-{uuid.uuid4().hex[:8]}"
    config.scheduler_config.stream_interval = spec.stream_interval  # AsyncLLM's output processor reads it there
    journal = Journal(spec.engine.model)
    # On a GPU vLLM's noise is a function of seed and position: with a seed a sample resumes exactly. On a CPU a seed
    # for each request costs 3-4% of a step (embedded model, batch 32): there only what its client seeded resumes
    # exactly, the rest goes on in the same distribution.
    core = ClusterCore(
        router,
        gateway,
        hang_timeout_s=spec.engine.hang_timeout_s,
        seed_samples=spec.engine.device == "cuda",
        prompt_blocks=prompt_blocks(config),
        journal=journal,
        tell_times=spec.telemetry.vllm,
    )
    with _as_vllms_engine_core(core):
        llm = AsyncLLM(config, Executor.get_class(config), log_requests=False, log_stats=spec.telemetry.vllm)
    if spec.telemetry.vllm:
        show_cluster_as_engine(llm.logger_manager, core)
    slo = Slo(spec.ttft_s, spec.tpot_s)
    journal.listeners.append(Attainment(slo, core.attained))
    core.metrics_address = start_telemetry(
        spec.telemetry, journal, gateway, spec.engine.listen, lambda: core.open_requests
    )

    args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    args.model = arguments.model
    args.served_model_name = [spec.engine.model]
    args.disable_log_stats = True
    args.reasoning_parser = arguments.reasoning_parser
    args.structured_outputs_config = config.structured_outputs_config
    args.tool_call_parser = spec.tool_call_parser
    args.enable_auto_tool_choice = spec.tool_call_parser is not None  # vLLM refuses one without the other
    args.allowed_origins = list(spec.allowed_origins)
    validate_parsed_serve_args(args)
    tasks = ("generate",)
    app = vllm_app(args, tasks, config.model_config)
    await init_app_state(llm, app.state, args, tasks)
    may_command = partial(_require_operator, spec)
    context = GatewayContext(spec.engine.model, gateway, core, journal, may_command, wanted)
    _add_own_routes(app, spec, router, core)
    add_routes(app, context)
    _adapt(app, spec)
    _spare_tokens(app)
    for name in _SERVING:
        if (serving := getattr(app.state, name)) is not None:
            serving.__class__ = naming_versions(type(serving))
    short_prompts.run_inline(llm.renderer._executor)
    enable_envs_cache()  # else vLLM reads and parses its environment anew for each request
    gc.set_threshold(50_000, 20, 100)  # what lives long is frozen (vLLM's lifespan); tokens' garbage has no cycles
    return Edge(
        app,
        max_body_bytes=spec.max_body_bytes,
        retry_after_s=spec.retry_after_s,
        keys=keys.ring if keys else None,
        ttft_s=spec.ttft_s,
        journal=journal,
        operators=spec.operators,
        versions=lambda: core.versions,
    )


class _as_vllms_engine_core:  # noqa: N801  (a context manager, used as a word)
    """Within it, AsyncLLM's constructor gets `core` where it would start engine processes of its own."""

    def __init__(self, core: Any) -> None:
        self._core = core

    def __enter__(self) -> None:
        from vllm.v1.engine.core_client import EngineCoreClient

        self._original = EngineCoreClient.make_async_mp_client
        EngineCoreClient.make_async_mp_client = staticmethod(lambda **_: self._core)

    def __exit__(self, *_: object) -> None:
        from vllm.v1.engine.core_client import EngineCoreClient

        EngineCoreClient.make_async_mp_client = staticmethod(self._original)


# Routes that command one engine's processes; a cluster's are commanded through `moray`.
_NOT_OF_A_CLUSTER = {"/scale_elastic_ep", "/is_scaling_elastic_ep", "/kv_event_sources"}


# What answers requests for tokens, by its name in the app's state.
_SERVING = (
    "openai_serving_chat",
    "openai_serving_chat_batch",
    "openai_serving_completion",
    "openai_serving_responses",
    "anthropic_serving_messages",
)


def _adapt(app: "FastAPI", spec: GatewaySpec) -> None:
    """Takes out of vLLM's app what a cluster has not, and lets every error have OpenAI's shape."""
    from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware
    from starlette.exceptions import HTTPException
    from starlette.middleware.cors import CORSMiddleware
    from vllm.entrypoints.serve.exception_handling.handlers.http import http_exception_handler

    app.router.routes[:] = [r for r in app.router.routes if getattr(r, "path", None) not in _NOT_OF_A_CLUSTER]
    app.add_exception_handler(HTTPException, http_exception_handler)  # vLLM knows FastAPI's subclass only

    async def router_gone(request: "Request", gone: Exception) -> Any:
        answer = HTTPException(503, f"The router does not answer ({gone}); Ray restarts it.")
        return await http_exception_handler(request, answer)

    app.add_exception_handler(RouterGone, router_gone)
    # Each middleware costs every token a call. Requests are counted by Ray Serve's own ingress metrics.
    idle = {PrometheusInstrumentatorMiddleware} | (set() if spec.allowed_origins else {CORSMiddleware})
    app.user_middleware = [m for m in app.user_middleware if getattr(m, "cls", None) not in idle]
    app.middleware_stack = app.build_middleware_stack()  # vLLM's has been built already


def _spare_tokens(app: "FastAPI") -> None:
    """Takes from each token's way what does nothing for it."""
    from vllm.entrypoints.generate.base.protocol import DeltaMessage
    from vllm.entrypoints.openai.chat_completion.protocol import (
        ChatCompletionResponseStreamChoice,
        ChatCompletionStreamResponse,
    )
    from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser

    chat = app.state.openai_serving_chat
    if chat is not None and chat.parser_cls is not None:
        chat.parser_cls = without_rescans(chat.parser_cls, DeltaMessage, DeepSeekR1ReasoningParser)
    # A validator in Python that warns of fields unknown to vLLM: for what clients send, not for what vLLM itself makes.
    for made in (DeltaMessage, ChatCompletionResponseStreamChoice, ChatCompletionStreamResponse):  # inner ones first
        made.__pydantic_decorators__.model_validators.pop("__log_extra_fields__", None)
        made.model_rebuild(force=True)


def _require_operator(spec: GatewaySpec, request: "Request") -> None:
    """HTTPException 403: whoever asks may not command this cluster. Without a key file all may who reach the port."""
    from fastapi import HTTPException

    context = context_of_request.get()
    if spec.keys_file and (context is None or context.tenant.name not in spec.operators):
        raise HTTPException(403, "This API key is no operator's: gateway.operators names the tenants that are.")


def _add_own_routes(app: "FastAPI", spec: GatewaySpec, router: RayRouterLink, core: Any) -> None:
    from fastapi import HTTPException, Request

    from cluster.operator_order import order_of

    @app.post("/moray/drain")
    async def drain(request: Request) -> dict[str, str]:
        """For operators: see DrainRequest."""
        _require_operator(spec, request)
        try:
            return {"replica": await router.drain(await order_of(request, DrainRequest))}
        except DrainRefused as refusal:
            raise HTTPException(409, str(refusal)) from refusal

    @app.get("/moray/targets")
    async def scrape_targets() -> list[dict[str, Any]]:
        """Where Prometheus finds all metrics of this cluster, as its http_sd_configs want it."""
        return targets(await router.metrics_addresses(), await asyncio.to_thread(ray.nodes))

    @app.get("/moray/experts")
    async def experts() -> dict[str, Any]:
        """What the experts were given in the last minute, summed over the replicas."""
        return {"model": spec.engine.model} | await router.experts()

    @app.get("/moray/status")
    async def status(brief: bool = False) -> dict[str, Any]:
        """The cluster as the router sees it, and what this gateway has open. `brief`: not which experts are where."""
        told = await router.status(brief)
        told["model"] = {"name": spec.engine.model, "path": spec.engine.engine_args["model"]}
        told["gateway"] = {
            "pid": os.getpid(),
            "open_requests": core.open_requests,
            "resumed": core.resumes.count,
            "moved": core.resumes.moved,
            "quarantined": core.resumes.quarantined,
            "longest_resume_gap_s": core.resumes.longest_gap_s,
        }
        return told
