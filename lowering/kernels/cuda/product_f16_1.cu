#include "product.cuh"

ENTRY(product_f16_1, false, 1)
