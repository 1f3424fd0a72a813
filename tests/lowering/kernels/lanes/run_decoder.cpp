// Runs one kernel of lanes/decoder.cuh or cuda/decoder.cu on the CPU.  Reads from standard input its name, its grid, its
// numbers and the sizes of its buffers, then these; all of them go to standard output.  Each buffer
// is memory of its own and of its exact size, so that a sanitizer sees every access outside.
#include <iostream>
#include <map>
#include <string>
#include <type_traits>
#include <utility>

#include "decoder.cu"

using Call = std::function<void(void**, const int*)>;

// A kernel takes its buffers first, and then its numbers.
template <class T>
T given(void** buffers, const int* numbers, size_t at, size_t count) {
  if constexpr (std::is_pointer_v<T>) {
    return static_cast<T>(buffers[at]);
  } else {
    return numbers[at - count];
  }
}

template <class... T, size_t... I>
Call call_of(void (*kernel)(T...), std::index_sequence<I...>) {
  return [kernel](void** buffers, const int* numbers) {
    constexpr size_t count = (std::is_pointer_v<T> + ...);
    kernel(given<T>(buffers, numbers, I, count)...);
  };
}

template <class... T>
Call call_of(void (*kernel)(T...)) {
  return call_of(kernel, std::index_sequence_for<T...>());
}

#define NAMED(name) {#name, call_of(name)}

int main() {
  const std::map<std::string, Call> entries{
      NAMED(decoder_norm), NAMED(decoder_cache), NAMED(decoder_attention_1),
      NAMED(decoder_attention_4), NAMED(decoder_add), NAMED(decoder_gate),
      NAMED(decoder_norm_digits), NAMED(decoder_add_norm_digits), NAMED(decoder_gate_digits),
      NAMED(decoder_attention_digits)};
  std::string name;
  dim3 grid;
  size_t number_count, buffer_count;
  std::cin >> name >> grid.x >> grid.y >> number_count >> buffer_count;
  std::vector<int> numbers(number_count);
  std::vector<size_t> sizes(buffer_count);
  for (int& value : numbers) std::cin >> value;
  for (size_t& size : sizes) std::cin >> size;
  std::cin.get();
  std::vector<void*> buffers(buffer_count);
  for (size_t n = 0; n < buffer_count; ++n) {
    if (posix_memalign(&buffers[n], 16, sizes[n])) emulation::fail("no memory");
    std::cin.read(static_cast<char*>(buffers[n]), static_cast<std::streamsize>(sizes[n]));
  }
  const Call& kernel = entries.at(name);
  emulation::launch(grid, COUNT, [&] { kernel(buffers.data(), numbers.data()); });
  for (size_t n = 0; n < buffer_count; ++n) {
    std::cout.write(static_cast<char*>(buffers[n]), static_cast<std::streamsize>(sizes[n]));
    std::free(buffers[n]);
  }
}
