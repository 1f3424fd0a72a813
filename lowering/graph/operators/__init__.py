"""What a graph calls as one, opaque to torch: a file an operator, with all that is known of it."""
