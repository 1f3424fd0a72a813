#include "../lanes/product.cuh"  // which takes intrinsics.cuh from here

ENTRIES(67, 0)
