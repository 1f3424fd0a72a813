// y = W x [+ B t], or t = A x, for some tokens: the body of every entry (`ENTRY` at the end).
//
// WIDE: activations are float32, as three bfloat16 digits each; else the first term's are float16.
// TILES: tokens of a block, by eight.  t is float32 always, and is written as digits, in the order
// in which B's product reads it.  The sums of the warps that share a panel meet in shared memory.
#pragma once
#include "terms.cuh"

// rows: outputs; digits: whether `out` is t, uint16 [panels, digits, tokens, 32], and not y,
// float32 [tokens, rows]
struct Shape {
  int rows, tokens, digits;
};

template <bool WIDE, int TILES>
__device__ __forceinline__ void product(uint4* shared, const Term& first, const Term& second,
                                        const Shape& shape, void* out) {
  using Here = Block<TILES>;
  constexpr int PITCH = PANEL + 4;  // of a token's sums: a warp's stores meet 32 different banks
  const int rows = shape.rows, tokens = shape.tokens;
  const int warp = threadIdx.x / 32;
  const int column = blockIdx.y * TILES * 8;
  const int panel = blockIdx.x * Here::PANELS + warp / Here::SHARES;
  const Place at{static_cast<int>(threadIdx.x % 32), panel, warp % Here::SHARES, Here::SHARES,
                 column, tokens};
  float sums[2][TILES][4] = {};
  if (panel * PANEL < rows) {
    uint4* ring = shared + warp * Here::RING;
    add_term<WIDE, TILES>(sums, ring, first, at);
    add_term<true, TILES>(sums, ring, second, at);
  }
  await_batches<0>();
  auto* slab = reinterpret_cast<float*>(shared);  // [warp, 8 tokens, 32 outputs]
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
    __syncthreads();
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 16 * tile + i / 2 * 8 + at.lane / 4, token = at.lane % 4 * 2 + i % 2;
        slab[(warp * 8 + token) * PITCH + row] = sums[tile][n][i];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < Here::PANELS * 8 * PANEL; i += Here::WARPS * 32) {
      const int row = i % PANEL, own = i / PANEL % 8, part = i / (8 * PANEL);
      float sum = 0.0f;
#pragma unroll
      for (int share = 0; share < Here::SHARES; ++share) {
        sum += slab[((part * Here::SHARES + share) * 8 + own) * PITCH + row];
      }
      const int here = blockIdx.x * Here::PANELS + part, output = here * PANEL + row;
      const int token = column + 8 * n + own;
      if (token >= tokens || here * PANEL >= rows) continue;
      if (shape.digits) {
        write_digits(static_cast<uint16_t*>(out), sum, here, row, token, tokens);
      } else if (output < rows) {
        static_cast<float*>(out)[static_cast<int64_t>(token) * rows + output] = sum;
      }
    }
  }
}

#define ENTRY(NAME, WIDE, TILES)                                                                  \
  extern "C" __global__ void __launch_bounds__(Block<TILES>::WARPS * 32, Block<TILES>::RESIDENT)  \
      NAME(                                                                                       \
      const uint4* __restrict__ x0, const uint4* __restrict__ weight0,                            \
      const uint4* __restrict__ places0, const void* __restrict__ scale0,                         \
      const uint32_t* __restrict__ zero0, const uint4* __restrict__ x1,                           \
      const uint4* __restrict__ weight1, const uint4* __restrict__ places1,                       \
      const void* __restrict__ scale1, const uint32_t* __restrict__ zero1,                        \
      void* __restrict__ out, int rows, int tokens, int digits, int kind0, int blocks0,           \
      int span0, int scale_type0, int asymmetric0, int kind1, int blocks1, int span1,             \
      int scale_type1, int asymmetric1) {                                                         \
    __shared__ uint4 shared[Block<TILES>::WARPS * Block<TILES>::RING];                            \
    const uint32_t* minus0 = asymmetric0 ? zero0 : nullptr;                                       \
    const uint32_t* minus1 = asymmetric1 ? zero1 : nullptr;                                       \
    product<WIDE, TILES>(                                                                         \
        shared, Term{x0, weight0, places0, scale0, minus0, kind0, blocks0, span0, scale_type0},   \
        Term{x1, weight1, places1, scale1, minus1, kind1, blocks1, span1, scale_type1},           \
        Shape{rows, tokens, digits}, out);                                                        \
  }
