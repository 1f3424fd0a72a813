// y = W x [+ S x] [+ before] for some tokens, W packed in any format that `Strips` holds and S a
// few entries of each output: one source for NVIDIA's and AMD's compilers, and the arithmetic of
// the shader for Vulkan.
//
// A thread has an output of its own, so that no sum crosses lanes: subgroups of 32 and of 64 give
// the same bits, and no instruction depends on which they are.  The SLICES rows of a block share
// the inputs, and meet in shared memory, always in the same order.
//
// A *panel* is 32 outputs, one to a lane; inputs run in *blocks* of 32, which share a scale; a
// *unit* is as many blocks as fill whole 16-byte words.  Words stand as [panels, units, words of a
// unit, 32 lanes].  `Strips` in strips.py says which bits are which.
#pragma once
#include "four.cuh"
#include "intrinsics.cuh"

constexpr int LANES = 32;   // outputs of a panel
constexpr int SLICES = 8;   // rows of a block of threads

// Kinds; others are the bits of a code, of a table above TABLE.
constexpr int FLOAT16 = 16, BFLOAT16 = 17, FLOAT32 = 32, TABLE = 64;
enum Mask { ALL, TWO_FOUR, BITMAP };
enum Scale { SCALE_F32, SCALE_F16, SCALE_BF16, SCALE_E8M0, SCALE_E4M3 };

// 2^23 with a number below 2^23 in its lowest bits is 2^23 + that number: no conversion, and the
// zero point is taken off with the 2^23.
constexpr uint32_t MAGIC = 0x4B000000u;

// What a call is about.  blocks: of a row; parts: of a block that have scales of their own; span:
// parts of a scale group; scales, zeros, levels, stream, starts, offsets, columns, values: where a
// section of the tensor begins, in 32-bit words; own: whether each output has levels of its own,
// and no scale; outliers: of an output; wide: whether their columns have 32 bits; outputs: of this
// call, whose first stands at `first` in a row of `before`.
struct Numbers {
  int outputs, tokens, blocks, parts, span, scales, zeros, levels, stream, starts, offsets;
  int scale_type, asymmetric, own, outliers, columns, values, wide, value_type;
  int adds, first, width;
};

// Geometry of a format, as `Strips` has it.
template <int KIND, int MASK>
struct Format {
  static constexpr bool TABLED = KIND > TABLE, FLOATS = KIND >= FLOAT16 && !TABLED;
  static constexpr int BITS = KIND == BFLOAT16 ? 16 : KIND % TABLE;
  static constexpr int CODE = FLOATS ? 0 : BITS;
  static constexpr int BLOCKS = MASK != ALL || BITS == 3 ? 4 : BITS == 2 ? 2 : 1;  // of a unit
  static constexpr int ENTRIES = BLOCKS * 32 * BITS / 128;  // 16-byte words
  static constexpr int SIZE = MASK == BITMAP ? 1 : MASK == TWO_FOUR ? ENTRIES / 2 + 1 : ENTRIES;
  static constexpr int EACH = BITS / (MASK == TWO_FOUR ? 8 : 4);  // words of a block
  static constexpr int VECTORS = MASK == BITMAP || EACH < 1 ? 1 : EACH;
  static constexpr bool SHARES = BLOCKS > 1 && MASK != BITMAP && EACH < 1;  // two blocks a word
  static constexpr int LEVELS = !TABLED ? 0 : BITS == 8 ? 256 : LANES << BITS;  // in shared memory
};

// Floats of shared memory: levels, and when products are summed the sums of the block's rows.
template <int KIND, int MASK, int TOKENS>
constexpr int POOL = SLICES * TOKENS * LANES > Format<KIND, MASK>::LEVELS
                         ? SLICES * TOKENS * LANES : Format<KIND, MASK>::LEVELS;

__device__ __forceinline__ uint32_t word_of(const uint4& words, int index) {
  return index == 0 ? words.x : index == 1 ? words.y : index == 2 ? words.z : words.w;
}

__device__ __forceinline__ float less_zero(uint32_t code, float zero) {
  return float_of(code | MAGIC) - zero;
}

__device__ __forceinline__ float half_of(uint32_t word, int which, bool brain) {
  const uint32_t half = which ? word >> 16 : word & 0xFFFFu;
  return brain ? float_of(half << 16) : half_to_float(half);
}

// A weight's words as it is stored.
struct Weight {
  const uint4* words;
  const uint32_t* entries;  // the same memory
};

// A scale, a level or an outlier.  Those of 8 bits are positive; 2^-127, byte 0 of E8M0, is no
// normal float32, and E4M3 below 8 no normal E4M3.
__device__ __forceinline__ float number_at(const Weight& weight, int start, int64_t at, int type) {
  if (type == SCALE_F32) return float_of(weight.entries[start + at]);
  if (type < SCALE_E8M0) {
    return half_of(weight.entries[start + at / 2], at % 2, type == SCALE_BF16);
  }
  const uint32_t bits = weight.entries[start + at / 4] >> 8 * (at % 4) & 255u;
  if (type == SCALE_E8M0) return float_of(bits ? bits << 23 : 0x00400000u);
  return bits < 8 ? static_cast<float>(bits) / 512.0f : float_of((bits << 20) + 0x3C000000u);
}

// Levels of codes in shared memory: that of code c at `c << shift | from`.  One load a weight, for
// all tables, because no arithmetic makes NF4 or the levels of a row.  16 levels stand in as many
// banks, and of tables of each output one stands in a bank; the 256 of E4M3 share banks.
struct Levels {
  const float* levels;
  int shift, from;
};

// The 32 bits of the stream that begin at entry `at`, whose entries have BITS bits.
template <int BITS>
__device__ __forceinline__ uint32_t stream_at(const Weight& weight, int start, uint32_t at) {
  const uint64_t bit = static_cast<uint64_t>(at) * BITS;
  const uint32_t* from = weight.entries + start + bit / 32;
  const uint32_t by = bit % 32;
  return by == 0 ? from[0] : from[0] >> by | from[1] << (32 - by);
}

// Weights 4 q to 4 q + 3 of a block.  own: its words; more: its places, its codes' upper bits, or
// which it keeps; kept: the first of its entries in the stream
template <int KIND, int MASK>
__device__ __forceinline__ Four four_of(const Weight& weight, int stream, const Levels& table,
                                        const uint4 (&own)[Format<KIND, MASK>::VECTORS],
                                        uint32_t more, int q, uint32_t point, float zero,
                                        uint32_t kept) {
  constexpr int CODE = Format<KIND, MASK>::CODE;
  const auto at = [&](int word) { return word_of(own[word / 4], word % 4); };
  const auto number = [&](uint32_t code) {
    if constexpr (Format<KIND, MASK>::TABLED) return table.levels[code << table.shift | table.from];
    return less_zero(code, zero);
  };
  float made[4] = {0, 0, 0, 0};
  if constexpr (MASK == BITMAP) {
    const uint32_t here = more >> 4 * q & 15u;
    uint32_t next = kept + count_bits(more & ((1u << 4 * q) - 1u));
    uint32_t coded = 0;
    if constexpr (CODE > 0) coded = stream_at<CODE>(weight, stream, next);
    uint32_t by = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!(here >> i & 1u)) continue;
      if constexpr (KIND == FLOAT32) {
        made[i] = float_of(weight.entries[stream + next]);
      } else if constexpr (Format<KIND, MASK>::FLOATS) {
        made[i] = half_of(weight.entries[stream + next / 2], next % 2, KIND == BFLOAT16);
      } else {
        made[i] = number((coded >> by & ((1u << CODE) - 1u)) ^ point);
        by += CODE;
      }
      ++next;
    }
  } else if constexpr (MASK == TWO_FOUR) {
    float pair[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (CODE == 4) {
        pair[i] = number((at(q / 4) >> (8 * (q % 4) + 4 * i) & 15u) ^ point);
      } else if constexpr (CODE == 8) {
        pair[i] = number((at(q / 2) >> (16 * (q % 2) + 8 * i) & 255u) ^ point);
      } else if constexpr (KIND == FLOAT32) {
        pair[i] = float_of(at(2 * q + i));
      } else {
        pair[i] = half_of(at(q), i, KIND == BFLOAT16);
      }
    }
    const uint32_t low = more >> 4 * q & 3u, high = more >> (4 * q + 2) & 3u;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) made[i] = low == i ? pair[0] : high == i ? pair[1] : 0.0f;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (CODE == 2 || CODE == 3) {
        uint32_t code = at(q / 4) >> (8 * (q % 4) + 2 * i) & 3u;
        if constexpr (CODE == 3) code |= (more >> (4 * q + i) & 1u) << 2;
        made[i] = number(code);
      } else if constexpr (CODE == 4) {
        made[i] = number(at(q / 2) >> (16 * (q % 2) + 4 * i) & 15u);
      } else if constexpr (CODE == 8) {
        made[i] = number(at(q) >> 8 * i & 255u);
      } else if constexpr (KIND == FLOAT32) {
        made[i] = float_of(at(4 * q + i));
      } else {
        made[i] = half_of(at(2 * q + i / 2), i % 2, KIND == BFLOAT16);
      }
    }
  }
  return {made[0], made[1], made[2], made[3]};
}

// sums += W x of one output and TOKENS tokens, over every SLICES-th unit.
template <int KIND, int MASK, int TOKENS>
__device__ __forceinline__ void add_product(float (&sums)[TOKENS], const Four* x,
                                            const Weight& weight, const Levels& table,
                                            const Numbers& numbers, int panel, int lane, int slice,
                                            int token) {
  using Of = Format<KIND, MASK>;
  const int units = (numbers.blocks + Of::BLOCKS - 1) / Of::BLOCKS;
  const int scales = (numbers.blocks * numbers.parts + numbers.span - 1) / numbers.span;
  for (int unit = slice; unit < units; unit += SLICES) {
    const int64_t number = static_cast<int64_t>(panel) * units + unit;
    const uint4* words = weight.words + number * Of::SIZE * LANES + lane;
    uint4 last = {0, 0, 0, 0};
    uint32_t kept = 0;
    if constexpr (MASK != ALL || Of::CODE == 3) last = words[(Of::SIZE - 1) * LANES];
    if constexpr (MASK == BITMAP) {
      const int64_t at = number * LANES + lane;
      kept = weight.entries[numbers.offsets + at / 2] >> 16 * (at % 2) & 0xFFFFu;
      kept += weight.entries[numbers.starts + number];
    }
    const int left = numbers.blocks - unit * Of::BLOCKS;
    for (int s = 0; s < (left < Of::BLOCKS ? left : Of::BLOCKS); ++s) {
      const int block = unit * Of::BLOCKS + s;
      uint4 own[Of::VECTORS] = {};
      if constexpr (Of::SHARES) {
        const uint4 both = words[s / 2 * LANES];
        own[0] = s % 2 ? uint4{both.z, both.w, 0, 0} : both;
      } else if constexpr (MASK != BITMAP) {
#pragma unroll
        for (int i = 0; i < Of::VECTORS; ++i) own[i] = words[(s * Of::VECTORS + i) * LANES];
      }
      float scale = 1, zero = 0, part[TOKENS] = {};
      uint32_t point = 0;
      const auto begin = [&](int half) {
        if (Of::FLOATS || numbers.own) return;
        const int group = (block * numbers.parts + half) / numbers.span;
        const int64_t at = (static_cast<int64_t>(panel) * scales + group) * LANES + lane;
        scale = number_at(weight, numbers.scales, at, numbers.scale_type);
        if constexpr (!Of::TABLED) {
          point = 1u << (Of::BITS - 1);
          if (numbers.asymmetric) {
            point = weight.entries[numbers.zeros + at / 4] >> 8 * (at % 4) & 255u;
          }
          zero = float_of(MAGIC | point);
        }
      };
      const auto end = [&] {
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
          sums[t] += part[t] * scale;
          part[t] = 0;
        }
      };
      const uint32_t more = word_of(last, s);
      begin(0);
#pragma unroll MASK == BITMAP && TOKENS > 1 ? 1 : 8
      for (int q = 0; q < 8; ++q) {
        if (!Of::FLOATS && q == 4 && numbers.parts > 1) {
          end();
          begin(1);
        }
        const Four four =
            four_of<KIND, MASK>(weight, numbers.stream, table, own, more, q, point, zero, kept);
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
          const int row = token + t < numbers.tokens ? token + t : numbers.tokens - 1;
          const Four given = x[(static_cast<int64_t>(row) * numbers.blocks + block) * 8 + q];
          part[t] += four.x * given.x + four.y * given.y + four.z * given.z + four.w * given.w;
        }
        if constexpr (TOKENS > 1) in_order();
      }
      end();
      if constexpr (MASK == BITMAP) kept += count_bits(more);
    }
  }
}

// sums += S x of one output and TOKENS tokens, over every SLICES-th outlier.
template <int TOKENS>
__device__ __forceinline__ void add_outliers(float (&sums)[TOKENS], const float* x,
                                             const Weight& weight, const Numbers& numbers,
                                             int panel, int lane, int slice, int token) {
#pragma unroll 1
  for (int entry = slice; entry < numbers.outliers; entry += SLICES) {
    const int64_t at = (static_cast<int64_t>(panel) * numbers.outliers + entry) * LANES + lane;
    const uint32_t word = weight.entries[numbers.columns + (numbers.wide ? at : at / 2)];
    const uint32_t column = numbers.wide ? word : word >> 16 * (at % 2) & 0xFFFFu;
    const float value = number_at(weight, numbers.values, at, numbers.value_type);
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      const int row = token + t < numbers.tokens ? token + t : numbers.tokens - 1;
      sums[t] += value * x[static_cast<int64_t>(row) * numbers.blocks * 32 + column];
    }
  }
}

template <int KIND, int MASK, int TOKENS>
__device__ __forceinline__ void product(float* shared, const Four* x, const Weight& weight,
                                        const float* before, float* y, const Numbers& numbers) {
  using Of = Format<KIND, MASK>;
  const int thread = thread_index(), lane = thread % LANES, slice = thread / LANES;
  const int panel = block_x(), token = block_y() * TOKENS;
  float sums[TOKENS] = {};
  Levels table = {shared, 0, 0};
  if constexpr (Of::TABLED) {
    if (numbers.own) table = {shared, 5, lane};  // a bank a lane
    const int count = (numbers.own ? LANES : 1) << Of::BITS;
    const int type = numbers.own ? numbers.scale_type : SCALE_F32;
    for (int i = thread; i < count; i += LANES * SLICES) {
      const int64_t at = numbers.own ? static_cast<int64_t>(panel) * count + i : i;
      shared[i] = number_at(weight, numbers.levels, at, type);
    }
    await_block();
  }
  const auto inputs = reinterpret_cast<const float*>(x);
  add_outliers<TOKENS>(sums, inputs, weight, numbers, panel, lane, slice, token);
  add_product<KIND, MASK, TOKENS>(sums, x, weight, table, numbers, panel, lane, slice, token);
  if constexpr (Of::TABLED) await_block();  // nobody reads levels any more
#pragma unroll
  for (int t = 0; t < TOKENS; ++t) shared[(slice * TOKENS + t) * LANES + lane] = sums[t];
  await_block();
  const int row = panel * LANES + lane;
  if (slice > 0 || row >= numbers.outputs) return;
#pragma unroll
  for (int t = 0; t < TOKENS; ++t) {
    if (token + t >= numbers.tokens) continue;
    const int64_t here = token + t;
    float sum = numbers.adds ? before[here * numbers.width + numbers.first + row] : 0.0f;
    for (int s = 0; s < SLICES; ++s) sum += shared[(s * TOKENS + t) * LANES + lane];
    y[here * numbers.outputs + row] = sum;
  }
}

// An entry.  Where nothing is added, `x` stands for `before`.
#define ENTRY(kind, mask, count)                                                                  \
  extern "C" __global__ THREADS(LANES * SLICES) void lanes_##kind##_##mask##_##count(             \
      const Four* __restrict__ x, const uint4* __restrict__ words,                                \
      const float* __restrict__ before, float* __restrict__ y, int outputs, int tokens,           \
      int blocks, int parts, int span, int scales, int zeros, int levels, int stream, int starts, \
      int offsets, int scale_type, int asymmetric, int own, int outliers, int columns,            \
      int values, int wide, int value_type, int adds, int first, int width) {                     \
    __shared__ float shared[POOL<kind, mask, count>];                                             \
    product<kind, mask, count>(                                                                   \
        shared, x, Weight{words, reinterpret_cast<const uint32_t*>(words)}, before, y,            \
        Numbers{outputs, tokens, blocks, parts, span, scales, zeros, levels, stream, starts,      \
                offsets, scale_type, asymmetric, own, outliers, columns, values, wide,            \
                value_type, adds, first, width});                                                 \
  }
#define ENTRIES(kind, mask) ENTRY(kind, mask, 1) ENTRY(kind, mask, 8)

#define FOR_EACH_FORMAT(DO)                                                                       \
  DO(2, 0) DO(3, 0) DO(4, 0) DO(8, 0) DO(16, 0) DO(17, 0) DO(32, 0)                               \
  DO(66, 0) DO(67, 0) DO(68, 0) DO(72, 0)                                                         \
  DO(4, 1) DO(8, 1) DO(16, 1) DO(17, 1) DO(32, 1) DO(68, 1) DO(72, 1)                             \
  DO(4, 2) DO(8, 2) DO(16, 2) DO(17, 2) DO(32, 2) DO(68, 2) DO(72, 2)
