// The instructions that C++ has no words for, one function each.
//
// A test compiles the kernels for the CPU and puts `emulation.h` in the place of this file: the
// same functions, written from the PTX ISA's description of them and from nothing here.
#pragma once
#ifdef TRINITY_EMULATED
#include "emulation.h"
#else

#include <cstdint>

// Activations and dequantized codes as float16 or bfloat16, two in a register.
enum class Type { F16, BF16 };

// What the sources in lanes/ ask of a GPU, whoever made it.
#define THREADS(count) __launch_bounds__(count)
__device__ __forceinline__ float float_of(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ float root(float x) { return __fsqrt_rn(x); }
__device__ __forceinline__ int count_bits(uint32_t bits) { return __popc(bits); }
__device__ __forceinline__ int thread_index() { return threadIdx.x; }
__device__ __forceinline__ int block_x() { return blockIdx.x; }
__device__ __forceinline__ int block_y() { return blockIdx.y; }
__device__ __forceinline__ void await_block() { __syncthreads(); }
// No load from behind this before it: all at once, those of many tokens take all registers.
__device__ __forceinline__ void in_order() { asm volatile("" ::: "memory"); }

// `pair * factor + addend` of both halves; exact for the small integers that it is used for.
template <Type TYPE>
__device__ __forceinline__ uint32_t multiply_add(uint32_t pair, uint32_t factor, uint32_t addend) {
  uint32_t sum;
  if constexpr (TYPE == Type::F16) {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(pair), "r"(factor), "r"(addend));
  } else {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(pair), "r"(factor), "r"(addend));
  }
  return sum;
}

// `word & mask | bits`. In one instruction, which takes one constant: the compiler, free to choose,
// gives each operation its own constant and makes two.
__device__ __forceinline__ uint32_t and_or(uint32_t word, uint32_t mask, uint32_t bits) {
  uint32_t found;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(found) : "r"(word), "r"(mask), "r"(bits));
  return found;
}

__device__ __forceinline__ float half_to_float(uint32_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<uint16_t>(bits)));
  return value;
}

// d += a b, a: 16 x 16 in four registers, b: 16 x 8 in two, d: 16 x 8 float32.
template <Type TYPE>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  if constexpr (TYPE == Type::F16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// d += a b, a: 16 x 32, 2:4, its kept half in four registers, b: 32 x 8 in four, d: 16 x 8 float32.
// places: where a's entries stand, read from threads 2 SELECTOR and 2 SELECTOR + 1 of every four.
template <Type TYPE, int SELECTOR>
__device__ __forceinline__ void mma_sparse(float (&d)[4], const uint32_t (&a)[4], const uint4& b,
                                           uint32_t places) {
  if constexpr (TYPE == Type::F16) {
    asm("mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w),
          "r"(places), "n"(SELECTOR));
  } else {
    asm("mma.sp.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w),
          "r"(places), "n"(SELECTOR));
  }
}

// Start copying 16 bytes to shared memory, past the L1 cache: weights are read once.
__device__ __forceinline__ void fetch(uint4* shared, const uint4* global) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

// Close a batch of this thread's copies.
__device__ __forceinline__ void end_batch() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most the last PENDING batches of this thread are still under way.
template <int PENDING>
__device__ __forceinline__ void await_batches() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#endif
