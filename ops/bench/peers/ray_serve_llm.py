"""The peer `ray.serve.llm`: `python -m ops.bench.peers.ray_serve_llm PORT REPLICAS ENGINE_ARGS`.

Serves until it is ended; writes a line `ready` when all replicas serve.
"""

import json
import sys
import threading

import ray
from ray import serve


def main() -> None:
    from ray.serve.llm import LLMConfig, build_openai_app

    port, replicas, args = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    config = LLMConfig(
        model_loading_config={"model_id": args.pop("served_model_name"), "model_source": args.pop("model")},
        engine_kwargs=args,
        deployment_config={"num_replicas": replicas},
        placement_group_config={"bundles": [{"CPU": 1}]},  # without it, it asks for a GPU
    )
    # CPUs as it counts them, two for a replica and one for an ingress; all share the machine's.
    ray.init(num_cpus=8 * replicas, include_dashboard=False, object_store_memory=256 << 20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_openai_app({"llm_configs": [config]}), name="peer", route_prefix="/")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main()
