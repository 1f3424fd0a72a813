"""What every implementation starts from: a model, calibration tokens, and real layers.

    python benchmarks/conformance/given.py FOLDER [--seed N] [--no-layers]

Runs in an environment that has the project.  Writes FOLDER/given: `model`, a link to the embedded
model as Hugging Face reads it; `ids.safetensors`, the calibration tokens of the papers' embedded
profile, int64 [samples, seqlen]; `layers.safetensors`, for some linears of two blocks the weight
[out, in] and their inputs on half of these tokens, [tokens, in], in float32.
"""

import argparse
from pathlib import Path

import torch
from cases import CASES
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from trinity.harness.recipes import paper, recipe
from trinity.harness.repro.repro import first_at_hand
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore, default_root
from trinity.harness.terminal.hush import hush_libraries
from trinity.harness.terminal.progress import Reporter

LAYERS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def run_of(case: str | None, seed: int = 0) -> Run:
    """Our run of a case, on the text that the papers' tables take; None: the dense model's.

    seed: of the draw of calibration windows; 0 is the tables'
    """
    profile = paper.load("wanda").profiles["embedded"]
    at_hand = first_at_hand(profile)
    data = {
        "name": f"conformance-{case or 'dense'}",
        "model": {"id": profile.models[0]},
        "compress": {"steps": CASES[case] if case else []},
        "calibration": at_hand.calibration.model_dump() | {"seed": seed},
        "evaluate": at_hand.evaluate.model_dump(),
    }
    return Run(recipe.parse(data, str(case)), StageStore(default_root()), Reporter())


def tokens_of(run: Run) -> Tensor:
    """A run's calibration tokens, int64 [samples, seqlen]."""
    drawn = run.draw_calibration()
    assert drawn is not None
    return drawn[0]


def layers_of(folder: Path, ids: Tensor) -> dict[str, Tensor]:
    """Weights and inputs of some linears.  ids: int64 [samples, seqlen]"""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    blocks = model.model.layers
    found: dict[str, Tensor] = {}
    for index in (0, len(blocks) // 2):
        for layer in LAYERS:
            linear, name = blocks[index].get_submodule(layer), f"{index}.{layer}"
            found[f"{name}.W"] = linear.weight.detach().clone()
            linear.register_forward_pre_hook(
                lambda _, inputs, name=name: found.update(
                    {f"{name}.X": inputs[0].reshape(-1, inputs[0].shape[-1]).clone()}
                )
            )
    with torch.no_grad():
        model(input_ids=ids)
    return found


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the calibration windows")
    parser.add_argument("--no-layers", action="store_true", help="only the model and the tokens")
    options = parser.parse_args()
    hush_libraries()
    run = run_of(None, options.seed)
    ids = tokens_of(run)
    given = options.folder / "given"
    given.mkdir(parents=True)
    (given / "model").symlink_to(run.source.path, target_is_directory=True)
    save_file({"ids": ids}, given / "ids.safetensors")
    if not options.no_layers:
        save_file(layers_of(run.source.path, ids[: len(ids) // 2]), given / "layers.safetensors")


if __name__ == "__main__":
    main()
