#include "parallel/nccl_communicator.h"

#include <nccl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/check.h"
#include "core/comm/collective_call.h"

namespace carousel {
namespace {
using Clock = std::chrono::steady_clock;

constexpr int kCommunicationExitCode = 1;
constexpr auto kWatchInterval = std::chrono::milliseconds(100);
constexpr auto kLeaveTime = std::chrono::seconds(60);  // for all ranks to destroy the communicator
constexpr size_t kNumWatched = 64;                     // the latest calls whose time is taken

std::byte* At(Tensor x, int64_t offset_bytes) { return static_cast<std::byte*>(x.data) + offset_bytes; }

bool IsFloat(DType dtype) { return dtype == DType::kF32 || dtype == DType::kF64; }
ncclDataType_t IntegerType(DType dtype) { return dtype == DType::kI32 ? ncclInt32 : ncclInt64; }

class NcclCommunicator final : public Communicator {
 public:
  // Owns `communicator`.
  NcclCommunicator(Communicator& host, Device& device, ncclComm_t communicator, const NcclOptions& options)
      : host_(host),
        device_(device),
        communicator_(communicator),
        stream_(static_cast<cudaStream_t>(options.stream != nullptr ? options.stream->native()
                                                                    : device.native_stream())),
        options_(options) {
    MakeCurrent();
    CheckRuntime(cudaGetDevice(&device_index_), "cudaGetDevice");
    for (Watched& call : watched_) {
      CheckRuntime(cudaEventCreateWithFlags(&call.reached, cudaEventDisableTiming), "cudaEventCreate");
    }
    watcher_ = std::thread([this] { Watch(); });
  }
  ~NcclCommunicator() override {
    device_.Synchronize();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      leaves_ = true;
      leaves_since_ = Clock::now();
    }
    MakeCurrent();
    for (Watched& call : watched_) CheckRuntime(cudaEventDestroy(call.reached), "cudaEventDestroy");
    device_.Free(staging_);
    ncclCommDestroy(communicator_);  // may wait for the other ranks
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ends_ = true;
    }
    wake_.notify_all();
    watcher_.join();
  }

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }

  void DoAllReduceSum(Tensor x) override {
    Begin(CheckAllReduceSum(x));
    if (size() == 1 || x.num_elems() == 0) return;
    if (!IsFloat(x.dtype)) {  // exact in any order
      Check(ncclAllReduce(x.data, x.data, static_cast<size_t>(x.num_elems()), IntegerType(x.dtype), ncclSum,
                          communicator_, stream_));
    } else {
      // In chunks that fit into the staging memory: slice r of a chunk is summed by rank r, then sent to all.
      const int64_t elem_bytes = SizeOf(x.dtype);
      const int64_t chunk_elems = std::max<int64_t>(options_.staging_bytes / elem_bytes, size());
      for (int64_t begin = 0; begin < x.num_elems(); begin += chunk_elems) {
        const int64_t n = std::min(chunk_elems, x.num_elems() - begin);
        const auto slice = [&](int r) { return (begin + n * r / size()) * elem_bytes; };
        const auto slice_bytes = [&](int r) { return slice(r + 1) - slice(r); };
        const int64_t own_bytes = slice_bytes(rank());
        std::byte* staging = Staging(own_bytes * size());
        Exchange(
            [&](int to) {
              return Block{At(x, slice(to)), slice_bytes(to)};
            },
            [&](int from) {
              return Block{staging + from * own_bytes, own_bytes};
            });
        std::byte* own = At(x, slice(rank()));
        SumStaged(own, own, staging, own_bytes, x.dtype);
        Exchange(
            [&](int) {
              return Block{own, own_bytes};
            },
            [&](int from) {
              return Block{At(x, slice(from)), slice_bytes(from)};
            });
      }
    }
    End();
  }

  void DoAllGather(Tensor all, Tensor mine) override {
    Begin(CheckAllGather(all, mine, rank(), size()));
    if (mine.num_elems() == 0) return;
    Check(ncclAllGather(mine.data, all.data, static_cast<size_t>(mine.num_bytes()), ncclUint8, communicator_,
                        stream_));
    End();
  }

  void DoReduceScatterSum(Tensor mine, Tensor all) override {
    Begin(CheckReduceScatterSum(mine, all, rank(), size()));
    if (mine.num_elems() == 0) return;
    const int64_t elem_bytes = SizeOf(all.dtype), block_bytes = mine.num_bytes();
    if (!IsFloat(all.dtype)) {
      Check(ncclReduceScatter(all.data, mine.data, static_cast<size_t>(mine.num_elems()),
                              IntegerType(all.dtype), ncclSum, communicator_, stream_));
    } else {
      const int64_t piece_bytes =
          std::max<int64_t>(options_.staging_bytes / (elem_bytes * size()), 1) * elem_bytes;
      for (int64_t begin = 0; begin < block_bytes; begin += piece_bytes) {
        const int64_t bytes = std::min(piece_bytes, block_bytes - begin);
        std::byte* staging = Staging(bytes * size());
        Exchange(
            [&](int to) {
              return Block{At(all, to * block_bytes + begin), bytes};
            },
            [&](int from) {
              return Block{staging + from * bytes, bytes};
            });
        SumStaged(At(mine, begin), At(all, rank() * block_bytes + begin), staging, bytes, all.dtype);
      }
    }
    End();
  }

  void DoAllToAll(Tensor out, Tensor in) override {
    Begin(CheckAllToAll(out, in, size()));
    const int64_t bytes = in.num_bytes() / size();
    if (bytes == 0) return;
    Exchange(
        [&](int to) {
          return Block{At(in, to * bytes), bytes};
        },
        [&](int from) {
          return Block{At(out, from * bytes), bytes};
        });
    Copy(At(out, rank() * bytes), At(in, rank() * bytes), bytes);
    End();
  }

  void DoBroadcast(Tensor x, int root) override {
    Begin(CheckBroadcast(x, root, size()));
    if (x.num_elems() == 0) return;
    Check(ncclBroadcast(x.data, x.data, static_cast<size_t>(x.num_bytes()), ncclUint8, root, communicator_,
                        stream_));
    End();
  }
  void DoSend(Tensor x, int destination) override {
    Start(CheckSend(x, destination, rank(), size()));
    if (x.num_elems() == 0) return;
    Check(
        ncclSend(x.data, static_cast<size_t>(x.num_bytes()), ncclUint8, destination, communicator_, stream_));
    End();
  }
  void DoRecv(Tensor x, int source) override {
    Start(CheckRecv(x, source, rank(), size()));
    if (x.num_elems() == 0) return;
    Check(ncclRecv(x.data, static_cast<size_t>(x.num_bytes()), ncclUint8, source, communicator_, stream_));
    End();
  }
  void DoBarrier() override {
    device_.Synchronize();
    host_.Barrier();
  }
  void DoExchangeForVerify(void* all, const void* mine, int64_t bytes) override {
    host_.AllGather(Tensor(all, DType::kU8, {bytes * size()}),
                    Tensor(const_cast<void*>(mine), DType::kU8, {bytes}));
  }
  [[noreturn]] void Abort(int exit_code) override {
    host_.Abort(exit_code);
    std::_Exit(exit_code);
  }

 private:
  struct Block {
    std::byte* data;
    int64_t bytes;
  };
  // A call whose end is looked for.
  struct Watched {
    cudaEvent_t reached = nullptr;
    CollectiveCall call;
    Clock::time_point start;
    bool open = false;
  };

  void MakeCurrent() { device_.ops(); }

  // Of a call that only two ranks make.
  void Start(const CollectiveCall& call) {
    MakeCurrent();
    const std::lock_guard<std::mutex> lock(mutex_);
    current_ = call;
  }
  // Of a call that all ranks make.
  void Begin(const CollectiveCall& call) { Start(call); }
  void End() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Watched& watched = watched_[next_watched_++ % kNumWatched];
    CheckRuntime(cudaEventRecord(watched.reached, stream_), "cudaEventRecord");
    watched.call = current_;
    watched.start = Clock::now();
    watched.open = true;
  }

  [[noreturn]] void Fail(const std::string& text) {
    std::fprintf(stderr, "%s%s%s: %s\n", absl::StrCat("[rank ", rank(), "] ").c_str(),
                 ProcessStep() >= 0 ? absl::StrCat("[step ", ProcessStep(), "] ").c_str() : "",
                 Describe(current_).c_str(), text.c_str());
    std::fflush(nullptr);
    Abort(kCommunicationExitCode);
  }
  void Check(ncclResult_t result) {
    if (result == ncclSuccess) return;
    Fail(absl::StrCat("NCCL: ", ncclGetErrorString(result), ": ", ncclGetLastError(communicator_)));
  }
  void CheckRuntime(cudaError_t status, const char* what) {
    if (status != cudaSuccess) Fail(absl::StrCat(what, ": ", cudaGetErrorString(status)));
  }

  // The thread beside the calls.
  void Watch() {
    CheckRuntime(cudaSetDevice(device_index_), "cudaSetDevice");
    std::unique_lock<std::mutex> lock(mutex_);
    while (!wake_.wait_for(lock, kWatchInterval, [this] { return ends_; })) {
      const auto now = Clock::now();
      if (leaves_) {
        if (now - leaves_since_ > kLeaveTime) Fail("the other ranks do not leave: one of them has failed");
        continue;
      }
      ncclResult_t error = ncclSuccess;
      ncclCommGetAsyncError(communicator_, &error);
      if (error != ncclSuccess && error != ncclInProgress) Check(error);
      for (Watched& watched : watched_) {
        const double seconds = std::chrono::duration<double>(now - watched.start).count();
        if (!watched.open || seconds < options_.timeout_seconds) continue;
        watched.open = false;
        if (cudaEventQuery(watched.reached) != cudaErrorNotReady) continue;
        current_ = watched.call;
        Fail(absl::StrCat("has not ended after ", static_cast<int64_t>(seconds),
                          " s; another rank hangs, or makes other calls"));
      }
    }
  }

  // Sends block `out(r)` to every other rank r and takes `in(r)` from it.
  template <class Out, class In>
  void Exchange(const Out& out, const In& in) {
    Check(ncclGroupStart());
    for (int k = 1; k < size(); ++k) {
      const int to = (rank() + k) % size(), from = (rank() + size() - k) % size();
      const Block sent = out(to), taken = in(from);
      if (sent.bytes > 0) {
        Check(ncclSend(sent.data, static_cast<size_t>(sent.bytes), ncclUint8, to, communicator_, stream_));
      }
      if (taken.bytes > 0) {
        Check(
            ncclRecv(taken.data, static_cast<size_t>(taken.bytes), ncclUint8, from, communicator_, stream_));
      }
    }
    Check(ncclGroupEnd());
  }

  void Copy(void* to, const void* from, int64_t bytes) {
    if (to == from || bytes == 0) return;
    CheckRuntime(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream_),
                 "copy within the device");
  }

  // out = ((x_0 + x_1) + ...) + x_{P-1}, where x_r is staging block r, and `own` for this rank. out may be
  // own.
  void SumStaged(std::byte* out, std::byte* own, std::byte* staging, int64_t bytes, DType dtype) {
    if (size() == 1) Copy(out, own, bytes);
    if (bytes == 0) return;
    const auto block = [&](std::byte* data) { return Tensor(data, dtype, {bytes / SizeOf(dtype)}); };
    const auto term = [&](int r) { return block(r == rank() ? own : staging + r * bytes); };
    const Tensor sum = block(staging + (rank() == 0 ? 1 : 0) * bytes);  // the lowest other rank's: read first
    for (int r = 1; r < size(); ++r) {
      (options_.stream != nullptr ? options_.stream->ops() : device_.ops())
          .Add({.y = r == size() - 1 ? block(out) : sum, .a = r == 1 ? term(0) : sum, .b = term(r)});
    }
  }

  std::byte* Staging(int64_t bytes) {
    if (bytes <= staging_bytes_) return staging_;
    device_.Free(staging_);  // waits for its readers
    staging_bytes_ = bytes;
    staging_ = static_cast<std::byte*>(device_.Allocate(bytes));
    CAROUSEL_CHECK_MSG(staging_ != nullptr, absl::StrCat("no device memory for a sum over the ranks: ",
                                                         device_.allocation_error()));
    return staging_;
  }

  Communicator& host_;
  Device& device_;
  const ncclComm_t communicator_;
  const cudaStream_t stream_;
  const NcclOptions options_;
  int device_index_ = 0;
  std::byte* staging_ = nullptr;
  int64_t staging_bytes_ = 0;

  std::thread watcher_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  bool leaves_ = false, ends_ = false;  // the communicator is being destroyed; has been
  Clock::time_point leaves_since_;
  CollectiveCall current_;
  std::array<Watched, kNumWatched> watched_;
  size_t next_watched_ = 0;
};

// The same error on every rank if any has one: "rank 1: ...".
absl::Status Agree(Communicator& host, const std::string& mine) {
  const std::vector<std::string> all = AllGatherBytes(host, mine);
  std::vector<std::string> problems;
  for (size_t r = 0; r < all.size(); ++r) {
    if (!all[r].empty()) problems.push_back(absl::StrCat("rank ", r, ": ", all[r]));
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("NCCL cannot be used: ", absl::StrJoin(problems, "; ")));
}
}  // namespace

bool HasNccl() { return true; }

std::unique_ptr<Communicator> SplitNcclCommunicator(Communicator& whole, int color, Stream*, CallSite site) {
  return whole.Split(color, site);
}

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(Communicator& host, Device& device,
                                                                   const NcclOptions& options) {
  // Whatever can be seen alone is seen first: once in ncclCommInitRank, a rank waits for all others.
  int version = 0;
  ncclUniqueId id = {};
  std::string problem;
  if (device.native_stream() == nullptr) {
    problem = absl::StrCat("device '", device.name(), "' is not a GPU");
  } else if (const ncclResult_t result = ncclGetVersion(&version)) {
    problem = ncclGetErrorString(result);
  } else if (host.rank() == 0) {
    if (const ncclResult_t made = ncclGetUniqueId(&id)) {
      problem = absl::StrCat("ncclGetUniqueId: ", ncclGetErrorString(made), ": ", ncclGetLastError(nullptr));
    }
  }
  if (const absl::Status status = Agree(host, problem); !status.ok()) return status;
  const std::vector<std::string> versions = AllGatherBytes(host, absl::StrCat(version));
  for (size_t r = 0; r < versions.size(); ++r) {
    if (versions[r] == versions[0]) continue;
    return absl::FailedPreconditionError(absl::StrCat("rank 0 has NCCL ", versions[0], " and rank ", r,
                                                      " has ", versions[r],
                                                      "; install one version on all machines"));
  }
  const std::string id_bytes = BroadcastBytes(host, std::string(id.internal, sizeof id.internal), 0);
  std::memcpy(id.internal, id_bytes.data(), sizeof id.internal);

  device.ops();  // the device is current
  ncclComm_t communicator = nullptr;
  const ncclResult_t result = ncclCommInitRank(&communicator, host.size(), id, host.rank());
  problem.clear();
  if (result != ncclSuccess) {
    problem =
        absl::StrCat("ncclCommInitRank: ", ncclGetErrorString(result), ": ", ncclGetLastError(nullptr),
                     " (every rank needs a GPU of its own; NCCL_DEBUG=WARN in the environment says more)");
  }
  if (const absl::Status status = Agree(host, problem); !status.ok()) {
    if (communicator != nullptr) ncclCommAbort(communicator);
    return status;
  }
  return std::make_unique<NcclCommunicator>(host, device, communicator, options);
}
}  // namespace carousel
