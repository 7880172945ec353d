// The lambda-return scan on the CPU: a row at a time, since rows are short and many. Source: SPEC 1.6 and 1.7.
#include "isa.h"
#include "pool.h"

// Inputs (rows, time), out (rows, time - 1).
FD_OP(lambda_return)
(int64_t rows, int64_t time, const float* reward, const float* cont, const float* value, const float* lam, float* out) {
  const int64_t part = max_of<int64_t>(1, 16384 / time);
  fd::parallel((rows + part - 1) / part, [&](int64_t task) {
    for (int64_t row = task * part; row < min_of(rows, (task + 1) * part); ++row) {
      const int64_t at = row * time;
      float* to = out + row * (time - 1);
      float next = value[at + time - 1];
      for (int64_t t = time - 1; t > 0; --t) {  // the return of t - 1 looks at step t
        float c = cont[at + t], mix = lam[at + t];
        next = reward[at + t] + c * (1 - mix) * value[at + t] + c * mix * next;
        to[t - 1] = next;
      }
    }
  });
}
