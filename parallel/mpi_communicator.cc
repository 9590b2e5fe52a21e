#include "parallel/mpi_communicator.h"

#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/comm/collective_call.h"

namespace carousel {
namespace {
using Clock = std::chrono::steady_clock;

constexpr int kCollectiveTag = 1, kPairTag = 2;
constexpr int kCommunicationExitCode = 1;
// A sum of at most so many bytes exchanges whole tensors: one round of messages instead of two.
constexpr int64_t kSmallSumBytes = int64_t{16} << 10;
// How a rank waits: first it polls without a pause, then it gives its core away between polls, then it
// sleeps.
constexpr auto kSpinTime = std::chrono::microseconds(20);
constexpr auto kYieldTime = std::chrono::microseconds(500);
constexpr auto kSleepTime = std::chrono::microseconds(50);
// How long a failed rank waits for the others to fail alike.
constexpr auto kFailureGrace = std::chrono::seconds(2);

std::string ErrorText(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) return absl::StrCat("MPI error ", code);
  return std::string(text, static_cast<size_t>(length));
}

[[noreturn]] void EndJob(int exit_code) {
  std::fflush(nullptr);
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

std::byte* At(Tensor x, int64_t offset_bytes) { return static_cast<std::byte*>(x.data) + offset_bytes; }
void Copy(void* out, const void* in, int64_t bytes) {
  if (bytes > 0 && out != in) std::memmove(out, in, static_cast<size_t>(bytes));
}

class MpiCommunicator final : public Communicator {
 public:
  // Owns `comm`.
  MpiCommunicator(MPI_Comm comm, const MpiOptions& options) : comm_(comm), options_(options) {
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    options_.max_message_bytes = std::clamp<int64_t>(options_.max_message_bytes, 1, INT_MAX);
  }
  ~MpiCommunicator() override { Free(); }
  void Free() {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (!finalized && comm_ != MPI_COMM_NULL) MPI_Comm_free(&comm_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void DoAllReduceSum(Tensor x) override {
    Begin(CheckAllReduceSum(x));
    if (size_ == 1) return;
    const int64_t elem_bytes = SizeOf(x.dtype);
    if (x.num_bytes() <= kSmallSumBytes) {
      SumSmall(x);
      return;
    }
    // In chunks that fit into the staging memory: slice r of a chunk is summed by rank r, then sent to all.
    const int64_t chunk_elems = std::max<int64_t>(options_.staging_bytes / elem_bytes, size_);
    for (int64_t begin = 0; begin < x.num_elems(); begin += chunk_elems) {
      const int64_t n = std::min(chunk_elems, x.num_elems() - begin);
      const auto slice = [&](int r) { return (begin + n * r / size_) * elem_bytes; };
      const int64_t own_bytes = slice(rank_ + 1) - slice(rank_);
      std::byte* staging = Staging(own_bytes * size_);
      for (int k = 1; k < size_; ++k) {
        const int to = (rank_ + k) % size_, from = (rank_ + size_ - k) % size_;
        Receive(staging + from * own_bytes, own_bytes, from, kCollectiveTag);
        Post(At(x, slice(to)), slice(to + 1) - slice(to), to, kCollectiveTag);
      }
      Wait();
      SumStaged(At(x, slice(rank_)), At(x, slice(rank_)), own_bytes, own_bytes / elem_bytes, x.dtype);
      for (int k = 1; k < size_; ++k) {
        const int to = (rank_ + k) % size_, from = (rank_ + size_ - k) % size_;
        Receive(At(x, slice(from)), slice(from + 1) - slice(from), from, kCollectiveTag);
        Post(At(x, slice(rank_)), own_bytes, to, kCollectiveTag);
      }
      Wait();
    }
  }

  void DoAllGather(Tensor all, Tensor mine) override {
    Begin(CheckAllGather(all, mine, rank_, size_));
    const int64_t bytes = mine.num_bytes();
    for (int k = 1; k < size_; ++k) {
      const int to = (rank_ + k) % size_, from = (rank_ + size_ - k) % size_;
      Receive(At(all, from * bytes), bytes, from, kCollectiveTag);
      Post(mine.data, bytes, to, kCollectiveTag);
    }
    Copy(At(all, rank_ * bytes), mine.data, bytes);
    Wait();
  }

  void DoReduceScatterSum(Tensor mine, Tensor all) override {
    Begin(CheckReduceScatterSum(mine, all, rank_, size_));
    const int64_t elem_bytes = SizeOf(all.dtype), block_bytes = mine.num_bytes();
    const int64_t piece_bytes =
        std::max<int64_t>(options_.staging_bytes / (elem_bytes * size_), 1) * elem_bytes;
    for (int64_t begin = 0; begin < block_bytes; begin += piece_bytes) {
      const int64_t bytes = std::min(piece_bytes, block_bytes - begin);
      std::byte* staging = Staging(bytes * size_);
      for (int k = 1; k < size_; ++k) {
        const int to = (rank_ + k) % size_, from = (rank_ + size_ - k) % size_;
        Receive(staging + from * bytes, bytes, from, kCollectiveTag);
        Post(At(all, to * block_bytes + begin), bytes, to, kCollectiveTag);
      }
      Wait();
      SumStaged(At(mine, begin), At(all, rank_ * block_bytes + begin), bytes, bytes / elem_bytes, all.dtype);
    }
  }

  void DoAllToAll(Tensor out, Tensor in) override {
    Begin(CheckAllToAll(out, in, size_));
    const int64_t bytes = in.num_bytes() / size_;
    for (int k = 1; k < size_; ++k) {
      const int to = (rank_ + k) % size_, from = (rank_ + size_ - k) % size_;
      Receive(At(out, from * bytes), bytes, from, kCollectiveTag);
      Post(At(in, to * bytes), bytes, to, kCollectiveTag);
    }
    Copy(At(out, rank_ * bytes), At(in, rank_ * bytes), bytes);
    Wait();
  }

  // A binomial tree: in round k the ranks below 2^k (counted from the root) send to those 2^k further on.
  void DoBroadcast(Tensor x, int root) override {
    Begin(CheckBroadcast(x, root, size_));
    const int place = (rank_ + size_ - root) % size_;
    for (int distance = 1; distance < size_; distance *= 2) {
      if (place < distance && place + distance < size_) {
        Post(x.data, x.num_bytes(), (rank_ + distance) % size_, kCollectiveTag);
      } else if (place >= distance && place < 2 * distance) {
        Receive(x.data, x.num_bytes(), (rank_ + size_ - distance) % size_, kCollectiveTag);
      }
      Wait();
    }
  }

  void DoSend(Tensor x, int destination) override {
    call_ = CheckSend(x, destination, rank_, size_);
    Post(x.data, x.num_bytes(), destination, kPairTag);
    Wait();
  }

  void DoRecv(Tensor x, int source) override {
    call_ = CheckRecv(x, source, rank_, size_);
    Receive(x.data, x.num_bytes(), source, kPairTag);
    Wait();
  }

  void DoBarrier() override {
    Begin({.op = CollectiveOp::kBarrier});
    BarrierWithin(Clock::duration::max());
  }
  // False if the others did not come in time; the communicator is then of no more use.
  bool BarrierWithin(Clock::duration limit) {
    call_ = {.op = CollectiveOp::kBarrier};
    requests_.push_back(MPI_REQUEST_NULL);
    expected_.push_back(-1);
    Check(MPI_Ibarrier(comm_, &requests_.back()));
    return Wait(limit);
  }

  [[noreturn]] void Abort(int exit_code) override { EndJob(exit_code); }

 private:
  // Names the call for messages and, if asked to, compares it with the other ranks' calls.
  void Begin(const CollectiveCall& call) {
    call_ = call;
    if (!options_.verify_calls || size_ == 1) return;
    constexpr int64_t kFields = 4;
    const int64_t mine[kFields] = {static_cast<int64_t>(call.op), static_cast<int64_t>(call.dtype),
                                   call.num_elems, call.peer};
    std::vector<int64_t> all(static_cast<size_t>(kFields * size_));
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      Receive(&all[static_cast<size_t>(kFields * r)], sizeof(mine), r, kCollectiveTag);
      Post(mine, sizeof(mine), r, kCollectiveTag);
    }
    Wait();
    for (int r = 0; r < size_; ++r) {
      const int64_t* theirs = &all[static_cast<size_t>(kFields * r)];
      if (r == rank_ || std::equal(mine, mine + kFields, theirs)) continue;
      Fail(absl::StrCat("rank ", r, " called ",
                        carousel::Describe({.op = static_cast<CollectiveOp>(theirs[0]),
                                            .dtype = static_cast<DType>(theirs[1]),
                                            .num_elems = theirs[2],
                                            .peer = static_cast<int>(theirs[3])}),
                        " instead"));
    }
  }

  // Start a message; Wait ends all that were started. Zero bytes are not sent.
  void Post(const void* data, int64_t bytes, int destination, int tag) {
    ForEachPiece(bytes, [&](int64_t offset, int count) {
      requests_.push_back(MPI_REQUEST_NULL);
      expected_.push_back(-1);
      Check(MPI_Isend(static_cast<const std::byte*>(data) + offset, count, MPI_BYTE, destination, tag, comm_,
                      &requests_.back()));
    });
  }
  void Receive(void* data, int64_t bytes, int source, int tag) {
    ForEachPiece(bytes, [&](int64_t offset, int count) {
      requests_.push_back(MPI_REQUEST_NULL);
      expected_.push_back(count);
      Check(MPI_Irecv(static_cast<std::byte*>(data) + offset, count, MPI_BYTE, source, tag, comm_,
                      &requests_.back()));
    });
  }
  template <class Fn>
  void ForEachPiece(int64_t bytes, Fn&& fn) {
    for (int64_t offset = 0; offset < bytes; offset += options_.max_message_bytes) {
      fn(offset, static_cast<int>(std::min(options_.max_message_bytes, bytes - offset)));
    }
  }

  // Completes every message that was started. False if `limit` passes first.
  bool Wait(Clock::duration limit = Clock::duration::max()) {
    if (requests_.empty()) return true;
    statuses_.resize(requests_.size());
    const Clock::time_point start = Clock::now();
    while (true) {
      int done = 0;
      const int code =
          MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, statuses_.data());
      if (code != MPI_SUCCESS) CheckStatuses(code);
      if (done) break;
      const Clock::duration waited = Clock::now() - start;
      if (waited > limit) return false;
      if (waited > kYieldTime) {
        std::this_thread::sleep_for(kSleepTime);
      } else if (waited > kSpinTime) {
        sched_yield();
      }
    }
    for (size_t i = 0; i < requests_.size(); ++i) {
      int count = 0;
      if (expected_[i] < 0) continue;
      Check(MPI_Get_count(&statuses_[i], MPI_BYTE, &count));
      if (count != expected_[i]) {
        Fail(absl::StrCat("rank ", statuses_[i].MPI_SOURCE, " sent ", count, " bytes where ", expected_[i],
                          " were expected: the ranks' calls do not match"));
      }
    }
    requests_.clear();
    expected_.clear();
    return true;
  }

  void CheckStatuses(int code) {
    if (code == MPI_ERR_IN_STATUS) {
      for (const MPI_Status& status : statuses_) {
        if (status.MPI_ERROR == MPI_SUCCESS || status.MPI_ERROR == MPI_ERR_PENDING) continue;
        int error_class = 0;
        MPI_Error_class(status.MPI_ERROR, &error_class);
        Fail(error_class == MPI_ERR_TRUNCATE
                 ? absl::StrCat("rank ", status.MPI_SOURCE,
                                " sent more bytes than expected: the ranks' calls do not match")
                 : ErrorText(status.MPI_ERROR));
      }
    }
    Fail(ErrorText(code));
  }
  void Check(int code) {
    if (code != MPI_SUCCESS) Fail(ErrorText(code));
  }
  [[noreturn]] void Fail(const std::string& problem) {
    std::fprintf(stderr, "[rank %d] %s failed: %s\n", rank_, carousel::Describe(call_).c_str(),
                 problem.c_str());
    EndJob(kCommunicationExitCode);
  }

  std::byte* Staging(int64_t bytes) {
    if (static_cast<int64_t>(staging_.size()) < bytes) staging_.resize(static_cast<size_t>(bytes));
    return staging_.data();
  }
  // out = sum in rank order over the staged slices, with `own` in this rank's place.
  void SumStaged(void* out, const void* own, int64_t slice_bytes, int64_t count, DType dtype) {
    if (count == 0) return;
    std::vector<const void*> slices;
    for (int r = 0; r < size_; ++r) {
      slices.push_back(r == rank_ ? own : staging_.data() + r * slice_bytes);
    }
    SumInRankOrder(out, slices.data(), size_, count, dtype);
  }
  void SumSmall(Tensor x) {
    const int64_t bytes = x.num_bytes();
    std::byte* staging = Staging(bytes * size_);
    for (int k = 1; k < size_; ++k) {
      const int to = (rank_ + k) % size_, from = (rank_ + size_ - k) % size_;
      Receive(staging + from * bytes, bytes, from, kCollectiveTag);
      Post(x.data, bytes, to, kCollectiveTag);
    }
    Wait();
    SumStaged(x.data, x.data, bytes, x.num_elems(), x.dtype);
  }

  MPI_Comm comm_;
  MpiOptions options_;
  int rank_ = 0, size_ = 1;
  CollectiveCall call_;  // in progress, for messages
  std::vector<MPI_Request> requests_;
  std::vector<int> expected_;  // bytes of a receive; -1: not a receive
  std::vector<MPI_Status> statuses_;
  std::vector<std::byte> staging_;
};

class MpiSessionImpl final : public MpiSession {
 public:
  MpiSessionImpl(MPI_Comm world, MPI_Comm local, MPI_Comm finish, const MpiOptions& options)
      : world_(world, options), local_(local, options), finish_(finish, {}) {}
  ~MpiSessionImpl() override {
    if (!finished_) Finish(kCommunicationExitCode);
  }

  Communicator& world() override { return world_; }
  Communicator& local() override { return local_; }

  std::unique_ptr<Communicator> Duplicate(const MpiOptions& options) override {
    MPI_Comm comm;
    MPI_Comm_dup(MPI_COMM_WORLD, &comm);
    return std::make_unique<MpiCommunicator>(comm, options);
  }

  std::string library() const override {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    MPI_Get_library_version(text, &length);
    const std::string line(text, static_cast<size_t>(length));
    return line.substr(0, line.find_first_of(",\n"));
  }

  int Finish(int exit_code) override {
    CAROUSEL_CHECK_MSG(!finished_, "MpiSession::Finish twice");
    finished_ = true;
    std::fflush(nullptr);
    const Clock::duration limit = exit_code == 0 ? Clock::duration::max() : Clock::duration(kFailureGrace);
    if (!finish_.BarrierWithin(limit)) EndJob(exit_code);
    for (MpiCommunicator* communicator : {&finish_, &local_, &world_}) communicator->Free();
    MPI_Finalize();
    return exit_code;
  }

 private:
  MpiCommunicator world_, local_, finish_;
  bool finished_ = false;
};
}  // namespace

bool HasMpi() { return true; }

absl::StatusOr<std::unique_ptr<MpiSession>> MpiSession::Start(const MpiOptions& options) {
  int started = 0, provided = 0;
  MPI_Initialized(&started);
  if (started) return absl::FailedPreconditionError("MPI was started before");
  if (const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
      code != MPI_SUCCESS) {
    return absl::InternalError(absl::StrCat("MPI_Init failed: ", ErrorText(code)));
  }
  if (provided < MPI_THREAD_SERIALIZED) {
    MPI_Finalize();
    return absl::FailedPreconditionError(
        "this MPI library supports calls from one thread only; it must offer MPI_THREAD_SERIALIZED");
  }
  // Communicators of our own: nobody else's messages can meet ours.
  MPI_Comm world, local, finish;
  MPI_Comm_dup(MPI_COMM_WORLD, &world);
  MPI_Comm_dup(MPI_COMM_WORLD, &finish);
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local);
  return std::make_unique<MpiSessionImpl>(world, local, finish, options);
}
}  // namespace carousel
