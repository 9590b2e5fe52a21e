#include "parallel/nccl_communicator_watch.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "parallel/nccl_communicator_impl.h"

namespace carousel {
namespace {
using Clock = std::chrono::steady_clock;
constexpr auto kInterval = std::chrono::milliseconds(100);
}  // namespace

NcclWatch::NcclWatch(ncclComm_t communicator, std::timed_mutex* nccl_mutex, double timeout_seconds,
                     Report report)
    : communicator_(communicator),
      nccl_mutex_(*nccl_mutex),
      timeout_seconds_(timeout_seconds),
      report_(std::move(report)) {
  status_ = cudaGetDevice(&device_);
  for (Watched& call : watched_) {
    if (status_ == cudaSuccess) status_ = cudaEventCreateWithFlags(&call.reached, cudaEventDisableTiming);
  }
  thread_ = std::thread([this] { Run(); });
}

NcclWatch::~NcclWatch() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ends_ = true;
  }
  wake_.notify_all();
  thread_.join();
  for (Watched& call : watched_) {
    if (call.reached != nullptr) cudaEventDestroy(call.reached);
  }
}

cudaError_t NcclWatch::Add(const std::string& call, cudaStream_t stream) {
  if (status_ != cudaSuccess) return status_;
  // Inside of a captured sequence there is no time: a launch of it that hangs shows in the calls after it.
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  if (const cudaError_t status = cudaStreamIsCapturing(stream, &capture)) return status;
  if (capture != cudaStreamCaptureStatusNone) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(mutex_);
  Watched& watched = watched_[next_++ % kNumWatched];
  watched.call = call;
  watched.start = Clock::now();
  watched.open = true;
  return cudaEventRecord(watched.reached, stream);
}

void NcclWatch::Run() {
  cudaSetDevice(device_);
  std::unique_lock<std::mutex> lock(mutex_);
  while (!wake_.wait_for(lock, kInterval, [this] { return ends_; })) {
    LookForErrors();
    LookForHangs();
  }
}

void NcclWatch::LookForErrors() {
  // Who holds the mutex looks for errors by itself.
  std::unique_lock<std::timed_mutex> nccl(nccl_mutex_, std::try_to_lock);
  if (!nccl.owns_lock()) return;
  ncclResult_t error = ncclSuccess;
  const ncclResult_t asked = ncclCommGetAsyncError(communicator_, &error);
  if (asked != ncclSuccess) error = asked;
  if (error == ncclSuccess || error == ncclInProgress) return;
  const std::string text = NcclErrorText(error, communicator_);
  nccl.unlock();
  report_(UnderWay(), text);
}

void NcclWatch::LookForHangs() {
  const auto now = Clock::now();
  for (size_t i = 0; i < kNumWatched; ++i) {
    Watched& watched = watched_[(next_ + i) % kNumWatched];  // the oldest first
    const double seconds = std::chrono::duration<double>(now - watched.start).count();
    if (!watched.open || seconds < timeout_seconds_) continue;
    watched.open = false;
    if (cudaEventQuery(watched.reached) != cudaErrorNotReady) continue;
    report_(watched.call, absl::StrCat("has not ended after ", static_cast<int64_t>(seconds),
                                       " s; another rank hangs, or makes other calls"));
  }
}

std::string NcclWatch::UnderWay() {
  std::string last = "no call yet";
  for (size_t i = 0; i < kNumWatched; ++i) {
    const Watched& watched = watched_[(next_ + i) % kNumWatched];
    if (watched.call.empty()) continue;
    if (watched.open && cudaEventQuery(watched.reached) == cudaErrorNotReady) return watched.call;
    last = absl::StrCat("after ", watched.call);
  }
  return last;
}
}  // namespace carousel
