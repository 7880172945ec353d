// Layers and maybe an output on features or states, forward and backward, in chunks of rows that stay in cache.
#include "layers.h"

namespace {

constexpr int64_t kChunk = 8 * kMaxRows;

struct Shape {
  int64_t rows, inputs, groups, classes, layers, outputs;
  const int64_t* widths;  // features, each layer, the output where there is one
  int64_t hidden() const {
    int64_t total = 0;
    for (int64_t i = 0; i < layers; ++i) total += widths[i + 1];
    return total;
  }
  int64_t widest() const {
    int64_t wide = 0;
    for (int64_t i = 0; i < layers + outputs; ++i) wide = max_of(wide, widths[i + 1]);
    return wide;
  }
};

inline Shape shape_of(const int64_t* sizes, const int64_t* widths) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], widths};
}

}  // namespace

// sizes: N, D, S, K, layers, outputs (0 or 1). stoch: null without latents (S 0). saved: the layers before their norms,
// one (N, width) after the other; may be null.
FD_OP(mlp)
(const int64_t* sizes, const int64_t* widths, const float* const* weights, const float* x, const int32_t* stoch,
 float* out, float* saved) {
  const Shape n = shape_of(sizes, widths);
  const Head w = packed_weights(0, [&](Packer& packer) {
    return pack_head(packer, weights, widths, n.layers, n.inputs, n.outputs != 0);
  });
  const float* latent = weights[0] + n.inputs * widths[1];  // the one-hot's rows of the first kernel
  const int64_t outputs = widths[n.layers + n.outputs];
  fd::parallel((n.rows + kChunk - 1) / kChunk, [&](int64_t task) {
    int64_t first = task * kChunk, rows = min_of(kChunk, n.rows - first), wide = n.widest();
    Rows pre{fd::scratch(2, kChunk * wide), wide}, act{fd::scratch(3, kChunk * wide), wide};
    Rows result{out + first * outputs, outputs};
    float* kept = saved;
    for (int64_t i = 0; i < n.layers; ++i) {
      int64_t width = widths[i + 1];
      Rows to = saved == nullptr ? pre : Rows{kept + first * width, width};
      linear(rows, w.layers[i], i == 0 ? ConstRows{x + first * n.inputs, n.inputs} : constant(act), to);
      if (i == 0 && n.groups)
        gather_rows(rows, width, n.groups, n.classes, stoch + first * n.groups, n.groups, nullptr, 0, latent, nullptr, to);
      bool last = i + 1 == n.layers && !n.outputs;
      norm_act(rows, width, constant(to), w.layers[i].scale, last ? result : act);
      kept += n.rows * width;
    }
    if (n.outputs) {  // by way of the cache: tiles would write to memory in pieces, row by row, a third slower
      Rows cached{fd::scratch(4, kChunk * outputs), outputs};
      linear(rows, w.output, constant(act), cached);
      memcpy(result.data, cached.data, rows * outputs * sizeof(float));
    }
  });
}

// input_gradient: null where x needs none.
FD_OP(mlp_backward)
(const int64_t* sizes, const int64_t* widths, const float* gradient, const float* const* weights, const float* x,
 const int32_t* stoch, const float* saved, float* const* weight_gradients, float* input_gradient) {
  const Shape n = shape_of(sizes, widths);
  const int64_t chunks = (n.rows + kChunk - 1) / kChunk, outputs = widths[n.layers + n.outputs];
  struct All {
    const float* transposed[Head::kMaxLayers + 1];
  } w = packed_weights(0, [&](Packer& packer) {
    All a{};
    if (input_gradient != nullptr) a.transposed[0] = packer.transposed(weights[0], widths[1], n.inputs, widths[1]);
    for (int64_t i = 1; i < n.layers + n.outputs; ++i)
      a.transposed[i] = packer.transposed(weights[3 * i], widths[i + 1], widths[i], widths[i + 1]);
    return a;
  });
  float* d_pre = fd::scratch(1, n.rows * n.hidden());
  float* acts = fd::scratch(2, n.rows * n.hidden());
  float* scales = fd::scratch(3, chunks * n.hidden());
  fd::parallel(chunks, [&](int64_t task) {
    int64_t first = task * kChunk, rows = min_of(kChunk, n.rows - first), wide = n.widest();
    Rows d_act{fd::scratch(4, kChunk * wide), wide}, by_row{fd::scratch(5, kChunk * wide), wide};
    ConstRows upstream{gradient + first * outputs, outputs};
    auto multiply = [&](int64_t layer, int64_t width, Rows to) {  // upstream by the transposed kernel
      matmul(rows, width, widths[layer + 1], upstream.data, upstream.ld, 1, w.transposed[layer], to.data, to.ld, nullptr);
    };
    int64_t offset = n.hidden();
    for (int64_t i = n.layers - 1; i >= 0; --i) {
      int64_t width = widths[i + 1];
      offset -= width;
      ConstRows pre{saved + n.rows * offset + first * width, width};
      Rows out{d_pre + n.rows * offset + first * width, width};
      bool last = i + 1 == n.layers && !n.outputs;
      if (!last) multiply(i + 1, width, d_act);
      norm_act_backward(rows, width, last ? upstream : constant(d_act), pre, weights[3 * i + 2], out,
                        {acts + n.rows * offset + first * width, width}, by_row, false);
      column_sums(rows, width, by_row.data, by_row.ld, scales + chunks * offset + task * width);
      upstream = constant(out);
    }
    if (input_gradient != nullptr) multiply(0, n.inputs, {input_gradient + first * n.inputs, n.inputs});
  });
  int64_t offset = 0;
  for (int64_t i = 0; i < n.layers; ++i) {
    int64_t width = widths[i + 1];
    const float* d = d_pre + n.rows * offset;
    const float* input = i == 0 ? x : acts + n.rows * (offset - widths[i]);
    int64_t inner = i == 0 ? n.inputs : widths[i];
    weight_gradient(n.rows, inner, width, input, inner, d, width, weight_gradients[3 * i], width, 6);
    column_sums(n.rows, width, d, width, weight_gradients[3 * i + 1]);
    column_sums(chunks, width, scales + chunks * offset, width, weight_gradients[3 * i + 2]);
    offset += width;
  }
  if (n.outputs) {
    int64_t last = widths[n.layers];
    weight_gradient(n.rows, last, outputs, acts + n.rows * (offset - last), last, gradient, outputs,
                    weight_gradients[3 * n.layers], outputs, 6);
    column_sums(n.rows, outputs, gradient, outputs, weight_gradients[3 * n.layers + 1]);
  }
  if (n.groups) {
    auto index = [&](int64_t r, int64_t s) { return static_cast<int64_t>(stoch[r * n.groups + s]); };
    latent_gradient(n.rows, widths[1], n.groups, n.classes, index, d_pre, widths[1],
                    weight_gradients[0] + n.inputs * widths[1], 6);
  }
}
