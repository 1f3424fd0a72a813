"""Codes of 1, 2, 3, 4 or 8 bits in bytes, lossless both ways."""

import torch
from torch import Tensor


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along the last axis, the first in the lowest bits; rows end on a whole byte.

    codes: uint8 [..., n], each below 2^bits  ->  uint8 [..., packed_width(n, bits)]
    3-bit codes are a plane of their low 2 bits followed by a plane of their high bit: no code
    straddles two bytes, so a kernel unpacks them with the shifts of 2 and 1 bits.
    """
    if bits == 3:
        return torch.cat([pack_bits(codes & 3, 2), pack_bits(codes >> 2, 1)], dim=-1)
    if bits == 8:
        return codes.contiguous()
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % per_byte))
    lanes = padded.reshape(*padded.shape[:-1], padded.shape[-1] // per_byte, per_byte)
    packed = torch.zeros(lanes.shape[:-1], dtype=torch.uint8, device=codes.device)
    for lane in range(per_byte):
        packed |= lanes[..., lane] << (lane * bits)
    return packed


def unpack_bits(packed: Tensor, bits: int, n: int) -> Tensor:
    """Inverse of `pack_bits`.  packed: uint8 [..., packed_width(n, bits)]  ->  uint8 [..., n]"""
    if bits == 3:
        low, high = packed[..., : packed_width(n, 2)], packed[..., packed_width(n, 2) :]
        return unpack_bits(low, 2, n) | (unpack_bits(high, 1, n) << 2)
    if bits == 8:
        return packed
    lanes = [(packed >> (lane * bits)) & (2**bits - 1) for lane in range(8 // bits)]
    return torch.stack(lanes, dim=-1).flatten(-2)[..., :n].contiguous()


def packed_width(n: int, bits: int) -> int:
    """Bytes that `pack_bits` needs for `n` codes."""
    if bits == 3:
        return packed_width(n, 2) + packed_width(n, 1)
    return -(-n * bits // 8)
