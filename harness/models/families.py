"""Model families as data: where a family keeps its blocks and linears, one row a family.

Packages add rows in the entry-point group `trinity.families`: docs/adding-a-family.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from trinity.methods.errors import UnsupportedError
from trinity.methods.plugins import OURS, Group, Owner

GROUP = "trinity.families"


@dataclass(frozen=True)
class FoldSpec:
    """Where a scale of the inputs of a group of linears can be moved to, exactly.

    reads: first linear of the group   into: the norm that makes their input, and nothing else's; or
        the linear whose outputs are their inputs, up to mixing tokens and to a product by channel
    offset: 1 for norms that multiply by 1 + weight
    """

    reads: str
    into: str
    offset: float = 0.0


@dataclass(frozen=True)
class StreamSpec:
    """Where the residual stream is written and how it ends, for what turns it.

    Blocks read it through norms that divide by the root mean square, those of `folds`, and in no
    other way.
    writes: linears of a block whose outputs are added to it   norm: full name of the one before the
        head   offset: of that norm, as in `FoldSpec`
    """

    writes: tuple[str, ...]
    norm: str
    offset: float = 0.0


@dataclass(frozen=True)
class Family:
    """Where a model type keeps its transformer blocks, and which of their linears share an input.

    blocks: dotted path of the list of blocks   groups: linears of a block, in order of execution,
        those with one input together; every linear of a block is in one
    renamed: tensors that files call by another name than the model does: (model's, file's)
    packs: whether its attention takes the mask of many sequences laid end to end, each of them
        with the logits it has alone; it is only faster
    folds: where scales of a group's inputs can be moved to.  A walk proves each on the calibration
        text before it is used, since options of a model may break it
    stream: where the residual stream can be turned; None where it cannot, for example because norms
        subtract means.  Proven on the calibration text too
    """

    blocks: str
    groups: tuple[tuple[str, ...], ...]
    renamed: tuple[tuple[str, str], ...] = ()
    packs: bool = False
    folds: tuple[FoldSpec, ...] = ()
    stream: StreamSpec | None = None

    def __post_init__(self) -> None:
        """Refuse a group that is a text: a comma is missing, and its letters would be linears."""
        groups: tuple[object, ...] = self.groups
        for group in groups:
            if not isinstance(group, tuple) or not all(isinstance(name, str) for name in group):
                msg = f"groups: expected tuples of texts, as in ('mlp.fc',), found {group!r}"
                raise TypeError(msg)


_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
# Attention mixes the outputs of v_proj over tokens; the activation of gate_proj multiplies those of
# up_proj by channel.
_OF_LINEARS = (
    FoldSpec("self_attn.o_proj", "self_attn.v_proj"),
    FoldSpec("mlp.down_proj", "mlp.up_proj"),
)
_WRITES = ("self_attn.o_proj", "mlp.down_proj")
_LLAMA = Family(
    "model.layers",
    _GROUPS,
    packs=True,
    folds=(
        FoldSpec("self_attn.q_proj", "input_layernorm"),
        FoldSpec("mlp.gate_proj", "post_attention_layernorm"),
        *_OF_LINEARS,
    ),
    stream=StreamSpec(_WRITES, "model.norm"),
)
# Norms after attention and MLP instead of before, or one norm before both.
_NO_NORMS_TO_FOLD = Family("model.layers", _GROUPS, packs=True, folds=_OF_LINEARS)
_GEMMA = Family(
    "model.layers",
    _GROUPS,
    packs=True,
    folds=(
        FoldSpec("self_attn.q_proj", "input_layernorm", offset=1.0),
        FoldSpec("mlp.gate_proj", "post_attention_layernorm", offset=1.0),
        *_OF_LINEARS,
    ),
    stream=StreamSpec(_WRITES, "model.norm", offset=1.0),
)
_GEMMA2 = Family(
    "model.layers",
    _GROUPS,
    packs=True,
    folds=(
        FoldSpec("self_attn.q_proj", "input_layernorm", offset=1.0),
        FoldSpec("mlp.gate_proj", "pre_feedforward_layernorm", offset=1.0),
        *_OF_LINEARS,
    ),
)
_OF_FUSED_INPUTS = Family(
    "model.layers",
    (
        ("self_attn.qkv_proj",),
        ("self_attn.o_proj",),
        ("mlp.gate_up_proj",),
        ("mlp.down_proj",),
    ),
    packs=True,
    folds=(
        FoldSpec("self_attn.qkv_proj", "input_layernorm"),
        FoldSpec("mlp.gate_up_proj", "post_attention_layernorm"),
    ),
    stream=StreamSpec(_WRITES, "model.norm"),
)
# A row packs if a test compares its packed logits with those of each sequence alone.
BUILT_IN: Mapping[str, Family] = {
    **dict.fromkeys(
        (
            "granite",
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "smollm3",
        ),
        _LLAMA,
    ),
    "stablelm": replace(_LLAMA, stream=None),  # its norms subtract means
    **dict.fromkeys(("cohere", "olmo", "olmo2"), _NO_NORMS_TO_FOLD),
    "gemma": _GEMMA,
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA2),
    "phi3": _OF_FUSED_INPUTS,
    "phi": Family(
        "model.layers",
        (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.dense",),
            ("mlp.fc1",),
            ("mlp.fc2",),
        ),
        packs=True,
        folds=(FoldSpec("self_attn.dense", "self_attn.v_proj"),),
    ),
    "opt": Family(
        "model.decoder.layers",
        (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.out_proj",),
            ("fc1",),
            ("fc2",),
        ),
        packs=True,
        folds=(
            FoldSpec("self_attn.q_proj", "self_attn_layer_norm"),
            FoldSpec("self_attn.out_proj", "self_attn.v_proj"),
            FoldSpec("fc1", "final_layer_norm"),
            FoldSpec("fc2", "fc1"),  # ReLU hands a positive scale on
        ),
    ),
    "gpt2": Family(
        "transformer.h",
        (("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)),
        packs=True,
        folds=(FoldSpec("attn.c_attn", "ln_1"), FoldSpec("mlp.c_fc", "ln_2")),
    ),
    "gptj": Family(
        "transformer.h",
        (
            ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
            ("attn.out_proj",),
            ("mlp.fc_in",),
            ("mlp.fc_out",),
        ),
        packs=True,
        folds=(FoldSpec("attn.out_proj", "attn.v_proj"),),
    ),
    "gpt_neox": Family(
        "gpt_neox.layers",
        (
            ("attention.query_key_value",),
            ("attention.dense",),
            ("mlp.dense_h_to_4h",),
            ("mlp.dense_4h_to_h",),
        ),
        renamed=(("lm_head.weight", "embed_out.weight"),),
        packs=True,
        folds=(
            FoldSpec("attention.query_key_value", "input_layernorm"),
            FoldSpec("mlp.dense_h_to_4h", "post_attention_layernorm"),
        ),
    ),
    "falcon": Family(
        "transformer.h",
        (
            ("self_attention.query_key_value",),
            ("self_attention.dense",),
            ("mlp.dense_h_to_4h",),
            ("mlp.dense_4h_to_h",),
        ),
        packs=True,
    ),
    # These two know a position by where it is in the row (ALiBi), so they do not pack.
    "bloom": Family(
        "transformer.h",
        (
            ("self_attention.query_key_value",),
            ("self_attention.dense",),
            ("mlp.dense_h_to_4h",),
            ("mlp.dense_4h_to_h",),
        ),
        folds=(
            FoldSpec("self_attention.query_key_value", "input_layernorm"),
            FoldSpec("mlp.dense_h_to_4h", "post_attention_layernorm"),
        ),
    ),
    "mpt": Family(
        "transformer.blocks",
        (("attn.Wqkv",), ("attn.out_proj",), ("ffn.up_proj",), ("ffn.down_proj",)),
        folds=(FoldSpec("attn.Wqkv", "norm_1"), FoldSpec("ffn.up_proj", "norm_2")),
    ),
}
_PLUGINS = Group(GROUP, "family", lambda: ((name, __name__) for name in BUILT_IN))


def names() -> list[str]:
    """Every model type with a row, built in or a package's, sorted."""
    return _PLUGINS.names()


def owner(name: str) -> Owner:
    """Who registers a model type; ConfigError if nobody does, or several."""
    return _PLUGINS.owner(name)


def get(model_type: str) -> Family:
    """The row of a model type; UnsupportedError lists those that there are."""
    if not _PLUGINS.owners(model_type):
        msg = (
            f"model type '{model_type}' is not supported. Supported: {', '.join(names())}. A "
            f"package can add a family with one row, in the entry-point group '{GROUP}'."
        )
        raise UnsupportedError(msg)
    if _PLUGINS.owner(model_type).distribution == OURS:
        return BUILT_IN[model_type]
    return _PLUGINS.load_as(model_type, Family, "a trinity.harness.models.families.Family")


def check_blocks(model_type: str, blocks: Mapping[str, list[str]] | None) -> None:
    """PluginError if a row is not about these blocks: a linear that it leaves out would stay dense.

    blocks: path of each block -> its linears; None where the model has no such list of blocks
    """
    family = get(model_type)
    if not blocks:
        raise _PLUGINS.broken(model_type, f"its models have no blocks at '{family.blocks}'")
    named = [name for group in family.groups for name in group]
    for where, linears in blocks.items():
        absent = [name for name in named if name not in linears]
        left = [name for name in linears if name not in named]
        if absent:
            what = f"{where} has no linear '{absent[0]}'; it has {', '.join(linears)}"
            raise _PLUGINS.broken(model_type, what)
        if left:
            what = f"its groups leave out {', '.join(left)} of {where}, which would stay dense"
            raise _PLUGINS.broken(model_type, what)
    if len(set(named)) < len(named):
        raise _PLUGINS.broken(model_type, "its groups name a linear twice")
