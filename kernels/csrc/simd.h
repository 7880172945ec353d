// Vectors of floats, and the few functions that the ops need on them. GCC and Clang turn these types into whatever the
// instruction set has. Errors are against float64 over the range that the ops use: exp 2e-7 relative, log 2e-7.
#pragma once

#include "isa.h"

namespace {

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef int32_t IntVec __attribute__((vector_size(4 * kWidth)));
typedef float VecAt __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef int32_t IntVecAt __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));

inline Vec load(const float* at) { return *reinterpret_cast<const VecAt*>(at); }
inline void store(float* at, Vec x) { *reinterpret_cast<VecAt*>(at) = x; }
inline Vec splat(float x) { return x - Vec{}; }

// The first `count` (below kWidth) floats, `fill` in the other lanes; and their way back.
inline Vec load_some(const float* at, int64_t count, float fill = 0.0f) {
  Vec x = splat(fill);
  memcpy(&x, at, count * sizeof(float));
  return x;
}
inline void store_some(float* at, Vec x, int64_t count) { memcpy(at, &x, count * sizeof(float)); }

inline Vec select(IntVec mask, Vec yes, Vec no) { return mask ? yes : no; }
inline Vec vmax(Vec a, Vec b) { return select(a > b, a, b); }
inline Vec vmin(Vec a, Vec b) { return select(a < b, a, b); }

inline float sum(Vec x) {
  float total = 0;
  for (int i = 0; i < kWidth; ++i) total += x[i];
  return total;
}

inline IntVec bits(Vec x) {
  IntVec y;
  memcpy(&y, &x, sizeof y);
  return y;
}
inline Vec from_bits(IntVec x) {
  Vec y;
  memcpy(&y, &x, sizeof y);
  return y;
}

// e^x for x clamped to [-87.3, 88.3]: 2^n times a polynomial on the remainder, n by the rounding of a large addend.
inline Vec vexp(Vec x) {
  x = vmin(splat(88.3f), vmax(splat(-87.3f), x));  // in this order a NaN comes through
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23
  Vec shifted = x * 1.44269504088896f + magic;
  IntVec power = bits(shifted) - bits(magic);
  Vec n = shifted - magic;
  Vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec y = splat(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  return from_bits(bits(y) + (power << 23));
}

// e^x, and 0 from where vexp would stop falling.
inline Vec exp_or_zero(Vec x) { return select(x < -87.3f, Vec{}, vexp(x)); }

// Natural logarithm of a positive normal number.
inline Vec vlog(Vec x) {
  IntVec b = bits(x);
  IntVec exponent = ((b >> 23) & 0xff) - 126;
  Vec m = from_bits((b & 0x007fffff) | 0x3f000000);  // [0.5, 1)
  IntVec low = m < splat(0.707106781f);
  exponent += low;  // -1 where low
  m = select(low, m + m, m) - 1.0f;
  Vec e = __builtin_convertvector(exponent, Vec);
  Vec y = splat(7.0376836292e-2f);
  y = y * m - 1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m - 1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m - 1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m - 2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  Vec square = m * m;
  y = y * m * square + e * -2.12194440e-4f - square * 0.5f;
  return m + y + e * 0.693359375f;
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + vexp(-x)); }
inline Vec vtanh(Vec x) { return 2.0f * sigmoid(x + x) - 1.0f; }

// f(vector) for a function of vectors on one float.
template <class F>
inline float scalar(float x, const F& f) {
  return f(splat(x))[0];
}

// body(offset, count): whole vectors first (count kWidth), then what is left.
template <class F>
inline void for_vectors(int64_t n, const F& body) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) body(i, kWidth);
  if (i < n) body(i, n - i);
}
inline Vec load(const float* at, int64_t count, float fill = 0.0f) {
  return count == kWidth ? load(at) : load_some(at, count, fill);
}
inline void store(float* at, Vec x, int64_t count) {
  if (count == kWidth)
    store(at, x);
  else
    store_some(at, x, count);
}

}  // namespace
