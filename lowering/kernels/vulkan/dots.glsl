// Inputs of 8 bits: sums of a block are integers, and exact, by dot products of four bytes, which
// Vulkan 1.3 has on every device.  Of each block of 32 inputs a token has ten words: eight of codes,
// four to a word, their step, and their sum, which is what zero points are taken off with.
layout(set = 0, binding = 0, std430) readonly buffer I { uint bytes_in[]; };

spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6019, 6018],
                  id = 4450)  // OpSDot
int dot_of_bytes(int left, int right, spirv_literal int format);

// Four codes of `kind` bits, as `CODE` gives them, as signed bytes: those of 8 bits less 128.
uint bytes_of(uint word, uint kind) {
  if (kind == CODES8) return word ^ 0x80808080u;
  if (kind == CODES2) {
    const uint pairs = (word & 0xFFu) | (word & 0xFFu) << 12;
    return (pairs | pairs << 6) & 0x03030303u;
  }
  const uint pairs = ((word & 0xFFFFu) | word << 8) & 0x00FF00FFu;
  return (pairs | pairs << 4) & 0x0F0F0F0Fu;
}

// What codes of `kind` bits are less as bytes.
int byte_of_zero(uint kind) { return kind == CODES8 ? 128 : 0; }
