// Every op is compiled once per instruction set into one library: FD_ISA is `base`, `v3` (AVX2, FMA) or `v4` (AVX-512).
// The symbol of an op ends in that name, and Python binds the best one that the processor runs. So that the linker never
// mixes them, everything here is `static` or in an unnamed namespace, and no standard header with code is included.
#pragma once

#include <stdint.h>
#include <string.h>

#define FD_JOIN_(name, isa) fd_##name##_##isa
#define FD_JOIN(name, isa) FD_JOIN_(name, isa)
#define FD_OP(name) extern "C" __attribute__((visibility("default"))) void FD_JOIN(name, FD_ISA)

namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;    // floats in a register
constexpr int kMaxRows = 12;  // rows of a matmul tile: with 2 registers of columns each they fill the register file
#elif defined(__AVX2__)
constexpr int kWidth = 8;
constexpr int kMaxRows = 6;
#else
constexpr int kWidth = 4;
constexpr int kMaxRows = 6;
#endif

template <class T>
inline T min_of(T a, T b) {
  return a < b ? a : b;
}
template <class T>
inline T max_of(T a, T b) {
  return a > b ? a : b;
}

}  // namespace
