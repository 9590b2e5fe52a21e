// NcclWatch: the thread beside a NCCL communicator. It looks for errors that NCCL found in the background and
// for calls that do not end.
#pragma once
#include <nccl.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace carousel {

class NcclWatch {
 public:
  // Called by the thread, at most once: the call that is under way, and what is wrong. Does not return.
  using Report = std::function<void(const std::string& call, const std::string& problem)>;
  // Of the current device. `nccl_mutex` is held by whoever calls NCCL; all must outlive this.
  NcclWatch(ncclComm_t communicator, std::timed_mutex* nccl_mutex, double timeout_seconds, Report report);
  ~NcclWatch();
  NcclWatch(const NcclWatch&) = delete;
  NcclWatch& operator=(const NcclWatch&) = delete;

  // The call that this describes has just been enqueued.
  cudaError_t Add(const std::string& call, cudaStream_t stream);

 private:
  static constexpr size_t kNumWatched = 64;  // the latest calls whose time is taken
  // A call whose end is looked for.
  struct Watched {
    cudaEvent_t reached = nullptr;
    std::string call;
    std::chrono::steady_clock::time_point start;
    bool open = false;
  };
  void Run();
  void LookForErrors();
  void LookForHangs();
  std::string UnderWay();  // the oldest call that has not ended

  const ncclComm_t communicator_;
  std::timed_mutex& nccl_mutex_;
  const double timeout_seconds_;
  const Report report_;
  int device_ = 0;
  cudaError_t status_ = cudaSuccess;  // of the constructor

  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  bool ends_ = false;
  std::array<Watched, kNumWatched> watched_;
  size_t next_ = 0;  // number i is in place i mod kNumWatched
  std::thread thread_;
};
}  // namespace carousel
