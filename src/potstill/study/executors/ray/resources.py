"""The resources that a run requests from a Ray cluster, compared with those of its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.errors import PotstillError
from potstill.study.schema import Study


def requested(study: Study) -> dict[str, float]:
    """The request of one run as options of a Ray task; memory in bytes."""
    settings, threads = study.ray, getattr(study.engine, "threads", 1)
    options = {"num_cpus": settings.cpus or max(1, threads), "num_gpus": settings.gpus}
    return {**options, "memory": int(settings.memory * 1e9)} if settings.memory else options


def insufficient(ray: Any, study: Study) -> str:
    """A description of the cluster's nodes if a run fits on none of them; else empty."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    request = {names[key]: value for key, value in requested(study).items() if value}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(key, 0) >= value for key, value in request.items()) for node in nodes):
        return ""
    return ", ".join(dict.fromkeys(_describe(node) for node in nodes)) or "none"


def require_node(ray: Any, study: Study) -> None:
    """Raise if a run fits on no node: its tasks would wait forever."""
    if nodes := insufficient(ray, study):
        options = requested(study)
        request = {"CPU": options["num_cpus"], "GPU": options["num_gpus"]}
        request["memory"] = options.get("memory", 0)
        raise PotstillError(
            f"a run requests {_describe(request)}, and no node of the cluster has that; "
            f"its nodes: {nodes}",
            "lower cpus, gpus or memory in [ray], or add a larger node",
        )


def _describe(resources: Mapping[str, float]) -> str:
    cpus, gpus, memory = (resources.get(name, 0) for name in ("CPU", "GPU", "memory"))
    gigabytes = f" and {memory / 1e9:.3g} GB" if memory else ""
    return f"{cpus:g} cores, {gpus:g} GPUs{gigabytes}"
