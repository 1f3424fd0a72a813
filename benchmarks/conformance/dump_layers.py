"""Real layers and their calibration inputs, for comparing implementations of one method.

    python benchmarks/conformance/dump_layers.py MODEL FILE.safetensors

Runs in an environment that has the project.  Writes, for some linears of two blocks of a model, the
weight [out, in] and the inputs [tokens, in] on the first windows of a text (TRINITY_DATA_DIR's
c4-sample, else the text that every Python carries), all in float32.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from trinity.harness import calibration, data, sources
from trinity.harness.quiet import hush_libraries
from trinity.harness.store import StageStore, default_root

SAMPLES, SEQLEN = 16, 256
LAYERS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    hush_libraries()
    folder = sources.resolve(arguments.model, None, StageStore(default_root())).path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    name = "pydoc" if data.at_hand("c4-sample", "train") else "c4-sample"
    tokenizer = sources.tokenizer_of(folder)
    corpus = data.load(name, "train")
    ids = calibration.sample(corpus, tokenizer, SAMPLES, SEQLEN, 0, "concatenated").ids
    blocks = model.model.layers
    found: dict[str, Tensor] = {}
    hooks = []
    for index in (0, len(blocks) // 2):
        for layer in LAYERS:
            linear = blocks[index].get_submodule(layer)
            found[f"{index}.{layer}.W"] = linear.weight.detach().clone()

            def note(
                module: nn.Module, inputs: tuple[Tensor], key: str = f"{index}.{layer}.X"
            ) -> None:
                found[key] = inputs[0].reshape(-1, inputs[0].shape[-1]).clone()

            hooks.append(linear.register_forward_pre_hook(note))
    with torch.no_grad():
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    save_file({key: tensor.contiguous() for key, tensor in found.items()}, arguments.file)


if __name__ == "__main__":
    main()
