// Runs one kernel of lanes/product.cuh on the CPU.  Reads from standard input its name, its grid,
// its numbers and the sizes of its buffers, then these; the last one goes to standard output.  Each
// buffer is memory of its own and of its exact size, so that a sanitizer sees every access outside.
#include <iostream>
#include <map>
#include <string>

#include "product.cuh"

FOR_EACH_FORMAT(ENTRIES)

#define NAMED(kind, mask)                       \
  {"lanes_" #kind "_" #mask "_1", lanes_##kind##_##mask##_1}, \
  {"lanes_" #kind "_" #mask "_8", lanes_##kind##_##mask##_8},

int main() {
  const std::map<std::string, decltype(&lanes_4_0_1)> entries{FOR_EACH_FORMAT(NAMED)};
  std::string name;
  dim3 grid;
  int i[22];
  size_t sizes[4];
  std::cin >> name >> grid.x >> grid.y;
  for (int& value : i) std::cin >> value;
  for (size_t& size : sizes) std::cin >> size;
  std::cin.get();
  void* b[4];
  for (int n = 0; n < 4; ++n) {
    if (posix_memalign(&b[n], 16, sizes[n])) emulation::fail("no memory");
    std::cin.read(static_cast<char*>(b[n]), static_cast<std::streamsize>(sizes[n]));
  }
  const auto kernel = entries.at(name);
  emulation::launch(grid, LANES * SLICES, [&] {
    kernel(static_cast<const Four*>(b[0]), static_cast<const uint4*>(b[1]),
           static_cast<const float*>(b[2]), static_cast<float*>(b[3]), i[0], i[1], i[2], i[3],
           i[4], i[5], i[6], i[7], i[8], i[9], i[10], i[11], i[12], i[13], i[14], i[15], i[16],
           i[17], i[18], i[19], i[20], i[21]);
  });
  std::cout.write(static_cast<const char*>(b[3]), static_cast<std::streamsize>(sizes[3]));
  for (void* buffer : b) std::free(buffer);
}
