"""Compression methods: tensors in, compressed weight out."""
