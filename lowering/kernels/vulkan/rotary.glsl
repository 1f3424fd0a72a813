// Entry d of a head's vector with its rotation: half of it is turned against the other half.
// near: the entry   far: the one half a head away
float rotated(float near, float far, uint d, uint width, float cosine, float sine) {
  return near * cosine + (d < width / 2u ? -far : far) * sine;
}
