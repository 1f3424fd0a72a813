"""lm-evaluation-harness's result files, as its own tools read them."""

from typing import Any

from trinity.harness.records.record import Record, to_json

KEYS = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")


def results_of(found: Record) -> dict[str, Any]:
    """A record's tasks as lm-eval writes results; empty if it has none."""
    data = to_json(found)
    if not data["results"]:
        return {}
    e = found.environment
    packages = e.get("packages") or {}
    return {
        **{key: data[key] for key in KEYS},
        "group_subtasks": {name: [] for name in data["results"]},
        "config": {"model": "trinity", "model_args": {"pretrained": found.model.id}, "limit": None},
        "git_hash": e.get("commit"),
        "date": found.date,
        "model_source": "trinity",
        "model_name": f"{found.model.label}/{found.recipe['name']}",
        "model_name_sanitized": f"{found.model.label}__{found.recipe['name']}",
        "transformers_version": packages.get("transformers"),
        "lm_eval_version": packages.get("lm-eval"),
    }
