// softmax(q K^T) V of some tokens over what the caches hold up to each, a workgroup for a head and
// some queries.  Keys come in blocks; the largest score so far, and sums relative to it, are kept
// from block to block, so memory does not grow with the cache.
#version 450
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require

layout(constant_id = 0) const uint LANES = 8u;
layout(constant_id = 1) const uint SLICES = 1u;
layout(constant_id = 2) const uint QUERIES = 1u;
layout(constant_id = 4) const uint WIDTH = 64u;
const uint OUTPUTS = (WIDTH + LANES - 1u) / LANES;  // of a lane: those LANES apart
const uint KEYS = 64u;  // of a block
layout(local_size_x_id = 0, local_size_y_id = 1) in;

layout(set = 0, binding = 0, std430) readonly buffer Q { float q[]; };
layout(set = 0, binding = 1, std430) readonly buffer C { float cosines[]; };
layout(set = 0, binding = 2, std430) readonly buffer S { float sines[]; };
layout(set = 0, binding = 3, std430) readonly buffer A { uvec2 position[]; };  // of 64 bits each
layout(set = 0, binding = 4, std430) readonly buffer Keys { vec4 keys[]; };
layout(set = 0, binding = 5, std430) readonly buffer Values { float values[]; };
layout(set = 0, binding = 6, std430) writeonly buffer Y { float y[]; };

// shared_by: queries' heads of a head of the caches; places: in the caches; window: positions that a
// token sees, its own included
layout(push_constant, std430) uniform P {
  uint tokens, heads, shared_by, places, window;
  float scaling;
} numbers;

shared float query[QUERIES * WIDTH];
shared float weight[QUERIES * KEYS];

#include "exponential.glsl"
#include "rotary.glsl"

const float LEAST = -3.0e38;

bool seen(uint key, uint place) { return key <= place && place - key < numbers.window; }

void main() {
  const uint lane = gl_LocalInvocationID.x, head = gl_WorkGroupID.x;
  const uint first = gl_WorkGroupID.y * QUERIES, cached = head / numbers.shared_by * numbers.places;
  const uint end = min(QUERIES, numbers.tokens - first);  // queries that there are
  for (uint i = lane; i < QUERIES * WIDTH; i += LANES) {
    const uint token = min(first + i / WIDTH, numbers.tokens - 1u), d = i % WIDTH;
    const uint far = d < WIDTH / 2u ? d + WIDTH / 2u : d - WIDTH / 2u, at = token * WIDTH + d;
    const uint from = (token * numbers.heads + head) * WIDTH;
    const float turned = rotated(q[from + d], q[from + far], d, WIDTH, cosines[at], sines[at]);
    query[i] = numbers.scaling * turned;
  }
  uint place[QUERIES];
  float top[QUERIES], all[QUERIES], sums[QUERIES * OUTPUTS];
  [[unroll]] for (uint n = 0u; n < QUERIES; ++n) {
    place[n] = position[first + min(n, end - 1u)].x;
    top[n] = LEAST, all[n] = 0.0;
    [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) sums[n * OUTPUTS + r] = 0.0;
  }
  const uint last = place[QUERIES - 1u];
  const uint low = place[0] < numbers.window ? 0u : place[0] - numbers.window + 1u;
  for (uint block = low / KEYS * KEYS; block <= last; block += KEYS) {
    const uint keys_here = min(KEYS, last + 1u - block);
    barrier();
    for (uint j = lane; j < keys_here; j += LANES) {
      float score[QUERIES];
      [[unroll]] for (uint n = 0u; n < QUERIES; ++n) score[n] = 0.0;
      const uint from = (cached + block + j) * (WIDTH / 4u);
      for (uint i = 0u; i < WIDTH / 4u; ++i) {
        const vec4 key = keys[from + i];
        [[unroll]] for (uint n = 0u; n < QUERIES; ++n) {
          [[unroll]] for (uint c = 0u; c < 4u; ++c) {
            score[n] = fma(query[n * WIDTH + 4u * i + c], key[c], score[n]);
          }
        }
      }
      [[unroll]] for (uint n = 0u; n < QUERIES; ++n) {
        weight[n * KEYS + j] = seen(block + j, place[n]) ? score[n] : LEAST;
      }
    }
    barrier();
    float before[QUERIES];
    [[unroll]] for (uint n = 0u; n < QUERIES; ++n) {
      before[n] = top[n];
      for (uint j = 0u; j < keys_here; ++j) top[n] = max(top[n], weight[n * KEYS + j]);
    }
    barrier();
    for (uint j = lane; j < keys_here; j += LANES) {
      [[unroll]] for (uint n = 0u; n < QUERIES; ++n) {
        const float of = exponential(weight[n * KEYS + j] - top[n]);
        weight[n * KEYS + j] = seen(block + j, place[n]) ? of : 0.0;
      }
    }
    [[unroll]] for (uint n = 0u; n < QUERIES; ++n) {
      const float by = exponential(before[n] - top[n]);
      all[n] *= by;
      [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) sums[n * OUTPUTS + r] *= by;
    }
    barrier();
    for (uint j = 0u; j < keys_here; ++j) {
      float of[QUERIES];
      [[unroll]] for (uint n = 0u; n < QUERIES; ++n) {
        of[n] = weight[n * KEYS + j];
        all[n] += of[n];
      }
      [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) {
        const uint d = min(r * LANES + lane, WIDTH - 1u);
        const float value = values[(cached + block + j) * WIDTH + d];
        [[unroll]] for (uint n = 0u; n < QUERIES; ++n) {
          sums[n * OUTPUTS + r] = fma(of[n], value, sums[n * OUTPUTS + r]);
        }
      }
    }
  }
  [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) {
    const uint d = r * LANES + lane;
    if (d < WIDTH) {
      [[unroll]] for (uint n = 0u; n < QUERIES; ++n) {
        const uint to = ((first + n) * numbers.heads + head) * WIDTH + d;
        if (n < end) y[to] = sums[n * OUTPUTS + r] / all[n];
      }
    }
  }
}
