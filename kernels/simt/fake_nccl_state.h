// What the files of the fake NCCL share (fake_nccl.h).
#pragma once
#include <atomic>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "kernels/simt/fake_cudart.h"
#include "kernels/simt/fake_nccl.h"

namespace carousel::fake_nccl {

constexpr int kMaxRanks = 16;
constexpr size_t kPieceBytes = size_t{256} << 10;  // of a collective, per rank
constexpr size_t kPipeBytes = size_t{64} << 10;    // of a message from rank to rank

enum class Kind : uint32_t { kAllReduce, kReduceScatter, kAllGather, kBroadcast, kSend, kRecv };
inline bool IsPeerToPeer(Kind kind) { return kind == Kind::kSend || kind == Kind::kRecv; }

// A collective as all of its ranks must see it.
struct Call {
  Kind kind;
  ncclDataType_t dtype;
  ncclRedOp_t op;
  int root;
  uint64_t count;
  bool operator==(const Call&) const = default;
};

enum class Presence : int { kAbsent, kHere, kLeft };

// A collective goes in rounds: each rank posts a piece of its input, waits until all have posted, takes what
// it needs from all pieces and says so. So do splits.
struct alignas(64) RankArea {
  std::atomic<Presence> presence;
  std::atomic<uint64_t> posted, taken;              // rounds
  std::atomic<uint64_t> split_posted, split_taken;  // splits
  int color, key;                                   // of the split that was posted
  Call call;
  alignas(64) char piece[kPieceBytes];
};
struct alignas(64) Pipe {
  std::atomic<uint64_t> written, read;  // pieces
  uint64_t bytes;
  alignas(64) char piece[kPipeBytes];
};
// The memory that the ranks of a communicator share, zero at first.
struct SharedArea {
  std::atomic<bool> aborted;
  RankArea rank[kMaxRanks];
  Pipe pipe[kMaxRanks][kMaxRanks];  // [from][to]
};

size_t SizeOf(ncclDataType_t dtype);  // 0 for a type that is not supported
bool IsSummable(ncclDataType_t dtype);
// out[i] = the reduction of in[r][i] over the ranks.
void Reduce(void* out, const char* const* in, int num_ranks, int64_t count, ncclDataType_t dtype,
            ncclRedOp_t op);
}  // namespace carousel::fake_nccl

// The name is the one that nccl.h declares.
struct ncclComm {
  ~ncclComm();
  // Takes the place of `rank` among the ranks that meet under this name. False if that cannot be.
  bool Enter(const std::string& shared_name, int its_rank, int num_ranks);
  bool AllHere();  // the name may then be used again
  // Keeps the first error.
  ncclResult_t Fail(ncclResult_t error, const std::string& text);
  // Whether another rank's process (or thread) has ended without leaving.
  bool IsGone(int other) const;
  // "rank 3 is gone", "another rank aborted ..."; empty if all are well. Whether ranks may have left by now.
  std::string FindGone(bool may_leave) const;

  // What goes on after a call has returned ncclInProgress: ncclInProgress again until it has ended.
  using Job = std::function<ncclResult_t()>;
  // `num_polls` times more than the job itself needs. REQUIRES: !busy().
  void Start(Job job, int num_polls);
  bool busy() const;
  // One step of the job: ncclInProgress, or how the communicator is.
  ncclResult_t Poll();

  carousel::fake_nccl::SharedArea* area = nullptr;
  std::string name;
  int file = -1;  // this rank holds a lock on its byte of the file for as long as it lives
  int rank = 0, size = 0;
  bool blocking = true;  // calls return when they have ended
  uint64_t round = 0;    // of collectives, on this rank
  uint64_t num_splits = 0;
  std::atomic<bool> aborted{false};
  std::set<cudaStream_t> streams;  // that operations were given to

  mutable std::mutex mutex;  // guards what follows
  ncclResult_t async_error = ncclSuccess;
  std::string error_text;
  bool is_busy = false;
  Job job;  // null while a thread runs it
  int num_polls_left = 0;
};

namespace carousel::fake_nccl {

// ---- fake_nccl_setup.cc

std::shared_ptr<ncclComm> Find(ncclComm* communicator);
// Remembers the text for ncclGetLastError.
ncclResult_t Refuse(ncclResult_t error, const std::string& text);
const std::string& LastError();
// From [0, n), seeded.
int Random(int n);
// True once the k-th operation is reached that is to fail.
bool OperationFails();

// One collective or message of one rank: a part of an operation of the runtime, and copied with it.
class Work {
 public:
  Work(std::shared_ptr<ncclComm> communicator, const Call& call, const void* in, void* out, int peer)
      : communicator_(std::move(communicator)),
        call_(call),
        in_(static_cast<const char*>(in)),
        out_(static_cast<char*>(out)),
        peer_(peer) {}

  // As far as possible without waiting. Not called again after kDone.
  fake_cuda::Progress Run();
  bool done() const { return done_; }
  const std::shared_ptr<ncclComm>& communicator() const { return communicator_; }
  bool peer_to_peer() const { return IsPeerToPeer(call_.kind); }
  int64_t in_bytes() const;  // 0 where this rank gives or takes nothing
  int64_t out_bytes() const;
  const void* in() const { return in_; }
  const void* out() const { return out_; }

 private:
  // Each does one step and says whether it could.
  bool StepCollective();
  bool StepMessage();
  void Post(int64_t count);
  void Take(int64_t count);
  bool RunSteps();
  std::string FindFailure() const;  // empty if the others are alive

  std::shared_ptr<ncclComm> communicator_;
  Call call_;
  const char* in_;
  char* out_;
  int peer_;
  uint64_t position_ = 0;  // elements done, or bytes of a message
  bool posted_ = false;
  bool done_ = false;
};
}  // namespace carousel::fake_nccl
