#include "parallel/nccl_communicator.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/check.h"
#include "core/base/exit_code.h"
#include "parallel/nccl_communicator_impl.h"

namespace carousel {
namespace {
using Clock = std::chrono::steady_clock;

constexpr auto kEndTime = std::chrono::seconds(5);  // of a failing process, whatever hangs in it
constexpr auto kMutexTime = std::chrono::seconds(1);
constexpr int kNumCallsPrinted = 16;
constexpr int kYieldsBeforeSleep = 1000, kSleepMicroseconds = 20;
constexpr int64_t kAlignBytes = 256;  // of the terms of a sum

int64_t RoundUp(int64_t bytes) { return (bytes + kAlignBytes - 1) / kAlignBytes * kAlignBytes; }
std::byte* At(Tensor x, int64_t offset_bytes) { return static_cast<std::byte*>(x.data) + offset_bytes; }
Tensor Elems(std::byte* data, DType dtype, int64_t count) { return Tensor(data, dtype, {count}); }

bool IsFloat(DType dtype) { return dtype != DType::kI32 && dtype != DType::kI64; }
ncclDataType_t IntegerType(DType dtype) { return dtype == DType::kI32 ? ncclInt32 : ncclInt64; }
bool IsError(ncclResult_t result) { return result != ncclSuccess && result != ncclInProgress; }

std::string LastLines(const std::string& text, int count) {
  size_t begin = text.size();
  while (begin > 0 && count-- > 0) {
    const size_t end = text.rfind('\n', begin - 1);
    begin = end == std::string::npos || end == 0 ? 0 : text.rfind('\n', end - 1) + 1;
  }
  return text.substr(begin);
}
}  // namespace

NcclCommunicator::NcclCommunicator(Communicator& host, std::unique_ptr<Communicator> own_host, Device& device,
                                   ncclComm_t communicator, const NcclOptions& options)
    : own_host_(std::move(own_host)),
      host_(host),
      device_(device),
      communicator_(communicator),
      options_(options),
      compute_(options.stream == nullptr ? device.ComputeStream() : nullptr),
      stream_(options.stream == nullptr ? *compute_ : *options.stream),
      native_stream_(static_cast<cudaStream_t>(stream_.native())),
      part_stream_(options.stream) {
  stream_.ops();  // the device is current
  watch_ = std::make_unique<NcclWatch>(
      communicator_, &nccl_mutex_, options_.timeout_seconds,
      [this](const std::string& call, const std::string& text) { Fail(call, text, /*holds_mutex=*/false); });
}

NcclCommunicator::~NcclCommunicator() {
  stream_.ops();
  CheckRuntime(cudaStreamSynchronize(native_stream_), "cudaStreamSynchronize");
  {
    const std::lock_guard<std::timed_mutex> lock(nccl_mutex_);
    // After this the communicator may only be destroyed: the others have no more use of this rank.
    Settle(ncclCommFinalize(communicator_), /*leaves=*/true);
  }
  watch_.reset();
  Settle(ncclCommDestroy(communicator_), /*leaves=*/true);
  device_.Free(staging_);
}

// ---- calls

void NcclCommunicator::DoAllReduceSum(Tensor x) {
  if (size() == 1 || x.num_elems() == 0) return;
  if (!IsFloat(x.dtype)) {  // exact in any order
    Issue([&] {
      return ncclAllReduce(x.data, x.data, static_cast<size_t>(x.num_elems()), IntegerType(x.dtype), ncclSum,
                           communicator_, native_stream_);
    });
    return End();
  }
  // In chunks whose terms fit into the staging memory: slice r of a chunk is summed by rank r, then sent to
  // all.
  TakeStaging();
  const int64_t elem_bytes = SizeOf(x.dtype), chunk_elems = ElemsPerPiece(x.dtype) * size();
  for (int64_t begin = 0; begin < x.num_elems(); begin += chunk_elems) {
    const int64_t n = std::min(chunk_elems, x.num_elems() - begin);
    const auto slice = [&](int r) {
      const int64_t first = begin + n * r / size(), last = begin + n * (r + 1) / size();
      return Block{At(x, first * elem_bytes), (last - first) * elem_bytes};
    };
    const Block own = slice(rank());
    Exchange(slice, [&](int from) { return Block{Term(from, own.bytes), own.bytes}; });
    const Tensor sum = Elems(own.data, x.dtype, own.bytes / elem_bytes);
    SumTerms(sum, sum);
    Exchange([&](int) { return own; }, slice);
  }
  End();
}

void NcclCommunicator::DoAllGather(Tensor all, Tensor mine) {
  if (mine.num_elems() == 0) return;
  Issue([&] {
    return ncclAllGather(mine.data, all.data, static_cast<size_t>(mine.num_bytes()), ncclUint8, communicator_,
                         native_stream_);
  });
  End();
}

void NcclCommunicator::DoReduceScatterSum(Tensor mine, Tensor all) {
  if (mine.num_elems() == 0) return;
  if (!IsFloat(all.dtype)) {
    Issue([&] {
      return ncclReduceScatter(all.data, mine.data, static_cast<size_t>(mine.num_elems()),
                               IntegerType(all.dtype), ncclSum, communicator_, native_stream_);
    });
    return End();
  }
  TakeStaging();
  const int64_t elem_bytes = SizeOf(all.dtype), block_bytes = mine.num_bytes();
  const int64_t piece_bytes = ElemsPerPiece(all.dtype) * elem_bytes;
  for (int64_t begin = 0; begin < block_bytes; begin += piece_bytes) {
    const int64_t bytes = std::min(piece_bytes, block_bytes - begin);
    Exchange(
        [&](int to) {
          return Block{At(all, to * block_bytes + begin), bytes};
        },
        [&](int from) {
          return Block{Term(from, bytes), bytes};
        });
    SumTerms(Elems(At(mine, begin), all.dtype, bytes / elem_bytes),
             Elems(At(all, rank() * block_bytes + begin), all.dtype, bytes / elem_bytes));
  }
  End();
}

void NcclCommunicator::DoAllToAll(Tensor out, Tensor in) {
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

void NcclCommunicator::DoBroadcast(Tensor x, int root) {
  if (x.num_elems() == 0) return;
  Issue([&] {
    return ncclBroadcast(x.data, x.data, static_cast<size_t>(x.num_bytes()), ncclUint8, root, communicator_,
                         native_stream_);
  });
  End();
}

void NcclCommunicator::DoSend(Tensor x, int destination) {
  if (x.num_elems() == 0) return;
  Issue([&] {
    return ncclSend(x.data, static_cast<size_t>(x.num_bytes()), ncclUint8, destination, communicator_,
                    native_stream_);
  });
  End();
}

void NcclCommunicator::DoRecv(Tensor x, int source) {
  if (x.num_elems() == 0) return;
  Issue([&] {
    return ncclRecv(x.data, static_cast<size_t>(x.num_bytes()), ncclUint8, source, communicator_,
                    native_stream_);
  });
  End();
}

void NcclCommunicator::DoSendRecv(Tensor out, int destination, Tensor in, int source) {
  if (out.num_elems() == 0 && in.num_elems() == 0) return;
  Exchange(
      [&](int to) {
        return to == destination ? Block{At(out, 0), out.num_bytes()} : Block{nullptr, 0};
      },
      [&](int from) {
        return from == source ? Block{At(in, 0), in.num_bytes()} : Block{nullptr, 0};
      });
  End();
}

void NcclCommunicator::DoBarrier() {
  stream_.ops();
  CheckRuntime(cudaStreamSynchronize(native_stream_), "cudaStreamSynchronize");
  host_.Barrier(site());
}

std::unique_ptr<Communicator> NcclCommunicator::DoSplit(int color) {
  stream_.ops();
  std::unique_ptr<Communicator> part_host = host_.Split(color, site());
  ncclComm_t part = nullptr;  // written by NCCL in the background
  absl::Status status;
  {
    const std::lock_guard<std::timed_mutex> lock(nccl_mutex_);
    ncclResult_t result =
        ncclCommSplit(communicator_, color < 0 ? NCCL_SPLIT_NOCOLOR : color, rank(), &part, nullptr);
    status = WaitForAllRanks(host_, "ncclCommSplit", options_.init_timeout_seconds, [&]() -> NcclProgress {
      // The whole is ready first, then the part has an address, then the part is ready.
      if (result == ncclInProgress) ncclCommGetAsyncError(communicator_, &result);
      if (IsError(result)) return {NcclProgress::State::kFailed, NcclErrorText(result, communicator_)};
      if (result == ncclInProgress) return {};
      if (color < 0) return {NcclProgress::State::kDone, ""};
      const ncclComm_t made = __atomic_load_n(&part, __ATOMIC_ACQUIRE);
      if (made == nullptr) return {};
      ncclResult_t of_part = ncclSuccess;
      ncclCommGetAsyncError(made, &of_part);
      if (IsError(of_part)) return {NcclProgress::State::kFailed, NcclErrorText(of_part, made)};
      return {of_part == ncclSuccess ? NcclProgress::State::kDone : NcclProgress::State::kPending, ""};
    });
  }
  if (!status.ok()) {
    AbandonNccl(part);
    Fail(DescribeCurrent(), std::string(status.message()), /*holds_mutex=*/false);
  }
  if (color < 0) return nullptr;
  NcclOptions options = options_;
  options.stream = part_stream_;
  Communicator& part_ranks = *part_host;
  return std::make_unique<NcclCommunicator>(part_ranks, std::move(part_host), device_, part, options);
}

void NcclCommunicator::DoExchangeForVerify(void* all, const void* mine, int64_t bytes) {
  host_.AllGather(Tensor(all, DType::kU8, {bytes * size()}),
                  Tensor(const_cast<void*>(mine), DType::kU8, {bytes}), site());
}

// ---- what calls are made of

void NcclCommunicator::Issue(const std::function<ncclResult_t()>& calls) {
  stream_.ops();  // the device is current
  const std::lock_guard<std::timed_mutex> lock(nccl_mutex_);
  Settle(calls());
}

void NcclCommunicator::Settle(ncclResult_t result, bool leaves) {
  const auto fail = [&](const std::string& text) {
    Fail(absl::StrCat(leaves ? "leaving the other ranks, after " : "", DescribeCurrent()), text,
         /*holds_mutex=*/true);
  };
  const auto end = Clock::now() + std::chrono::duration<double>(options_.timeout_seconds);
  for (int polls = 0; result == ncclInProgress; ++polls) {
    if (Clock::now() > end) {
      fail(absl::StrCat("NCCL still works at it after ", static_cast<int64_t>(options_.timeout_seconds),
                        " s; another rank hangs, or makes other calls"));
    }
    if (polls < kYieldsBeforeSleep) {
      sched_yield();
    } else {
      usleep(kSleepMicroseconds);
    }
    const ncclResult_t asked = ncclCommGetAsyncError(communicator_, &result);
    if (asked != ncclSuccess) result = asked;
  }
  if (result != ncclSuccess) fail(NcclErrorText(result, communicator_));
}

void NcclCommunicator::Exchange(const std::function<Block(int)>& out, const std::function<Block(int)>& in) {
  Issue([&]() -> ncclResult_t {
    if (const ncclResult_t result = ncclGroupStart(); IsError(result)) return result;
    for (int k = 1; k < size(); ++k) {
      const int to = (rank() + k) % size(), from = (rank() + size() - k) % size();
      const Block sent = out(to), taken = in(from);
      ncclResult_t result = ncclSuccess;
      if (sent.bytes > 0) {
        result = ncclSend(sent.data, static_cast<size_t>(sent.bytes), ncclUint8, to, communicator_,
                          native_stream_);
      }
      if (taken.bytes > 0 && !IsError(result)) {
        result = ncclRecv(taken.data, static_cast<size_t>(taken.bytes), ncclUint8, from, communicator_,
                          native_stream_);
      }
      if (IsError(result)) {
        ncclGroupEnd();
        return result;
      }
    }
    return ncclGroupEnd();
  });
}

void NcclCommunicator::Copy(void* to, const void* from, int64_t bytes) {
  if (to == from || bytes == 0) return;
  CheckRuntime(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, native_stream_),
      "copy within the device");
}

void NcclCommunicator::End() {
  CheckRuntime(watch_->Add(DescribeCurrent(), native_stream_), "looking after a call");
}

// ---- sums. The staging memory holds one term of every rank, its own left out, then a sum in f32 for terms
// of bf16.

int64_t NcclCommunicator::ElemsPerPiece(DType dtype) const {
  const int64_t bytes = SizeOf(dtype) * size() + (dtype == DType::kBF16 ? SizeOf(DType::kF32) : 0);
  return std::max<int64_t>(options_.staging_bytes / bytes, 1);
}

// Allocated once: what was recorded before holds its address. May wait for the compute stream.
void NcclCommunicator::TakeStaging() {
  if (staging_ != nullptr) return;
  staging_ = static_cast<std::byte*>(device_.Allocate(options_.staging_bytes + (size() + 1) * kAlignBytes));
  CAROUSEL_CHECK_MSG(staging_ != nullptr,
                     absl::StrCat("no device memory for a sum over the ranks: ", device_.allocation_error()));
}

std::byte* NcclCommunicator::Term(int r, int64_t bytes) const { return staging_ + r * RoundUp(bytes); }

void NcclCommunicator::SumTerms(Tensor out, Tensor own) {
  const int64_t n = out.num_elems(), bytes = own.num_bytes();
  if (n == 0) return;
  if (size() == 1) return Copy(out.data, own.data, bytes);
  const auto term = [&](int r) { return r == rank() ? own : Elems(Term(r, bytes), own.dtype, n); };
  // Wide terms are summed where the first one that is not this rank's own was: it is read before.
  const Tensor sum = own.dtype == DType::kBF16 ? Elems(Term(size(), bytes), DType::kF32, n)
                                               : Elems(Term(rank() == 0 ? 1 : 0, bytes), own.dtype, n);
  for (int r = 1; r < size(); ++r) {
    stream_.ops().Add({.y = r == size() - 1 ? out : sum, .a = r == 1 ? term(0) : sum, .b = term(r)});
  }
}

// ---- failures

void NcclCommunicator::CheckRuntime(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  Fail(DescribeCurrent(), absl::StrCat(what, ": ", cudaGetErrorString(status)), /*holds_mutex=*/false);
}

void NcclCommunicator::Fail(const std::string& call, const std::string& text, bool holds_mutex) {
  // Another thread has failed before: it ends the process.
  if (fails_.exchange(true)) {
    for (;;) pause();
  }
  std::thread([] {
    std::this_thread::sleep_for(kEndTime);
    std::_Exit(kExitTransport);
  }).detach();
  const int process_rank = ProcessRank() >= 0 ? ProcessRank() : WorldRank(rank());
  std::fprintf(stderr, "[rank %d] %s: %s%s\nthe last calls of this rank:\n%s", process_rank, call.c_str(),
               text.c_str(), WhoseRanks().c_str(), LastLines(recorder().Dump(), kNumCallsPrinted).c_str());
  std::fflush(stderr);
  // Without it the GPU would go on waiting for the other ranks. Not where another thread is inside of NCCL.
  if (holds_mutex || nccl_mutex_.try_lock_for(kMutexTime)) AbandonNccl(communicator_);
  Abort(kExitTransport);
}

std::string NcclCommunicator::WhoseRanks() {
  const std::string name = recorder().name();
  std::vector<int> of_job;
  bool same = true;
  for (int r = 0; r < size(); ++r) {
    of_job.push_back(WorldRank(r));
    same = same && of_job.back() == r;
  }
  if (same) return "";
  constexpr size_t kMostShown = 16;
  const bool all = of_job.size() <= kMostShown;
  if (!all) of_job.resize(kMostShown);
  return absl::StrCat(" (ranks 0 to ", size() - 1, name.empty() ? " of it" : absl::StrCat(" of '", name, "'"),
                      " are ranks ", absl::StrJoin(of_job, ", "), all ? "" : ", ...", " of the job)");
}

void NcclCommunicator::Abandon() {
  // From now on a failure ends in Fail, which waits for the end of the process. The mutex stays locked: what
  // is aborted may not be called.
  if (fails_.exchange(true)) return;
  if (nccl_mutex_.try_lock_for(kMutexTime)) AbandonNccl(communicator_);
}

void NcclCommunicator::Abort(int exit_code) {
  host_.Abort(exit_code);
  std::_Exit(exit_code);  // not reached
}
}  // namespace carousel
