// What stands between the linears of a decoder block, and the same for one token whose next linears
// are products of tiles: what makes their input writes it in digits.
#include "../lanes/decoder.cuh"  // which takes intrinsics.cuh from here
#include "digits.cuh"

// One token.  Widths are whole panels of 32.
__device__ __forceinline__ void put(uint16_t* y, int i, float value) {
  write_digits(y, value, i / 32, i % 32, 0, 1);
}

// y = norm(x)
extern "C" __global__ THREADS(COUNT) void decoder_norm_digits(
    const float* __restrict__ x, const float* __restrict__ g, uint16_t* __restrict__ y, int width,
    int epsilon) {
  __shared__ float partial[COUNT];
  normalize(partial, x, g, width, float_of(epsilon), [&](int i, float value) { put(y, i, value); });
}

// sum = a + b, y = norm(sum).  A thread reads the sums that it wrote.
extern "C" __global__ THREADS(COUNT) void decoder_add_norm_digits(
    const float* __restrict__ a, const float* __restrict__ b, const float* __restrict__ g,
    float* sum, uint16_t* __restrict__ y, int width, int epsilon) {
  __shared__ float partial[COUNT];
  for (int i = thread_index(); i < width; i += COUNT) sum[i] = a[i] + b[i];
  normalize(partial, sum, g, width, float_of(epsilon),
            [&](int i, float value) { put(y, i, value); });
}

// y = silu(a) * b
extern "C" __global__ THREADS(COUNT) void decoder_gate_digits(const float* __restrict__ a,
                                                              const float* __restrict__ b,
                                                              uint16_t* __restrict__ y, int size) {
  const int i = block_x() * COUNT + thread_index();
  if (i < size) put(y, i, gated(a[i], b[i]));
}

// As decoder_attention_1.
extern "C" __global__ THREADS(COUNT) void decoder_attention_digits(
    const float* __restrict__ q, const float* __restrict__ cosines,
    const float* __restrict__ sines, const int64_t* __restrict__ position,
    const Four* __restrict__ keys, const float* __restrict__ values, uint16_t* __restrict__ y,
    int tokens, int heads, int shared_by, int places, int width, int window, int scaling) {
  __shared__ Scratch<1> shared;
  attend<1>(shared, q, cosines, sines, position, keys, values,
            Attention{tokens, heads, shared_by, places, width, window, float_of(scaling)},
            [&](int64_t i, float value) { put(y, static_cast<int>(i), value); });
}
