// Linear -> RMSNorm -> SiLU and its backward, the gates of the GRU, categorical sampling: on rows, for one thread.
#pragma once

#include "matmul.h"

namespace {

constexpr float kNormEps = 1e-4f;

// A view of rows: element (r, n) is data[r * ld + n].
template <class T>
struct RowsOf {
  T* data;
  int64_t ld;
  T* operator[](int64_t r) const { return data + r * ld; }
  RowsOf from(int64_t column) const { return {data + column, ld}; }
  RowsOf below(int64_t row) const { return {data + row * ld, ld}; }
};
using Rows = RowsOf<float>;
using ConstRows = RowsOf<const float>;
inline ConstRows constant(Rows x) { return {x.data, x.ld}; }

// A packed kernel (inner, columns) and its bias, and the scale of the norm that follows, where there is one.
struct Weights {
  const float* packed;
  const float* bias;
  const float* scale;
  int64_t inner, columns;
};

// Hands out packed kernels. Without memory it only counts what it would need.
struct Packer {
  float* memory;
  int64_t used;

  const float* operator()(const float* right, int64_t row, int64_t column, int64_t inner, int64_t columns) {
    float* to = memory + used;
    used += packed_size(inner, columns);
    if (memory != nullptr) pack(to, right, row, column, inner, columns);
    return to;
  }
  // A row-major kernel (inner, columns) with row stride `ld`, and its transpose (columns, inner).
  const float* plain(const float* kernel, int64_t ld, int64_t inner, int64_t columns) {
    return (*this)(kernel, ld, 1, inner, columns);
  }
  const float* transposed(const float* kernel, int64_t ld, int64_t inner, int64_t columns) {
    return (*this)(kernel, 1, ld, columns, inner);
  }
};

// build(packer) twice: once to learn the size, once to pack into this thread's `slot`.
template <class F>
inline auto packed_weights(int slot, const F& build) {
  Packer counting{nullptr, 0};
  build(counting);
  Packer packer{fd::scratch(slot, counting.used), 0};
  return build(packer);
}

inline float inverse_rms(const float* x, int64_t n) {
  Vec squares{};
  for_vectors(n, [&](int64_t i, int64_t count) {
    Vec v = load(x + i, count);
    squares += v * v;
  });
  return 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(n) + kNormEps);
}

// out = silu(x rstd scale)
inline void norm_act(int64_t rows, int64_t n, ConstRows x, const float* scale, Rows out) {
  for (int64_t r = 0; r < rows; ++r) {
    Vec rstd = splat(inverse_rms(x[r], n));
    for_vectors(n, [&](int64_t i, int64_t count) {
      Vec z = load(x[r] + i, count) * rstd * load(scale + i, count);
      store(out[r] + i, z * sigmoid(z), count);
    });
  }
}

// From the gradient of norm_act's output that of its input, which may overwrite it, and the output once more.
// scale_gradient: (n) per row.
inline void norm_act_backward(int64_t rows, int64_t n, ConstRows gradient, ConstRows x, const float* scale, Rows out,
                              Rows act, Rows scale_gradient, bool add) {
  for (int64_t r = 0; r < rows; ++r) {
    float inverse = inverse_rms(x[r], n);
    Vec rstd = splat(inverse), dot{};
    for_vectors(n, [&](int64_t i, int64_t count) {
      Vec hat = load(x[r] + i, count) * rstd, by = load(scale + i, count), z = hat * by, gate = sigmoid(z);
      store(act[r] + i, z * gate, count);
      Vec g = load(gradient[r] + i, count) * (gate * (1.0f + z * (1.0f - gate)));
      dot += g * by * hat;
      Vec total = g * hat;
      if (add) total += load(scale_gradient[r] + i, count);
      store(scale_gradient[r] + i, total, count);
      store(out[r] + i, g * by, count);
    });
    Vec mean = splat(sum(dot) / static_cast<float>(n));
    for_vectors(n, [&](int64_t i, int64_t count) {
      store(out[r] + i, rstd * (load(out[r] + i, count) - load(x[r] + i, count) * rstd * mean), count);
    });
  }
}

inline void linear(int64_t rows, const Weights& w, ConstRows x, Rows out) {
  matmul(rows, w.columns, w.inner, x.data, x.ld, 1, w.packed, out.data, out.ld, w.bias);
}
inline void linear_add(int64_t rows, const Weights& w, ConstRows x, Rows out) {
  matmul(rows, w.columns, w.inner, x.data, x.ld, 1, w.packed, out.data, out.ld, nullptr, true);
}

// out = bias + the rows of `kernel` (S*K, n) that the class indices name, or bias alone where keep is 0.
template <class Index>
inline void gather_rows(int64_t rows, int64_t n, int64_t groups, int64_t classes, const Index* index, int64_t index_ld,
                        const uint8_t* keep, int64_t keep_ld, const float* kernel, const float* bias, Rows out) {
  constexpr int kUnroll = 4;
  for (int64_t r = 0; r < rows; ++r) {
    const Index* of = index + r * index_ld;
    int64_t used = keep == nullptr || keep[r * keep_ld] ? groups : 0;
    int64_t i = 0;
    for (; i + kUnroll * kWidth <= n; i += kUnroll * kWidth) {
      Vec total[kUnroll];
      for (int j = 0; j < kUnroll; ++j) total[j] = load((bias != nullptr ? bias : out[r]) + i + j * kWidth);
      for (int64_t s = 0; s < used; ++s) {
        const float* from = kernel + (s * classes + of[s]) * n + i;
        for (int j = 0; j < kUnroll; ++j) total[j] += load(from + j * kWidth);
      }
      for (int j = 0; j < kUnroll; ++j) store(out[r] + i + j * kWidth, total[j]);
    }
    for_vectors(n - i, [&](int64_t j, int64_t count) {
      Vec total = load((bias != nullptr ? bias : out[r]) + i + j, count);
      for (int64_t s = 0; s < used; ++s) total += load(kernel + (s * classes + of[s]) * n + i + j, count);
      store(out[r] + i + j, total, count);
    });
  }
}

// The gradient (groups * classes, n) of a kernel whose input was the one-hot of index(r, group), -1 for zeros, from the
// gradient of its output (rows, n). Cheaper as a matmul with the one-hot than by adding to rows of the kernel.
template <class Index>
inline void latent_gradient(int64_t rows, int64_t n, int64_t groups, int64_t classes, const Index& index,
                            const float* output, int64_t output_ld, float* gradient, int slot) {
  auto copy = [&](int64_t r, int64_t first, int64_t height, float* to) {
    memset(to, 0, height * sizeof(float));
    for (int64_t s = first / classes; s < groups && s * classes < first + height; ++s) {
      int64_t at = index(r, s);
      at += s * classes - first - (at < 0 ? s * classes : 0);
      if (at >= 0 && at < height) to[at] = 1.0f;
    }
  };
  weight_gradient(rows, groups * classes, n, copy, output, output_ld, gradient, n, slot);
}

// One block of the GRU: gates [reset, cand, update] of width n each, the old and the new state.
inline void gru_gates(int64_t n, const float* gates, const float* old, float* out) {
  for_vectors(n, [&](int64_t i, int64_t count) {
    Vec reset = sigmoid(load(gates + i, count));
    Vec cand = vtanh(reset * load(gates + n + i, count));
    Vec update = sigmoid(load(gates + 2 * n + i, count) - 1.0f);
    Vec h = load(old + i, count);
    store(out + i, update * cand + (1.0f - update) * h, count);
  });
}

// Gradients of the three gates, and of the old state through the gates alone. old_gradient may be `gradient`.
inline void gru_gates_backward(int64_t n, const float* gradient, const float* gates, const float* old,
                               float* gates_gradient, float* old_gradient) {
  for_vectors(n, [&](int64_t i, int64_t count) {
    Vec reset = sigmoid(load(gates + i, count)), raw = load(gates + n + i, count);
    Vec cand = vtanh(reset * raw), update = sigmoid(load(gates + 2 * n + i, count) - 1.0f);
    Vec g = load(gradient + i, count), h = load(old + i, count);
    Vec inner = g * update * (1.0f - cand * cand);
    store(gates_gradient + i, inner * raw * reset * (1.0f - reset), count);
    store(gates_gradient + n + i, inner * reset, count);
    store(gates_gradient + 2 * n + i, g * (cand - h) * update * (1.0f - update), count);
    store(old_gradient + i, g * (1.0f - update), count);
  });
}

// probs (groups, classes) = (1 - unimix) softmax(logits) + unimix / classes
inline void mixed_probs(int64_t groups, int64_t classes, const float* logits, float unimix, float* probs) {
  for (int64_t s = 0; s < groups; ++s) {
    const float* x = logits + s * classes;
    float largest = x[0];
    for (int64_t k = 1; k < classes; ++k) largest = max_of(largest, x[k]);
    for (int64_t k = 0; k < classes; ++k) probs[s * classes + k] = x[k] - largest;
  }
  for_vectors(groups * classes, [&](int64_t i, int64_t count) { store(probs + i, exp_or_zero(load(probs + i, count)), count); });
  for (int64_t s = 0; s < groups; ++s) {
    float* p = probs + s * classes;
    float total = 0;
    for (int64_t k = 0; k < classes; ++k) total += p[k];
    for (int64_t k = 0; k < classes; ++k)
      p[k] = unimix == 0 ? p[k] / total : (1 - unimix) * (p[k] / total) + unimix / static_cast<float>(classes);
  }
}

// The class whose interval of the cumulative distribution holds `uniform`; the last takes what rounding left over.
inline int32_t draw(int64_t classes, const float* probs, float uniform) {
  float cdf = 0;
  int32_t index = 0;
  for (int64_t k = 0; k + 1 < classes; ++k) {
    cdf += probs[k];
    index += uniform >= cdf;
  }
  return index;
}

// The gradient of the logits from that of (1 - unimix) softmax + constant; `softmax` is unmixed. out may be either.
inline void mixed_probs_backward(int64_t groups, int64_t classes, const float* gradient, const float* softmax,
                                 float unimix, float* out) {
  for (int64_t s = 0; s < groups; ++s) {
    const float *g = gradient + s * classes, *p = softmax + s * classes;
    float dot = 0;
    for (int64_t k = 0; k < classes; ++k) dot += p[k] * g[k];
    for (int64_t k = 0; k < classes; ++k) out[s * classes + k] = (1 - unimix) * p[k] * (g[k] - dot);
  }
}

// A stack of linear -> norm -> act and a linear output. `widths`: inputs, each layer's outputs, the output.
struct Head {
  static constexpr int kMaxLayers = 8;
  Weights layers[kMaxLayers], output;
  int64_t count;
};

// `args`: kernel, bias, scale of every layer, then kernel and bias of the output, as in rssm_core.Head. Of the first
// kernel only `inputs` rows are packed.
inline Head pack_head(Packer& packer, const float* const* args, const int64_t* widths, int64_t count, int64_t inputs,
                      bool output = true) {
  Head head{};
  head.count = count;
  for (int64_t i = 0; i < count; ++i, args += 3) {
    int64_t inner = i == 0 ? inputs : widths[i];
    head.layers[i] = {packer.plain(args[0], widths[i + 1], inner, widths[i + 1]), args[1], args[2], inner,
                      widths[i + 1]};
  }
  if (output)
    head.output = {packer.plain(args[0], widths[count + 1], widths[count], widths[count + 1]), args[1], nullptr,
                   widths[count], widths[count + 1]};
  return head;
}

}  // namespace
