// e^x to a unit of the last place or two, the same bits on every device that has `fma`: how exact a
// device's own `exp` is grows worse with x, and differs.
float exponential(float x) {
  const float within = clamp(x, -87.0, 88.0);
  const float whole = roundEven(within * 1.44269504);
  // ln 2 in two parts, of which the first times a whole number is exact.
  const float rest = fma(whole, 2.12194440e-4, fma(whole, -0.693359375, within));
  float sum = 1.0 / 5040.0;
  sum = fma(sum, rest, 1.0 / 720.0);
  sum = fma(sum, rest, 1.0 / 120.0);
  sum = fma(sum, rest, 1.0 / 24.0);
  sum = fma(sum, rest, 1.0 / 6.0);
  sum = fma(sum, rest, 0.5);
  sum = fma(sum, rest, 1.0);
  sum = fma(sum, rest, 1.0);
  return sum * uintBitsToFloat(uint(int(whole) + 127) << 23);
}
