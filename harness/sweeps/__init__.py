"""Many runs at once: their parts as a graph, and who does them."""
