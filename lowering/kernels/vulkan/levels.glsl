// What codes of a table stand for: levels, which are the first of `POOL` in shared memory.
//
// One way for all tables, because no arithmetic makes NF4 or the levels of a row: a load a weight.
// From shared memory all lanes get theirs at once, where from a buffer a device may take some lanes
// at a time: 16 levels stand in as many banks, and of tables of each output one stands in a bank.
// The 256 of E4M3 share banks, and cost several loads.

// Four codes of `width` bits, one behind another in a word's lowest bits, as floats.
// point: their zero point, or the output's place in a row of levels
vec4 decoded(uint word, uint width, uint codes, uint point) {
  if (codes < TABLE) return less_zero(word, width, point);
  const uint each = (1u << width) - 1u, apart = codes == TABLES ? 32u : 1u;
  vec4 four;
  [[unroll]] for (uint i = 0u; i < 4u; ++i) {
    four[i] = POOL((word >> (i * width) & each) * apart + point);
  }
  return four;
}
