// y = W x [+ B t] for some tokens, W and B packed in any format that `Strips` holds.
//
// A lane has two or four outputs of its own, so that no sum crosses lanes: any size of subgroups
// gives the same bits.  All lanes of a row of the workgroup read the same x, and each reading serves
// all outputs of a lane: what is read comes back to registers at some 128 bytes a clock, whether it
// is the same for all lanes or not, and at one output a lane that takes longer than the arithmetic.
// The workgroup's rows (SLICES of them) share the inputs, and meet in shared memory.
#version 450
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require

// Of a term: how many bits an entry has, or what float it is; its mask; the type of its scales;
// whether it has zero points; blocks of a unit; words of a unit; words of a block, at least one.
layout(constant_id = 0) const uint LANES = 8u;
layout(constant_id = 1) const uint SLICES = 1u;
layout(constant_id = 2) const uint TOKENS = 1u;
layout(constant_id = 3) const uint KIND0 = 4u;
layout(constant_id = 4) const uint MASK0 = 0u;
layout(constant_id = 5) const uint SCALE0 = 1u;
layout(constant_id = 6) const uint ZEROS0 = 0u;
layout(constant_id = 7) const uint BLOCKS0 = 1u;
layout(constant_id = 8) const uint SIZE0 = 1u;
layout(constant_id = 9) const uint VECTORS0 = 1u;
layout(constant_id = 10) const uint KIND1 = 0u;
layout(constant_id = 11) const uint MASK1 = 0u;
layout(constant_id = 12) const uint SCALE1 = 1u;
layout(constant_id = 13) const uint ZEROS1 = 0u;
layout(constant_id = 14) const uint BLOCKS1 = 1u;
layout(constant_id = 15) const uint SIZE1 = 1u;
layout(constant_id = 16) const uint VECTORS1 = 1u;
const uint OUTPUTS = 32u / LANES;  // of a lane: those LANES apart
const uint COUNT = OUTPUTS * TOKENS;  // sums of a lane
layout(local_size_x_id = 0, local_size_y_id = 1) in;

layout(set = 0, binding = 0, std430) readonly buffer X { vec4 x[]; };
layout(set = 0, binding = 1, std430) readonly buffer W { uvec4 w[]; };
layout(set = 0, binding = 1, std430) readonly buffer V { uint v[]; };
layout(set = 0, binding = 2, std430) readonly buffer L { vec4 low[]; };
layout(set = 0, binding = 3, std430) readonly buffer B { uvec4 b[]; };
layout(set = 0, binding = 3, std430) readonly buffer C { uint c[]; };
layout(set = 0, binding = 4, std430) writeonly buffer Y { float y[]; };

// blocks: of a row; span: blocks of a scale group; the others: where a section of the tensor begins,
// in 32-bit words
struct Numbers { uint blocks, span, scales, zeros, stream, starts, offsets; };
// outputs: of this call; first: its first panel in B; stride: from a token's outputs to the
// next one's
layout(push_constant, std430) uniform P {
  uint outputs, stride, tokens, first;
  Numbers at0, at1;
} numbers;

shared float partial[SLICES * TOKENS * 32u];

#include "weights.glsl"

#define STREAM stream0
#define STREAMED streamed0
#define FOUR four0
#define TERM term0
#define WORDS w
#define ENTRIES v
#define INPUT x
#define KIND KIND0
#define MASK MASK0
#define SCALE SCALE0
#define ZEROS ZEROS0
#define BLOCKS BLOCKS0
#define SIZE SIZE0
#define VECTORS VECTORS0
#define AT numbers.at0
#include "term.glsl"

#define STREAM stream1
#define STREAMED streamed1
#define FOUR four1
#define TERM term1
#define WORDS b
#define ENTRIES c
#define INPUT low
#define KIND KIND1
#define MASK MASK1
#define SCALE SCALE1
#define ZEROS ZEROS1
#define BLOCKS BLOCKS1
#define SIZE SIZE1
#define VECTORS VECTORS1
#define AT numbers.at1
#include "term.glsl"

void store(uint panel, uint output_, uint token, float sum) {
  const uint row = panel * 32u + output_;
  if (row < numbers.outputs && token < numbers.tokens) y[token * numbers.stride + row] = sum;
}

void main() {
  const uint panel = gl_WorkGroupID.x, token = gl_WorkGroupID.y * TOKENS;
  const uint lane = gl_LocalInvocationID.x;
  const uint slice = SLICES == 1u ? 0u : gl_LocalInvocationID.y;
  float sums[COUNT];
  [[unroll]] for (uint i = 0u; i < COUNT; ++i) sums[i] = 0.0;
  term0(sums, panel, slice, token);
  if (KIND1 != NOTHING) term1(sums, numbers.first + panel, slice, token);
  if (SLICES == 1u) {
    [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) {
      [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
        store(panel, r * LANES + lane, token + t, sums[r * TOKENS + t]);
      }
    }
    return;
  }
  [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) {
    [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
      partial[(slice * TOKENS + t) * 32u + r * LANES + lane] = sums[r * TOKENS + t];
    }
  }
  barrier();
  for (uint i = slice * LANES + lane; i < TOKENS * 32u; i += SLICES * LANES) {
    float sum = 0.0;
    for (uint s = 0u; s < SLICES; ++s) sum += partial[s * TOKENS * 32u + i];
    store(panel, i % 32u, token + i / 32u, sum);
  }
}
