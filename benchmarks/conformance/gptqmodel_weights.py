"""What gptqmodel makes of the layers and of the whole model that `given.py` wrote.

    python benchmarks/conformance/gptqmodel_weights.py FOLDER

Runs in gptqmodel's environment, on a CPU, and imports nothing of this project.  Writes
FOLDER/gptqmodel/layers/gptq.safetensors, the weights [out, in] of the single layers by its GPTQ, in
float32, and FOLDER/gptqmodel/models/gptq, the checkpoint of its whole pipeline.
"""

import sys
from importlib.metadata import version
from pathlib import Path

import torch
from cases import BITS, GROUP
from gptqmodel import GPTQModel, QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def config() -> QuantizeConfig:
    """Its options for what the others do: by default it orders inputs and damps five times more."""
    return QuantizeConfig(
        bits=BITS,
        group_size=GROUP,
        sym=True,
        desc_act=False,
        act_group_aware=False,
        static_groups=True,
        true_sequential=False,
        damp_percent=0.01,
        damp_auto_increment=0,
        fallback=None,
        offload_to_disk=False,
        pack_impl="original",  # the others compile themselves first
        device="cpu",
    )


def one_layer(weight: Tensor, inputs: Tensor) -> Tensor:
    """Its GPTQ on one layer."""
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    task = GPTQ(module, config())
    task.quantizer.configure(perchannel=True)
    task.add_batch(inputs[None], module(inputs)[None])
    made, *_ = task.quantize()
    return made.float().contiguous()


def main() -> None:
    """Write the weights."""
    folder = Path(sys.argv[1])
    given, out = folder / "given", folder / "gptqmodel"
    for kind in ("layers", "models"):
        (out / kind).mkdir(parents=True)
    layers = load_file(given / "layers.safetensors")
    with torch.no_grad():
        made = {
            key.removesuffix(".W"): one_layer(weight, layers[key.removesuffix("W") + "X"])
            for key, weight in layers.items()
            if key.endswith(".W")
        }
    save_file(made, out / "layers" / "gptq.safetensors")
    ids = load_file(given / "ids.safetensors")["ids"]
    windows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in ids]
    model = GPTQModel.load(str((given / "model").resolve()), config(), dtype=torch.float32)
    model.quantize(windows, batch_size=1)
    model.save(str(out / "models" / "gptq"))
    versions = [f"{name} {version(name)}" for name in ("gptqmodel", "transformers", "torch")]
    (out / "versions.txt").write_text("\n".join(versions) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
