// y = W x [+ S x] [+ B t] for some tokens, W and B packed in any format that `Strips` holds, S a
// few entries of each output.  What other numbers are added to it, or its SiLU is multiplied with, is
// the same dispatch's affair.
//
// A lane has two or four outputs of its own, so that no sum crosses lanes: any size of subgroups
// gives the same bits.  All lanes of a row of the workgroup read the same x, and each reading serves
// all outputs of a lane: what is read comes back to registers at some 128 bytes a clock, whether it
// is the same for all lanes or not, and at one output a lane that takes longer than the arithmetic.
// The workgroup's rows (SLICES of them) share the inputs, and meet in shared memory.  With TILED
// there is another way, for more than eight tokens: tiles.glsl.
//
// With NARROW the workgroup is one subgroup of eight lanes, and the device a processor: a load takes
// each lane its turn there, so a lane reads one word of a block's inputs, and the others ask it.
#version 450
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_ballot : require
#ifdef DOTS
#extension GL_EXT_spirv_intrinsics : require
#endif

// Of a term: how many bits an entry has, or what float it is; its mask; the type of its scales, or
// of each output's levels; what codes are; blocks of a unit; words of a unit; words of a block, at
// least one; parts of a block that have scales of their own.  Of outliers: the bits of a column, 0
// if there are none; the type of their values, as of scales.
layout(constant_id = 0) const uint LANES = 8u;
layout(constant_id = 1) const uint SLICES = 1u;
layout(constant_id = 2) const uint TOKENS = 1u;
layout(constant_id = 3) const uint NARROW = 0u;
layout(constant_id = 4) const uint KIND0 = 4u;
layout(constant_id = 5) const uint MASK0 = 0u;
layout(constant_id = 6) const uint SCALE0 = 1u;
layout(constant_id = 7) const uint CODES0 = 0u;
layout(constant_id = 8) const uint BLOCKS0 = 1u;
layout(constant_id = 9) const uint SIZE0 = 1u;
layout(constant_id = 10) const uint VECTORS0 = 1u;
layout(constant_id = 11) const uint PARTS0 = 1u;
layout(constant_id = 12) const uint KIND1 = 0u;
layout(constant_id = 13) const uint MASK1 = 0u;
layout(constant_id = 14) const uint SCALE1 = 1u;
layout(constant_id = 15) const uint CODES1 = 0u;
layout(constant_id = 16) const uint BLOCKS1 = 1u;
layout(constant_id = 17) const uint SIZE1 = 1u;
layout(constant_id = 18) const uint VECTORS1 = 1u;
layout(constant_id = 19) const uint PARTS1 = 1u;
layout(constant_id = 20) const uint COLUMN = 0u;
layout(constant_id = 21) const uint VALUE = 0u;
layout(constant_id = 22) const uint AFTER = 0u;  // what is done to a product
const uint OUTPUTS = 32u / LANES;  // of a lane: those LANES apart
const uint COUNT = OUTPUTS * TOKENS;  // sums of a lane
layout(local_size_x_id = 0, local_size_y_id = 1) in;

layout(set = 0, binding = 0, std430) readonly buffer X { vec4 x[]; };
layout(set = 0, binding = 1, std430) readonly buffer W { uvec4 w[]; };
layout(set = 0, binding = 1, std430) readonly buffer V { uint v[]; };
layout(set = 0, binding = 2, std430) readonly buffer L { vec4 low[]; };
layout(set = 0, binding = 3, std430) readonly buffer B { uvec4 b[]; };
layout(set = 0, binding = 3, std430) readonly buffer C { uint c[]; };
layout(set = 0, binding = 4, std430) readonly buffer E { float others[]; };
layout(set = 0, binding = 5, std430) writeonly buffer Y { float y[]; };

// blocks: of a row; span: parts of blocks of a scale group; the others: where a section of the
// tensor begins, in 32-bit words
struct Numbers { uint blocks, span, scales, zeros, stream, starts, offsets; };
// outputs: of this call; of_all: of the linear; first: its first panel in B; of the first term: where
// its levels begin, how many outliers an output has, and where their columns and values begin
layout(push_constant, std430) uniform P {
  uint outputs, of_all, tokens, first;
  Numbers at0, at1;
  uint levels, room, columns, values;
} numbers;

#include "exponential.glsl"
#include "weights.glsl"

const uint ADDED = 1u, GATED = 2u;

// What another lane has; which one must be known when the shader is compiled.
#define OF_LANE(type)                                \
  type of_lane(type mine, uint lane) {               \
    switch (lane) {                                  \
      case 0u: return subgroupBroadcast(mine, 0u);   \
      case 1u: return subgroupBroadcast(mine, 1u);   \
      case 2u: return subgroupBroadcast(mine, 2u);   \
      case 3u: return subgroupBroadcast(mine, 3u);   \
      case 4u: return subgroupBroadcast(mine, 4u);   \
      case 5u: return subgroupBroadcast(mine, 5u);   \
      case 6u: return subgroupBroadcast(mine, 6u);   \
      default: return subgroupBroadcast(mine, 7u);   \
    }                                                \
  }
OF_LANE(vec4)
OF_LANE(uint)

// Of tables only a first term has: no factor of an adapter is stored so.
const uint LEVELS = CODES0 == TABLES ? 32u << KIND0 : CODES0 == TABLE ? 1u << KIND0 : 0u;
const uint SUMS = TOKENS > 8u ? 0u : SLICES * TOKENS * 32u;
// Levels, and when products are summed the sums of the workgroup's rows.
#ifdef TILED
#include "tiles.glsl"
#else
shared float pool[SUMS > LEVELS ? SUMS : LEVELS];
#define POOL(i) pool[i]
#endif
#include "levels.glsl"
#ifdef DOTS
#include "dots.glsl"
#endif

#define STREAM stream0
#define STREAMED streamed0
#define FOUR four0
#define GRID grid0
#define CODE code0
#ifdef DOTS
#define DOTTED 1
#define INPUT bytes_in
#else
#define DOTTED 0
#define INPUT x
#endif
#define KEPT kept0
#define UNPACK unpack0
#define TILE tile0
#define TERM term0
#define WORDS w
#define ENTRIES v
#define KIND KIND0
#define MASK MASK0
#define SCALE SCALE0
#define CODES CODES0
#define BLOCKS BLOCKS0
#define SIZE SIZE0
#define VECTORS VECTORS0
#define PARTS PARTS0
#define AT numbers.at0
#include "term.glsl"

#define STREAM stream1
#define STREAMED streamed1
#define FOUR four1
#define GRID grid1
#define CODE code1
#define DOTTED 0
#define KEPT kept1
#define UNPACK unpack1
#define TILE tile1
#define TERM term1
#define WORDS b
#define ENTRIES c
#define INPUT low
#define KIND KIND1
#define MASK MASK1
#define SCALE SCALE1
#define CODES CODES1
#define BLOCKS BLOCKS1
#define SIZE SIZE1
#define VECTORS VECTORS1
#define PARTS PARTS1
#define AT numbers.at1
#include "term.glsl"

// Fills `pool` with the levels that a panel's outputs need.
void load_levels(uint panel, uint slice) {
  const uint type = CODES0 == TABLES ? SCALE0 : SCALE_F32;
  for (uint i = slice * LANES + gl_LocalInvocationID.x; i < LEVELS; i += SLICES * LANES) {
    const uint at = CODES0 == TABLES ? panel * LEVELS + i : i;
    POOL(i) = scale_of(v[numbers.levels + scale_word(at, type)], at, type);
  }
  barrier();
}

// sums += S x, over every SLICES-th outlier of an output.
void add_outliers(inout float sums[COUNT], uint panel, uint first, uint token) {
  for (uint entry = first; entry < numbers.room; entry += SLICES) {
    [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) {
      const uint at = (panel * numbers.room + entry) * 32u + gl_LocalInvocationID.x + r * LANES;
      const uint word = v[numbers.columns + (COLUMN == 32u ? at : at / 2u)];
      const uint column = COLUMN == 32u ? word : word >> (16u * (at % 2u)) & 0xFFFFu;
      const float value = scale_of(v[numbers.values + scale_word(at, VALUE)], at, VALUE);
      [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
        const uint row = min(token + t, numbers.tokens - 1u);
        sums[r * TOKENS + t] += value * x[row * numbers.at0.blocks * 8u + column / 4u][column % 4u];
      }
    }
  }
}

void store(uint panel, uint output_, uint token, float sum) {
  const uint row = panel * 32u + output_;
  if (row >= numbers.outputs || token >= numbers.tokens) return;
  const uint at = token * numbers.of_all + numbers.first * 32u + row;
  if (AFTER == ADDED) sum += others[at];
  if (AFTER == GATED) sum = sum / (1.0 + exponential(-sum)) * others[at];
  y[token * numbers.outputs + row] = sum;
}

#ifdef TILED
void tile() {
  const uint panel = gl_WorkGroupID.x * (TILE_OUTPUTS / 32u), token = gl_WorkGroupID.y * TOKENS;
  const uint last = (numbers.outputs + 31u) / 32u - 1u;
  float sums[TILE_COUNT];
  [[unroll]] for (uint i = 0u; i < TILE_COUNT; ++i) sums[i] = 0.0;
  if (CODES0 == TABLE) load_levels(panel, gl_LocalInvocationID.y);
  tile0(sums, panel, last, token);
  if (KIND1 != NOTHING) tile1(sums, numbers.first + panel, numbers.first + last, token);
  [[unroll]] for (uint r = 0u; r < ACROSS; ++r) {
    const uint place = r * LANES + gl_LocalInvocationID.x;
    [[unroll]] for (uint t = 0u; t < DOWN; ++t) {
      store(panel, place, token + t * SLICES + gl_LocalInvocationID.y, sums[r * DOWN + t]);
    }
  }
}
#endif

void main() {
#ifdef TILED
  if (TOKENS > 8u) {
    tile();
    return;
  }
#endif
  const uint panel = gl_WorkGroupID.x, token = gl_WorkGroupID.y * TOKENS;
  const uint lane = gl_LocalInvocationID.x;
  const uint slice = SLICES == 1u ? 0u : gl_LocalInvocationID.y;
  float sums[COUNT];
  [[unroll]] for (uint i = 0u; i < COUNT; ++i) sums[i] = 0.0;
  if (CODES0 >= TABLE) load_levels(panel, slice);
  term0(sums, panel, slice, token);
  if (COLUMN != NOTHING) add_outliers(sums, panel, slice, token);
  if (KIND1 != NOTHING) term1(sums, numbers.first + panel, slice, token);
  if (SLICES == 1u) {
    [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) {
      [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
        store(panel, r * LANES + lane, token + t, sums[r * TOKENS + t]);
      }
    }
    return;
  }
  if (CODES0 >= TABLE) barrier();  // nobody reads levels any more
  [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) {
    [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
      POOL((slice * TOKENS + t) * 32u + r * LANES + lane) = sums[r * TOKENS + t];
    }
  }
  barrier();
  for (uint i = slice * LANES + lane; i < TOKENS * 32u; i += SLICES * LANES) {
    float sum = 0.0;
    for (uint s = 0u; s < SLICES; ++s) sum += POOL(s * TOKENS * 32u + i);
    store(panel, i % 32u, token + i / 32u, sum);
  }
}
