#include "product.cuh"

ENTRY(product_f32_4, true, 4)
