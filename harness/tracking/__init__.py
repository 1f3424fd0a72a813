"""Records against each other: what changed, and whether it got worse."""
