"""The harness: read recipes, walk models, measure, write records."""
