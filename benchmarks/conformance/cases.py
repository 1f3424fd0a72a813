"""What is compared, for every environment: nothing is imported here."""

from typing import Any

BITS, GROUP = 4, 64

# name -> a recipe's steps
CASES: dict[str, list[dict[str, Any]]] = {
    "wanda-2of4": [{"method": "wanda", "pattern": "2:4"}],
    "wanda-50pct": [{"method": "wanda", "pattern": "50%"}],
    "sparsegpt-2of4": [{"method": "sparsegpt", "pattern": "2:4"}],
    "sparsegpt-50pct": [{"method": "sparsegpt", "pattern": "50%"}],
    # As the others do it: scales of the dense weight, symmetric, in float32, no ordering.
    "gptq": [
        {
            "method": "gptq",
            "bits": BITS,
            "group_size": GROUP,
            "symmetric": True,
            "group_fit": "static",
            "scale_dtype": "float32",
        }
    ],
}
