// Categorical distributions kWidth at a time: one group of classes per lane, class after class. So no sum runs across
// lanes, and what a group gets depends on nothing but itself.
#pragma once

#include "pool.h"
#include "simd.h"

namespace {

constexpr int64_t kTaskElements = 16384;  // logits per task of the pool: tens of microseconds

// x[k][i] = element k of group i; lanes from `count` on repeat the last group.
inline void load_groups(int64_t count, int64_t classes, const float* from, Vec* x) {
  const float* group[kWidth];
  for (int64_t i = 0; i < kWidth; ++i) group[i] = from + min_of(i, count - 1) * classes;
  for (int64_t k = 0; k < classes; ++k) {
    Vec v{};
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) v[i] = group[i][k];
    x[k] = v;
  }
}

inline void store_groups(int64_t count, int64_t classes, const Vec* x, float* to) {
  for (int64_t k = 0; k < classes; ++k) {
    float line[kWidth];
    store(line, x[k]);
    for (int64_t i = 0; i < count; ++i) to[i * classes + k] = line[i];
  }
}

// The probabilities of a distribution after the uniform share was mixed in.
struct Mix {
  float unimix;
  int64_t classes;

  Vec mixed(Vec softmax) const {
    return unimix == 0 ? softmax : (1 - unimix) * softmax + unimix / static_cast<float>(classes);
  }
  // softmax / mixed, which is 1 where nothing is mixed in, even where the softmax underflows.
  Vec share(Vec softmax) const { return unimix == 0 ? splat(1.0f) : softmax / mixed(softmax); }

  // x: logits, and then the logarithm of the mixed probabilities.
  void operator()(Vec* x, Vec* softmax) const {
    Vec largest = x[0], total{};
    for (int64_t k = 1; k < classes; ++k) largest = vmax(largest, x[k]);
    for (int64_t k = 0; k < classes; ++k) {
      x[k] -= largest;
      softmax[k] = exp_or_zero(x[k]);
      total += softmax[k];
    }
    Vec inverse = 1.0f / total, log_total = vlog(total);
    Vec nan = total - total;  // 0, but NaN where a logit is, which vlog does not see
    for (int64_t k = 0; k < classes; ++k) {
      softmax[k] *= inverse;
      x[k] = (unimix == 0 ? x[k] - log_total : vlog(mixed(softmax[k]))) + nan;
    }
  }
};

// p log q, which is 0 where p is.
inline Vec times_log(Vec p, Vec log_q) { return select(p == 0.0f, Vec{}, p * log_q); }

// body(first, last): parts of `rows` rows of `width` logits, over the pool.
template <class F>
inline void parallel_rows(int64_t rows, int64_t width, const F& body) {
  int64_t part = max_of<int64_t>(1, kTaskElements / (width * kWidth)) * kWidth;
  fd::parallel((rows + part - 1) / part, [&](int64_t task) {
    body(task * part, min_of(rows, (task + 1) * part));
  });
}

// body(first, count) for the groups from `first` to `last`, kWidth at a time.
template <class F>
inline void for_groups(int64_t first, int64_t last, const F& body) {
  for (int64_t i = first; i < last; i += kWidth) body(i, min_of<int64_t>(kWidth, last - i));
}

// `arrays` of `classes` vectors each of this thread's `slot`.
inline Vec* class_vectors(int slot, int64_t arrays, int64_t classes) {
  return reinterpret_cast<Vec*>(fd::scratch(slot, arrays * classes * kWidth));
}

}  // namespace
