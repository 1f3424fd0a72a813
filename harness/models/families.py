"""Model families as data: where a family keeps its blocks and linears, one row a family.

Packages add rows in the entry-point group `trinity.families`: docs/adding-a-family.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from trinity.methods.errors import UnsupportedError
from trinity.methods.plugins import OURS, Group, Owner

GROUP = "trinity.families"


@dataclass(frozen=True)
class Family:
    """Where a model type keeps its transformer blocks, and which of their linears share an input.

    blocks: dotted path of the list of blocks   groups: linears of a block, in order of execution,
        those with one input together; every linear of a block is in one
    renamed: tensors that files call by another name than the model does: (model's, file's)
    packs: whether its attention takes the mask of many sequences laid end to end, each of them
        with the logits it has alone; it is only faster
    """

    blocks: str
    groups: tuple[tuple[str, ...], ...]
    renamed: tuple[tuple[str, str], ...] = ()
    packs: bool = False

    def __post_init__(self) -> None:
        """Refuse a group that is a text: a comma is missing, and its letters would be linears."""
        groups: tuple[object, ...] = self.groups
        for group in groups:
            if not isinstance(group, tuple) or not all(isinstance(name, str) for name in group):
                msg = f"groups: expected tuples of texts, as in ('mlp.fc',), found {group!r}"
                raise TypeError(msg)


_LLAMA = Family(
    "model.layers",
    (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ),
    packs=True,
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
)
# A row packs if a test compares its packed logits with those of each sequence alone.
BUILT_IN: Mapping[str, Family] = {
    **dict.fromkeys(
        (
            "cohere",
            "gemma",
            "gemma2",
            "gemma3_text",
            "granite",
            "llama",
            "mistral",
            "olmo",
            "olmo2",
            "qwen2",
            "qwen3",
            "smollm3",
            "stablelm",
        ),
        _LLAMA,
    ),
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
    ),
    "gpt2": Family(
        "transformer.h",
        (("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)),
        packs=True,
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
    ),
    "mpt": Family(
        "transformer.blocks",
        (("attn.Wqkv",), ("attn.out_proj",), ("ffn.up_proj",), ("ffn.down_proj",)),
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
