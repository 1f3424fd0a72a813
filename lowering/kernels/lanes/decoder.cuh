// What stands between the linears of a decoder block, in float32: one source for NVIDIA's and AMD's
// compilers, as product.cuh is.
//
// Nothing crosses lanes but through shared memory, always in the same order, so that subgroups of 32
// and of 64 make the same bits.  Floats among the numbers of a call come as their bits.
#pragma once
#include "four.cuh"
#include "intrinsics.cuh"

constexpr int COUNT = 256;   // threads of a block
constexpr int KEYS = COUNT;  // of a block of keys: a thread scores one
constexpr int WIDEST = 256;  // of a head
constexpr int PARTS = 16;    // in which the largest of a block of keys is looked for
constexpr float LEAST = -3.0e38f;

// e^x to a unit of the last place or two: how exact a GPU's own is grows worse with x, and differs.
__device__ __forceinline__ float exponential(float x) {
  const float within = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  // Added to 1.5 * 2^23 a number loses what is behind its point.
  const float whole = fused(within, 1.44269504f, 12582912.0f) - 12582912.0f;
  // ln 2 in two parts, of which the first times a whole number is exact.
  const float rest = fused(whole, 2.12194440e-4f, fused(whole, -0.693359375f, within));
  float sum = 1.0f / 5040.0f;
  sum = fused(sum, rest, 1.0f / 720.0f);
  sum = fused(sum, rest, 1.0f / 120.0f);
  sum = fused(sum, rest, 1.0f / 24.0f);
  sum = fused(sum, rest, 1.0f / 6.0f);
  sum = fused(sum, rest, 0.5f);
  sum = fused(sum, rest, 1.0f);
  sum = fused(sum, rest, 1.0f);
  return sum * float_of(static_cast<uint32_t>(static_cast<int>(whole) + 127) << 23);
}

// Entry d of a head's vector with its rotation: half of it is turned against the other half.
__device__ __forceinline__ float rotated(const float* vector, int d, int width, float cosine,
                                         float sine) {
  const int half = width / 2;
  return vector[d] * cosine + (d < half ? -vector[d + half] : vector[d - half]) * sine;
}

// 1 / sqrt(mean + epsilon), of squares that the threads of a block have summed in part.
__device__ __forceinline__ float norm_scale(float* partial, float own, int width, float epsilon) {
  const int thread = thread_index();
  partial[thread] = own;
  await_block();
  for (int half = COUNT / 2; half > 0; half /= 2) {
    if (thread < half) partial[thread] += partial[thread + half];
    await_block();
  }
  return 1.0f / root(partial[0] / static_cast<float>(width) + epsilon);
}

// What a call of attention is about.  shared_by: queries' heads of a head of the caches; places: in
// the caches; window: positions that a token sees, its own included
struct Attention {
  int tokens, heads, shared_by, places, width, window;
  float scaling;
};

template <int QUERIES>
struct Scratch {
  float query[QUERIES * WIDEST], weight[QUERIES * KEYS], part[QUERIES * PARTS];
  float sums[QUERIES * COUNT], totals[QUERIES * COUNT / 4];
};

// softmax(q K^T) V of QUERIES tokens of a head; store(i, value) takes entry i of the result.  Keys
// come in blocks; the largest score so far, and sums relative to it, are kept from block to block, so
// memory does not grow with the cache.  Threads take an entry of the result each, and slices of them
// every so many-th key.
template <int QUERIES, class Store>
__device__ __forceinline__ void attend(Scratch<QUERIES>& shared, const float* q,
                                       const float* cosines, const float* sines,
                                       const int64_t* position, const Four* keys,
                                       const float* values, const Attention& about,
                                       const Store& store) {
  const int thread = thread_index(), head = block_x(), first = block_y() * QUERIES;
  const int width = about.width, slices = COUNT / width;
  const int slice = thread / width, own = thread % width;
  const int64_t cached = static_cast<int64_t>(head / about.shared_by) * about.places;
  const int left = about.tokens - first, end = left < QUERIES ? left : QUERIES;
  for (int i = thread; i < QUERIES * width; i += COUNT) {
    const int n = i / width, d = i % width, token = first + (n < end ? n : end - 1);
    const float* vector = q + (static_cast<int64_t>(token) * about.heads + head) * width;
    const int64_t at = static_cast<int64_t>(token) * width + d;
    shared.query[n * WIDEST + d] =
        about.scaling * rotated(vector, d, width, cosines[at], sines[at]);
  }
  int place[QUERIES];
  float top[QUERIES], all[QUERIES], sums[QUERIES];
#pragma unroll
  for (int n = 0; n < QUERIES; ++n) {
    place[n] = static_cast<int>(position[first + (n < end ? n : end - 1)]);
    top[n] = LEAST, all[n] = 0.0f, sums[n] = 0.0f;
  }
  const int last = place[QUERIES - 1];
  const int low = place[0] < about.window ? 0 : place[0] - about.window + 1;
  const auto seen = [&](int key, int n) {
    return key <= place[n] && place[n] - key < about.window;
  };
  for (int block = low; block <= last; block += KEYS) {
    const int here = last + 1 - block < KEYS ? last + 1 - block : KEYS;
    await_block();
    if (thread < here) {
      float score[QUERIES] = {};
      const Four* key = keys + (cached + block + thread) * (width / 4);
      for (int i = 0; i < width / 4; ++i) {
        const Four four = key[i];
#pragma unroll
        for (int n = 0; n < QUERIES; ++n) {
          const float* query = shared.query + n * WIDEST + 4 * i;
          score[n] = fused(query[0], four.x, score[n]);
          score[n] = fused(query[1], four.y, score[n]);
          score[n] = fused(query[2], four.z, score[n]);
          score[n] = fused(query[3], four.w, score[n]);
        }
      }
#pragma unroll
      for (int n = 0; n < QUERIES; ++n) {
        shared.weight[n * KEYS + thread] = seen(block + thread, n) ? score[n] : LEAST;
      }
    }
    await_block();
    if (thread < QUERIES * PARTS) {
      float largest = LEAST;
      for (int j = thread % PARTS; j < here; j += PARTS) {
        const float score = shared.weight[thread / PARTS * KEYS + j];
        largest = score > largest ? score : largest;
      }
      shared.part[thread] = largest;
    }
    await_block();
#pragma unroll
    for (int n = 0; n < QUERIES; ++n) {
      const float before = top[n];
      for (int i = 0; i < PARTS; ++i) {
        const float largest = shared.part[n * PARTS + i];
        top[n] = largest > top[n] ? largest : top[n];
      }
      const float by = exponential(before - top[n]);
      all[n] *= by;
      sums[n] *= by;
      if (thread < here) {
        const float weight = exponential(shared.weight[n * KEYS + thread] - top[n]);
        shared.weight[n * KEYS + thread] = seen(block + thread, n) ? weight : 0.0f;
      }
    }
    await_block();
    if (slice < slices) {
      for (int j = slice; j < here; j += slices) {
        const float value = values[(cached + block + j) * width + own];
#pragma unroll
        for (int n = 0; n < QUERIES; ++n) {
          const float weight = shared.weight[n * KEYS + j];
          all[n] += weight;
          sums[n] = fused(weight, value, sums[n]);
        }
      }
    }
  }
  if (slice < slices) {
#pragma unroll
    for (int n = 0; n < QUERIES; ++n) {
      shared.sums[n * COUNT + thread] = sums[n];
      if (own == 0) shared.totals[n * COUNT / 4 + slice] = all[n];
    }
  }
  await_block();
  for (int i = thread; i < end * width; i += COUNT) {
    const int n = i / width, d = i % width;
    float sum = 0.0f, total = 0.0f;
    for (int s = 0; s < slices; ++s) {
      sum += shared.sums[n * COUNT + s * width + d];
      total += shared.totals[n * COUNT / 4 + s];
    }
    store((static_cast<int64_t>(first + n) * about.heads + head) * width + d, sum / total);
  }
}

// x / sqrt(mean(x^2) + epsilon) * g of one token, entry by entry to store(i, value).
template <class Store>
__device__ __forceinline__ void normalize(float* partial, const float* x, const float* g, int width,
                                          float epsilon, const Store& store) {
  float sum = 0.0f;
  for (int i = thread_index(); i < width; i += COUNT) sum = fused(x[i], x[i], sum);
  const float scale = norm_scale(partial, sum, width, epsilon);
  for (int i = thread_index(); i < width; i += COUNT) store(i, x[i] * scale * g[i]);
}

__device__ __forceinline__ float gated(float a, float b) {
  return a / (1.0f + exponential(-a)) * b;
}

// y = norm(x), a block for each token.
extern "C" __global__ THREADS(COUNT) void decoder_norm(
    const float* __restrict__ x, const float* __restrict__ g, float* __restrict__ y, int width,
    int epsilon) {
  __shared__ float partial[COUNT];
  const int64_t first = static_cast<int64_t>(block_x()) * width;
  normalize(partial, x + first, g, width, float_of(epsilon),
            [&](int i, float value) { y[first + i] = value; });
}

// Keys, rotated, and values of some tokens to their places in the caches, a block for each token of a
// head.
extern "C" __global__ THREADS(COUNT) void decoder_cache(
    const float* __restrict__ k, const float* __restrict__ v, const float* __restrict__ cosines,
    const float* __restrict__ sines, const int64_t* __restrict__ position,
    float* __restrict__ keys, float* __restrict__ values, int heads, int width, int places) {
  const int head = block_x(), token = block_y();
  const int64_t from = (static_cast<int64_t>(token) * heads + head) * width;
  const int64_t to = (static_cast<int64_t>(head) * places + position[token]) * width;
  for (int d = thread_index(); d < width; d += COUNT) {
    const int64_t at = static_cast<int64_t>(token) * width + d;
    keys[to + d] = rotated(k + from, d, width, cosines[at], sines[at]);
    values[to + d] = v[from + d];
  }
}

#define ATTENTION(queries)                                                                        \
  extern "C" __global__ THREADS(COUNT) void decoder_attention_##queries(                          \
      const float* __restrict__ q, const float* __restrict__ cosines,                             \
      const float* __restrict__ sines, const int64_t* __restrict__ position,                      \
      const Four* __restrict__ keys, const float* __restrict__ values, float* __restrict__ y,     \
      int tokens, int heads, int shared_by, int places, int width, int window, int scaling) {     \
    __shared__ Scratch<queries> shared;                                                           \
    attend<queries>(shared, q, cosines, sines, position, keys, values,                            \
                    Attention{tokens, heads, shared_by, places, width, window,                    \
                              float_of(scaling)},                                                 \
                    [&](int64_t i, float value) { y[i] = value; });                               \
  }
ATTENTION(1)
ATTENTION(4)

// y = a + b
extern "C" __global__ THREADS(COUNT) void decoder_add(const float* __restrict__ a,
                                                      const float* __restrict__ b,
                                                      float* __restrict__ y, int size) {
  const int64_t i = static_cast<int64_t>(block_x()) * COUNT + thread_index();
  if (i < size) y[i] = a[i] + b[i];
}

// y = silu(a) * b
extern "C" __global__ THREADS(COUNT) void decoder_gate(const float* __restrict__ a,
                                                       const float* __restrict__ b,
                                                       float* __restrict__ y, int size) {
  const int64_t i = static_cast<int64_t>(block_x()) * COUNT + thread_index();
  if (i < size) y[i] = gated(a[i], b[i]);
}
