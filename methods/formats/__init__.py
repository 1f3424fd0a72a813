"""Frozen value types for compressed weights, with their reference decode and their storage."""

from trinity.methods.formats.adapter import (
    Adapted,
    AdapterFormat,
    Factor,
    FactorFormat,
    Transposed,
)
from trinity.methods.formats.caches import CacheCodes, CacheFormat, cache_codes
from trinity.methods.formats.codebook import Codebook, Coded
from trinity.methods.formats.dense import Dense, Floats
from trinity.methods.formats.inputs import InputFormat
from trinity.methods.formats.layout import CompressedWeight, WeightFormat, format_of, sparsity_of
from trinity.methods.formats.nested_grid import Nested, NestedGrid
from trinity.methods.formats.outliers import OutlierFormat, WithOutliers, with_outliers
from trinity.methods.formats.packing import bits_per_weight, pack, stored_bytes, unpack
from trinity.methods.formats.quantized import Grid, Quantized
from trinity.methods.formats.row_codebook import RowCodebook, RowCoded
from trinity.methods.formats.sign_sum import SignedTerms, SignSum
from trinity.methods.formats.sparse import NM, Pattern, Sparse, Unstructured, parse_pattern
from trinity.methods.formats.tiles import Tiles
from trinity.methods.formats.values import Values, ValuesFormat
from trinity.methods.formats.vector_codebook import VectorCodebook, VectorCoded

__all__ = [
    "NM",
    "Adapted",
    "AdapterFormat",
    "CacheCodes",
    "CacheFormat",
    "Codebook",
    "Coded",
    "CompressedWeight",
    "Dense",
    "Factor",
    "FactorFormat",
    "Floats",
    "Grid",
    "InputFormat",
    "Nested",
    "NestedGrid",
    "OutlierFormat",
    "Pattern",
    "Quantized",
    "RowCodebook",
    "RowCoded",
    "SignSum",
    "SignedTerms",
    "Sparse",
    "Tiles",
    "Transposed",
    "Unstructured",
    "Values",
    "ValuesFormat",
    "VectorCodebook",
    "VectorCoded",
    "WeightFormat",
    "WithOutliers",
    "bits_per_weight",
    "cache_codes",
    "format_of",
    "pack",
    "parse_pattern",
    "sparsity_of",
    "stored_bytes",
    "unpack",
    "with_outliers",
]
