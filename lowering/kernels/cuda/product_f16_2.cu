#include "product.cuh"

ENTRY(product_f16_2, false, 2)
