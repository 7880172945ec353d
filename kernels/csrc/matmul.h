// Matrix products on one thread. The right-hand side is packed into panels of kPanel columns, so that the inner loop
// reads memory in order; a tile of rows x kPanel outputs stays in registers while it runs over the inner dimension.
#pragma once

#include "pool.h"
#include "simd.h"

namespace {

constexpr int kPanel = 2 * kWidth;
constexpr int64_t kDepth = 384;  // inner steps per pass: a panel's part stays in the first-level cache

inline int64_t panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
inline int64_t packed_size(int64_t inner, int64_t columns) { return panels(columns) * kPanel * inner; }

// right (inner, columns) with element (k, n) at right[k * row + n * column] -> panels of [inner][kPanel], zero-filled.
inline void pack(float* to, const float* right, int64_t row, int64_t column, int64_t inner, int64_t columns) {
  for (int64_t p = 0; p < columns; p += kPanel) {
    int64_t width = min_of<int64_t>(kPanel, columns - p);
    for (int64_t k = 0; k < inner; ++k, to += kPanel) {
      const float* from = right + k * row + p * column;
      if (column == 1 && width == kPanel) {
        store(to, load(from));
        store(to + kWidth, load(from + kWidth));
      } else {
        for (int64_t n = 0; n < kPanel; ++n) to[n] = n < width ? from[n * column] : 0.0f;
      }
    }
  }
}

template <int rows>
inline void tile(int64_t inner, const float* left, int64_t row, int64_t step, const float* panel, float* out, int64_t ld,
                 const float* bias, bool add, int64_t width) {
  // Every column starts from its bias or its old value, also in the last panel: mirrored bins of a two-hot head must stay
  // equal to the last bit, since the outer ones are multiplied by 5e8.
  Vec acc[rows][2];
  float line[kPanel] = {};
  for (int i = 0; i < rows; ++i) {
    const float* from = add ? out + i * ld : bias;
    if (from != nullptr && width < kPanel) {
      memcpy(line, from, width * sizeof(float));
      from = line;
    }
    for (int j = 0; j < 2; ++j) acc[i][j] = from != nullptr ? load(from + j * kWidth) : Vec{};
  }
  for (int64_t k = 0; k < inner; ++k, panel += kPanel, left += step) {
    Vec b0 = load(panel), b1 = load(panel + kWidth);
#pragma GCC unroll 12
    for (int i = 0; i < rows; ++i) {
      Vec a = splat(left[i * row]);
      acc[i][0] += a * b0;
      acc[i][1] += a * b1;
    }
  }
  for (int i = 0; i < rows; ++i) {
    float* to = width == kPanel ? out + i * ld : line;
    for (int j = 0; j < 2; ++j) store(to + j * kWidth, acc[i][j]);
    if (width < kPanel) memcpy(out + i * ld, line, width * sizeof(float));
  }
}

template <int rows>
inline void tile_of(int64_t count, int64_t inner, const float* left, int64_t row, int64_t step, const float* panel,
                    float* out, int64_t ld, const float* bias, bool add, int64_t width) {
  if constexpr (rows > 0) {
    if (count == rows) return tile<rows>(inner, left, row, step, panel, out, ld, bias, add, width);
    tile_of<rows - 1>(count, inner, left, row, step, panel, out, ld, bias, add, width);
  }
}

// out (rows, columns), row stride ld, = left (rows, inner) packed + bias, or += without bias if `add`. Element (i, k) of
// left is left[i * row + k * step].
inline void matmul(int64_t rows, int64_t columns, int64_t inner, const float* left, int64_t row, int64_t step,
                   const float* packed, float* out, int64_t ld, const float* bias, bool add = false) {
  int64_t blocks = (rows + kMaxRows - 1) / kMaxRows;
  for (int64_t k = 0; k < inner; k += kDepth) {
    int64_t depth = min_of(kDepth, inner - k);
    for (int64_t n = 0; n < columns; n += kPanel) {
      const float* panel = packed + n * inner + k * kPanel;
      int64_t width = min_of<int64_t>(kPanel, columns - n);
      for (int64_t block = 0, i = 0; block < blocks; ++block) {  // rows spread evenly: 16 are 6 + 5 + 5
        int64_t count = (rows - i + blocks - block - 1) / (blocks - block);
        tile_of<kMaxRows>(count, depth, left + i * row + k * step, row, step, panel, out + i * ld + n, ld,
                          bias == nullptr ? nullptr : bias + n, add || k > 0, width);
        i += count;
      }
    }
  }
}

// gradient (inner, columns), row stride ld, = input^T (inner, rows) output (rows, columns), in parallel over parts of the
// gradient: the same sums on any number of threads. copy(r, first, height, to) writes elements first..first+height-1 of
// row r of the input. Uses two scratch slots from `slot` on.
template <class Copy>
inline void weight_gradient(int64_t rows, int64_t inner, int64_t columns, const Copy& copy, const float* output,
                            int64_t output_ld, float* gradient, int64_t ld, int slot) {
  constexpr int64_t kInner = 16 * kMaxRows, kColumns = 16 * kPanel, kRows = 256;
  const int64_t tall = (inner + kInner - 1) / kInner, wide = (columns + kColumns - 1) / kColumns;
  fd::parallel(tall * wide, [&](int64_t part) {
    int64_t first = part / wide * kInner, height = min_of(kInner, inner - first);
    int64_t column = part % wide * kColumns, width = min_of(kColumns, columns - column);
    for (int64_t i = 0; i < height && rows == 0; ++i)
      memset(gradient + (first + i) * ld + column, 0, width * sizeof(float));
    float* left = fd::scratch(slot, kRows * kInner);  // side by side: at a stride of pages every line misses the cache
    float* right = fd::scratch(slot + 1, kRows * kColumns);
    for (int64_t r = 0; r < rows; r += kRows) {
      int64_t depth = min_of(kRows, rows - r);
      for (int64_t i = 0; i < depth; ++i) copy(r + i, first, height, left + i * height);
      pack(right, output + r * output_ld + column, output_ld, 1, depth, width);
      matmul(height, width, depth, left, 1, height, right, gradient + first * ld + column, ld, nullptr, r > 0);
    }
  });
}

inline void weight_gradient(int64_t rows, int64_t inner, int64_t columns, const float* input, int64_t input_ld,
                            const float* output, int64_t output_ld, float* gradient, int64_t ld, int slot) {
  auto copy = [&](int64_t r, int64_t first, int64_t height, float* to) {
    const float* from = input + r * input_ld + first;
    for_vectors(height, [&](int64_t i, int64_t count) { store(to + i, load(from + i, count), count); });
  };
  weight_gradient(rows, inner, columns, copy, output, output_ld, gradient, ld, slot);
}

// sums (columns) over rows.
inline void column_sums(int64_t rows, int64_t columns, const float* x, int64_t ld, float* sums) {
  for_vectors(columns, [&](int64_t n, int64_t count) {
    Vec total{};
    for (int64_t r = 0; r < rows; ++r) total += load(x + r * ld + n, count);
    store(sums + n, total, count);
  });
}

}  // namespace
