"""The engine core in a process of its own: `python -m replicas.core_process FD SPEC_JSON [LISTEN]`.

It never outlives its replica: the kernel kills it when the replica's process ends (`experts.linux`), and the pipe's
end tells it too. vLLM's workers are forked from here before any other thread exists, which is why they may be forked
at all.

FD is its end of the replica's pipe. Without LISTEN it is a spare core, and FD where it waits for a replica.
"""

import os
import signal
import sys
from functools import partial
from multiprocessing.connection import Connection

import msgspec

from experts.linux import die_with_parent, yield_cpus
from replicas.core_host import host_core
from replicas.engine_host import build_core, preload
from replicas.engine_spec import EngineSpec
from replicas.spare_core import PARENT, wait_to_be_adopted

NICE = 5


def main() -> None:
    fd, spec_json, *replicas = sys.argv[1:]
    die_with_parent(int(os.environ[PARENT]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal reaches the whole group; the replica decides
    spec = msgspec.json.decode(spec_json, type=EngineSpec)
    if spec.device == "cpu":
        yield_cpus(NICE)  # shards that compute would keep the gateway from its tokens for seconds: streams would stall
    if replicas:
        host_core(partial(build_core, spec), Connection(int(fd)), *replicas)
    elif adopted := wait_to_be_adopted(int(fd), partial(preload, spec)):
        pipe, adoption = adopted
        host_core(partial(build_core, adoption.spec), pipe, adoption.listen)
    os._exit(0)  # the interpreter's own tear-down of torch and its threads takes seconds and frees nothing


if __name__ == "__main__":
    main()
