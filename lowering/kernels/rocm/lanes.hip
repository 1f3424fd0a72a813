#include "../lanes/product.cuh"  // which takes intrinsics.cuh from here

FOR_EACH_FORMAT(ENTRIES)
