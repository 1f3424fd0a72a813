"""The PTX of the sources in lanes/, and what is in it.  (`device` must not load torch.)"""

from trinity.lowering.kernels.cuda.device import CUDA_CODE
from trinity.lowering.kernels.lanes.decoder import DECODER, DIGITS_DECODER
from trinity.lowering.kernels.lanes.executable import Compiled
from trinity.lowering.kernels.lanes.launch import ENTRIES, PAIRS

# A file for each kind and mask of products: the driver compiles all of a
# file when a module is loaded.
CODE = Compiled(
    CUDA_CODE,
    {
        "decoder.ptx": (*DECODER, *DIGITS_DECODER),
        **{
            f"{name}.ptx": tuple(of for of in ENTRIES if of.name.startswith(f"{name}_"))
            for name in (f"lanes_{kind}_{mask}" for kind, mask in PAIRS)
        },
    },
)
