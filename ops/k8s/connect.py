"""Which API server and which namespace: a kubeconfig's, or the pod's own."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from ops.errors import UserError
from ops.k8s.calls import Api

OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def connect(
    kubeconfig: Path | None = None, context: str | None = None, stop: threading.Event | None = None
) -> tuple[Api, str]:
    """The API and the namespace that counts where none is named. Raises UserError."""
    import yaml
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        if kubeconfig is None and context is None and _in_a_pod():
            config.load_incluster_config(client_configuration=configuration)
            namespace = OWN_NAMESPACE.read_text().strip() if OWN_NAMESPACE.exists() else "default"
        else:
            file = str(kubeconfig.expanduser()) if kubeconfig is not None else None
            config.load_kube_config(file, context, client_configuration=configuration, persist_config=False)
            if context is not None:  # which works without a current-context, other than the list of contexts
                namespace = _namespace_of(context, file)
            else:
                namespace = str(config.list_kube_config_contexts(file)[1]["context"].get("namespace") or "default")
    except (config.ConfigException, OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"no cluster to talk to ({str(error).rstrip('.')}): name one by --kubeconfig FILE, --context NAME or "
            "KUBECONFIG"
        ) from None
    return Api(api_client(configuration), stop), namespace


def api_client(configuration: Any) -> Any:
    """A client that tries nothing again by itself (`ops.k8s.calls` does) and notices a server that is gone."""
    from kubernetes import client

    configuration.retries = False
    configuration.keep_alive = True  # a watch on a dead connection ends within a minute
    return client.ApiClient(configuration)


def _in_a_pod() -> bool:
    named = os.environ.get("KUBECONFIG") or Path("~/.kube/config").expanduser().exists()
    return not named and "KUBERNETES_SERVICE_HOST" in os.environ


def _namespace_of(context: str, file: str | None) -> str:
    """Of several files in KUBECONFIG the first that has the context counts. Raises OSError, YAMLError."""
    import yaml
    from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION

    for name in (file or KUBE_CONFIG_DEFAULT_LOCATION).split(os.pathsep):
        if (path := Path(name).expanduser()).is_file():
            for one in (yaml.safe_load(path.read_text()) or {}).get("contexts") or ():
                if one["name"] == context:
                    return str(one["context"].get("namespace") or "default")
    return "default"
