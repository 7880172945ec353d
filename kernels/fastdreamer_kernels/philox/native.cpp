// Philox4x32-10, and uniforms and normals from its words.
#include "isa.h"
#include "pool.h"

namespace {

constexpr int64_t kBatch = 64;  // blocks of four words side by side: what the compiler makes vectors of
constexpr int64_t kTaskBlocks = 64 * kBatch;
constexpr double kWord = 1.0 / 4294967296.0;

struct Words {
  uint32_t lane[4][kBatch];
};

inline void philox(uint32_t first, uint64_t counter, uint32_t k0, uint32_t k1, Words& out) {
  auto& c = out.lane;
  for (int64_t i = 0; i < kBatch; ++i) {
    c[0][i] = first + static_cast<uint32_t>(i);
    c[1][i] = static_cast<uint32_t>(counter);
    c[2][i] = static_cast<uint32_t>(counter >> 32);
    c[3][i] = 0;
  }
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
    for (int64_t i = 0; i < kBatch; ++i) {
      uint64_t a = uint64_t{0xD2511F53u} * c[0][i], b = uint64_t{0xCD9E8D57u} * c[2][i];
      uint32_t c1 = c[1][i], c3 = c[3][i];
      c[0][i] = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
      c[1][i] = static_cast<uint32_t>(b);
      c[2][i] = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
      c[3][i] = static_cast<uint32_t>(a);
    }
}

// Box-Muller; the half keeps the logarithm's argument above 0 and below 1.
inline void normals(uint32_t first, uint32_t second, float* two) {
  double radius = __builtin_sqrt(-2 * __builtin_log((first + 0.5) * kWord));
  double angle = second * (2 * 3.14159265358979323846 * kWord);
  two[0] = static_cast<float>(__builtin_cos(angle) * radius);
  two[1] = static_cast<float>(__builtin_sin(angle) * radius);
}

// body(block, words) for each of `blocks` blocks, over the pool.
template <class F>
inline void for_blocks(int64_t blocks, uint64_t counter, uint32_t k0, uint32_t k1, const F& body) {
  fd::parallel((blocks + kTaskBlocks - 1) / kTaskBlocks, [&](int64_t task) {
    int64_t end = min_of(blocks, (task + 1) * kTaskBlocks);
    for (int64_t first = task * kTaskBlocks; first < end; first += kBatch) {
      Words words;
      philox(static_cast<uint32_t>(first), counter, k0, k1, words);
      for (int64_t i = 0; i < min_of(kBatch, end - first); ++i) {
        const uint32_t block[4] = {words.lane[0][i], words.lane[1][i], words.lane[2][i], words.lane[3][i]};
        body(first + i, block);
      }
    }
  });
}

// The part of a block that lies inside of an array of `count` elements.
template <class T>
inline void put(T* out, int64_t count, int64_t block, const T* values) {
  memcpy(out + 4 * block, values, min_of<int64_t>(4, count - 4 * block) * sizeof(T));
}

}  // namespace

// kind: 0 words as int64, 1 uniforms, 2 normals; out: int64 or float accordingly.
FD_OP(philox)(int64_t kind, int64_t k0, int64_t k1, const int64_t* counter, int64_t count, void* out) {
  auto each = [&](const auto& body) {
    for_blocks((count + 3) / 4, static_cast<uint64_t>(*counter), static_cast<uint32_t>(k0), static_cast<uint32_t>(k1),
               body);
  };
  if (kind == 0)
    each([&](int64_t block, const uint32_t* words) {
      const int64_t wide[4] = {words[0], words[1], words[2], words[3]};
      put(static_cast<int64_t*>(out), count, block, wide);
    });
  else if (kind == 1)
    each([&](int64_t block, const uint32_t* words) {
      float u[4];
      for (int i = 0; i < 4; ++i) u[i] = static_cast<float>(static_cast<int32_t>(words[i] >> 8)) * 0x1p-24f;
      put(static_cast<float*>(out), count, block, u);
    });
  else
    each([&](int64_t block, const uint32_t* words) {
      float z[4];
      normals(words[0], words[1], z);
      normals(words[2], words[3], z + 2);
      put(static_cast<float*>(out), count, block, z);
    });
}
