// y = x / sqrt(mean(x^2) + epsilon) * g, a workgroup for each token.
#version 450

layout(constant_id = 0) const uint LANES = 8u;
layout(constant_id = 1) const uint SLICES = 1u;
const uint COUNT = LANES * SLICES;
layout(local_size_x_id = 0, local_size_y_id = 1) in;

layout(set = 0, binding = 0, std430) readonly buffer X { vec4 x[]; };
layout(set = 0, binding = 1, std430) readonly buffer G { vec4 g[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { vec4 y[]; };

// words: of a token, each of four floats
layout(push_constant, std430) uniform P { uint words; float epsilon; } numbers;

shared float partial[COUNT];

void main() {
  const uint lane = gl_LocalInvocationID.y * LANES + gl_LocalInvocationID.x;
  const uint first = gl_WorkGroupID.x * numbers.words;
  float sum = 0.0;
  for (uint i = lane; i < numbers.words; i += COUNT) sum += dot(x[first + i], x[first + i]);
  partial[lane] = sum;
  barrier();
  float all = 0.0;
  for (uint i = 0u; i < COUNT; ++i) all += partial[i];
  const float scale = inversesqrt(all / float(4u * numbers.words) + numbers.epsilon);
  for (uint i = lane; i < numbers.words; i += COUNT) y[first + i] = x[first + i] * scale * g[i];
}
