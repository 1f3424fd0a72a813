// Keys, rotated, and values of some tokens to their places in the caches, a workgroup for each token
// of a head.
#version 450
#extension GL_GOOGLE_include_directive : require

layout(constant_id = 0) const uint LANES = 8u;
layout(constant_id = 1) const uint SLICES = 1u;
layout(local_size_x_id = 0, local_size_y_id = 1) in;

layout(set = 0, binding = 0, std430) readonly buffer K { float k[]; };
layout(set = 0, binding = 1, std430) readonly buffer V { float v[]; };
layout(set = 0, binding = 2, std430) readonly buffer C { float cosines[]; };
layout(set = 0, binding = 3, std430) readonly buffer S { float sines[]; };
layout(set = 0, binding = 4, std430) readonly buffer A { uvec2 position[]; };  // of 64 bits each
layout(set = 0, binding = 5, std430) writeonly buffer Keys { float keys[]; };
layout(set = 0, binding = 6, std430) writeonly buffer Values { float values[]; };

layout(push_constant, std430) uniform P { uint heads, width, places; } numbers;

#include "rotary.glsl"

void main() {
  const uint head = gl_WorkGroupID.x, token = gl_WorkGroupID.y, width = numbers.width;
  const uint from = (token * numbers.heads + head) * width;
  const uint to = (head * numbers.places + position[token].x) * width;
  for (uint d = gl_LocalInvocationID.x; d < width; d += LANES) {
    const uint far = d < width / 2u ? d + width / 2u : d - width / 2u, at = token * width + d;
    keys[to + d] = rotated(k[from + d], k[from + far], d, width, cosines[at], sines[at]);
    values[to + d] = v[from + d];
  }
}
