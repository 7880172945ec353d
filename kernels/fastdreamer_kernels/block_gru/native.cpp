// The GRU tail on the CPU: norm and SiLU row by row, then the gates block by block. Source: SPEC 2.3.
#include "layers.h"

namespace {

constexpr int64_t kNormRows = 64;   // rows per task of the norms, and per partial sum of the gradient of the scale
constexpr int64_t kGateRows = 256;  // rows per task of the gates; every task packs the kernel of its block

inline int64_t parts(int64_t n, int64_t part) { return (n + part - 1) / part; }

// body(first, rows) over the pool.
template <class F>
inline void for_rows(int64_t rows, const F& body) {
  fd::parallel(parts(rows, kNormRows), [&](int64_t task) {
    body(task * kNormRows, min_of(kNormRows, rows - task * kNormRows));
  });
}

// body(block, first, rows) over the pool.
template <class F>
inline void for_block_rows(int64_t blocks, int64_t rows, const F& body) {
  fd::parallel(blocks * parts(rows, kGateRows), [&](int64_t task) {
    int64_t first = task / blocks * kGateRows;
    body(task % blocks, first, min_of(kGateRows, rows - first));
  });
}

}  // namespace

// hidden, deter, out (rows, D), scale (D), kernel (G, D/G, 3D/G), bias (3D), gates (rows, 3D), rstd (rows).
FD_OP(block_gru)
(int64_t rows, int64_t deter_width, int64_t blocks, const float* hidden, const float* scale, const float* kernel,
 const float* bias, const float* deter, float* out, float* gates, float* rstd) {
  const int64_t width = deter_width / blocks, gates_width = 3 * deter_width;
  const Rows act{fd::scratch(0, rows * deter_width), deter_width};
  for_rows(rows, [&](int64_t first, int64_t count) {
    const ConstRows x{hidden + first * deter_width, deter_width};
    norm_act(count, deter_width, x, scale, act.below(first));
    for (int64_t r = 0; r < count; ++r) rstd[first + r] = inverse_rms(x[r], deter_width);
  });
  for_block_rows(blocks, rows, [&](int64_t block, int64_t first, int64_t count) {
    float* packed = fd::scratch(1, packed_size(width, 3 * width));
    pack(packed, kernel + block * width * 3 * width, 3 * width, 1, width, 3 * width);
    const Weights weights{packed, bias + block * 3 * width, nullptr, width, 3 * width};
    const Rows z = Rows{gates, gates_width}.below(first).from(block * 3 * width);
    linear(count, weights, constant(act.below(first).from(block * width)), z);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t at = (first + r) * deter_width + block * width;
      gru_gates(width, z[r], deter + at, out + at);
    }
  });
}

// rstd is not read: the norm's backward forms it again.
FD_OP(block_gru_backward)
(int64_t rows, int64_t deter_width, int64_t blocks, const float* gradient, const float* hidden, const float* scale,
 const float* kernel, const float* deter, const float* gates, float* hidden_gradient, float* scale_gradient,
 float* kernel_gradient, float* bias_gradient, float* deter_gradient) {
  const int64_t width = deter_width / blocks, gates_width = 3 * deter_width;
  const Rows act{fd::scratch(0, rows * deter_width), deter_width};
  const Rows act_gradient{fd::scratch(1, rows * deter_width), deter_width};
  const Rows gates_gradient{fd::scratch(2, rows * gates_width), gates_width};
  const Rows scale_parts{fd::scratch(3, parts(rows, kNormRows) * deter_width), deter_width};
  for_block_rows(blocks, rows, [&](int64_t block, int64_t first, int64_t count) {
    float* packed = fd::scratch(4, packed_size(3 * width, width));
    pack(packed, kernel + block * width * 3 * width, 1, 3 * width, 3 * width, width);  // transposed
    const Rows z = gates_gradient.below(first).from(block * 3 * width);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t at = (first + r) * deter_width + block * width;
      gru_gates_backward(width, gradient + at, gates + (first + r) * gates_width + block * 3 * width, deter + at, z[r],
                         deter_gradient + at);
    }
    linear(count, {packed, nullptr, nullptr, 3 * width, width}, constant(z), act_gradient.below(first).from(block * width));
  });
  for_rows(rows, [&](int64_t first, int64_t count) {
    const ConstRows x{hidden + first * deter_width, deter_width};
    const Rows sums{scale_parts[first / kNormRows], 0};  // one row for all: they add up
    memset(sums.data, 0, deter_width * sizeof(float));
    norm_act_backward(count, deter_width, constant(act_gradient.below(first)), x, scale,
                      {hidden_gradient + first * deter_width, deter_width}, act.below(first), sums, true);
  });
  column_sums(parts(rows, kNormRows), deter_width, scale_parts.data, deter_width, scale_gradient);
  fd::parallel(blocks, [&](int64_t block) {
    const int64_t at = block * 3 * width;
    column_sums(rows, 3 * width, gates_gradient.data + at, gates_width, bias_gradient + at);
  });
  for (int64_t block = 0; block < blocks; ++block)
    weight_gradient(rows, width, 3 * width, act.data + block * width, deter_width,
                    gates_gradient.data + block * 3 * width, gates_width, kernel_gradient + block * width * 3 * width,
                    3 * width, 4);
}
