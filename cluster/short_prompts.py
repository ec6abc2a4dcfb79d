"""Short prompts are rendered and tokenised where they are: for them, another thread costs more than the work.

vLLM hands templates and tokenisers to a pool, so that a long prompt does not hold up the event loop. A short one takes
0.1-0.3 ms, and the way to a thread and back, on cores that others want, as much again for each of the two steps. 512
tokens of a large vocabulary take 2 ms: of 512 such prompts at once, half had their first token after 0.93 s with a
thread, after 1.45 s without (two CPUs, a simulated engine).
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from cluster.outcomes import context_of_request

SHORT_BYTES = 1024  # of an HTTP request's body: some 200 tokens


def run_inline(pool: Executor) -> None:
    """From now on, what belongs to an HTTP request with a short body runs in the thread that submits it."""
    submit_to_pool = pool.submit

    def submit(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        context = context_of_request.get()
        if context is None or context.body_bytes is None or context.body_bytes > SHORT_BYTES:
            return submit_to_pool(fn, *args, **kwargs)
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done

    pool.submit = submit  # type: ignore[method-assign]
