// Many tokens: a workgroup has 64 outputs of as many as TOKENS tokens, more than eight.
//
// It unpacks a block of 32 inputs of all its outputs once into shared memory and puts the tokens'
// inputs beside.  A lane multiplies outputs that are LANES apart by tokens that are SLICES apart
// from there, so that every number it reads serves several sums.  What is rounded (nothing) and the
// order of the sums are those of one row of workgroups for fewer tokens.  Outliers, tables of each
// output and two scales for a block are not held (tiles.py).
const uint TILE_OUTPUTS = 64u;
const uint THREADS = LANES * SLICES;
const uint ACROSS = TILE_OUTPUTS / LANES;
const uint DOWN = TOKENS / SLICES;
const uint TILE_COUNT = ACROSS * DOWN;  // sums of a lane
// Fours of a block that a lane unpacks, all of one output, and that it brings of the inputs.
const uint FOURS = 8u * TILE_OUTPUTS / THREADS;
const uint BRINGS = 8u * TOKENS / THREADS;
// One array, so that the largest tile fills what every device has: fours of weights of one block, as
// [8, outputs], fours of inputs, as [8, tokens], and behind them the pool of the other way.  Token t
// stands at t XOR the four's number: lanes that bring the fours of one token write to different banks.
const uint GIVEN_AT = TOKENS > 8u ? 8u * TILE_OUTPUTS : 0u;
const uint POOL_AT = TOKENS > 8u ? GIVEN_AT + 8u * TOKENS : 0u;
shared vec4 memory[POOL_AT + ((SUMS > LEVELS ? SUMS : LEVELS) + 3u) / 4u];
#define WEIGHT(q, place) memory[(q) * TILE_OUTPUTS + (place)]
#define BROUGHT(q, t) memory[GIVEN_AT + (q) * TOKENS + (t)]
#define POOL(i) memory[POOL_AT + (i) / 4u][(i) % 4u]
