// The instructions that C++ has no words for, for AMD's GPUs; cuda/intrinsics.cuh has NVIDIA's.
//
// Clang's builtins alone: no header of an SDK.  A test compiles the kernels for the CPU and puts
// `emulation.h` in the place of this file.
#pragma once
#ifdef TRINITY_EMULATED
#include "emulation.h"
#else

using uint32_t = unsigned;
using int64_t = long long;
using uint64_t = unsigned long long;

#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __forceinline__ inline __attribute__((always_inline))
#define THREADS(count) __attribute__((amdgpu_flat_work_group_size(count, count)))

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

__device__ __forceinline__ float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }
__device__ __forceinline__ float half_to_float(uint32_t bits) {
  return static_cast<float>(__builtin_bit_cast(_Float16, static_cast<unsigned short>(bits)));
}
__device__ __forceinline__ float fused(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
__device__ __forceinline__ float root(float x) { return __builtin_sqrtf(x); }
__device__ __forceinline__ int count_bits(uint32_t bits) { return __builtin_popcount(bits); }
__device__ __forceinline__ int thread_index() { return __builtin_amdgcn_workitem_id_x(); }
__device__ __forceinline__ int block_x() { return __builtin_amdgcn_workgroup_id_x(); }
__device__ __forceinline__ int block_y() { return __builtin_amdgcn_workgroup_id_y(); }
__device__ __forceinline__ void await_block() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
// No load from behind this before it: all at once, those of many tokens take all registers.
__device__ __forceinline__ void in_order() { asm volatile("" ::: "memory"); }

#endif
