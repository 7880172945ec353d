// Windows out of the replay ring: plain copies of bytes, cut into parts of about 256 KB over the pool.
#include "isa.h"
#include "pool.h"

namespace {

constexpr int64_t kPartBytes = 256 * 1024;

}  // namespace

// ring (environments, rows, row_bytes), out (windows, length, row_bytes): out[b, t] = ring[env[b], (start[b] + t) % rows].
FD_OP(replay_gather)
(int64_t rows, int64_t row_bytes, int64_t windows, int64_t length, const char* ring, const int64_t* env,
 const int64_t* start, char* out) {
  const int64_t steps = windows * length, part = max_of<int64_t>(1, kPartBytes / max_of<int64_t>(1, row_bytes));
  fd::parallel((steps + part - 1) / part, [&](int64_t task) {
    const int64_t end = min_of(steps, (task + 1) * part);
    for (int64_t at = task * part, count; at < end; at += count) {  // up to the end of a window, the part or the ring
      const int64_t window = at / length, step = at % length, row = (start[window] + step) % rows;
      count = min_of(min_of(length - step, end - at), rows - row);
      memcpy(out + at * row_bytes, ring + (env[window] * rows + row) * row_bytes, count * row_bytes);
    }
  });
}
