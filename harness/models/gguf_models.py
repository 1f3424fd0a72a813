"""A GGUF file as a model folder, through transformers, which knows what each architecture does to
its weights on the way (of Llama, it interleaves the rotary halves).
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from trinity.harness.models.decoder import warnings_off
from trinity.methods.errors import UnsupportedError


def write(place: Path, source: Path) -> None:
    """Fill a folder with a file's model as float32; UnsupportedError if transformers reads none."""
    with warnings_off():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                source.parent, gguf_file=source.name, dtype=torch.float32
            )
        except (ValueError, KeyError, NotImplementedError) as error:
            msg = f"{source}: transformers reads no model from it ({' '.join(str(error).split())})."
            raise UnsupportedError(msg) from error
        # A model read from GGUF still calls itself quantized, and refuses to be saved as such.
        for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
            if hasattr(model, attribute):
                delattr(model, attribute)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(place)
