// Uniform-mixed categorical sampling on the CPU, kWidth groups at a time; backward starts from the logits again. With
// q = (1 - u) softmax + u / K:
//
//     dq = donehot + onehot dlog_prob / q - dentropy log q        the 1 of the entropy's slope drops out
//     dlogits = (1 - u) softmax (dq - sum(softmax dq))
#include "categorical.h"

// logits, onehots (groups, classes); the others (groups).
FD_OP(unimix_sample)
(int64_t groups, int64_t classes, const float* logits, const float* uniforms, float unimix, int32_t* indices,
 float* onehots, float* log_probs, float* entropies) {
  const Mix mix{unimix, classes};
  parallel_rows(groups, classes, [&](int64_t begin, int64_t end) {
    Vec *log_q = class_vectors(0, 2, classes), *softmax = log_q + classes;
    for_groups(begin, end, [&](int64_t first, int64_t count) {
      load_groups(count, classes, logits + first * classes, log_q);
      mix(log_q, softmax);
      Vec uniform = load(uniforms + first, count), cdf{}, entropy{};
      IntVec index{};
      for (int64_t k = 0; k < classes; ++k) {
        Vec q = mix.mixed(softmax[k]);
        entropy -= times_log(q, log_q[k]);
        cdf += q;
        if (k + 1 < classes) index -= uniform >= cdf;  // the last class takes what is left
      }
      store(entropies + first, entropy, count);
      memset(onehots + first * classes, 0, count * classes * sizeof(float));
      for (int64_t i = 0; i < count; ++i) {
        indices[first + i] = index[i];
        onehots[(first + i) * classes + index[i]] = 1.0f;
        log_probs[first + i] = log_q[index[i]][i];
      }
    });
  });
}

FD_OP(unimix_sample_backward)
(int64_t groups, int64_t classes, const float* onehot_gradient, const float* log_prob_gradient,
 const float* entropy_gradient, const float* logits, const int32_t* indices, float unimix, float* gradient) {
  const Mix mix{unimix, classes};
  parallel_rows(groups, classes, [&](int64_t begin, int64_t end) {
    Vec *log_q = class_vectors(0, 3, classes), *softmax = log_q + classes, *out = softmax + classes;
    for_groups(begin, end, [&](int64_t first, int64_t count) {
      load_groups(count, classes, logits + first * classes, log_q);
      load_groups(count, classes, onehot_gradient + first * classes, out);
      mix(log_q, softmax);
      IntVec index{};
      memcpy(&index, indices + first, count * sizeof(int32_t));
      Vec of_log_prob = load(log_prob_gradient + first, count), of_entropy = load(entropy_gradient + first, count);
      Vec total{};
      for (int64_t k = 0; k < classes; ++k) {  // softmax dq rather than dq: finite where the softmax underflows
        Vec p = softmax[k];
        IntVec drawn = index == static_cast<int32_t>(k);
        out[k] = p * out[k] + select(drawn, of_log_prob * mix.share(p), Vec{}) - of_entropy * times_log(p, log_q[k]);
        total += out[k];
      }
      for (int64_t k = 0; k < classes; ++k) out[k] = (1 - unimix) * (out[k] - softmax[k] * total);
      store_groups(count, classes, out, gradient + first * classes);
    });
  });
}
