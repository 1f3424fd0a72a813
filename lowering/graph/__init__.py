"""A decoder as steps in the torch dialect, its compressed linears opaque."""
