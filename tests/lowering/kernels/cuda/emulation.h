// CUDA for one CPU thread: what the kernels' source needs to be C++ and to run.
//
// Every thread of a block is a fiber; a fiber runs until it waits for its warp or its block.
// Blocks run one after another.  The matrix products are written from the PTX ISA's description of
// fragments and metadata ("Matrix Fragments for mma.m16n8k16 with floating point type", "... for
// sparse mma.m16n8k32 with .f16 and .bf16 types"), and sums are cut off, not rounded, as tensor
// cores do.  Copies to shared memory happen when they are waited for, so that reading too early
// shows.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after another
#define __restrict__

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline dim3 threadIdx, blockIdx;

namespace emulation {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  std::abort();
}

struct Operands {
  int operation;
  uint32_t a[4], b[4], places;
  float c[4];
};

struct Warp {
  Operands lane[32];
  float result[32][4];
  int arrived = 0, generation = 0;
};

struct Copy {
  uint4* to;
  const uint4* from;
};

constexpr size_t STACK = 256 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  bool done = false;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> batches;
};

inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline size_t current;
inline ucontext_t scheduler;
inline int at_barrier, barriers;
inline std::function<void()> body;

inline void* scheduler_fake;
inline const void* scheduler_stack;
inline size_t scheduler_size;

// Address sanitizer must know of every change of stacks.
inline void leave(void** fake, const void* stack, size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake, stack, size);
#else
  (void)fake, (void)stack, (void)size;
#endif
}
inline void enter(void* fake, const void** stack, size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, stack, size);
#else
  (void)fake, (void)stack, (void)size;
#endif
}

inline void yield() {
  Fiber& fiber = fibers[current];
  const dim3 thread = threadIdx;
  void* fake = nullptr;
  leave(&fake, scheduler_stack, scheduler_size);
  swapcontext(&fiber.context, &scheduler);
  enter(fake, &scheduler_stack, &scheduler_size);
  threadIdx = thread;
}

inline void start() {
  enter(nullptr, &scheduler_stack, &scheduler_size);
  body();
  fibers[current].done = true;
  leave(nullptr, scheduler_stack, scheduler_size);
  swapcontext(&fibers[current].context, &scheduler);
}

inline void run_block(unsigned threads) {
  fibers.clear();
  fibers.resize(threads);
  warps.assign((threads + 31) / 32, Warp{});
  at_barrier = barriers = 0;
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
  }
  for (bool left = true; left;) {
    left = false;
    for (current = 0; current < threads; ++current) {
      if (fibers[current].done) continue;
      left = true;
      threadIdx = dim3{static_cast<unsigned>(current), 0, 0};
      leave(&scheduler_fake, fibers[current].stack.get(), STACK);
      swapcontext(&scheduler, &fibers[current].context);
      enter(scheduler_fake, nullptr, nullptr);
    }
  }
}

// Run `kernel` on a grid of blocks.
inline void launch(dim3 grid, unsigned threads, std::function<void()> kernel) {
  body = std::move(kernel);
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = dim3{x, y, 0};
      run_block(threads);
    }
  }
}

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float from_half(uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

inline uint16_t to_half(float value) {
  const auto narrow = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &narrow, 2);
  return bits;
}

// The half at the low or high end of a register.
inline float element(uint32_t pair, int index, bool bfloat) {
  const auto bits = static_cast<uint16_t>(pair >> (16 * index));
  return bfloat ? from_bits(static_cast<uint32_t>(bits) << 16) : from_half(bits);
}

inline float cut_off(double sum) {
  const auto near = static_cast<float>(sum);
  return std::abs(static_cast<double>(near)) > std::abs(sum) ? std::nextafterf(near, 0.0f) : near;
}

// Wait until all lanes brought operands of the same operation; the last one computes for all.
inline void exchange(float (&d)[4], const Operands& mine, void (*compute)(Warp&)) {
  const unsigned thread = threadIdx.x;
  Warp& warp = warps[thread / 32];
  warp.lane[thread % 32] = mine;
  const int generation = warp.generation;
  if (++warp.arrived == 32) {
    for (const Operands& other : warp.lane) {
      if (other.operation != mine.operation) fail("lanes of a warp call different instructions");
    }
    compute(warp);
    warp.arrived = 0;
    ++warp.generation;
  }
  while (warp.generation == generation) yield();
  std::memcpy(d, warp.result[thread % 32], sizeof d);
}

// Row and column of accumulator i of a lane: 16 x 8.
inline int row_of(int lane, int i) { return lane / 4 + (i < 2 ? 0 : 8); }
inline int column_of(int lane, int i) { return lane % 4 * 2 + i % 2; }

template <bool BFLOAT>
void dense(Warp& warp) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, thread = lane % 4;
    for (int i = 0; i < 8; ++i) {  // elements a0 ... a7, two a register
      const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
      const int column = thread * 2 + i % 2 + (i >= 4 ? 8 : 0);
      a[row][column] = element(warp.lane[lane].a[i / 2], i % 2, BFLOAT);
    }
    for (int i = 0; i < 4; ++i) {
      b[thread * 2 + i % 2 + (i >= 2 ? 8 : 0)][group] =
          element(warp.lane[lane].b[i / 2], i % 2, BFLOAT);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      double sum = warp.lane[lane].c[i];
      for (int k = 0; k < 16; ++k) {
        sum += static_cast<double>(a[row_of(lane, i)][k]) * b[k][column_of(lane, i)];
      }
      warp.result[lane][i] = cut_off(sum);
    }
  }
}

template <bool BFLOAT, int SELECTOR>
void sparse(Warp& warp) {
  float kept[16][16], a[16][32] = {}, b[32][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, thread = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
      kept[row][thread * 2 + i % 2 + (i >= 4 ? 8 : 0)] =
          element(warp.lane[lane].a[i / 2], i % 2, BFLOAT);
      b[thread * 2 + i % 2 + i / 2 * 8][group] = element(warp.lane[lane].b[i / 2], i % 2, BFLOAT);
    }
  }
  // Of every four threads, two hold metadata: the first of inputs 0 to 15, the second of 16 to 31;
  // each of row g in its lower half and of row g + 8 in its upper.
  for (int row = 0; row < 16; ++row) {
    for (int half = 0; half < 2; ++half) {
      const uint32_t word = warp.lane[row % 8 * 4 + 2 * SELECTOR + half].places;
      const uint32_t bits = row < 8 ? word & 0xFFFFu : word >> 16;
      for (int chunk = 0; chunk < 4; ++chunk) {
        const int low = bits >> (4 * chunk) & 3, high = bits >> (4 * chunk + 2) & 3;
        if (low >= high) fail("metadata is not two ascending places");
        const int first = half * 8 + chunk * 2, start = half * 16 + chunk * 4;
        a[row][start + low] = kept[row][first];
        a[row][start + high] = kept[row][first + 1];
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      double sum = warp.lane[lane].c[i];
      for (int k = 0; k < 32; ++k) {
        sum += static_cast<double>(a[row_of(lane, i)][k]) * b[k][column_of(lane, i)];
      }
      warp.result[lane][i] = cut_off(sum);
    }
  }
}

}  // namespace emulation

inline void __syncthreads() {
  using namespace emulation;
  const int barrier = barriers;
  if (++at_barrier == static_cast<int>(fibers.size())) {
    at_barrier = 0;
    ++barriers;
  }
  while (barriers == barrier) yield();
}

template <class Value>
Value __ldg(const Value* from) {
  return *from;
}

inline float __uint_as_float(uint32_t bits) { return emulation::from_bits(bits); }
inline uint32_t __float_as_uint(float value) { return emulation::bits_of(value); }

// --- what `intrinsics.cuh` has ------------------------------------------------------------------

#define THREADS(count)
inline float float_of(uint32_t bits) { return emulation::from_bits(bits); }
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline float root(float x) { return std::sqrt(x); }
inline int count_bits(uint32_t bits) { return __builtin_popcount(bits); }
inline int thread_index() { return static_cast<int>(threadIdx.x); }
inline int block_x() { return static_cast<int>(blockIdx.x); }
inline int block_y() { return static_cast<int>(blockIdx.y); }
inline void await_block() { __syncthreads(); }
inline void in_order() {}

enum class Type { F16, BF16 };

template <Type TYPE>
uint32_t multiply_add(uint32_t pair, uint32_t factor, uint32_t addend) {
  using namespace emulation;
  constexpr bool BFLOAT = TYPE == Type::BF16;
  uint32_t sum = 0;
  for (int i = 0; i < 2; ++i) {
    const float exact =
        element(pair, i, BFLOAT) * element(factor, i, BFLOAT) + element(addend, i, BFLOAT);
    const uint16_t bits = BFLOAT ? static_cast<uint16_t>(bits_of(exact) >> 16) : to_half(exact);
    if (element(bits, 0, BFLOAT) != exact) fail("a sum of halves was rounded");
    sum |= static_cast<uint32_t>(bits) << (16 * i);
  }
  return sum;
}

inline uint32_t and_or(uint32_t word, uint32_t mask, uint32_t bits) { return (word & mask) | bits; }

inline float half_to_float(uint32_t bits) {
  return emulation::from_half(static_cast<uint16_t>(bits));
}

template <Type TYPE>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  constexpr bool BFLOAT = TYPE == Type::BF16;
  const emulation::Operands mine{
      BFLOAT, {a[0], a[1], a[2], a[3]}, {b0, b1, 0, 0}, 0, {d[0], d[1], d[2], d[3]}};
  emulation::exchange(d, mine, emulation::dense<BFLOAT>);
}

template <Type TYPE, int SELECTOR>
void mma_sparse(float (&d)[4], const uint32_t (&a)[4], const uint4& b, uint32_t places) {
  constexpr bool BFLOAT = TYPE == Type::BF16;
  const emulation::Operands mine{2 + 2 * SELECTOR + BFLOAT,    {a[0], a[1], a[2], a[3]},
                                 {b.x, b.y, b.z, b.w},         places,
                                 {d[0], d[1], d[2], d[3]}};
  emulation::exchange(d, mine, emulation::sparse<BFLOAT, SELECTOR>);
}

inline void fetch(uint4* shared, const uint4* global) {
  emulation::fibers[emulation::current].open.push_back({shared, global});
}

inline void end_batch() {
  emulation::Fiber& fiber = emulation::fibers[emulation::current];
  fiber.batches.push_back(std::move(fiber.open));
  fiber.open.clear();
}

template <int PENDING>
void await_batches() {
  auto& batches = emulation::fibers[emulation::current].batches;
  while (batches.size() > PENDING) {
    for (const emulation::Copy& copy : batches.front()) *copy.to = *copy.from;
    batches.pop_front();
  }
}
