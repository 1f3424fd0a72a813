#include "product.cuh"

ENTRY(product_f32_2, true, 2)
