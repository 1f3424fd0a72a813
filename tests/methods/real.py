"""Layers of a real model: their weights, and what they read on real text."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = (
    "Once upon a time there was a little girl who lived in a small house near the river. Every "
    "morning she went out to play with her dog, and every evening her mother read her a story. "
    "One day the dog ran away. The girl looked for him in the garden, in the field and under the "
    "old bridge, but she could not find him anywhere. She sat down and began to cry. Then a big "
    "friendly bear came out of the wood and asked her what was wrong. 'I have lost my dog', said "
    "the girl. 'Do not worry', said the bear, 'we will find him together.' "
)


def layers(folder: Path, names: list[str], tokens: int = 256) -> dict[str, tuple[Tensor, Tensor]]:
    """(weight [out, in], input [tokens, in]) of some linears of a model folder, float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(TEXT * 4)["input_ids"][:tokens]])
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen.__setitem__(name, args[0][0])
        )
        for name in names
    ]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: (model.get_submodule(name).weight.detach(), seen[name]) for name in names}
