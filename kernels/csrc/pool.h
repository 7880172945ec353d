// The library's own threads. They sleep while there is nothing to do and do not outlive a fork.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace fd {

using Task = void (*)(void* context, int64_t task);

// Runs task 0..tasks-1 on the pool and on the caller, and returns when all are done. What a task computes must not
// depend on the thread that it runs on. A second caller at the same time runs its tasks alone.
void run_tasks(int64_t tasks, Task task, void* context);

// How many threads there are, the caller included. Never let a result depend on it.
int64_t thread_count();

// At least `count` floats of this thread's own, aligned to 64 bytes, valid until the next call with the same slot.
float* scratch(int slot, size_t count);

template <class F>
void parallel(int64_t tasks, const F& body) {
  run_tasks(
      tasks, [](void* context, int64_t task) { (*static_cast<const F*>(context))(task); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace fd
