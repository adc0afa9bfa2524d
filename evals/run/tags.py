"""What a tracked run is called, tagged and grouped by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from evals.run.run_id import cut_name, name_data


def describe_run(about: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What runs are filtered and grouped by, in words. sweep: the same for all runs of one command."""
    parts = {group: name_part(config.get(group)) for group in ("scorer", "allocator", "protection")}
    command = str(about.get("command", about["run_id"]))
    sweep = hashlib.sha256(command.encode()).hexdigest()[:8]
    return {"method": config["method"], **parts, "benchmark": name_data(config), "sweep": sweep}


def list_tags(config: Mapping[str, Any]) -> list[str]:
    """Method, scorer, allocator, budget and benchmark; at most 64 characters each, as W&B takes them."""
    tags = [config["method"] or name_job(config), name_part(config.get("scorer")), name_part(config.get("allocator"))]
    for key in ("budget", "budget_tokens", "budget_bytes"):
        if config.get(key) is not None:
            tags.append(f"{key}={config[key]:g}")
    return list(dict.fromkeys(tag[:64] for tag in [*tags, name_data(config)] if tag))


def name_part(part: Mapping[str, Any] | None) -> str | None:
    """A scorer's name, or the class of what has none."""
    return None if not part else str(part.get("name") or part["_target_"].rsplit(".", 1)[-1])


def name_group(run_id: str, seed: int | None) -> str:
    """The run's name without its seed: runs of several seeds are one group. W&B takes up to 128 characters."""
    return cut_name("__".join(part for part in run_id.split("__") if part != f"s{seed}"), 128)


def name_job(config: Mapping[str, Any]) -> str:
    """evaluate, calibrate or latency: the job's class in small letters."""
    return config["job"]["_target_"].rsplit(".", 1)[-1].lower()
