#include "../lanes/decoder.cuh"  // which takes intrinsics.cuh from here
