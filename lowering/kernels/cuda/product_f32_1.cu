#include "product.cuh"

ENTRY(product_f32_1, true, 1)
