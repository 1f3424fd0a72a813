// How four consecutive weights of one output come out of its 16-byte words: `FOUR` below.
//
// A *panel* is 32 outputs, one to a lane; inputs run in *blocks* of 32, which share a scale; a
// *unit* is as many blocks as fill whole 16-byte words of every kind that a format has.  Words
// stand as [panels, units, words of a unit, 32 lanes]: a lane's next word is 512 bytes further, and
// 32 lanes read 512 bytes in a row.  `Strips` in strips.py says which bits are which.
const uint CODES2 = 2u, CODES3 = 3u, CODES4 = 4u, CODES8 = 8u, FLOAT16 = 16u, BFLOAT16 = 17u,
           FLOAT32 = 32u, NOTHING = 0u;
const uint ALL = 0u, TWO_FOUR = 1u, BITMAP = 2u;
const uint SCALE_F32 = 0u, SCALE_F16 = 1u, SCALE_BF16 = 2u, SCALE_E8M0 = 3u, SCALE_E4M3 = 4u;
// What codes are: numbers less half their range or less a zero point, levels of one table, or of a
// table of each output.
const uint SYMMETRIC = 0u, ASYMMETRIC = 1u, TABLE = 2u, TABLES = 3u;

// A float of 2^(23 - n) with a code in its bits from n on is 2^(23 - n) + that code: no conversion,
// which is a slow instruction on some devices, and no shift.  The zero point is taken off with the
// 2^(23 - n).
uint magic(uint n) { return 0x4B000000u - (n << 23); }

// Four codes of `width` bits, one behind another in a word's lowest bits, less the zero point.
// Bytes stand in two halves of the word, because the fourth has the exponent's place.
vec4 less_zero(uint word, uint width, uint point) {
  const uint each = (1u << width) - 1u;
  const uvec4 from = uvec4(0u, 1u, width == 8u ? 0u : 2u, width == 8u ? 1u : 3u) * width;
  const uvec4 bits = uvec4(magic(from.x), magic(from.y), magic(from.z), magic(from.w));
  const uint high = width == 8u ? word >> 16 : word;
  const uvec4 codes = uvec4(word, word, high, high) & (uvec4(each) << from);
  return uintBitsToFloat(codes | bits) - uintBitsToFloat((uvec4(point) << from) | bits);
}

// Codes of three bits, four bits apart.  low: the lower two of four codes; high: the upper one
uint beside(uint low, uint high) {
  const uvec4 at = uvec4(0u, 1u, 2u, 3u);
  const uvec4 codes = (uvec4(low) >> (2u * at) & 3u) | (uvec4(high) >> at & 1u) << 2;
  return codes.x | codes.y << 4 | codes.z << 8 | codes.w << 12;
}

// Bits at the places of 2:4's kept entries.  pair: two of `width` bits; places: two of two bits
uint spread(uint pair, uint places, uint width) {
  const uint low = pair & ((1u << width) - 1u), high = pair >> width;
  return low << ((places & 3u) * width) | high << ((places >> 2 & 3u) * width);
}

// Entries of `width` bits, one behind another, at the places of four that `kept` has bits for.
uint spread_kept(uint entries, uint kept, uint width) {
  uint made = 0u;
  [[unroll]] for (uint i = 0u; i < 4u; ++i) {
    const uint here = kept >> i & 1u;
    made |= here * (entries & ((1u << width) - 1u)) << (i * width);
    entries >>= here * width;
  }
  return made;
}

vec4 spread_floats(vec2 pair, uint places) {
  const uvec4 here = uvec4(0u, 1u, 2u, 3u);
  const vec4 first = mix(vec4(0.0), pair.xxxx, equal(here, uvec4(places & 3u)));
  return mix(first, pair.yyyy, equal(here, uvec4(places >> 2 & 3u)));
}

vec2 halves(uint word, uint kind) {
  return kind == FLOAT16 ? unpackHalf2x16(word)
                         : uintBitsToFloat(uvec2(word << 16, word & 0xFFFF0000u));
}

// Which word holds one number of a row of scales.
uint scale_word(uint at, uint type) {
  return type == SCALE_F32 ? at : type <= SCALE_BF16 ? at / 2u : at / 4u;
}

// The number, from that word.  Of 8 bits they are positive; 2^-127, byte 0 of E8M0, is no normal
// float32, and E4M3 below 8 no normal E4M3.
float scale_of(uint word, uint at, uint type) {
  if (type == SCALE_F32) return uintBitsToFloat(word);
  const uint bits = word >> (8u * (at & 3u)) & 255u;
  if (type == SCALE_E8M0) return uintBitsToFloat(max(bits << 23, 0x00400000u));
  if (type == SCALE_E4M3) {
    return bits < 8u ? float(bits) / 512.0 : uintBitsToFloat((bits << 20) + 0x3C000000u);
  }
  const vec2 pair = halves(word, type == SCALE_F16 ? FLOAT16 : BFLOAT16);
  return (at & 1u) == 0u ? pair.x : pair.y;
}
