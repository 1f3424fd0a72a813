// A function `TERM` that adds a product to `sums`, included once for each term of `product.comp`,
// because GLSL has no pointers.  WORDS, ENTRIES, INPUT: the term's buffers; KIND, MASK, SCALE,
// CODES, BLOCKS, SIZE, VECTORS, PARTS: its specialization constants; AT: its numbers; DOTTED: whether
// its inputs are bytes (dots.glsl).

#define OWN(word) own[(word) % 4u]
#if DOTTED
#define NUMBER int
#define GIVEN uint
#define RECORD 10u
#else
#define NUMBER float
#define GIVEN vec4
#define RECORD 8u
#endif

// The 32 bits of the stream that begin at entry `at`, whose entries have KIND bits.
uint STREAM(uint at) {
  const uint bit = at * KIND, word = AT.stream + bit / 32u, by = bit % 32u;
  const uint low = ENTRIES[word] >> by;
  return by == 0u ? low : low | ENTRIES[word + 1u] << (32u - by);
}

// Floats of the stream from entry `next` on at the places of four that `kept` has bits for.
vec4 STREAMED(uint next, uint kept) {
  vec4 four = vec4(0.0);
  [[unroll]] for (uint i = 0u; i < 4u; ++i) {
    const uint bits = ENTRIES[AT.stream + (KIND == FLOAT32 ? next : next / 2u)];
    const vec2 pair = halves(bits, KIND);
    const float half_ = next % 2u == 0u ? pair.x : pair.y;
    if ((kept >> i & 1u) == 1u) {
      four[i] = KIND == FLOAT32 ? uintBitsToFloat(bits) : half_;
      ++next;
    }
  }
  return four;
}

// Codes 4 q to 4 q + 3 of a block, one behind another in the lowest bits; those of three bits are four
// bits apart.  own: those of its words that hold them; more: its places, its codes' upper bits, or
// which it keeps; kept: the first of its entries in the stream
uint CODE(uvec4 own, uint more, uint q, uint flip, uint kept) {
  if (MASK == BITMAP) {
    const uint next = kept + bitCount(more & ((1u << (4u * q)) - 1u));
    return spread_kept(STREAM(next), more >> (4u * q) & 15u, KIND) ^ flip;
  }
  if (MASK == TWO_FOUR) {
    const uint places = more >> (4u * q);
    if (KIND == CODES4) {
      return spread(OWN(q / 4u) >> (8u * (q % 4u)) & 0xFFu, places, 4u) ^ flip;
    }
    return spread(OWN(q / 2u) >> (16u * (q % 2u)) & 0xFFFFu, places, 8u) ^ flip;
  }
  if (KIND == CODES4) return OWN(q / 2u) >> (16u * (q % 2u));
  if (KIND == CODES8) return OWN(q);
  const uint low = OWN(q / 4u) >> (8u * (q % 4u));
  return KIND == CODES2 ? low : beside(low, more >> (4u * q));
}

// Weights 4 q to 4 q + 3 of a block.  point: as of `decoded`
vec4 FOUR(uvec4 own, uint more, uint q, uint flip, uint point, uint kept) {
  if (KIND < FLOAT16) {
    return decoded(CODE(own, more, q, flip, kept), KIND == CODES3 ? 4u : KIND, CODES, point);
  }
  if (MASK == BITMAP) {
    const uint next = kept + bitCount(more & ((1u << (4u * q)) - 1u));
    return STREAMED(next, more >> (4u * q) & 15u);
  }
  if (MASK == TWO_FOUR) {
    const uint places = more >> (4u * q);
    if (KIND == FLOAT32) {
      return spread_floats(uintBitsToFloat(uvec2(OWN(2u * q), OWN(2u * q + 1u))), places);
    }
    return spread_floats(halves(OWN(q), KIND), places);
  }
  if (KIND == FLOAT32) return uintBitsToFloat(own);
  return vec4(halves(OWN(2u * q), KIND), halves(OWN(2u * q + 1u), KIND));
}

// What stands beside an output's codes: the scale of a group, what `decoded` takes, and the zero point
// in a word's every code.  group: of all panels
float GRID(uint group, uint output_, out uint point, out uint flip) {
  point = CODES == TABLES ? output_ : 0u, flip = 0u;
  if (KIND >= FLOAT16 || CODES == TABLES) return 1.0;
  const uint at = group * 32u + output_;
  if (CODES == SYMMETRIC) point = 1u << (KIND - 1u);
  if (CODES == ASYMMETRIC) point = ENTRIES[AT.zeros + at / 4u] >> (8u * (at % 4u)) & 255u;
  if (CODES < TABLE) flip = point * (KIND == CODES4 ? 0x11111111u : 0x01010101u);
  return scale_of(ENTRIES[AT.scales + scale_word(at, SCALE)], at, SCALE);
}

// Where the stream has an output's entries of a unit.
uint KEPT(uint number, uint output_) {
  const uint at = number * 32u + output_;
  const uint kept = ENTRIES[AT.offsets + at / 2u] >> (16u * (at % 2u)) & 0xFFFFu;
  return kept + ENTRIES[AT.starts + number];
}

void TERM(inout float sums[COUNT], uint panel, uint first, uint token) {
  const uint units = (AT.blocks + BLOCKS - 1u) / BLOCKS;
  const uint scales = (AT.blocks * PARTS + AT.span - 1u) / AT.span;
  const bool shares = BLOCKS > 1u && (KIND <= CODES3 || KIND == CODES4);  // two blocks a word
  uint lane[OUTPUTS];
  [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) lane[r] = gl_LocalInvocationID.x + r * LANES;
  float scale[OUTPUTS];
  uint point[OUTPUTS], flip[OUTPUTS];
  for (uint unit = first; unit < units; unit += SLICES) {
    const uint number = panel * units + unit;
    uvec4 last[OUTPUTS];
    uint kept[OUTPUTS];
    [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) {
      last[r] = uvec4(0u);
      if (MASK != ALL || KIND == CODES3) {
        last[r] = WORDS[(number * SIZE + SIZE - 1u) * 32u + lane[r]];
      }
      kept[r] = 0u;
      if (MASK == BITMAP) kept[r] = KEPT(number, lane[r]);
    }
    const uint end = min(BLOCKS, AT.blocks - unit * BLOCKS);
    for (uint s = 0u; s < end; ++s) {
      const uint block = unit * BLOCKS + s;
      uvec4 own[OUTPUTS];
      uint from[OUTPUTS];
      [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) {
        from[r] = (number * SIZE + (shares ? s / 2u : s * VECTORS)) * 32u + lane[r];
        own[r] = MASK == BITMAP ? uvec4(0u) : WORDS[from[r]];
        if (shares && s % 2u == 1u) own[r] = own[r].zwzw;
      }
      NUMBER part[COUNT];
      GIVEN mine[TOKENS];
      if (NARROW != 0u) {
        [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
          const uint row = min(token + t, numbers.tokens - 1u);
          mine[t] = INPUT[(row * AT.blocks + block) * RECORD + gl_LocalInvocationID.x];
        }
      }
      // A row that visits every block keeps what it has read of a group.
      const bool next = NARROW == 0u || PARTS > 1u || block % AT.span == 0u;
      [[unroll]] for (uint q = 0u; q < 8u; ++q) {
        if (q % (8u / PARTS) == 0u) {
          [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) {
            const uint group = panel * scales + (block * PARTS + q / (8u / PARTS)) / AT.span;
            if (next) scale[r] = GRID(group, lane[r], point[r], flip[r]);
            [[unroll]] for (uint t = 0u; t < TOKENS; ++t) part[r * TOKENS + t] = NUMBER(0);
          }
        }
        GIVEN given[TOKENS];
        [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
          const uint row = min(token + t, numbers.tokens - 1u);
          if (NARROW != 0u) {
            given[t] = of_lane(mine[t], q);
          } else {
            given[t] = INPUT[(row * AT.blocks + block) * RECORD + q];
          }
        }
        [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) {
          if (q % (8u / VECTORS) == 0u && MASK != BITMAP && q > 0u) {
            own[r] = WORDS[from[r] + q / (8u / VECTORS) * 32u];
          }
#if DOTTED
          const int four = int(bytes_of(CODE(own[r], last[r][s], q, flip[r], kept[r]), KIND));
          [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
            part[r * TOKENS + t] += dot_of_bytes(four, int(given[t]), 0);
          }
#else
          const vec4 four = FOUR(own[r], last[r][s], q, flip[r], point[r], kept[r]);
          [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
            // One after another: `dot` would be an addition more.
            float sum = part[r * TOKENS + t];
            [[unroll]] for (uint i = 0u; i < 4u; ++i) sum = fma(four[i], given[t][i], sum);
            part[r * TOKENS + t] = sum;
          }
#endif
        }
#if DOTTED
        if (q == 7u) {
          [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
            const uint at = (min(token + t, numbers.tokens - 1u) * AT.blocks + block) * RECORD;
            const float step_ = uintBitsToFloat(INPUT[at + 8u]);
            [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) {
              const int zero = (int(point[r]) - byte_of_zero(KIND)) * int(INPUT[at + 9u]);
              sums[r * TOKENS + t] += float(part[r * TOKENS + t] - zero) * step_ * scale[r];
            }
          }
        }
#else
        if ((q + 1u) % (8u / PARTS) == 0u) {
          [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) {
            [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
              sums[r * TOKENS + t] += part[r * TOKENS + t] * scale[r];
            }
          }
        }
#endif
      }
      [[unroll]] for (uint r = 0u; r < OUTPUTS; ++r) {
        if (MASK == BITMAP) kept[r] += bitCount(last[r][s]);
      }
    }
  }
}

#ifdef TILED
#include "tile.glsl"
#endif

#undef OWN
#undef GRID
#undef CODE
#undef DOTTED
#undef NUMBER
#undef GIVEN
#undef RECORD
#undef KEPT
#undef UNPACK
#undef TILE
#undef STREAMED
#undef STREAM
#undef FOUR
#undef TERM
#undef WORDS
#undef ENTRIES
#undef INPUT
#undef KIND
#undef MASK
#undef SCALE
#undef CODES
#undef BLOCKS
#undef SIZE
#undef VECTORS
#undef PARTS
#undef AT
