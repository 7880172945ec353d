// Both KL terms of the world model and both entropies on the CPU, kWidth groups at a time. With p, q the softmax and its
// mix of post, p', q' those of prior, u = unimix, and no gradient where a row's sum is below free_nats:
//
//     dpost  = (1 - u) drep p (a - sum(p a)),     a = log q - log q'
//     dprior = (1 - u) ddyn p' (b - sum(p' b)),   b = -q / q'
#include "categorical.h"

namespace {

inline float sum_of(int64_t n, const float* x) {
  float total = 0;
  for (int64_t i = 0; i < n; ++i) total += x[i];
  return total;
}

}  // namespace

// post, prior (rows, groups, classes); the others (rows).
FD_OP(unimix_kl)
(int64_t rows, int64_t groups, int64_t classes, const float* post, const float* prior, float unimix, float free_nats,
 float* dyn, float* rep, float* post_entropy, float* prior_entropy) {
  const Mix mix{unimix, classes};
  parallel_rows(rows, groups * classes, [&](int64_t begin, int64_t end) {
    Vec *log_q = class_vectors(0, 4, classes), *softmax = log_q + classes;
    Vec *log_q2 = softmax + classes, *softmax2 = log_q2 + classes;
    const int64_t all = (end - begin) * groups, offset = begin * groups;
    float *kl = fd::scratch(1, 3 * all), *entropy = kl + all, *entropy2 = entropy + all;
    for_groups(0, all, [&](int64_t first, int64_t count) {
      load_groups(count, classes, post + (offset + first) * classes, log_q);
      load_groups(count, classes, prior + (offset + first) * classes, log_q2);
      mix(log_q, softmax);
      mix(log_q2, softmax2);
      Vec of_kl{}, of_post{}, of_prior{};
      for (int64_t k = 0; k < classes; ++k) {
        Vec q = mix.mixed(softmax[k]), q2 = mix.mixed(softmax2[k]);
        of_kl += times_log(q, log_q[k] - log_q2[k]);
        of_post -= times_log(q, log_q[k]);
        of_prior -= times_log(q2, log_q2[k]);
      }
      store(kl + first, of_kl, count);
      store(entropy + first, of_post, count);
      store(entropy2 + first, of_prior, count);
    });
    for (int64_t r = begin; r < end; ++r) {
      const int64_t at = (r - begin) * groups;
      float total = sum_of(groups, kl + at);
      dyn[r] = rep[r] = total < free_nats ? free_nats : total;  // not a maximum, which would hide a NaN
      post_entropy[r] = sum_of(groups, entropy + at);
      prior_entropy[r] = sum_of(groups, entropy2 + at);
    }
  });
}

FD_OP(unimix_kl_backward)
(int64_t rows, int64_t groups, int64_t classes, const float* dyn_gradient, const float* rep_gradient, const float* post,
 const float* prior, float unimix, float free_nats, float* post_gradient, float* prior_gradient) {
  const Mix mix{unimix, classes};
  const int64_t width = groups * classes;
  parallel_rows(rows, width, [&](int64_t begin, int64_t end) {
    Vec *log_q = class_vectors(0, 4, classes), *softmax = log_q + classes;
    Vec *log_q2 = softmax + classes, *softmax2 = log_q2 + classes;
    const int64_t all = (end - begin) * groups, offset = begin * groups;
    float* kl = fd::scratch(1, all);
    for_groups(0, all, [&](int64_t first, int64_t count) {
      load_groups(count, classes, post + (offset + first) * classes, log_q);
      load_groups(count, classes, prior + (offset + first) * classes, log_q2);
      mix(log_q, softmax);
      mix(log_q2, softmax2);
      Vec of_kl{}, total{}, total2{};
      for (int64_t k = 0; k < classes; ++k) {
        Vec ratio = log_q[k] - log_q2[k], q = mix.mixed(softmax[k]);
        of_kl += times_log(q, ratio);
        log_q[k] = times_log(softmax[k], ratio);
        log_q2[k] = -q * mix.share(softmax2[k]);
        total += log_q[k];
        total2 += log_q2[k];
      }
      for (int64_t k = 0; k < classes; ++k) {
        log_q[k] = (1 - unimix) * (log_q[k] - softmax[k] * total);
        log_q2[k] = (1 - unimix) * (log_q2[k] - softmax2[k] * total2);
      }
      store(kl + first, of_kl, count);
      store_groups(count, classes, log_q, post_gradient + (offset + first) * classes);
      store_groups(count, classes, log_q2, prior_gradient + (offset + first) * classes);
    });
    for (int64_t r = begin; r < end; ++r) {
      const bool flows = sum_of(groups, kl + (r - begin) * groups) >= free_nats;
      const Vec rep = splat(flows ? rep_gradient[r] : 0.0f), dyn = splat(flows ? dyn_gradient[r] : 0.0f);
      float *of_post = post_gradient + r * width, *of_prior = prior_gradient + r * width;
      for_vectors(width, [&](int64_t i, int64_t count) {
        store(of_post + i, load(of_post + i, count) * rep, count);
        store(of_prior + i, load(of_prior + i, count) * dyn, count);
      });
    }
  });
}
