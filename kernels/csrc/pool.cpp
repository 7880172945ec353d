#include "pool.h"

#include <pthread.h>
#include <stdlib.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace fd {
namespace {

struct Job {
  Task task;
  void* context;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  int running = 0;  // workers inside, under the pool's mutex
};

void work(Job& job) {
  for (int64_t i = job.next.fetch_add(1); i < job.tasks; i = job.next.fetch_add(1)) job.task(job.context, i);
}

class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { loop(); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  void run(Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      ++generation_;
    }
    wake_.notify_all();
    work(job);
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // a worker that wakes only now finds nothing to do
    done_.wait(lock, [&] { return job.running == 0; });
  }

 private:
  void loop() {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
      if (stop_) return;
      seen = generation_;
      Job* job = job_;
      if (job == nullptr) continue;
      ++job->running;
      lock.unlock();
      work(*job);
      lock.lock();
      if (--job->running == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Job* job_ = nullptr;
  uint64_t generation_ = 0;
  bool stop_ = false;
};

std::mutex user;  // held by the caller whose tasks are on the pool
Pool* pool = nullptr;
std::atomic<int> wanted{1};  // set by every caller, while others run

// The threads of the parent are not in the child: it forgets its pool and builds a new one when it needs it.
void before_fork() { user.lock(); }
void in_parent() { user.unlock(); }
void in_child() {
  pool = nullptr;
  user.unlock();
}

struct AtFork {
  AtFork() { pthread_atfork(before_fork, in_parent, in_child); }
} at_fork;

constexpr int kSlots = 24;

struct Scratch {
  float* data[kSlots] = {};
  size_t size[kSlots] = {};
  ~Scratch() {
    for (float* each : data) free(each);
  }
};

thread_local Scratch own;

}  // namespace

void run_tasks(int64_t tasks, Task task, void* context) {
  Job job{task, context, tasks};
  const int threads = wanted;
  if (tasks <= 1 || threads == 1 || !user.try_lock()) return work(job);
  std::lock_guard<std::mutex> lock(user, std::adopt_lock);
  if (pool == nullptr || pool->threads() != threads) {
    delete pool;
    pool = new Pool(threads);
  }
  pool->run(job);
}

int64_t thread_count() { return wanted; }

float* scratch(int slot, size_t count) {
  if (own.size[slot] < count) {
    free(own.data[slot]);
    own.size[slot] = (count + 15) / 16 * 16;
    own.data[slot] = static_cast<float*>(aligned_alloc(64, own.size[slot] * sizeof(float)));
    if (own.data[slot] == nullptr) abort();  // a few megabytes: nothing can go on without them
  }
  return own.data[slot];
}

}  // namespace fd

#define FD_EXPORT extern "C" __attribute__((visibility("default")))

// Raised by one whenever the meaning of a symbol changes; the Python side refuses another number.
FD_EXPORT int fd_abi() { return 2; }

FD_EXPORT void fd_set_threads(int threads) { fd::wanted = threads < 1 ? 1 : threads; }

// The best instruction set of this processor, by the name that ends the symbols.
FD_EXPORT const char* fd_isa() {
#if defined(FD_HAVE_V4)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return "v4";
#endif
#if defined(FD_HAVE_V3)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return "v3";
#endif
  return "base";
}
