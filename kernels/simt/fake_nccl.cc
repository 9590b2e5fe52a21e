// The fake NCCL: operations, groups and the functions of nccl.h that ask for something.
#include "kernels/simt/fake_nccl.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/simt/fake_nccl_state.h"

namespace carousel::fake_nccl {
namespace {
constexpr int kMaxPolls = 3;

struct Group {
  int depth = 0;
  std::vector<std::pair<cudaStream_t, Work>> work;
  ncclResult_t error = ncclSuccess;
};
thread_local Group group;

ncclResult_t RefuseInGroup(ncclResult_t error, const std::string& text) {
  if (group.depth > 0 && group.error == ncclSuccess) group.error = error;
  return Refuse(error, text);
}

// One operation of the runtime for all work of a group on one stream. Messages go side by side, the
// collectives of a communicator one after the other.
cudaError_t EnqueueWork(cudaStream_t stream, std::vector<Work> work) {
  return fake_cuda::Enqueue(stream, [work = std::move(work)]() mutable {
    bool all_done = true, any_ran = false;
    std::vector<std::shared_ptr<ncclComm>> busy;
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

// Gives the streams their work, in the order of their first call.
ncclResult_t EnqueueNow(const std::vector<std::pair<cudaStream_t, Work>>& all) {
  std::vector<cudaStream_t> streams;
  std::map<cudaStream_t, std::vector<Work>> work_of;
  for (const auto& [stream, work] : all) {
    if (work_of.count(stream) == 0) streams.push_back(stream);
    work_of[stream].push_back(work);
  }
  for (const cudaStream_t stream : streams) {
    if (EnqueueWork(stream, std::move(work_of[stream])) != cudaSuccess) return ncclUnhandledCudaError;
  }
  return ncclSuccess;
}

// Now, or in some of the calls that do not block when a communicator is asked.
ncclResult_t Issue(std::vector<std::pair<cudaStream_t, Work>> all) {
  std::vector<std::shared_ptr<ncclComm>> communicators;
  for (const auto& [stream, work] : all) {
    work.communicator()->streams.insert(stream);
    if (std::find(communicators.begin(), communicators.end(), work.communicator()) == communicators.end()) {
      communicators.push_back(work.communicator());
    }
  }
  const bool later = std::none_of(communicators.begin(), communicators.end(),
                                  [](const auto& communicator) { return communicator->blocking; });
  if (all.empty() || !later || Random(2) == 0) return EnqueueNow(all);
  struct Later {
    std::mutex mutex;
    std::vector<std::pair<cudaStream_t, Work>> work;  // empty: has been done
    ncclResult_t result = ncclSuccess;
  };
  const auto job = std::make_shared<Later>();
  job->work = std::move(all);
  for (const auto& communicator : communicators) {
    communicator->Start(
        [job] {
          const std::lock_guard<std::mutex> lock(job->mutex);
          if (!job->work.empty()) job->result = EnqueueNow(std::exchange(job->work, {}));
          return job->result;
        },
        Random(kMaxPolls));
  }
  return ncclInProgress;
}

ncclResult_t Add(ncclComm* handle, cudaStream_t stream, const Call& call, const void* in, void* out,
                 int peer) {
  const std::shared_ptr<ncclComm> communicator = Find(handle);
  if (communicator == nullptr) return RefuseInGroup(ncclInvalidArgument, "there is no such communicator");
  if (communicator->busy()) {
    return RefuseInGroup(ncclInvalidUsage, "the communicator's last call has not ended");
  }
  {
    const std::lock_guard<std::mutex> lock(communicator->mutex);
    if (communicator->async_error != ncclSuccess)
      return RefuseInGroup(communicator->async_error, communicator->error_text);
  }
  if (call.root < 0 || call.root >= communicator->size || peer < 0 || peer >= communicator->size) {
    return RefuseInGroup(ncclInvalidArgument, "no such rank");
  }
  const bool reduces = call.kind == Kind::kAllReduce || call.kind == Kind::kReduceScatter;
  if (SizeOf(call.dtype) == 0 || (reduces && !IsSummable(call.dtype))) {
    return RefuseInGroup(ncclInvalidArgument, "a type that is not supported");
  }
  if (OperationFails()) {
    communicator->Fail(ncclSystemError, "this operation was made to fail");
    communicator->area->aborted = true;
    return ncclSuccess;
  }
  if (call.count == 0) return ncclSuccess;
  Work work(communicator, call, in, out, peer);
  if ((work.in_bytes() > 0 && !fake_cuda::IsDeviceMemory(in, work.in_bytes())) ||
      (work.out_bytes() > 0 && !fake_cuda::IsDeviceMemory(out, work.out_bytes()))) {
    return RefuseInGroup(ncclInvalidArgument, "a buffer is not device memory, or too small");
  }
  if (group.depth > 0) {
    group.work.emplace_back(stream, std::move(work));
    return ncclSuccess;
  }
  return Issue({{stream, std::move(work)}});
}

ncclResult_t EndGroup() {
  if (group.depth == 0) return Refuse(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  if (--group.depth > 0) return ncclSuccess;
  Group ended = std::move(group);
  group = {};
  return ended.error != ncclSuccess ? ended.error : Issue(std::move(ended.work));
}
}  // namespace
}  // namespace carousel::fake_nccl

namespace fake = carousel::fake_nccl;
using fake::Kind;

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
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
    case ncclInProgress:
      return "NCCL operation in progress";
    default:
      return "internal error";
  }
}
const char* ncclGetLastError(ncclComm_t handle) {
  thread_local std::string text;
  const std::shared_ptr<ncclComm> communicator = fake::Find(handle);
  text = fake::LastError();
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
