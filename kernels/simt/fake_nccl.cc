// The fake NCCL: communicators, groups and the functions of nccl.h.
#include "kernels/simt/fake_nccl.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

#include "kernels/simt/fake_nccl_state.h"

namespace carousel::fake_nccl {
namespace {
using Clock = std::chrono::steady_clock;
constexpr auto kAttachTime = std::chrono::seconds(60);

struct State {
  std::mutex mutex;
  Options options;
  int64_t num_operations = 0;
  int64_t num_ids = 0;
  std::map<ncclComm*, std::shared_ptr<ncclComm>> communicators;
};
State& GetState() {
  static State& state = *new State;  // never destroyed: other statics may still use it
  return state;
}

struct Group {
  int depth = 0;
  std::vector<std::pair<cudaStream_t, Work>> work;
  ncclResult_t error = ncclSuccess;
};
thread_local Group group;
thread_local std::string last_error;

ncclResult_t Refuse(ncclResult_t error, const std::string& text) {
  last_error = text;
  if (group.depth > 0 && group.error == ncclSuccess) group.error = error;
  return error;
}

std::shared_ptr<ncclComm> Find(ncclComm* communicator) {
  State& s = GetState();
  const std::lock_guard<std::mutex> lock(s.mutex);
  const auto it = s.communicators.find(communicator);
  return it == s.communicators.end() ? nullptr : it->second;
}

// A lock on one byte of a file that its open file, not the process, holds: it ends with the last descriptor,
// so with the process at the latest, and threads can hold different ones.
bool LockByte(int file, int byte, bool only_ask) {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  if (fcntl(file, only_ask ? F_OFD_GETLK : F_OFD_SETLK, &lock) != 0) return false;
  return !only_ask || lock.l_type == F_UNLCK;
}

// The communicator of `size` ranks that meet under this name; null if not all come.
std::shared_ptr<ncclComm> Attach(const std::string& name, int size, int rank) {
  auto communicator = std::make_shared<ncclComm>();
  communicator->rank = rank;
  communicator->size = size;
  communicator->file = shm_open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (communicator->file < 0 || ftruncate(communicator->file, sizeof(SharedArea)) != 0) return nullptr;
  void* memory = mmap(nullptr, sizeof(SharedArea), PROT_READ | PROT_WRITE, MAP_SHARED, communicator->file, 0);
  if (memory == MAP_FAILED) return nullptr;
  communicator->area = static_cast<SharedArea*>(memory);
  if (!LockByte(communicator->file, rank, /*only_ask=*/false)) return nullptr;  // the rank is taken
  ++communicator->area->attached;
  const auto end = Clock::now() + kAttachTime;
  while (communicator->area->attached < size && Clock::now() < end) {
    if (!fake_cuda::RunOnce()) sched_yield();  // streams go on while the host waits
  }
  shm_unlink(name.c_str());
  return communicator->area->attached == size ? communicator : nullptr;
}

// One operation of the runtime for all work of a group on one stream. Messages go side by side, the
// collectives of a communicator one after the other.
cudaError_t EnqueueWork(cudaStream_t stream, std::vector<Work> work) {
  return fake_cuda::Enqueue(stream, [work = std::move(work)]() mutable {
    bool all_done = true, any_ran = false;
    std::vector<const ncclComm*> busy;
    for (Work& item : work) {
      if (item.done()) continue;
      const bool in_order = !item.peer_to_peer();
      if (in_order && std::find(busy.begin(), busy.end(), item.communicator()) != busy.end()) {
        all_done = false;
        continue;
      }
      any_ran |= item.Run() != fake_cuda::Progress::kWaiting;
      if (item.done()) continue;
      all_done = false;
      if (in_order) busy.push_back(item.communicator());
    }
    return all_done  ? fake_cuda::Progress::kDone
           : any_ran ? fake_cuda::Progress::kRan
                     : fake_cuda::Progress::kWaiting;
  });
}

ncclResult_t Add(ncclComm* handle, cudaStream_t stream, const Call& call, const void* in, void* out,
                 int peer) {
  const std::shared_ptr<ncclComm> communicator = Find(handle);
  if (communicator == nullptr) return Refuse(ncclInvalidArgument, "there is no such communicator");
  {
    const std::lock_guard<std::mutex> lock(communicator->mutex);
    if (communicator->async_error != ncclSuccess)
      return Refuse(communicator->async_error, communicator->error_text);
  }
  if (call.root < 0 || call.root >= communicator->size || peer < 0 || peer >= communicator->size) {
    return Refuse(ncclInvalidArgument, "no such rank");
  }
  const bool reduces = call.kind == Kind::kAllReduce || call.kind == Kind::kReduceScatter;
  if (SizeOf(call.dtype) == 0 || (reduces && !IsSummable(call.dtype))) {
    return Refuse(ncclInvalidArgument, "a type that is not supported");
  }
  State& s = GetState();
  {
    const std::lock_guard<std::mutex> lock(s.mutex);
    if (s.num_operations++ == s.options.fail_operation) {
      communicator->Fail(ncclSystemError, "this operation was made to fail");
      communicator->area->aborted = true;
      return ncclSuccess;
    }
  }
  if (call.count == 0) return ncclSuccess;
  Work work(communicator, call, in, out, peer);
  if ((work.in_bytes() > 0 && !fake_cuda::IsDeviceMemory(in, work.in_bytes())) ||
      (work.out_bytes() > 0 && !fake_cuda::IsDeviceMemory(out, work.out_bytes()))) {
    return Refuse(ncclInvalidArgument, "a buffer is not device memory, or too small");
  }
  if (group.depth > 0) {
    group.work.emplace_back(stream, std::move(work));
    return ncclSuccess;
  }
  return EnqueueWork(stream, {std::move(work)}) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t EndGroup() {
  if (group.depth == 0) return Refuse(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  if (--group.depth > 0) return ncclSuccess;
  const Group ended = std::move(group);
  group = {};
  if (ended.error != ncclSuccess) return ended.error;
  std::vector<cudaStream_t> streams;  // in the order of their first call
  std::map<cudaStream_t, std::vector<Work>> work_of;
  for (const auto& [stream, work] : ended.work) {
    if (work_of.count(stream) == 0) streams.push_back(stream);
    work_of[stream].push_back(work);
  }
  for (const cudaStream_t stream : streams) {
    if (EnqueueWork(stream, std::move(work_of[stream])) != cudaSuccess) return ncclUnhandledCudaError;
  }
  return ncclSuccess;
}

// Work under way keeps the communicator's memory.
ncclResult_t Remove(ncclComm* handle) {
  State& s = GetState();
  const std::lock_guard<std::mutex> lock(s.mutex);
  return s.communicators.erase(handle) == 1 ? ncclSuccess : ncclInvalidArgument;
}
}  // namespace

void SetOptions(const Options& options) {
  State& s = GetState();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.options = options;
  s.num_operations = 0;
}
}  // namespace carousel::fake_nccl

namespace fake = carousel::fake_nccl;
using fake::Kind;

ncclComm::~ncclComm() {
  if (area != nullptr) munmap(area, sizeof *area);
  if (file >= 0) close(file);
}
ncclResult_t ncclComm::Fail(ncclResult_t error, const std::string& text) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (async_error != ncclSuccess) return error;
  async_error = error;
  error_text = text;
  std::fprintf(stderr, "[emulated NCCL, rank %d] %s\n", rank, text.c_str());
  return error;
}
bool ncclComm::IsGone(int other) const {
  return other != rank && fake::LockByte(file, other, /*only_ask=*/true);
}

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  fake::State& s = fake::GetState();
  const std::lock_guard<std::mutex> lock(s.mutex);
  *id = {};
  std::snprintf(id->internal, sizeof id->internal, "/emulated-nccl-%d-%lld", static_cast<int>(getpid()),
                static_cast<long long>(s.num_ids++));
  return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t* handle, int size, ncclUniqueId id, int rank) {
  *handle = nullptr;
  if (size < 1 || size > fake::kMaxRanks || rank < 0 || rank >= size) {
    return fake::Refuse(ncclInvalidArgument, "rank " + std::to_string(rank) + " of " + std::to_string(size));
  }
  const std::shared_ptr<ncclComm> communicator = fake::Attach(id.internal, size, rank);
  if (communicator == nullptr) return fake::Refuse(ncclSystemError, "the ranks did not meet");
  fake::State& s = fake::GetState();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.communicators[communicator.get()] = communicator;
  *handle = communicator.get();
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t handle) {
  const std::shared_ptr<ncclComm> communicator = fake::Find(handle);
  if (communicator == nullptr) return ncclInvalidArgument;
  cudaDeviceSynchronize();  // its work is done
  communicator->area->rank[communicator->rank].left = true;
  return fake::Remove(handle);
}
ncclResult_t ncclCommAbort(ncclComm_t handle) {
  const std::shared_ptr<ncclComm> communicator = fake::Find(handle);
  if (communicator == nullptr) return ncclInvalidArgument;
  communicator->aborted = true;
  communicator->area->aborted = true;
  return fake::Remove(handle);
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* error) {
  const std::shared_ptr<ncclComm> communicator = fake::Find(handle);
  if (communicator == nullptr) return ncclInvalidArgument;
  const std::lock_guard<std::mutex> lock(communicator->mutex);
  *error = communicator->async_error;
  return ncclSuccess;
}
ncclResult_t ncclCommCount(const ncclComm_t communicator, int* size) {
  *size = communicator->size;
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t communicator, int* rank) {
  *rank = communicator->rank;
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t error) {
  switch (error) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    default:
      return "internal error";
  }
}
const char* ncclGetLastError(ncclComm_t handle) {
  thread_local std::string text;
  const std::shared_ptr<ncclComm> communicator = fake::Find(handle);
  text = fake::last_error;
  if (communicator != nullptr) {
    const std::lock_guard<std::mutex> lock(communicator->mutex);
    if (!communicator->error_text.empty()) text = communicator->error_text;
  }
  return text.c_str();
}

ncclResult_t ncclGroupStart() {
  ++fake::group.depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() { return fake::EndGroup(); }

ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t dtype, ncclRedOp_t op,
                           ncclComm_t communicator, cudaStream_t stream) {
  return fake::Add(communicator, stream, {Kind::kAllReduce, dtype, op, 0, count}, in, out, 0);
}
ncclResult_t ncclReduceScatter(const void* in, void* out, size_t count, ncclDataType_t dtype, ncclRedOp_t op,
                               ncclComm_t communicator, cudaStream_t stream) {
  return fake::Add(communicator, stream, {Kind::kReduceScatter, dtype, op, 0, count}, in, out, 0);
}
ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t dtype,
                           ncclComm_t communicator, cudaStream_t stream) {
  return fake::Add(communicator, stream, {Kind::kAllGather, dtype, ncclSum, 0, count}, in, out, 0);
}
ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t dtype, int root,
                           ncclComm_t communicator, cudaStream_t stream) {
  return fake::Add(communicator, stream, {Kind::kBroadcast, dtype, ncclSum, root, count}, in, out, 0);
}
ncclResult_t ncclSend(const void* in, size_t count, ncclDataType_t dtype, int peer, ncclComm_t communicator,
                      cudaStream_t stream) {
  return fake::Add(communicator, stream, {Kind::kSend, dtype, ncclSum, 0, count}, in, nullptr, peer);
}
ncclResult_t ncclRecv(void* out, size_t count, ncclDataType_t dtype, int peer, ncclComm_t communicator,
                      cudaStream_t stream) {
  return fake::Add(communicator, stream, {Kind::kRecv, dtype, ncclSum, 0, count}, nullptr, out, peer);
}
}  // extern "C"
