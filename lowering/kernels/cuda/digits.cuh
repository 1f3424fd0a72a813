// A float32 as three bfloat16 digits that add up to it: each is the upper half of the bits of what is
// left.
#pragma once
#include "intrinsics.cuh"

constexpr int DIGITS = 3;

__device__ __forceinline__ float top_digit(float value) {
  return __uint_as_float(__float_as_uint(value) & 0xFFFF0000u);
}

// Entry `row` of a panel of 32, in the order in which products read activations
// ([panels, digits, tokens, 4, 4, 2], see `activations` in linear.py).
__device__ __forceinline__ void write_digits(uint16_t* out, float value, int panel, int row,
                                             int token, int tokens) {
  const int place = row % 8 / 2 * 8 + row / 8 * 2 + row % 2;
#pragma unroll
  for (int p = 0; p < DIGITS; ++p) {
    const int64_t line = (static_cast<int64_t>(panel) * DIGITS + p) * tokens + token;
    out[line * 32 + place] = static_cast<uint16_t>(__float_as_uint(value) >> 16);
    value -= top_digit(value);
  }
}
