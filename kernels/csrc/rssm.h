// The recurrent core of the world model on the rows of one thread. Source: SPEC 2.3.
#pragma once

#include "layers.h"

namespace {

struct Sizes {
  int64_t rows, time, deter, blocks, hidden, groups, classes, action, embed;
  int64_t latent() const { return groups * classes; }
  int64_t block() const { return deter / blocks; }
};

// Pointers of rssm_core.Core in its order.
struct CoreArgs {
  const float *deter, *deter_bias, *deter_scale, *stoch, *stoch_bias, *stoch_scale, *action, *action_bias,
      *action_scale, *hidden, *hidden_bias, *hidden_scale, *gru, *gru_bias;
};

struct Core {
  Weights deter, action, shared;  // shared: dynhid0's rows for the embeddings, (3M, D)
  const float* own;               // dynhid0's rows for its own block of deter: packed (D/G, D/G) per block
  const float* gru;               // packed (D/G, 3D/G) per block
  int64_t own_size, gru_size;
};

// Packs dynhid0's shared rows of every block side by side: (3M, D).
inline const float* pack_shared(Packer& packer, const CoreArgs& args, const Sizes& n) {
  int64_t inputs = n.block() + 3 * n.hidden;
  float* dense = fd::scratch(1, 3 * n.hidden * n.deter);
  for (int64_t g = 0; g < n.blocks; ++g)
    for (int64_t k = 0; k < 3 * n.hidden; ++k)
      memcpy(dense + k * n.deter + g * n.block(), args.hidden + (g * inputs + n.block() + k) * n.block(),
             n.block() * sizeof(float));
  return packer.plain(dense, n.deter, 3 * n.hidden, n.deter);
}

inline Core pack_core(Packer& packer, const CoreArgs& args, const Sizes& n) {
  Core core{};
  int64_t inputs = n.block() + 3 * n.hidden, width = n.block();
  core.deter = {packer.plain(args.deter, n.hidden, n.deter, n.hidden), args.deter_bias, args.deter_scale, n.deter,
                n.hidden};
  core.action = {packer.plain(args.action, n.hidden, n.action, n.hidden), args.action_bias, args.action_scale, n.action,
                 n.hidden};
  core.shared = {pack_shared(packer, args, n), args.hidden_bias, args.hidden_scale, 3 * n.hidden, n.deter};
  core.own_size = packed_size(width, width);
  core.gru_size = packed_size(width, 3 * width);
  core.own = packer.memory + packer.used;
  for (int64_t g = 0; g < n.blocks; ++g) packer.plain(args.hidden + g * inputs * width, width, width, width);
  core.gru = packer.memory + packer.used;
  for (int64_t g = 0; g < n.blocks; ++g) packer.plain(args.gru + g * width * 3 * width, 3 * width, width, 3 * width);
  return core;
}

// x / max(1, |x|), zero where keep is 0.
inline void scale_action(int64_t rows, int64_t n, ConstRows x, const uint8_t* keep, Rows out) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < n; ++i) {
      float value = x[r][i], size = value < 0 ? -value : value;
      out[r][i] = keep != nullptr && !keep[r] ? 0.0f : value / max_of(size, 1.0f);
    }
}

// What one step computes on its way, for the backward pass to read; ld as fits.
struct StepRows {
  Rows embeds_in, embeds;  // (3M): before norm_act and after it; the action's third is the caller's work
  Rows hidden_in, hidden;  // (D)
  Rows gates;              // (3D), block by block; or (3D/G) for one block after the other
  bool keep_gates;
};

// deter (rows, D) -> out (rows, D). The embedding of the stochastic state is in embeds_in already.
inline void core_step(int64_t rows, const CoreArgs& args, const Core& core, const Sizes& n, ConstRows deter,
                      const StepRows& step, Rows out) {
  int64_t width = n.block();
  linear(rows, core.deter, deter, step.embeds_in);
  norm_act(rows, n.hidden, constant(step.embeds_in), args.deter_scale, step.embeds);
  norm_act(rows, n.hidden, constant(step.embeds_in.from(n.hidden)), args.stoch_scale, step.embeds.from(n.hidden));
  linear(rows, core.shared, constant(step.embeds), step.hidden_in);
  for (int64_t g = 0; g < n.blocks; ++g) {
    Weights own{core.own + g * core.own_size, nullptr, nullptr, width, width};
    linear_add(rows, own, deter.from(g * width), step.hidden_in.from(g * width));
  }
  norm_act(rows, n.deter, constant(step.hidden_in), args.hidden_scale, step.hidden);
  for (int64_t g = 0; g < n.blocks; ++g) {
    Weights gru{core.gru + g * core.gru_size, args.gru_bias + g * 3 * width, nullptr, width, 3 * width};
    Rows gates = step.gates.from(step.keep_gates ? g * 3 * width : 0);
    linear(rows, gru, constant(step.hidden.from(g * width)), gates);
    for (int64_t r = 0; r < rows; ++r) gru_gates(width, gates[r], deter[r] + g * width, out[r] + g * width);
  }
}

}  // namespace
