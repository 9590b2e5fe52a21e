#include "parallel/mpi_communicator.h"

#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/base/exit_code.h"

namespace carousel {
namespace {
// How a rank waits: first it polls without a pause, then it gives its core away between polls, then it
// sleeps, and looks now and then whether it has waited enough.
constexpr auto kSpinTime = std::chrono::microseconds(20);
constexpr auto kYieldTime = std::chrono::microseconds(500);
constexpr auto kSleepTime = std::chrono::microseconds(50);
constexpr auto kCheckTime = std::chrono::milliseconds(10);
// How long a failed rank waits for the others to fail alike.
constexpr auto kFailureGrace = std::chrono::seconds(2);

std::string ErrorText(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) return absl::StrCat("MPI error ", code);
  return std::string(text, static_cast<size_t>(length));
}

class MpiCommunicator final : public PeerCommunicator {
 public:
  // Owns `comm`.
  MpiCommunicator(MPI_Comm comm, const MpiOptions& options)
      : PeerCommunicator(options.peer), comm_(comm), options_(options) {
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
  int WorldRank(int rank) const override {
    MPI_Group group, world;
    int world_rank = rank;
    MPI_Comm_group(comm_, &group);
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    MPI_Group_translate_ranks(group, 1, &rank, world, &world_rank);
    MPI_Group_free(&group);
    MPI_Group_free(&world);
    return world_rank;
  }
  [[noreturn]] void Abort(int exit_code) override { EndJob(exit_code); }
  using PeerCommunicator::BarrierOrEnd;

 private:
  struct Pending {
    int peer;   // the other rank
    int bytes;  // that a receive expects; -1: a send
  };

  [[noreturn]] void EndJob(int exit_code) override {
    std::fflush(nullptr);
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    std::_Exit(exit_code);
  }

  void Post(const void* data, int64_t bytes, int destination, Kind kind) override {
    ForEachPiece(bytes, [&](int64_t offset, int count) {
      Check(MPI_Isend(static_cast<const std::byte*>(data) + offset, count, MPI_BYTE, destination,
                      static_cast<int>(kind), comm_, AddRequest({.peer = destination, .bytes = -1})));
    });
  }
  void Receive(void* data, int64_t bytes, int source, Kind kind) override {
    ForEachPiece(bytes, [&](int64_t offset, int count) {
      Check(MPI_Irecv(static_cast<std::byte*>(data) + offset, count, MPI_BYTE, source, static_cast<int>(kind),
                      comm_, AddRequest({.peer = source, .bytes = count})));
    });
  }
  template <class Fn>
  void ForEachPiece(int64_t bytes, Fn&& fn) {
    for (int64_t offset = 0; offset < bytes; offset += options_.max_message_bytes) {
      fn(offset, static_cast<int>(std::min(options_.max_message_bytes, bytes - offset)));
    }
  }
  MPI_Request* AddRequest(const Pending& pending) {
    pending_.push_back(pending);
    requests_.push_back(MPI_REQUEST_NULL);
    return &requests_.back();
  }

  void Wait() override {
    if (requests_.empty()) return;
    statuses_.resize(requests_.size());
    WaitLimits limits(*this);
    const Clock::time_point start = Clock::now();
    Clock::time_point next_check = start + kCheckTime;
    while (true) {
      int done = 0;
      const int code =
          MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, statuses_.data());
      if (code != MPI_SUCCESS) CheckStatuses(code);
      if (done) break;
      const Clock::time_point now = Clock::now();
      if (now >= next_check) {
        limits.Check([this] { return Missing(); });
        next_check = now + kCheckTime;
      }
      if (now - start > kYieldTime) {
        std::this_thread::sleep_for(kSleepTime);
      } else if (now - start > kSpinTime) {
        sched_yield();
      }
    }
    for (size_t i = 0; i < requests_.size(); ++i) {
      int count = 0;
      if (pending_[i].bytes < 0) continue;
      Check(MPI_Get_count(&statuses_[i], MPI_BYTE, &count));
      if (count != pending_[i].bytes) {
        Fail(absl::StrCat("rank ", WorldRank(statuses_[i].MPI_SOURCE), " sent ", count, " bytes where ",
                          pending_[i].bytes, " were expected: the ranks' calls do not match"));
      }
    }
    requests_.clear();
    pending_.clear();
  }

  // The other ends of the messages that are under way.
  std::vector<int> Missing() {
    std::vector<int> ranks;
    for (size_t i = 0; i < requests_.size(); ++i) {
      int done = 0;
      MPI_Status status;
      if (MPI_Request_get_status(requests_[i], &done, &status) == MPI_SUCCESS && !done) {
        ranks.push_back(WorldRank(pending_[i].peer));
      }
    }
    std::sort(ranks.begin(), ranks.end());
    ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
    return ranks;
  }

  void CheckStatuses(int code) {
    if (code == MPI_ERR_IN_STATUS) {
      for (const MPI_Status& status : statuses_) {
        if (status.MPI_ERROR == MPI_SUCCESS || status.MPI_ERROR == MPI_ERR_PENDING) continue;
        int error_class = 0;
        MPI_Error_class(status.MPI_ERROR, &error_class);
        Fail(error_class == MPI_ERR_TRUNCATE
                 ? absl::StrCat("rank ", WorldRank(status.MPI_SOURCE),
                                " sent more bytes than expected: the ranks' calls do not match")
                 : ErrorText(status.MPI_ERROR));
      }
    }
    Fail(ErrorText(code));
  }
  void Check(int code) {
    if (code != MPI_SUCCESS) Fail(ErrorText(code));
  }

  std::unique_ptr<Communicator> DoSplit(int color) override {
    DoBarrier();  // waiting in MPI's own call would have no limit
    MPI_Comm part = MPI_COMM_NULL;
    Check(MPI_Comm_split(comm_, color < 0 ? MPI_UNDEFINED : color, rank_, &part));
    if (part == MPI_COMM_NULL) return nullptr;
    return std::make_unique<MpiCommunicator>(part, options_);
  }

  MPI_Comm comm_;
  MpiOptions options_;
  int rank_ = 0, size_ = 1;
  // Messages under way.
  std::vector<MPI_Request> requests_;
  std::vector<Pending> pending_;
  std::vector<MPI_Status> statuses_;
};

class MpiSessionImpl final : public MpiSession {
 public:
  MpiSessionImpl(MPI_Comm world, MPI_Comm local, MPI_Comm finish, const MpiOptions& options)
      : world_(world, options), local_(local, options), finish_(finish, options) {
    world_.set_name("world");
    local_.set_name("local");
    finish_.set_name("end of the program");
  }
  ~MpiSessionImpl() override {
    if (!finished_) Finish(kExitFailure);
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
    if (exit_code == 0) {
      finish_.Barrier();
    } else {
      finish_.BarrierOrEnd(kFailureGrace, exit_code);
    }
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
