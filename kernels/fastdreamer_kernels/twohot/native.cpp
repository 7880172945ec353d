// Expected bin, and cross entropy with two-hot targets, of symexp two-hot logits.
#include "layers.h"

namespace {

constexpr int64_t kRowsPerTask = 256;
constexpr int64_t kMaxBins = 1024;
constexpr float kSmallStep = 0.35f;  // seven terms of the series are exact there

// e^(logits - their maximum) into `out`; the sum and the maximum.
struct Exps {
  float sum, largest;
};
inline Exps exps(int64_t bins, const float* logits, float* out) {
  Vec top = splat(logits[0]), total{};
  for_vectors(bins, [&](int64_t i, int64_t count) { top = vmax(top, load(logits + i, count, logits[0])); });
  float largest = top[0];
  for (int i = 1; i < kWidth; ++i) largest = max_of(largest, top[i]);
  for_vectors(bins, [&](int64_t i, int64_t count) {
    Vec e = vexp(load(logits + i, count, largest - 200.0f) - largest);
    store(out + i, e, count);
  });
  for_vectors(bins, [&](int64_t i, int64_t count) { total += load(out + i, count); });
  return {sum(total), largest};
}

// The bin at or below `target`, and the share of the next one.
struct Place {
  int64_t below;
  float weight;
};
inline Place place(int64_t bins, const float* values, float target) {
  int64_t low = 0, high = bins - 1;  // values[low] <= target < values[high], at the ends whichever
  while (high - low > 1) {
    int64_t middle = (low + high) / 2;
    (values[middle] <= target ? low : high) = middle;
  }
  float weight = (target - values[low]) / (values[low + 1] - values[low]);
  return {low, min_of(1.0f, max_of(0.0f, weight))};  // in this order a NaN comes through
}

template <class F>
inline void for_rows(int64_t rows, const F& body) {
  fd::parallel((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    int64_t end = min_of((task + 1) * kRowsPerTask, rows);
    for (int64_t r = task * kRowsPerTask; r < end; ++r) body(r);
  });
}

}  // namespace

// Mirrored bins are paired, so that uniform logits give exactly 0. The outer bins are 5e8: near-uniform logits would turn
// the rounding of two exponentials into tenths, so small differences are e^b (e^(a - b) - 1) by the series of the bracket.
FD_OP(twohot_mean)(int64_t rows, int64_t bins, const float* logits, const float* values, float* mean) {
  for_rows(rows, [&](int64_t r) {
    float e[kMaxBins];
    Exps of = exps(bins, logits + r * bins, e);
    const float* x = logits + r * bins;
    const int64_t middle = bins / 2;
    float step[kMaxBins / 2], low[kMaxBins / 2];  // from the middle outwards
    for (int64_t i = 0; i < middle; ++i) {
      step[i] = x[middle + 1 + i] - x[middle - 1 - i];
      low[i] = e[middle - 1 - i];
    }
    Vec total{};
    for_vectors(middle, [&](int64_t i, int64_t count) {
      Vec d = load(step + i, count), b = load(low + i, count), a = load(e + middle + 1 + i, count);
      Vec series = splat(1.0f);
      for (int k = 7; k > 1; --k) series = 1.0f + series * d / static_cast<float>(k);
      Vec difference = select((d < kSmallStep) & (d > -kSmallStep), b * (d * series), a - b);
      total += difference * load(values + middle + 1 + i, count);
    });
    mean[r] = sum(total) / of.sum;
  });
}

// targets (N, J); loss (N): summed over the targets.
FD_OP(twohot_loss)
(int64_t rows, int64_t bins, int64_t targets, const float* logits, const float* values, const float* target,
 float* loss) {
  for_rows(rows, [&](int64_t r) {
    float e[kMaxBins];
    const float* x = logits + r * bins;
    Exps of = exps(bins, x, e);
    float nan = of.sum - of.sum;  // 0, but NaN where a logit is, which vlog does not see
    float log_sum = of.largest + scalar(of.sum, vlog) + nan, total = 0;
    for (int64_t j = 0; j < targets; ++j) {
      Place at = place(bins, values, target[r * targets + j]);
      total -= (1 - at.weight) * (x[at.below] - log_sum) + at.weight * (x[at.below + 1] - log_sum);
    }
    loss[r] = total;
  });
}

FD_OP(twohot_loss_backward)
(int64_t rows, int64_t bins, int64_t targets, const float* gradient, const float* logits, const float* values,
 const float* target, float* logits_gradient) {
  for_rows(rows, [&](int64_t r) {
    float* out = logits_gradient + r * bins;
    Exps of = exps(bins, logits + r * bins, out);
    Vec scale = splat(gradient[r] * static_cast<float>(targets) / of.sum);
    for_vectors(bins, [&](int64_t i, int64_t count) { store(out + i, load(out + i, count) * scale, count); });
    for (int64_t j = 0; j < targets; ++j) {
      Place at = place(bins, values, target[r * targets + j]);
      out[at.below] -= gradient[r] * (1 - at.weight);
      out[at.below + 1] -= gradient[r] * at.weight;
    }
  });
}
