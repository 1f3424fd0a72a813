"""The model family Starcoder2: a row of data."""

from trinity.harness.models.families import Family

STARCODER2 = Family(
    blocks="model.layers",
    groups=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.c_fc",),
        ("mlp.c_proj",),
    ),
)
