"""Names that the stages and the running module must agree on."""

SCOPE = "model"  # of every parameter
STEP = "step"  # of one token; functions of more are named with their length


def trunk(tokens: int) -> str:
    """A step of many tokens without its head."""
    return f"trunk_{tokens}"


def head(tokens: int) -> str:
    """Logits of every position of hidden states."""
    return f"head_{tokens}"


def last_head(tokens: int) -> str:
    """Logits of one position of hidden states."""
    return f"last_{tokens}"
