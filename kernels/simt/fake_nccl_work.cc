// The fake NCCL: collectives and messages as operations that never block.
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "core/base/bfloat16.h"
#include "kernels/simt/emulator.h"
#include "kernels/simt/fake_nccl_state.h"

namespace carousel::fake_nccl {
namespace {

// Additions of integers wrap around.
template <class T>
T Combine(T a, T b, ncclRedOp_t op) {
  switch (op) {
    case ncclProd:
      return static_cast<T>(a * b);
    case ncclMax:
      return std::max(a, b);
    case ncclMin:
      return std::min(a, b);
    default:
      return static_cast<T>(a + b);
  }
}

// Storage: what lies in memory. T: what is computed in; every step is rounded to Storage.
template <class T, class Storage = T>
void ReduceTyped(void* out_memory, const char* const* in, int num_ranks, int64_t count, ncclRedOp_t op) {
  const auto load = [&](int rank, int64_t i) {
    Storage v;
    std::memcpy(&v, in[rank] + i * static_cast<int64_t>(sizeof(Storage)), sizeof v);
    return static_cast<T>(v);
  };
  for (int64_t i = 0; i < count; ++i) {
    // A ring begins with the rank after the one that ends up with the element's slice.
    const int first = static_cast<int>(i * num_ranks / count) + 1;
    T value = load(first % num_ranks, i);
    for (int k = 1; k < num_ranks; ++k) {
      value = static_cast<T>(Storage(Combine(value, load((first + k) % num_ranks, i), op)));
    }
    if (op == ncclAvg) value = static_cast<T>(value / static_cast<T>(num_ranks));
    const Storage result = Storage(value);
    std::memcpy(static_cast<char*>(out_memory) + i * static_cast<int64_t>(sizeof(Storage)), &result,
                sizeof result);
  }
}
}  // namespace

size_t SizeOf(ncclDataType_t dtype) {
  switch (dtype) {
    case ncclInt8:
    case ncclUint8:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
      return 8;
    default:
      return 0;
  }
}
bool IsSummable(ncclDataType_t dtype) { return SizeOf(dtype) > 0 && dtype != ncclFloat16; }

void Reduce(void* out, const char* const* in, int num_ranks, int64_t count, ncclDataType_t dtype,
            ncclRedOp_t op) {
  switch (dtype) {
    case ncclInt8:
    case ncclUint8:
      return ReduceTyped<uint32_t, uint8_t>(out, in, num_ranks, count, op);
    case ncclInt32:
    case ncclUint32:
      return ReduceTyped<uint32_t>(out, in, num_ranks, count, op);
    case ncclInt64:
    case ncclUint64:
      return ReduceTyped<uint64_t>(out, in, num_ranks, count, op);
    case ncclFloat32:
      return ReduceTyped<float>(out, in, num_ranks, count, op);
    case ncclFloat64:
      return ReduceTyped<double>(out, in, num_ranks, count, op);
    case ncclBfloat16:
      return ReduceTyped<float, bfloat16>(out, in, num_ranks, count, op);
    default:
      break;  // refused when it was called
  }
}

int64_t Work::in_bytes() const {
  if (call_.kind == Kind::kRecv || (call_.kind == Kind::kBroadcast && call_.root != communicator_->rank))
    return 0;
  const uint64_t parts = call_.kind == Kind::kReduceScatter ? static_cast<uint64_t>(communicator_->size) : 1;
  return static_cast<int64_t>(call_.count * parts * SizeOf(call_.dtype));
}
int64_t Work::out_bytes() const {
  if (call_.kind == Kind::kSend) return 0;
  const uint64_t parts = call_.kind == Kind::kAllGather ? static_cast<uint64_t>(communicator_->size) : 1;
  return static_cast<int64_t>(call_.count * parts * SizeOf(call_.dtype));
}

fake_cuda::Progress Work::Run() {
  if (communicator_->aborted) done_ = true;
  if (done_) return fake_cuda::Progress::kDone;
  {
    const std::lock_guard<std::mutex> lock(communicator_->mutex);
    if (communicator_->async_error != ncclSuccess) return fake_cuda::Progress::kWaiting;  // for an abort
  }
  if (position_ == 0 && !posted_ && in_bytes() > 0 &&
      !emulator::is_initialized(in_, static_cast<size_t>(in_bytes()))) {
    throw emulator::KernelError("NCCL: a buffer to send has elements that were never written");
  }
  bool any = RunSteps();
  if (!any) {
    const std::string failure = FindFailure();
    any = RunSteps();  // a rank that has gone since may have left what was wanted of it
    if (!any && !failure.empty()) communicator_->Fail(ncclRemoteError, failure);
  }
  if (done_) {
    if (out_bytes() > 0) emulator::mark_initialized(out_, static_cast<size_t>(out_bytes()));
    return fake_cuda::Progress::kDone;
  }
  return any ? fake_cuda::Progress::kRan : fake_cuda::Progress::kWaiting;
}

bool Work::RunSteps() {
  bool any = false;
  while (!done_ && (peer_to_peer() ? StepMessage() : StepCollective())) any = true;
  return any;
}

void Work::Post(int64_t count) {
  const size_t bytes = SizeOf(call_.dtype), n = static_cast<size_t>(count);
  RankArea& mine = communicator_->area->rank[communicator_->rank];
  mine.call = call_;
  if (in_bytes() > 0) {
    // For a reduce-scatter a piece is the same part of every rank's block, one after the other.
    const int parts = call_.kind == Kind::kReduceScatter ? communicator_->size : 1;
    for (int part = 0; part < parts; ++part) {
      const size_t begin = static_cast<size_t>(part) * call_.count + position_;
      std::memcpy(mine.piece + static_cast<size_t>(part) * n * bytes, in_ + begin * bytes, n * bytes);
    }
  }
  mine.posted = ++communicator_->round;
}

void Work::Take(int64_t count) {
  const SharedArea& area = *communicator_->area;
  const int size = communicator_->size;
  const size_t bytes = SizeOf(call_.dtype), n = static_cast<size_t>(count);
  char* out = out_ + position_ * bytes;
  if (call_.kind == Kind::kAllGather) {
    for (int r = 0; r < size; ++r) {
      std::memcpy(out + static_cast<size_t>(r) * call_.count * bytes, area.rank[r].piece, n * bytes);
    }
  } else if (call_.kind == Kind::kBroadcast) {
    std::memcpy(out, area.rank[call_.root].piece, n * bytes);
  } else {
    const size_t part = call_.kind == Kind::kReduceScatter ? static_cast<size_t>(communicator_->rank) : 0;
    std::vector<const char*> in;
    for (int r = 0; r < size; ++r) in.push_back(area.rank[r].piece + part * n * bytes);
    Reduce(out, in.data(), size, count, call_.dtype, call_.op);
  }
}

bool Work::StepCollective() {
  SharedArea& area = *communicator_->area;
  const int size = communicator_->size;
  const uint64_t parts = call_.kind == Kind::kReduceScatter ? static_cast<uint64_t>(size) : 1;
  const uint64_t room = kPieceBytes / SizeOf(call_.dtype) / parts;
  const int64_t count = static_cast<int64_t>(std::min(call_.count - position_, room));
  const auto all_reached = [&](std::atomic<uint64_t> RankArea::*counter) {
    return std::all_of(area.rank, area.rank + size,
                       [&](const RankArea& rank) { return (rank.*counter) >= communicator_->round; });
  };
  if (!posted_) {
    if (!all_reached(&RankArea::taken)) return false;  // another's last piece is still wanted
    Post(count);
    posted_ = true;
    return true;
  }
  if (!all_reached(&RankArea::posted)) return false;
  for (int r = 0; r < size; ++r) {
    if (area.rank[r].call == call_) continue;
    communicator_->Fail(ncclInvalidUsage, "rank " + std::to_string(r) +
                                              " called another collective, or with another count, type, "
                                              "operation or root");
    return false;
  }
  Take(count);
  area.rank[communicator_->rank].taken = communicator_->round;
  position_ += static_cast<uint64_t>(count);
  posted_ = false;
  done_ = position_ == call_.count;
  return true;
}

bool Work::StepMessage() {
  SharedArea& area = *communicator_->area;
  const bool sends = call_.kind == Kind::kSend;
  Pipe& pipe = sends ? area.pipe[communicator_->rank][peer_] : area.pipe[peer_][communicator_->rank];
  const uint64_t total = call_.count * SizeOf(call_.dtype);
  const size_t bytes = static_cast<size_t>(std::min<uint64_t>(total - position_, kPipeBytes));
  if (sends) {
    if (pipe.written != pipe.read) return false;
    std::memcpy(pipe.piece, in_ + position_, bytes);
    pipe.bytes = total - position_;
    ++pipe.written;
  } else {
    if (pipe.written == pipe.read) return false;
    if (pipe.bytes != total - position_) {
      communicator_->Fail(ncclInvalidUsage,
                          "rank " + std::to_string(peer_) + " sends another number of bytes");
      return false;
    }
    std::memcpy(out_ + position_, pipe.piece, bytes);
    ++pipe.read;
  }
  position_ += bytes;
  done_ = position_ == total;
  return true;
}

std::string Work::FindFailure() const {
  if (!peer_to_peer()) return communicator_->FindGone(/*may_leave=*/false);
  if (communicator_->area->aborted) return "another rank aborted the communicator";
  if (communicator_->area->rank[peer_].presence == Presence::kLeft) {
    return "rank " + std::to_string(peer_) + " has destroyed its communicator";
  }
  return communicator_->IsGone(peer_) ? "rank " + std::to_string(peer_) + " is gone" : "";
}
}  // namespace carousel::fake_nccl
