"""What `trinity methods list` says of the built-in methods, so that it need not load them: they are
torch code, and torch alone takes a second.  A test compares every row with the method itself.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What a method is at a glance.

    paper: where it is from   needs: statistics to collect, in words
    format: of what it makes of a [128, 256] layer with its default options
    """

    paper: str
    needs: str
    format: str


CATALOGUE = {
    "aqlm": Entry("arXiv:2401.06118", "hessian", "2x8-bit vectors of 8"),
    "awq": Entry("arXiv:2306.00978", "x_mean_abs", "-"),
    "awq-clip": Entry("arXiv:2306.00978", "hessian", "int4 group 128 asymmetric"),
    "beam": Entry("github.com/Paramathic/beam", "nothing", "float32"),
    "bitstack": Entry("arXiv:2410.23918", "x_norm", "3 signs times rank 16"),
    "bitstack-sort": Entry("arXiv:2410.23918", "nothing", "-"),
    "cap": Entry("arXiv:2210.09223", "gradients", "2:4 float32"),
    "dense": Entry("baseline", "nothing", "float32"),
    "eora": Entry("arXiv:2410.21271", "hessian", "float32 + rank 128"),
    "evopress": Entry("arXiv:2410.14649", "nothing", "-"),
    "fp8": Entry("arXiv:2209.05433", "nothing", "e4m3 channel"),
    "gear": Entry("arXiv:2403.05527", "nothing", "int2 of 64 positions + 2% outliers + rank 4"),
    "gptaq": Entry("arXiv:2504.02692", "hessian, drift", "int4 group 128 asymmetric"),
    "gptq": Entry("arXiv:2210.17323", "hessian", "int4 group 128 asymmetric"),
    "gptq-checkpoint": Entry("arXiv:2210.17323", "a checkpoint", "as stored"),
    "gptq-codebook": Entry("arXiv:2210.17323", "hessian", "nf4 group 64"),
    "jsq": Entry(
        "openreview.net/forum?id=sCGRhnuMUJ", "x_norm_clipped, x_mean_clipped", "2:4 float32"
    ),
    "l2qer": Entry("arXiv:2402.02446", "x_mean_abs", "float32 + rank 12"),
    "magnitude": Entry("arXiv:1506.02626", "nothing", "2:4 float32"),
    "mxfp4": Entry("arXiv:2310.10537", "nothing", "e2m1 group 32 e8m0 scales"),
    "nf4": Entry("arXiv:2305.14314", "nothing", "nf4 group 64"),
    "nvfp4": Entry("arXiv:2509.25149", "nothing", "e2m1 group 16 e4m3 scales over float32"),
    "optima": Entry("arXiv:2512.13886", "hessian", "float32"),
    "owl": Entry("arXiv:2310.05175", "x_norm", "-"),
    "patch": Entry("arXiv:2509.23410", "token sequences", "-"),
    "quarot": Entry("arXiv:2404.00456", "token sequences", "-"),
    "rtn": Entry("arXiv:2210.17323", "nothing", "int4 group 128"),
    "rtn-cache": Entry("arXiv:2303.06865", "nothing", "int4 token and head"),
    "slim": Entry("arXiv:2410.09615", "x_norm, x_mean_abs", "2:4 int4 tensor + rank 12"),
    "slim-lora": Entry("arXiv:2410.09615", "x_norm, x_mean_abs", "float32 + rank 12"),
    "slim-quant": Entry("arXiv:2410.09615", "nothing", "int4 tensor"),
    "slim-quant-o": Entry("arXiv:2410.09615", "x_norm, x_mean_abs", "int4 tensor scaled inputs"),
    "slim-tune": Entry("arXiv:2410.09615", "token sequences", "-"),
    "slope": Entry("arXiv:2405.16325", "a checkpoint", "as stored"),
    "smoothquant": Entry("arXiv:2211.10438", "x_max_abs", "-"),
    "sparsegpt": Entry("arXiv:2301.00774", "hessian", "2:4 float32"),
    "spqr": Entry("arXiv:2306.03078", "hessian", "int4 group 16 int3 scales + 4 outliers"),
    "squeezellm": Entry("arXiv:2306.07629", "fisher", "16 levels channel"),
    "wanda": Entry("arXiv:2306.11695", "x_norm", "2:4 float32"),
}
# Of the same hub, and no method of a recipe: name -> paper, and where it is.
OPTIMIZERS = {
    "mkor": ("arXiv:2306.01685", "an optimizer for training, trinity.methods.training.mkor"),
}
