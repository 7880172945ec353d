// The posterior scan on the CPU, forward and backward. Rows are independent of each other, so each thread runs all T
// steps of some of them. The backward scan forms gradients of activations only; those of the weights follow at the end,
// over all T*B rows at once. Work arrays are time-major, (T, B, ...); tensors of the caller are (B, T, ...).
#include "rssm.h"

namespace {

constexpr int64_t kMostRows = 64;

// Sizes, arguments and work arrays that the two directions share.
struct Scan {
  Sizes n;
  int64_t layers;
  const int64_t* widths;  // of the posterior: inputs, layers, output
  CoreArgs core;
  const float* const* post;

  int64_t all() const { return n.rows * n.time; }
  int64_t post_inputs() const {  // sum of the widths of the hidden layers
    int64_t total = 0;
    for (int64_t i = 0; i < layers; ++i) total += widths[i + 1];
    return total;
  }
  // Rows per task: every weight is read once per task and step, so as many as leave no thread without.
  int64_t part() const {
    int64_t even = (n.rows + fd::thread_count() - 1) / fd::thread_count();
    return max_of<int64_t>(1, min_of(even, kMostRows));
  }
};

// sizes: B, T, D, G, M, S, K, A, E, posterior layers.
inline Scan make_scan(const int64_t* sizes, const float* const* core, const float* const* post, const int64_t* widths) {
  Scan scan{{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8]},
            sizes[9], widths, {}, post};
  memcpy(&scan.core, core, sizeof scan.core);
  return scan;
}

// What the forward pass leaves for the backward pass, in one array (`saved_like` in native.py).
struct Saved {
  float *deter, *action, *embeds_in, *hidden_in, *gates, *post_in;

  Saved(const Scan& scan, float* memory) {
    const Sizes& n = scan.n;
    int64_t used = 0;
    auto take = [&](int64_t width) {
      float* at = memory + used;
      used += width * scan.all();
      return at;
    };
    deter = take(n.deter);  // before the step, zero where is_first
    action = take(n.action);
    embeds_in = take(3 * n.hidden);
    hidden_in = take(n.deter);
    gates = take(3 * n.deter);
    post_in = take(scan.post_inputs());  // layer after layer, each (T, B, width)
  }
};

// keep[b, t] = not is_first; time-major rows of `from` (B, T, width).
inline void to_time_major(const Scan& scan, int64_t width, const float* from, float* to) {
  const Sizes& n = scan.n;
  for (int64_t b = 0; b < n.rows; ++b)
    for (int64_t t = 0; t < n.time; ++t)
      memcpy(to + (t * n.rows + b) * width, from + (b * n.time + t) * width, width * sizeof(float));
}

}  // namespace

// is_first: (B, T) bytes. Outputs deters, stochs, onehots, logits (B, T, ...).
FD_OP(observe_sequence)
(const int64_t* sizes, const float* const* core_args, const float* const* post_args, const int64_t* widths,
 const float* start_deter, const int32_t* start_stoch, const float* embed, const float* action, const uint8_t* is_first,
 const float* uniform, float unimix, float* deters, int32_t* stochs, float* onehots, float* logits, float* memory) {
  const Scan scan = make_scan(sizes, core_args, post_args, widths);
  const Sizes& n = scan.n;
  const Saved saved(scan, memory);
  const int64_t first_width = widths[1], part = scan.part();
  struct All {
    Core core;
    Weights tokens;
    Head post;  // its first layer without the tokens' part
  } w = packed_weights(0, [&](Packer& packer) {
    All all{};
    all.core = pack_core(packer, scan.core, n);
    all.tokens = {packer.plain(post_args[0] + n.deter * first_width, first_width, n.embed, first_width), post_args[1],
                  nullptr, n.embed, first_width};
    all.post = pack_head(packer, post_args, widths, scan.layers, n.deter);
    return all;
  });
  int64_t wide = n.latent();
  for (int64_t i = 0; i < scan.layers; ++i) wide = max_of(wide, widths[i + 1]);
  fd::parallel((n.rows + part - 1) / part, [&](int64_t task) {
    int64_t first = task * part, rows = min_of(part, n.rows - first);
    auto buffer = [&](int slot, int64_t width) { return Rows{fd::scratch(slot, part * width), width}; };
    Rows embeds = buffer(2, 3 * n.hidden), hidden = buffer(3, n.deter), act = buffer(4, wide);
    uint8_t keep[kMostRows];
    int32_t* latent = reinterpret_cast<int32_t*>(fd::scratch(5, part * n.groups));
    for (int64_t r = 0; r < rows; ++r)
      memcpy(latent + r * n.groups, start_stoch + (first + r) * n.groups, n.groups * sizeof(int32_t));
    for (int64_t t = 0; t < n.time; ++t) {
      auto work = [&](float* array, int64_t width) { return Rows{array + (t * n.rows + first) * width, width}; };
      auto given = [&](const float* array, int64_t width) {
        return ConstRows{array + (first * n.time + t) * width, n.time * width};
      };
      Rows old = work(saved.deter, n.deter), scaled = work(saved.action, n.action);
      Rows embeds_in = work(saved.embeds_in, 3 * n.hidden);
      Rows deter{deters + (first * n.time + t) * n.deter, n.time * n.deter};
      ConstRows before = t == 0 ? ConstRows{start_deter + first * n.deter, n.deter} : given(deters - n.deter, n.deter);
      for (int64_t r = 0; r < rows; ++r) {
        keep[r] = !is_first[(first + r) * n.time + t];
        if (keep[r])
          memcpy(old[r], before[r], n.deter * sizeof(float));
        else
          memset(old[r], 0, n.deter * sizeof(float));
      }
      scale_action(rows, n.action, given(action, n.action), keep, scaled);
      Rows action_embed = embeds_in.from(2 * n.hidden);
      linear(rows, w.core.action, constant(scaled), action_embed);
      norm_act(rows, n.hidden, constant(action_embed), scan.core.action_scale, embeds.from(2 * n.hidden));
      gather_rows(rows, n.hidden, n.groups, n.classes, latent, n.groups, keep, 1, scan.core.stoch, scan.core.stoch_bias,
                  embeds_in.from(n.hidden));
      core_step(rows, scan.core, w.core, n, constant(old),
                {embeds_in, embeds, work(saved.hidden_in, n.deter), hidden, work(saved.gates, 3 * n.deter), true}, deter);
      float* post_in = saved.post_in;
      for (int64_t i = 0; i < scan.layers; ++i) {
        int64_t width = widths[i + 1];
        Rows pre = work(post_in, width);
        if (i == 0) {
          linear(rows, w.tokens, given(embed, n.embed), pre);
          linear_add(rows, w.post.layers[0], constant(deter), pre);
        } else {
          linear(rows, w.post.layers[i], constant(act), pre);
        }
        norm_act(rows, width, constant(pre), w.post.layers[i].scale, act);
        post_in += scan.all() * width;
      }
      Rows out{logits + (first * n.time + t) * n.latent(), n.time * n.latent()};
      linear(rows, w.post.output, constant(act), out);
      for (int64_t r = 0; r < rows; ++r) {
        int64_t at = (first + r) * n.time + t;
        float* onehot = onehots + at * n.latent();
        mixed_probs(n.groups, n.classes, out[r], unimix, onehot);
        for (int64_t s = 0; s < n.groups; ++s) {
          int32_t index = draw(n.classes, onehot + s * n.classes, uniform[at * n.groups + s]);
          stochs[at * n.groups + s] = latent[r * n.groups + s] = index;
        }
        memset(onehot, 0, n.latent() * sizeof(float));
        for (int64_t s = 0; s < n.groups; ++s) onehot[s * n.classes + latent[r * n.groups + s]] = 1.0f;
      }
    }
  });
}

// Gradients of the core's 14 tensors, of the posterior's, and of embed (B, T, E).
FD_OP(observe_sequence_backward)
(const int64_t* sizes, const float* const* core_args, const float* const* post_args, const int64_t* widths,
 const float* deter_gradient, const float* onehot_gradient, const float* logit_gradient, const int32_t* start_stoch,
 const float* embed, const uint8_t* is_first, const float* deters, const int32_t* stochs, const float* logits,
 float* memory, float unimix, float* const* core_gradient, float* const* post_gradient, float* embed_gradient) {
  const Scan scan = make_scan(sizes, core_args, post_args, widths);
  const Sizes& n = scan.n;
  const Saved saved(scan, memory);
  const int64_t width = n.block(), hidden3 = 3 * n.hidden, all = scan.all(), latent = n.latent(),
                part = scan.part();
  const CoreArgs& args = scan.core;
  struct All {
    const float *deter, *stoch, *shared, *own, *gru, *tokens;  // transposed
    const float *layers[Head::kMaxLayers], *output;
  } w = packed_weights(0, [&](Packer& packer) {
    All a{};
    a.deter = packer.transposed(args.deter, n.hidden, n.deter, n.hidden);
    a.stoch = packer.transposed(args.stoch, n.hidden, latent, n.hidden);
    int64_t inputs = width + hidden3;
    a.shared = packer.memory + packer.used;  // per block (D/G, 3M)
    for (int64_t g = 0; g < n.blocks; ++g)
      packer.transposed(args.hidden + (g * inputs + width) * width, width, hidden3, width);
    a.own = packer.memory + packer.used;
    for (int64_t g = 0; g < n.blocks; ++g) packer.transposed(args.hidden + g * inputs * width, width, width, width);
    a.gru = packer.memory + packer.used;
    for (int64_t g = 0; g < n.blocks; ++g) packer.transposed(args.gru + g * 3 * width * width, 3 * width, width, 3 * width);
    for (int64_t i = 0; i < scan.layers; ++i)
      a.layers[i] = packer.transposed(post_args[3 * i], widths[i + 1], i == 0 ? n.deter : widths[i], widths[i + 1]);
    a.tokens = packer.transposed(post_args[0] + n.deter * widths[1], widths[1], n.embed, widths[1]);
    a.output = packer.transposed(post_args[3 * scan.layers], latent, widths[scan.layers], latent);
    return a;
  });
  // Time-major gradients of what the weights gave, and activations that are needed again; one scratch of the caller.
  struct Work {
    float *logits, *post, *gates, *hidden, *hidden_act, *embeds, *embeds_act, *post_act, *deter;
  } work{};
  struct Scales {
    float *post, *hidden, *embeds;
  } scales{};
  {
    float* at = fd::scratch(1, all * (latent + 2 * scan.post_inputs() + 3 * n.deter + 3 * n.deter + 2 * hidden3) +
                                   n.rows * (scan.post_inputs() + n.deter + hidden3));
    auto take = [&](int64_t count) {
      float* from = at;
      at += count;
      return from;
    };
    work = {take(all * latent),  take(all * scan.post_inputs()), take(all * 3 * n.deter),       take(all * n.deter),
            take(all * n.deter), take(all * hidden3),            take(all * hidden3),           take(all * scan.post_inputs()),
            take(all * n.deter)};
    scales = {take(n.rows * scan.post_inputs()), take(n.rows * n.deter), take(n.rows * hidden3)};
    memset(scales.post, 0, n.rows * (scan.post_inputs() + n.deter + hidden3) * sizeof(float));
  }
  to_time_major(scan, n.deter, deters, work.deter);
  int64_t wide = latent;
  for (int64_t i = 0; i < scan.layers; ++i) wide = max_of(wide, widths[i + 1]);

  fd::parallel((n.rows + part - 1) / part, [&](int64_t task) {
    int64_t first = task * part, rows = min_of(part, n.rows - first);
    auto buffer = [&](int slot, int64_t columns) { return Rows{fd::scratch(slot, part * columns), columns}; };
    Rows carried = buffer(2, n.deter), carried_latent = buffer(3, latent), wide_gradient = buffer(4, wide);
    Rows gradient = buffer(5, n.deter), hidden_gradient = buffer(6, n.deter);
    Rows probs = buffer(7, latent);
    for (int64_t r = 0; r < rows; ++r) {
      memset(carried[r], 0, n.deter * sizeof(float));
      memset(carried_latent[r], 0, latent * sizeof(float));
    }
    for (int64_t t = n.time - 1; t >= 0; --t) {
      auto at = [&](float* array, int64_t columns) { return Rows{array + (t * n.rows + first) * columns, columns}; };
      Rows d_logits = at(work.logits, latent);
      for (int64_t r = 0; r < rows; ++r) {
        int64_t row = ((first + r) * n.time + t) * latent;
        for_vectors(latent, [&](int64_t i, int64_t count) {
          store(carried_latent[r] + i, load(carried_latent[r] + i, count) + load(onehot_gradient + row + i, count), count);
        });
        mixed_probs(n.groups, n.classes, logits + row, 0.0f, probs[r]);
        mixed_probs_backward(n.groups, n.classes, carried_latent[r], probs[r], unimix, d_logits[r]);
        for_vectors(latent, [&](int64_t i, int64_t count) {
          store(d_logits[r] + i, load(d_logits[r] + i, count) + load(logit_gradient + row + i, count), count);
        });
        int64_t state = ((first + r) * n.time + t) * n.deter;
        for_vectors(n.deter, [&](int64_t i, int64_t count) {
          store(gradient[r] + i, load(carried[r] + i, count) + load(deter_gradient + state + i, count), count);
        });
      }
      Rows upstream = d_logits;
      const float* packed = w.output;
      int64_t columns = latent, offset = scan.post_inputs();
      for (int64_t i = scan.layers - 1; i >= 0; --i) {
        int64_t layer_width = widths[i + 1];
        offset -= layer_width;
        Rows pre = at(saved.post_in + all * offset, layer_width), d_pre = at(work.post + all * offset, layer_width);
        matmul(rows, layer_width, columns, upstream.data, upstream.ld, 1, packed, wide_gradient.data, wide_gradient.ld,
               nullptr);
        norm_act_backward(rows, layer_width, constant(wide_gradient), constant(pre), post_args[3 * i + 2], d_pre,
                          at(work.post_act + all * offset, layer_width),
                          Rows{scales.post + n.rows * offset + first * layer_width, layer_width}, true);
        upstream = d_pre;
        packed = w.layers[i];
        columns = layer_width;
      }
      matmul(rows, n.deter, columns, upstream.data, upstream.ld, 1, packed, gradient.data, gradient.ld, nullptr, true);
      // the gates, then the hidden layer
      Rows old = at(saved.deter, n.deter), gates = at(saved.gates, 3 * n.deter), d_gates = at(work.gates, 3 * n.deter);
      Rows hidden_in = at(saved.hidden_in, n.deter), d_hidden = at(work.hidden, n.deter);
      for (int64_t g = 0; g < n.blocks; ++g) {
        for (int64_t r = 0; r < rows; ++r)
          gru_gates_backward(width, gradient[r] + g * width, gates[r] + g * 3 * width, old[r] + g * width,
                             d_gates[r] + g * 3 * width, carried[r] + g * width);
        matmul(rows, width, 3 * width, d_gates.data + g * 3 * width, d_gates.ld, 1,
               w.gru + g * packed_size(3 * width, width), hidden_gradient.data + g * width, hidden_gradient.ld, nullptr);
      }
      norm_act_backward(rows, n.deter, constant(hidden_gradient), constant(hidden_in), args.hidden_scale, d_hidden,
                        at(work.hidden_act, n.deter), Rows{scales.hidden + first * n.deter, n.deter}, true);
      Rows d_embeds = at(work.embeds, hidden3), embeds_in = at(saved.embeds_in, hidden3);
      for (int64_t g = 0; g < n.blocks; ++g) {
        matmul(rows, width, width, d_hidden.data + g * width, d_hidden.ld, 1, w.own + g * packed_size(width, width),
               carried.data + g * width, carried.ld, nullptr, true);
        matmul(rows, hidden3, width, d_hidden.data + g * width, d_hidden.ld, 1,
               w.shared + g * packed_size(width, hidden3), d_embeds.data, d_embeds.ld, nullptr, g > 0);
      }
      const float* const embed_scales[3] = {args.deter_scale, args.stoch_scale, args.action_scale};
      for (int64_t i = 0; i < 3; ++i) {
        Rows pre = embeds_in.from(i * n.hidden), d = d_embeds.from(i * n.hidden);
        norm_act_backward(rows, n.hidden, constant(d), constant(pre), embed_scales[i], d,
                          at(work.embeds_act, hidden3).from(i * n.hidden),
                          Rows{scales.embeds + first * hidden3 + i * n.hidden, hidden3}, true);
      }
      matmul(rows, n.deter, n.hidden, d_embeds.data, d_embeds.ld, 1, w.deter, carried.data, carried.ld, nullptr, true);
      matmul(rows, latent, n.hidden, d_embeds.data + n.hidden, d_embeds.ld, 1, w.stoch, carried_latent.data,
             carried_latent.ld, nullptr);
      for (int64_t r = 0; r < rows; ++r)
        if (is_first[(first + r) * n.time + t]) {
          memset(carried[r], 0, n.deter * sizeof(float));
          memset(carried_latent[r], 0, latent * sizeof(float));
        }
    }
  });

  // Weights, over all rows.
  float* dense = fd::scratch(8, max_of(hidden3 * width, max_of(all * n.embed, all * widths[1])));
  auto scale_sums = [&](int64_t columns, const float* rows, int64_t ld, float* to) {
    column_sums(n.rows, columns, rows, ld, to);
  };
  auto weights = [&](int64_t inner, int64_t columns, const float* input, int64_t input_ld, const float* output,
                     int64_t output_ld, float* kernel, float* bias) {
    weight_gradient(all, inner, columns, input, input_ld, output, output_ld, kernel, columns, 9);
    if (bias != nullptr) column_sums(all, columns, output, output_ld, bias);
  };
  weights(n.deter, n.hidden, saved.deter, n.deter, work.embeds, hidden3, core_gradient[0], core_gradient[1]);
  weights(n.action, n.hidden, saved.action, n.action, work.embeds + 2 * n.hidden, hidden3, core_gradient[6],
          core_gradient[7]);
  for (int64_t i = 0; i < 3; ++i) scale_sums(n.hidden, scales.embeds + i * n.hidden, hidden3, core_gradient[3 * i + 2]);
  auto index = [&](int64_t r, int64_t s) -> int64_t {
    int64_t t = r / n.rows, b = r % n.rows;
    if (is_first[b * n.time + t]) return -1;
    return t == 0 ? start_stoch[b * n.groups + s] : stochs[(b * n.time + t - 1) * n.groups + s];
  };
  latent_gradient(all, n.hidden, n.groups, n.classes, index, work.embeds + n.hidden, hidden3, core_gradient[3], 9);
  column_sums(all, n.hidden, work.embeds + n.hidden, hidden3, core_gradient[4]);
  for (int64_t g = 0; g < n.blocks; ++g) {
    const float* d = work.hidden + g * width;
    float* kernel = core_gradient[9] + g * (width + hidden3) * width;
    weights(width, width, saved.deter + g * width, n.deter, d, n.deter, kernel, nullptr);
    weights(hidden3, width, work.embeds_act, hidden3, d, n.deter, kernel + width * width, nullptr);
    weights(width, 3 * width, work.hidden_act + g * width, n.deter, work.gates + g * 3 * width, 3 * n.deter,
            core_gradient[12] + g * width * 3 * width, nullptr);
  }
  column_sums(all, n.deter, work.hidden, n.deter, core_gradient[10]);
  scale_sums(n.deter, scales.hidden, n.deter, core_gradient[11]);
  column_sums(all, 3 * n.deter, work.gates, 3 * n.deter, core_gradient[13]);
  int64_t offset = 0;
  for (int64_t i = 0; i < scan.layers; ++i) {
    int64_t inner = i == 0 ? n.deter : widths[i], columns = widths[i + 1];
    const float* input = i == 0 ? work.deter : work.post_act + all * (offset - widths[i]);
    const float* d = work.post + all * offset;
    weights(inner, columns, input, inner, d, columns, post_gradient[3 * i], post_gradient[3 * i + 1]);
    scale_sums(columns, scales.post + n.rows * offset, columns, post_gradient[3 * i + 2]);
    offset += columns;
  }
  weights(widths[scan.layers], latent, work.post_act + all * (offset - widths[scan.layers]), widths[scan.layers],
          work.logits, latent, post_gradient[3 * scan.layers], post_gradient[3 * scan.layers + 1]);
  // The tokens' part of the first layer, and their gradient.
  to_time_major(scan, n.embed, embed, dense);
  weights(n.embed, widths[1], dense, n.embed, work.post, widths[1], post_gradient[0] + n.deter * widths[1], nullptr);
  for (int64_t b = 0; b < n.rows; ++b)
    matmul(n.time, n.embed, widths[1], work.post + b * widths[1], n.rows * widths[1], 1, w.tokens,
           embed_gradient + b * n.time * n.embed, n.embed, nullptr);
}
