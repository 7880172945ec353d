// LaProp with adaptive gradient clipping over all tensors on the CPU. Source: SPEC 1.9.
//
// Tensors are cut into chunks. One pass sums squares per chunk, in float64; the norms of the tensors follow from them in
// a fixed order; a second pass updates. Denormals are kept, square root and division are exact: with eps 1e-20 a tiny
// gradient whose square vanishes would become a huge update.
#include "pool.h"
#include "simd.h"

namespace {

constexpr int64_t kChunk = 16384;  // elements
constexpr float kFresh1 = 0.1f, kFresh2 = 0.001f, kTiny = 1e-20f, kSmallestNorm = 1e-3f, kSlowRate = 0.02f;

typedef double DoubleVec __attribute__((vector_size(8 * kWidth)));
typedef int16_t ShortVec __attribute__((vector_size(2 * kWidth)));

inline void add_squares(DoubleVec& total, Vec x) {
  DoubleVec wide = __builtin_convertvector(x, DoubleVec);
  total += wide * wide;
}

inline double sum(DoubleVec x) {
  double total = 0;
  for (int i = 0; i < kWidth; ++i) total += x[i];
  return total;
}

inline Vec square_root(Vec x) {
  for (int i = 0; i < kWidth; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}

// To bfloat16, to the nearest and to even on ties; a NaN stays one.
inline void store_bfloat16(uint16_t* at, Vec x, int64_t count) {
  IntVec b = bits(x), rounded = b + 0x7fff + ((b >> 16) & 1);
  ShortVec narrow = __builtin_convertvector((x == x ? rounded : IntVec{} + 0x7fc00000) >> 16, ShortVec);
  memcpy(at, &narrow, count * sizeof(uint16_t));
}

// Tensors of one parameter.
struct Parameter {
  float* theta;
  const float* gradient;
  float *nu, *mu;
  uint16_t* shadow;  // bfloat16, or null
  float* slow;       // or null
  float divisor;     // of the gradient
};

struct Rates {
  float correction, factor;  // 1 - beta2^t and -lr / (1 - beta1^t)
};

// Element `first` and the `n - 1` after it; sums: the squares of the updates and of the new parameters.
inline void update(const Parameter& p, const Rates& rates, int64_t first, int64_t n, double* sums) {
  DoubleVec of_update{}, of_theta{};
  for_vectors(n, [&](int64_t i, int64_t count) {
    i += first;
    Vec g = load(p.gradient + i, count), theta = load(p.theta + i, count);
    Vec nu = load(p.nu + i, count), mu = load(p.mu + i, count);
    if (p.divisor != 1.0f) g /= p.divisor;
    nu += (g * g - nu) * kFresh2;
    mu += (g / (square_root(nu / rates.correction) + kTiny) - mu) * kFresh1;
    Vec step = rates.factor * mu;
    theta += step;
    store(p.nu + i, nu, count);
    store(p.mu + i, mu, count);
    store(p.theta + i, theta, count);
    if (p.shadow != nullptr) store_bfloat16(p.shadow + i, theta, count);
    if (p.slow != nullptr) {
      Vec slow = load(p.slow + i, count);
      store(p.slow + i, slow + (theta - slow) * kSlowRate, count);
    }
    add_squares(of_update, step);
    add_squares(of_theta, theta);
  });
  sums[0] = sum(of_update);
  sums[1] = sum(of_theta);
}

// What g is divided by so that |g| <= agc max(1e-3, |theta|).
inline float clip_divisor(double theta_squares, double gradient_squares, float agc) {
  if (agc == 0) return 1.0f;
  float norm = static_cast<float>(__builtin_sqrt(theta_squares));
  float limit = agc * (norm < kSmallestNorm ? kSmallestNorm : norm);
  float ratio = static_cast<float>(__builtin_sqrt(gradient_squares)) / limit;
  return ratio < 1.0f ? 1.0f : ratio;
}

}  // namespace

// sizes: elements per parameter. shadow, slow: null for none; slow[i] belongs to parameter slow_index[i], ascending.
// stats: sums of squares of the gradients before clipping, the updates, and the new parameters.
FD_OP(laprop_agc)
(int64_t parameters, const int64_t* sizes, float* const* params, const float* const* grads, float* const* nu,
 float* const* mu, uint16_t* const* shadow, int64_t slows, float* const* slow, const int64_t* slow_index,
 float correction, float factor, float agc, float* stats) {
  int64_t chunks = 0;
  for (int64_t i = 0; i < parameters; ++i) chunks += (sizes[i] + kChunk - 1) / kChunk;
  struct Chunk {
    int64_t parameter, first, count;
    double theta, gradient, update[2];
  };
  Chunk* all = reinterpret_cast<Chunk*>(fd::scratch(0, chunks * sizeof(Chunk) / sizeof(float)));
  Parameter* tensors = reinterpret_cast<Parameter*>(fd::scratch(1, parameters * sizeof(Parameter) / sizeof(float)));
  for (int64_t i = 0, next = 0, average = 0; i < parameters; ++i) {
    const bool averaged = average < slows && slow_index[average] == i;
    tensors[i] = {params[i], grads[i], nu[i], mu[i], shadow == nullptr ? nullptr : shadow[i],
                  averaged ? slow[average++] : nullptr, 1.0f};
    for (int64_t first = 0; first < sizes[i]; first += kChunk)
      all[next++] = {i, first, min_of(kChunk, sizes[i] - first), 0, 0, {0, 0}};
  }
  fd::parallel(chunks, [&](int64_t task) {
    Chunk& chunk = all[task];
    const Parameter& p = tensors[chunk.parameter];
    DoubleVec of_theta{}, of_gradient{};
    for_vectors(chunk.count, [&](int64_t i, int64_t count) {
      add_squares(of_theta, load(p.theta + chunk.first + i, count));
      add_squares(of_gradient, load(p.gradient + chunk.first + i, count));
    });
    chunk.theta = sum(of_theta);
    chunk.gradient = sum(of_gradient);
  });
  double totals[3] = {0, 0, 0};
  for (int64_t i = 0; i < chunks;) {
    Parameter& p = tensors[all[i].parameter];
    double theta = 0, gradient = 0;
    for (const int64_t of = all[i].parameter; i < chunks && all[i].parameter == of; ++i) {
      theta += all[i].theta;
      gradient += all[i].gradient;
    }
    p.divisor = clip_divisor(theta, gradient, agc);
    totals[0] += gradient;
  }
  const bool finite = __builtin_isfinite(static_cast<float>(totals[0]));
  const Rates rates{correction, factor};
  if (finite) {
    fd::parallel(chunks, [&](int64_t task) {
      Chunk& chunk = all[task];
      update(tensors[chunk.parameter], rates, chunk.first, chunk.count, chunk.update);
    });
  }
  for (int64_t i = 0; i < chunks; ++i) {
    totals[1] += finite ? all[i].update[0] : 0;
    totals[2] += finite ? all[i].update[1] : all[i].theta;
  }
  for (int i = 0; i < 3; ++i) stats[i] = static_cast<float>(totals[i]);
}
