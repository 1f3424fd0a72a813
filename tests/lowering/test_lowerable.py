"""What cannot be lowered is refused by name, before anything is exported."""

from typing import Any

import pytest
from transformers import AutoConfig

from trinity.lowering.plan import Lowering
from trinity.lowering.targets import targets
from trinity.methods.errors import UnsupportedError

LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
ORIGINAL = {"original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("family", "changes", "name"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope 'dynamic'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "longrope", "factor": 2.0, **LONG, **ORIGINAL}},
            "rope 'longrope'",
        ),
        ("bloom", {}, "ALiBi"),
        ("mpt", {}, "ALiBi"),
        ("falcon", {"alibi": True}, "ALiBi"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "sees what follows"),
        (
            "llama",
            {"layer_types": ["chunked_attention", "full_attention"], "num_hidden_layers": 2},
            "blocks of type chunked_attention",
        ),
    ],
)
def test_it_is_named(family: str, changes: dict[str, Any], name: str) -> None:
    config = AutoConfig.for_model(family, **changes)
    with pytest.raises(UnsupportedError, match=f"{name}.*cannot be lowered.*engine"):
        Lowering(config, {}, targets.get("llvm-cpu"), (1,), 32)
