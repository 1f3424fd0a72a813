// Four numbers that are read at once.
#pragma once

struct alignas(16) Four {
  float x, y, z, w;
};
