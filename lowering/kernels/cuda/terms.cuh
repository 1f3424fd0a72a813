// What a product adds up: packed weights times activations, for one panel of outputs.
//
// A warp owns 32 outputs, two tiles of 16, and every so many-th unit of their inputs.  The weight
// is the A operand of the tensor cores' product, so its 16 rows are outputs and few tokens waste
// little.  Activations come in the order of the B operand, ready to be loaded 16 bytes a thread
// (`activations` in linear.py).  A code less its zero point is a whole number, exact in float16 and
// bfloat16; scales are applied to sums over 32 inputs, in float32.
//
// Bytes in flight.  A GPU needs bandwidth times latency of them: 2.2 MB at 3.35 TB/s and 650 ns, 17
// KB on each of 132 multiprocessors.  Warps keep 24 KB of weights or more on the way (`Block`), in
// shared memory and not in registers; every thread copies 16 bytes at a time and reads back only
// what it copied, so that nothing is waited for but its own copies.
#pragma once
#include "digits.cuh"

constexpr int PANEL = 32;  // outputs of a warp

// A block of threads.  For few tokens sixteen warps share the inputs of one panel: 4096 outputs are
// 128 blocks, one for each multiprocessor, and it takes that many warps to keep it busy.  For more
// tokens a warp needs the registers of two, and half of the warps take another panel, so that
// activations are read from the L1 cache every other time.
template <int TILES>
struct Block {
  static constexpr int WARPS = TILES == 1 ? 16 : 8;
  static constexpr int PANELS = TILES == 1 ? 1 : 2;
  static constexpr int SHARES = WARPS / PANELS;         // warps that share the inputs of a panel
  static constexpr int RING = TILES == 1 ? 192 : 288;   // 16-byte words of a warp, some units
  static constexpr int RESIDENT = TILES == 2 ? 2 : 1;   // blocks that registers must leave room for
};

enum Kind { NONE, CODES, TWO_FOUR, FLOAT16, BFLOAT16 };
enum Scale { SCALE_F32, SCALE_F16, SCALE_BF16 };

// One weight and its input.  Shapes as `Tiles` has them; x: [blocks, digits, tokens, 4, 16 bytes].
struct Term {
  const uint4* x;
  const uint4* weight;
  const uint4* places;
  const void* scale;
  const uint32_t* zero_point;  // null: symmetric, codes are offset by 8
  int kind;
  int blocks;  // of inputs
  int span;    // blocks that share a scale
  int scale_type;
};

// Where this thread stands in its warp, its warp in the sum over inputs, and its tokens.
struct Place {
  int lane, panel, first, stride, column, tokens;
};

__device__ __forceinline__ uint32_t word_of(const uint4& words, int index) {
  return index == 0 ? words.x : index == 1 ? words.y : index == 2 ? words.z : words.w;
}

// Activations of one block of inputs: a float16 each, or a float32 as three bfloat16 digits.
template <bool WIDE, int TILES>
struct Activations {
  static constexpr int PARTS = WIDE ? DIGITS : 1;
  uint4 part[TILES][PARTS];

  __device__ __forceinline__ void load(const Term& term, const Place& at, int block) {
    if (block >= term.blocks) return;  // past the end: what is there is not used
    const int own = at.column + at.lane / 4;
    const uint4* line = term.x + (block * PARTS * at.tokens + own) * 4 + at.lane % 4;
#pragma unroll
    for (int p = 0; p < PARTS; ++p) {
#pragma unroll
      for (int n = 0; n < TILES; ++n) {
        const bool inside = own + 8 * n < at.tokens;
        part[n][p] = inside ? __ldg(line + 32 * n) : uint4{0, 0, 0, 0};
      }
      line += at.tokens * 4;
    }
  }
};

// Scales of this thread's four outputs, g, g + 8, g + 16 and g + 24, in one group of inputs, and
// their zero points, a byte each.  As they are stored: nothing waits for them before `decode`.
struct Grid {
  uint4 scales;
  uint32_t zeros;

  __device__ __forceinline__ void load(const Term& term, const Place& at, int group) {
    const int groups = term.blocks / term.span;
    if (group >= groups) return;
    const int row = (at.panel * groups + group) * 8 + at.lane / 4;
    if (term.scale_type == SCALE_F32) {
      scales = __ldg(static_cast<const uint4*>(term.scale) + row);
    } else {
      const uint2 halves = __ldg(static_cast<const uint2*>(term.scale) + row);
      scales.x = halves.x, scales.y = halves.y;
    }
    zeros = term.zero_point ? __ldg(term.zero_point + row) : 0x08080808u;
  }

  // Scales as float32, and what `unpacked` adds for the zero points.
  template <Type TYPE>
  __device__ __forceinline__ void decode(float (&scale)[4], uint32_t (&minus)[4],
                                         int scale_type) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t half = (i < 2 ? scales.x : scales.y) >> 16 * (i % 2) & 0xFFFFu;
      scale[i] = scale_type == SCALE_F32   ? __uint_as_float(word_of(scales, i))
                 : scale_type == SCALE_F16 ? half_to_float(half)
                                           : __uint_as_float(half << 16);
      const uint32_t zero = (zeros >> 8 * i) & 0xFFu;
      if constexpr (TYPE == Type::BF16) {
        minus[i] = 0xC300C300u + zero * 0x00010001u;  // -(128 + zero)
      } else if (i % 2) {
        minus[i] = 0xD400D400u + zero * 0x00100010u;  // -(64 + zero)
      } else {
        minus[i] = 0xE400E400u + zero * 0x00010001u;  // -(1024 + zero)
      }
    }
  }
};

// Eight codes of a word, less their zero points, as the A operand: two of each of four registers,
// which are outputs g and g + 8 at the lower inputs, then at the upper.
//
// A code in the lowest bits of 1024 makes it 1024 + code, one that stands four bits higher 1024 +
// 16 code, a sixteenth of which is 64 + code.  A bfloat16 has room for one code: 128 + code.
template <Type TYPE>
__device__ __forceinline__ void unpacked(uint32_t (&a)[4], uint32_t word, uint32_t low,
                                         uint32_t high) {
  if constexpr (TYPE == Type::F16) {
    constexpr uint32_t ONE = 0x3C003C00u, SIXTEENTH = 0x2C002C00u, OFFSET = 0x64006400u;
    const uint32_t upper = word >> 8;
    a[0] = multiply_add<TYPE>(and_or(word, 0x000F000Fu, OFFSET), ONE, low);
    a[1] = multiply_add<TYPE>(and_or(word, 0x00F000F0u, OFFSET), SIXTEENTH, high);
    a[2] = multiply_add<TYPE>(and_or(upper, 0x000F000Fu, OFFSET), ONE, low);
    a[3] = multiply_add<TYPE>(and_or(upper, 0x00F000F0u, OFFSET), SIXTEENTH, high);
  } else {
    constexpr uint32_t ONE = 0x3F803F80u, OFFSET = 0x43004300u;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t code = and_or(word >> 4 * i, 0x000F000Fu, OFFSET);
      a[i] = multiply_add<TYPE>(code, ONE, i % 2 ? high : low);
    }
  }
}

// Copy this thread's part of 1 KB of a weight into the ring.
__device__ __forceinline__ void fetch_words(uint4* ring, const uint4* weight, const Place& at,
                                            int64_t unit) {
  fetch(ring + at.lane, weight + unit * 64 + at.lane);
  fetch(ring + 32 + at.lane, weight + unit * 64 + 32 + at.lane);
}

// The same of a unit of codes, and of the places beside them.
template <bool SPARSE>
__device__ __forceinline__ void fetch_unit(uint4* ring, const Term& term, const Place& at, int unit,
                                           int units) {
  if (unit < units) {
    const int64_t here = static_cast<int64_t>(at.panel) * units + unit;
    fetch_words(ring, term.weight, at, here);
    if constexpr (SPARSE) fetch(ring + 64 + at.lane, term.places + here * 32 + at.lane);
  }
  end_batch();
}

// sums += W x for 4-bit codes, of every entry or of the two that 2:4 keeps.
template <bool WIDE, bool SPARSE, int TILES>
__device__ void add_codes(float (&sums)[2][TILES][4], uint4* ring, const Term& term,
                          const Place& at) {
  constexpr Type TYPE = WIDE ? Type::BF16 : Type::F16;
  constexpr int BLOCKS = SPARSE ? 4 : 2;  // of inputs in a unit
  constexpr int WORDS = SPARSE ? 96 : 64;  // of a unit
  constexpr int DEPTH = Block<TILES>::RING / WORDS;
  const int units = (term.blocks + BLOCKS - 1) / BLOCKS;
  for (int i = 0; i < DEPTH - 1; ++i) {
    fetch_unit<SPARSE>(ring + i * WORDS, term, at, at.first + i * at.stride, units);
  }
  Activations<WIDE, TILES> x, next_x;
  Grid grid, next_grid;
  float scale[4];
  uint32_t minus[4];
  int next_group = at.first * BLOCKS / term.span;
  next_x.load(term, at, at.first * BLOCKS);
  next_grid.load(term, at, next_group);
  int slot = 0;
  for (int unit = at.first; unit < units; unit += at.stride) {
    const int free = slot ? slot - 1 : DEPTH - 1;
    fetch_unit<SPARSE>(ring + free * WORDS, term, at, unit + (DEPTH - 1) * at.stride, units);
    int left = (next_group + 1) * term.span - unit * BLOCKS;  // blocks of the group, from here on
    grid = next_grid;
    grid.decode<TYPE>(scale, minus, term.scale_type);
    next_group = (unit + at.stride) * BLOCKS / term.span;
    next_grid.load(term, at, next_group);
    await_batches<DEPTH - 1>();
    const uint4* mine = ring + slot * WORDS + at.lane;
    const uint4 codes[2] = {mine[0], mine[32]};
    const uint4 places = SPARSE ? mine[64 % WORDS] : uint4{};
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b) {
      const int block = unit * BLOCKS + b;
      x = next_x;
      next_x.load(term, at, b + 1 < BLOCKS ? block + 1 : (unit + at.stride) * BLOCKS);
      if (block >= term.blocks) continue;
      if (b && --left == 0) {  // a group ends within this unit
        grid.load(term, at, block / term.span);
        grid.decode<TYPE>(scale, minus, term.scale_type);
        left = term.span;
      }
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        float found[TILES][4] = {};
        uint32_t a[4];
#pragma unroll
        for (int step = 0; step < (SPARSE ? 1 : 2); ++step) {
          const uint32_t word = word_of(codes[tile], SPARSE ? b : 2 * b + step);
          unpacked<TYPE>(a, word, minus[2 * tile], minus[2 * tile + 1]);
#pragma unroll
          for (int n = 0; n < TILES; ++n) {
#pragma unroll
            for (int p = Activations<WIDE, TILES>::PARTS - 1; p >= 0; --p) {  // small ones first
              const uint4& part = x.part[n][p];
              if constexpr (SPARSE) {
                if (b % 2) {
                  mma_sparse<TYPE, 1>(found[n], a, part, word_of(places, 2 * tile + b / 2));
                } else {
                  mma_sparse<TYPE, 0>(found[n], a, part, word_of(places, 2 * tile + b / 2));
                }
              } else {
                mma<TYPE>(found[n], a, word_of(part, 2 * step), word_of(part, 2 * step + 1));
              }
            }
          }
        }
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            sums[tile][n][i] += scale[2 * tile + i / 2] * found[n][i];
          }
        }
      }
    }
    slot = slot + 1 == DEPTH ? 0 : slot + 1;
  }
}

// Two halves of a type as the bfloat16 above them and what is left, exactly: float16 has 11 bits.
__device__ __forceinline__ void split_pair(uint32_t& high, uint32_t& rest, uint32_t pair) {
  const float left = half_to_float(pair & 0xFFFFu), right = half_to_float(pair >> 16);
  const float low = left - top_digit(left), up = right - top_digit(right);
  high = (__float_as_uint(left) >> 16) | (__float_as_uint(right) & 0xFFFF0000u);
  rest = (__float_as_uint(low) >> 16) | (__float_as_uint(up) & 0xFFFF0000u);
}

// sums += W x for half-precision values; a block of inputs is two steps of 1 KB.
template <bool WIDE, int TILES>
__device__ void add_values(float (&sums)[2][TILES][4], uint4* ring, const Term& term,
                           const Place& at) {
  constexpr Type TYPE = WIDE ? Type::BF16 : Type::F16;
  constexpr int STEPS = 2, DEPTH = Block<TILES>::RING / 64;  // steps in the ring
  static_assert(DEPTH > STEPS, "the steps of the next block are fetched beside those of this one");
  const bool split = WIDE && term.kind == FLOAT16;
  const int64_t start = static_cast<int64_t>(at.panel) * term.blocks;
#pragma unroll
  for (int step = 0; step < STEPS; ++step) {
    if (at.first < term.blocks) {
      fetch_words(ring + step * 64, term.weight, at, (start + at.first) * STEPS + step);
    }
    end_batch();
  }
  Activations<WIDE, TILES> x, next_x;
  next_x.load(term, at, at.first);
  int slot = 0;
  for (int block = at.first; block < term.blocks; block += at.stride) {
    const int next = block + at.stride;
    x = next_x;
    next_x.load(term, at, next);
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      const int free = slot + STEPS < DEPTH ? slot + STEPS : slot + STEPS - DEPTH;
      if (next < term.blocks) {
        fetch_words(ring + free * 64, term.weight, at, (start + next) * STEPS + step);
      }
      end_batch();
      await_batches<STEPS>();
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        const uint4 words = ring[slot * 64 + tile * 32 + at.lane];
        float found[TILES][4] = {};
        uint32_t a[4] = {words.x, words.y, words.z, words.w}, rest[4] = {};
        if (split) {
#pragma unroll
          for (int i = 0; i < 4; ++i) split_pair(a[i], rest[i], word_of(words, i));
        }
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
#pragma unroll
          for (int p = Activations<WIDE, TILES>::PARTS - 1; p >= 0; --p) {
            const uint4& part = x.part[n][p];
            const uint32_t b0 = word_of(part, 2 * step), b1 = word_of(part, 2 * step + 1);
            if (split) mma<TYPE>(found[n], rest, b0, b1);
            mma<TYPE>(found[n], a, b0, b1);
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[tile][n][i] += found[n][i];
        }
      }
      slot = slot + 1 == DEPTH ? 0 : slot + 1;
    }
  }
}

// sums += W x, whatever W is.  All threads of a warp take the same way.
template <bool WIDE, int TILES>
__device__ __forceinline__ void add_term(float (&sums)[2][TILES][4], uint4* ring, const Term& term,
                                         const Place& at) {
  if (term.kind == CODES) {
    add_codes<WIDE, false, TILES>(sums, ring, term, at);
  } else if (term.kind == TWO_FOUR) {
    add_codes<WIDE, true, TILES>(sums, ring, term, at);
  } else if (term.kind != NONE) {
    add_values<WIDE, TILES>(sums, ring, term, at);
  }
}
