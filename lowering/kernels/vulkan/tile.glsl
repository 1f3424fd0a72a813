// A function `TILE` that adds a product to `sums` from tiles in shared memory; included by term.glsl,
// whose macros it uses, once for each term.

// Puts fours `first` to `first + FOURS - 1` of an output's block s of a unit where all lanes find them.
// number, group: of all panels; place: of the output in the workgroup
void UNPACK(uint number, uint s, uint group, uint output_, uint first, uint place) {
  const bool shares = BLOCKS > 1u && (KIND <= CODES3 || KIND == CODES4);  // two blocks a word
  const uint from = (number * SIZE + (shares ? s / 2u : s * VECTORS)) * 32u + output_;
  uvec4 last = uvec4(0u), own = uvec4(0u);
  uint kept = 0u, point, flip;
  if (MASK != ALL || KIND == CODES3) last = WORDS[(number * SIZE + SIZE - 1u) * 32u + output_];
  if (MASK == BITMAP) {
    kept = KEPT(number, output_);
    for (uint before = 0u; before < s; ++before) kept += bitCount(last[before]);
  }
  GRID(group, output_, point, flip);
  [[unroll]] for (uint i = 0u; i < FOURS; ++i) {
    const uint q = first + i;
    if (MASK != BITMAP && i % (8u / VECTORS) == 0u) {
      own = WORDS[from + q / (8u / VECTORS) * 32u];
      if (shares && s % 2u == 1u) own = own.zwzw;
    }
    WEIGHT(q, place) = FOUR(own, last[s], q, flip, point, kept);
  }
}

// panel: the first; last: that has outputs; token: the first
void TILE(inout float sums[TILE_COUNT], uint panel, uint last, uint token) {
  const uint groups = (AT.blocks + AT.span - 1u) / AT.span, units = (AT.blocks + BLOCKS - 1u) / BLOCKS;
  const uint column = gl_LocalInvocationID.x, line = gl_LocalInvocationID.y;
  const uint lane = line * LANES + column;
  const uint place = lane % TILE_OUTPUTS, mine = min(panel + place / 32u, last);
  uint from[BRINGS];
  [[unroll]] for (uint i = 0u; i < BRINGS; ++i) {
    const uint row = min(token + (i * THREADS + lane) / 8u, numbers.tokens - 1u);
    from[i] = row * AT.blocks * 8u + lane % 8u;
  }
  float scale[ACROSS];
  uint group = 0u, left = 0u;
  for (uint block = 0u; block < AT.blocks; ++block) {
    barrier();
    UNPACK(mine * units + block / BLOCKS, block % BLOCKS, mine * groups + group, place % 32u,
           lane / TILE_OUTPUTS * FOURS, place);
    [[unroll]] for (uint i = 0u; i < BRINGS; ++i) {
      const uint t = (i * THREADS + lane) / 8u, q = lane % 8u;
      BROUGHT(q, t ^ q) = INPUT[from[i] + block * 8u];
    }
    if (left == 0u) {
      [[unroll]] for (uint r = 0u; r < ACROSS; ++r) {
        const uint at = r * LANES + column;
        uint point, flip;
        scale[r] = GRID(min(panel + at / 32u, last) * groups + group, at % 32u, point, flip);
      }
      left = AT.span;
    }
    left -= 1u;
    group += left == 0u ? 1u : 0u;
    barrier();
    float part[TILE_COUNT];
    [[unroll]] for (uint i = 0u; i < TILE_COUNT; ++i) part[i] = 0.0;
    for (uint q = 0u; q < 8u; ++q) {
      vec4 here[DOWN];
      [[unroll]] for (uint t = 0u; t < DOWN; ++t) here[t] = BROUGHT(q, (line ^ q) + t * SLICES);
      [[unroll]] for (uint r = 0u; r < ACROSS; ++r) {
        const vec4 four = WEIGHT(q, column + r * LANES);
        [[unroll]] for (uint t = 0u; t < DOWN; ++t) {
          float sum = part[r * DOWN + t];
          [[unroll]] for (uint i = 0u; i < 4u; ++i) sum = fma(four[i], here[t][i], sum);
          part[r * DOWN + t] = sum;
        }
      }
    }
    [[unroll]] for (uint r = 0u; r < ACROSS; ++r) {
      [[unroll]] for (uint t = 0u; t < DOWN; ++t) {
        sums[r * DOWN + t] += part[r * DOWN + t] * scale[r];
      }
    }
  }
}
