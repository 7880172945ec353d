// The rollout on the CPU: chunks of rows that each run all H steps, so that weights and activations stay in cache.
#include "rssm.h"

namespace {

constexpr float kMinStd = 0.1f, kMaxStd = 1.0f;
constexpr int64_t kPad = 16;  // floats
constexpr int64_t kMaxKeys = 32;

struct Output {
  Weights values[2];
  int64_t elements, classes;  // classes 0: mean and stddev of a continuous key
};

struct Policy {
  Head trunk;  // without its output
  const float* latent;  // the first layer's rows for the one-hot: (S*K, units)
  Output outputs[kMaxKeys];
  int64_t keys, width;  // width: of all outputs side by side
};


inline Policy pack_policy(Packer& packer, const float* const* args, const int64_t* widths, int64_t trunk,
                          const int64_t* keys, int64_t key_count, int64_t deter) {
  Policy policy{};
  policy.keys = key_count;
  policy.latent = args[0] + deter * widths[1];
  policy.trunk = pack_head(packer, args, widths, trunk, deter, false);
  args += 3 * trunk;
  for (int64_t k = 0; k < key_count; ++k) {
    Output& out = policy.outputs[k];
    out.elements = keys[2 * k];
    out.classes = keys[2 * k + 1];
    int64_t columns = out.elements * max_of<int64_t>(out.classes, 1);
    for (int64_t j = 0; j < (out.classes ? 1 : 2); ++j, args += 2, policy.width += columns)
      out.values[j] = {packer.plain(args[0], columns, widths[trunk], columns), args[1], nullptr, widths[trunk],
                       columns};
  }
  return policy;
}

// What mlp_backward needs of the policy, as mlp would leave it: outputs (states, W), and the layers before their norms, one
// (states, width) after the other. Row r of a step is state `first + r * stride`.
struct Kept {
  float *out, *saved;
  int64_t states, outputs, first, stride;

  void layer(int64_t rows, int64_t width, ConstRows x) {
    for (int64_t r = 0; r < rows; ++r) memcpy(saved + (first + r * stride) * width, x[r], width * sizeof(float));
    saved += states * width;
  }
  void output(int64_t rows, int64_t width, ConstRows x) {
    for (int64_t r = 0; r < rows; ++r) memcpy(out + (first + r * stride) * outputs, x[r], width * sizeof(float));
    out += width;
  }
};

// The flat action of every row from its features. a, b: rows of scratch as wide as the widest layer or output.
inline void act(int64_t rows, const Policy& policy, const Sizes& n, ConstRows deter, RowsOf<const int32_t> stoch,
                ConstRows noise, float unimix, Rows a, Rows b, Rows action, Kept kept) {
  const Head& trunk = policy.trunk;
  linear(rows, trunk.layers[0], deter, b);
  gather_rows(rows, trunk.layers[0].columns, n.groups, n.classes, stoch.data, stoch.ld, nullptr, 0, policy.latent,
              nullptr, b);
  for (int64_t i = 0; i < trunk.count; ++i) {
    int64_t width = trunk.layers[i].columns;
    if (i > 0) linear(rows, trunk.layers[i], constant(a), b);
    kept.layer(rows, width, constant(b));
    norm_act(rows, width, constant(b), trunk.layers[i].scale, a);
  }
  int64_t column = 0, element = 0;
  for (int64_t k = 0; k < policy.keys; ++k) {
    const Output& out = policy.outputs[k];
    int64_t columns = out.values[0].columns;
    linear(rows, out.values[0], constant(a), b);
    if (!out.classes) linear(rows, out.values[1], constant(a), b.from(columns));
    kept.output(rows, out.classes ? columns : 2 * columns, constant(b));
    if (out.classes) {
      for (int64_t r = 0; r < rows; ++r) {
        mixed_probs(out.elements, out.classes, b[r], unimix, b[r]);
        memset(action[r] + column, 0, columns * sizeof(float));
        for (int64_t e = 0; e < out.elements; ++e) {
          int32_t index = draw(out.classes, b[r] + e * out.classes, noise[r][element + e]);
          action[r][column + e * out.classes + index] = 1.0f;
        }
      }
    } else {
      for (int64_t r = 0; r < rows; ++r)
        for_vectors(columns, [&](int64_t i, int64_t count) {
          Vec std = (kMaxStd - kMinStd) * sigmoid(load(b[r] + columns + i, count) + 2.0f) + kMinStd;
          Vec value = vtanh(load(b[r] + i, count)) + std * load(noise[r] + element + i, count);
          store(action[r] + column + i, value, count);
        });
    }
    column += columns;
    element += out.elements;
  }
}

// The classes of every row from the prior of its deter. a, b: rows of scratch as wide as the widest layer or the logits.
inline void draw_latents(int64_t rows, const Head& prior, const Sizes& n, ConstRows deter, ConstRows uniform,
                         float unimix, Rows a, Rows b, RowsOf<int32_t> stoch) {
  ConstRows x = deter;
  for (int64_t i = 0; i < prior.count; ++i, x = constant(b)) {
    linear(rows, prior.layers[i], x, a);
    norm_act(rows, prior.layers[i].columns, constant(a), prior.layers[i].scale, b);
  }
  linear(rows, prior.output, x, a);
  for (int64_t r = 0; r < rows; ++r) {
    mixed_probs(n.groups, n.classes, a[r], unimix, a[r]);
    for (int64_t s = 0; s < n.groups; ++s) stoch[r][s] = draw(n.classes, a[r] + s * n.classes, uniform[r][s]);
  }
}

}  // namespace

// sizes: N, H, D, G, M, S, K, A, prior layers, trunk layers, action keys, elements, scratch width of the policy.
FD_OP(imagine_sequence)
(const int64_t* sizes, const float* const* core_args, const float* const* prior_args, const int64_t* prior_widths,
 const float* const* policy_args, const int64_t* policy_widths, const int64_t* keys, const float* start_deter,
 const int32_t* start_stoch, const float* uniform, const float* noise, float unimix, float actor_unimix, float* deters,
 int32_t* stochs, float* actions, float* policy_out, float* policy_saved) {
  Sizes n{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], 0};
  int64_t horizon = n.time, steps = horizon + 1, elements = sizes[11], wide = sizes[12];
  CoreArgs args;
  memcpy(&args, core_args, sizeof args);
  struct All {
    Core core;
    Head prior;
    Policy policy;
  } w = packed_weights(0, [&](Packer& packer) {
    return All{pack_core(packer, args, n), pack_head(packer, prior_args, prior_widths, sizes[8], n.deter),
               pack_policy(packer, policy_args, policy_widths, sizes[9], keys, sizes[10], n.deter)};
  });
  int64_t prior_wide = n.latent();
  for (int64_t i = 0; i < w.prior.count; ++i) prior_wide = max_of(prior_wide, w.prior.layers[i].columns);
  if (n.rows == 0) return;
  const int64_t most = 48, threads = fd::thread_count();
  const int64_t tasks = ((n.rows + most - 1) / most + threads - 1) / threads * threads;  // as much for each thread
  const int64_t chunk = (n.rows + tasks - 1) / tasks;
  fd::parallel(tasks, [&](int64_t task) {
    int64_t first = task * chunk, rows = min_of(chunk, n.rows - first);
    if (rows <= 0) return;
    // A cache line more than the width: rows at a stride of pages would push each other out of the cache.
    auto buffer = [&](int slot, int64_t width) {
      return Rows{fd::scratch(slot, chunk * (width + kPad)), width + kPad};
    };
    Rows embeds_in = buffer(2, 3 * n.hidden), embeds = buffer(3, 3 * n.hidden), hidden = buffer(4, n.deter);
    Rows gates = buffer(5, 3 * n.block()), scaled = buffer(6, n.action), a = buffer(7, wide), b = buffer(8, wide);
    Rows c = buffer(9, prior_wide), d = buffer(10, prior_wide), deter = buffer(11, n.deter), next = buffer(12, n.deter);
    auto keep = [&](Rows state, int64_t h) {
      for (int64_t r = 0; r < rows; ++r)
        memcpy(deters + ((first + r) * steps + h) * n.deter, state[r], n.deter * sizeof(float));
    };
    auto stoch = [&](int64_t h) {
      return RowsOf<int32_t>{stochs + (first * steps + h) * n.groups, steps * n.groups};
    };
    for (int64_t r = 0; r < rows; ++r) {
      memcpy(deter[r], start_deter + (first + r) * n.deter, n.deter * sizeof(float));
      memcpy(stoch(0)[r], start_stoch + (first + r) * n.groups, n.groups * sizeof(int32_t));
    }
    keep(deter, 0);
    for (int64_t h = 0; h < steps; ++h) {
      Rows action{actions + (first * steps + h) * n.action, steps * n.action};
      ConstRows step_noise{noise + (first * steps + h) * elements, steps * elements};
      RowsOf<const int32_t> latent{stoch(h).data, stoch(h).ld};
      act(rows, w.policy, n, constant(deter), latent, step_noise, actor_unimix, a, b, action,
          {policy_out, policy_saved, n.rows * steps, w.policy.width, first * steps + h, steps});
      if (h == horizon) break;
      scale_action(rows, n.action, constant(action), nullptr, scaled);
      Rows action_embed = embeds_in.from(2 * n.hidden);
      linear(rows, w.core.action, constant(scaled), action_embed);
      norm_act(rows, n.hidden, constant(action_embed), args.action_scale, embeds.from(2 * n.hidden));
      gather_rows(rows, n.hidden, n.groups, n.classes, latent.data, latent.ld, nullptr, 0, args.stoch, args.stoch_bias,
                  embeds_in.from(n.hidden));
      core_step(rows, args, w.core, n, constant(deter), {embeds_in, embeds, hidden, hidden, gates, false}, next);
      Rows old = deter;
      deter = next, next = old;
      keep(deter, h + 1);
      ConstRows u{uniform + (first * horizon + h) * n.groups, horizon * n.groups};
      draw_latents(rows, w.prior, n, constant(deter), u, unimix, c, d, stoch(h + 1));
    }
  });
}
