// Runs one kernel on the CPU.  Reads from standard input its name, the threads of a block, its
// grid, its constants, and its buffers, the last of which it writes; that one goes to standard
// output.  Each buffer is memory of its own and of its exact size, so that a sanitizer sees every
// access outside.
#include <iostream>
#include <map>
#include <string>

#include "product_f16_1.cu"
#include "product_f16_2.cu"
#include "product_f16_4.cu"
#include "product_f32_1.cu"
#include "product_f32_2.cu"
#include "product_f32_4.cu"

#define NAMED(name) {#name, name}

int main() {
  const std::map<std::string, decltype(&product_f16_1)> entries{
      NAMED(product_f16_1), NAMED(product_f16_2), NAMED(product_f16_4),
      NAMED(product_f32_1), NAMED(product_f32_2), NAMED(product_f32_4)};
  std::string name;
  dim3 grid;
  int i[13];
  size_t sizes[11];
  unsigned threads;
  std::cin >> name >> threads >> grid.x >> grid.y;
  for (int& value : i) std::cin >> value;
  for (size_t& size : sizes) std::cin >> size;
  std::cin.get();
  void* b[11];
  for (int n = 0; n < 11; ++n) {
    if (posix_memalign(&b[n], 16, sizes[n])) emulation::fail("no memory");
    std::cin.read(static_cast<char*>(b[n]), static_cast<std::streamsize>(sizes[n]));
  }
  const auto words = [&](int n) { return static_cast<const uint4*>(b[n]); };
  const auto zeros = [&](int n) { return static_cast<const uint32_t*>(b[n]); };
  const auto kernel = entries.at(name);
  emulation::launch(grid, threads, [&] {
    kernel(words(0), words(1), words(2), b[3], zeros(4), words(5), words(6), words(7), b[8],
           zeros(9), b[10], i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[7], i[8], i[9], i[10],
           i[11], i[12]);
  });
  std::cout.write(static_cast<const char*>(b[10]), static_cast<std::streamsize>(sizes[10]));
  for (void* buffer : b) std::free(buffer);
}
