#include "../lanes/product.cuh"  // which takes intrinsics.cuh from here

ENTRIES(68, 2)
