#include "product.cuh"

ENTRY(product_f16_4, false, 4)
