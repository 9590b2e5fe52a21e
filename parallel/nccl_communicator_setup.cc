// How ranks with a GPU each find together: who has which GPU, the making of the communicator, its deadline.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/base/check.h"
#include "core/base/exit_code.h"
#include "parallel/nccl_communicator_impl.h"

namespace carousel {
namespace {
using Clock = std::chrono::steady_clock;
using State = NcclProgress::State;

constexpr auto kAbandonTime = std::chrono::seconds(3);
constexpr auto kFirstRound = std::chrono::milliseconds(2), kLongestRound = std::chrono::milliseconds(500);
constexpr auto kPollInterval = std::chrono::microseconds(200);
// A rank that does not answer is given this much longer: first the one that gathers the answers reports it.
constexpr double kGatherGraceSeconds = 1, kAnswerGraceSeconds = 2;

void CopyText(char* to, size_t room, const std::string& text) {
  const size_t n = std::min(room - 1, text.size());
  std::memcpy(to, text.data(), n);
  to[n] = 0;
}
template <class T>
Tensor Bytes(T* value, int64_t count = 1) {
  return Tensor(value, DType::kU8, {static_cast<int64_t>(sizeof(T)) * count});
}

// Ends the process if the other ranks do not answer.
class Deadline {
 public:
  Deadline(Communicator& host, const std::string& what, double seconds)
      : host_(host), what_(what), seconds_(seconds), thread_([this] { Run(); }) {}
  ~Deadline() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ended_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }
  void WaitFor(int rank) {
    const std::lock_guard<std::mutex> lock(mutex_);
    awaited_ = rank;
  }

 private:
  void Run() {
    std::unique_lock<std::mutex> lock(mutex_);
    const double grace = host_.rank() == 0 ? kGatherGraceSeconds : kAnswerGraceSeconds;
    if (wake_.wait_for(lock, std::chrono::duration<double>(seconds_ + grace), [this] { return ended_; }))
      return;
    std::fprintf(stderr,
                 "[rank %d] %s: rank %d of %d has not come within %g s%s; see what it printed and whether it "
                 "is still running\n",
                 host_.WorldRank(host_.rank()), what_.c_str(), host_.WorldRank(awaited_), host_.size(),
                 seconds_,
                 host_.rank() == 0 && awaited_ + 1 < host_.size() ? " (ranks after it were not asked)" : "");
    std::fflush(stderr);
    host_.Abort(kExitTransport);
  }

  Communicator& host_;
  const std::string what_;
  const double seconds_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  bool ended_ = false;
  int awaited_ = 0;
  std::thread thread_;
};

// ---- who has which GPU

struct Introduction {
  int32_t version;    // of NCCL
  char problem[160];  // empty, or why this rank cannot take part
  char host[80];
  char gpu[80];   // "NVIDIA H100 at PCI address 0000:1b:00.0"
  char key[120];  // equal for one GPU
};

Introduction Introduce(Device& device, const std::string& problem) {
  Introduction mine = {};
  CopyText(mine.problem, sizeof mine.problem, problem);
  char host[sizeof mine.host] = "";
  gethostname(host, sizeof host - 1);
  CopyText(mine.host, sizeof mine.host, host);
  if (!problem.empty()) return mine;
  int version = 0, index = 0;
  cudaDeviceProp properties;
  device.ops();  // the device is current
  if (const ncclResult_t result = ncclGetVersion(&version)) {
    CopyText(mine.problem, sizeof mine.problem, ncclGetErrorString(result));
  } else if (const cudaError_t status =
                 cudaGetDevice(&index) ? cudaGetLastError() : cudaGetDeviceProperties(&properties, index)) {
    CopyText(mine.problem, sizeof mine.problem, cudaGetErrorString(status));
  } else {
    mine.version = version;
    const std::string address = absl::StrFormat("%04x:%02x:%02x.0", properties.pciDomainID,
                                                properties.pciBusID, properties.pciDeviceID);
    CopyText(mine.gpu, sizeof mine.gpu, absl::StrCat(properties.name, " at PCI address ", address));
    // The GPU's own number; the place of the GPU where it has none.
    std::string key;
    for (const char byte : properties.uuid.bytes) {
      absl::StrAppendFormat(&key, "%02x", static_cast<unsigned char>(byte));
    }
    if (key.find_first_not_of('0') == std::string::npos) key = absl::StrCat(mine.host, "/", address);
    CopyText(mine.key, sizeof mine.key, key);
  }
  return mine;
}

absl::Status CheckIntroductions(const Communicator& host, const std::vector<Introduction>& all,
                                bool ranks_may_share_gpu) {
  const auto number = [&](size_t r) { return host.WorldRank(static_cast<int>(r)); };
  std::vector<std::string> problems;
  for (size_t r = 0; r < all.size(); ++r) {
    if (all[r].problem[0] != 0) problems.push_back(absl::StrCat("rank ", number(r), ": ", all[r].problem));
  }
  if (!problems.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("NCCL cannot be used: ", absl::StrJoin(problems, "; ")));
  }
  for (size_t r = 0; r < all.size(); ++r) {
    if (all[r].version == all[0].version) continue;
    return absl::FailedPreconditionError(absl::StrCat("rank ", number(0), " has NCCL ", all[0].version,
                                                      " and rank ", number(r), " has ", all[r].version,
                                                      "; install one version on all machines"));
  }
  if (ranks_may_share_gpu) return absl::OkStatus();
  std::map<std::string, std::vector<int>> ranks_on;
  std::map<std::string, const Introduction*> first_on;
  for (size_t r = 0; r < all.size(); ++r) {
    ranks_on[all[r].key].push_back(number(r));
    first_on.try_emplace(all[r].key, &all[r]);
  }
  for (const auto& [key, ranks] : ranks_on) {
    if (ranks.size() == 1) continue;
    const Introduction& first = *first_on[key];
    problems.push_back(absl::StrCat("ranks ", absl::StrJoin(ranks, " and "), " are both on ", first.gpu,
                                    " of host '", first.host, "'"));
    if (ranks.size() > 2) {
      problems.back() = absl::StrCat("ranks ", absl::StrJoin(ranks, ", "), " are all on ", first.gpu,
                                     " of host '", first.host, "'");
    }
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      absl::StrJoin(problems, "; "),
      ", but NCCL needs a GPU for each rank: start at most as many ranks on a host as it has GPUs, give each "
      "rank a GPU of its own, or let ranks that share a GPU talk through the host's memory"));
}

// ---- waiting for all

// What a rank says in each round, and what rank 0 makes of it.
struct Answer {
  State state;
  char problem[252];
};
struct Verdict {
  int32_t goes_on;
  char problem[2044];  // empty: all ranks are done, or not yet
};

Verdict Judge(const Communicator& host, const std::vector<Answer>& answers, const std::string& what,
              bool late, double timeout_seconds) {
  std::vector<std::string> failed, pending;
  for (size_t r = 0; r < answers.size(); ++r) {
    const int number = host.WorldRank(static_cast<int>(r));
    if (answers[r].state == State::kFailed) {
      failed.push_back(absl::StrCat("rank ", number, ": ", answers[r].problem));
    }
    if (answers[r].state == State::kPending) pending.push_back(absl::StrCat(number));
  }
  Verdict verdict = {};
  verdict.goes_on = failed.empty() && !pending.empty() && !late;
  std::string problem;
  if (!failed.empty()) {
    problem = absl::StrCat(what, ": ", absl::StrJoin(failed, "; "));
  } else if (!pending.empty() && late) {
    problem = absl::StrCat(what, " has not ended after ", timeout_seconds, " s on rank",
                           pending.size() == 1 ? " " : "s ", absl::StrJoin(pending, ", "),
                           ", though all ranks have come: see whether their GPUs and hosts reach each other "
                           "(NCCL_SOCKET_IFNAME names the network interface)");
  }
  if (!problem.empty()) absl::StrAppend(&problem, "; NCCL_DEBUG=INFO in the environment says more");
  CopyText(verdict.problem, sizeof verdict.problem, problem);
  return verdict;
}

NcclCommunicator& AsNccl(Communicator& communicator) {
  auto* nccl = dynamic_cast<NcclCommunicator*>(&communicator);
  CAROUSEL_CHECK_MSG(nccl != nullptr, "the communicator is not one of NCCL");
  return *nccl;
}
}  // namespace

absl::Status WaitForAllRanks(Communicator& host, const std::string& what, double timeout_seconds,
                             const std::function<NcclProgress()>& poll) {
  Deadline deadline(host, what, timeout_seconds);
  const auto start = Clock::now();
  NcclProgress progress;
  for (Clock::duration round = kFirstRound;; round = std::min<Clock::duration>(2 * round, kLongestRound)) {
    // Each rank asks its NCCL, then all tell rank 0, which tells all what comes of it.
    const auto round_end = Clock::now() + round;
    while (progress.state == State::kPending) {
      progress = poll();
      if (Clock::now() > round_end) break;
      if (progress.state == State::kPending) std::this_thread::sleep_for(kPollInterval);
    }
    Answer mine = {.state = progress.state, .problem = {}};
    CopyText(mine.problem, sizeof mine.problem, progress.problem);
    Verdict verdict = {};
    if (host.rank() == 0) {
      std::vector<Answer> answers(static_cast<size_t>(host.size()), mine);
      for (int r = 1; r < host.size(); ++r) {
        deadline.WaitFor(r);
        host.Recv(Bytes(&answers[static_cast<size_t>(r)]), r);
      }
      const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
      verdict = Judge(host, answers, what, seconds > timeout_seconds, timeout_seconds);
    } else {
      host.Send(Bytes(&mine), 0);
    }
    host.Broadcast(Bytes(&verdict), 0);
    if (verdict.problem[0] != 0) return absl::FailedPreconditionError(verdict.problem);
    if (!verdict.goes_on) return absl::OkStatus();
  }
}

std::string NcclErrorText(ncclResult_t result, ncclComm_t communicator) {
  return absl::StrCat("NCCL: ", ncclGetErrorString(result), ": ", ncclGetLastError(communicator));
}

void AbandonNccl(ncclComm_t communicator) {
  if (communicator == nullptr) return;
  struct Shared {
    std::mutex mutex;
    std::condition_variable ended;
    bool has_ended = false;
  };
  const auto shared = std::make_shared<Shared>();
  std::thread([shared, communicator] {
    ncclCommAbort(communicator);
    const std::lock_guard<std::mutex> lock(shared->mutex);
    shared->has_ended = true;
    shared->ended.notify_all();
  }).detach();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->ended.wait_for(lock, kAbandonTime, [&] { return shared->has_ended; });
}

void AbandonNcclCalls(Communicator& communicator) {
  if (auto* const nccl = dynamic_cast<NcclCommunicator*>(&communicator)) nccl->Abandon();
}

bool HasNccl() { return true; }

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(Communicator& host, Device& device,
                                                                   const NcclOptions& options) {
  // Whatever can be seen alone is seen first: what NCCL says of it is hard to read.
  std::string problem;
  ncclUniqueId id = {};
  if (device.native_stream() == nullptr) {
    problem = absl::StrCat("device '", device.name(), "' is not a GPU");
  } else if (host.rank() == 0) {
    if (const ncclResult_t made = ncclGetUniqueId(&id)) {
      problem = absl::StrCat("ncclGetUniqueId: ", NcclErrorText(made, nullptr));
    }
  }
  Introduction mine = Introduce(device, problem);
  std::vector<Introduction> all(static_cast<size_t>(host.size()));
  host.AllGather(Bytes(all.data(), host.size()), Bytes(&mine));
  if (const absl::Status status = CheckIntroductions(host, all, options.ranks_may_share_gpu); !status.ok()) {
    return status;
  }
  host.Broadcast(Bytes(&id), 0);

  device.ops();
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t communicator = nullptr;
  ncclResult_t result = ncclCommInitRankConfig(&communicator, host.size(), id, host.rank(), &config);
  const absl::Status status =
      WaitForAllRanks(host, "ncclCommInitRankConfig", options.init_timeout_seconds, [&]() -> NcclProgress {
        if (result == ncclInProgress && communicator != nullptr) ncclCommGetAsyncError(communicator, &result);
        if (result == ncclInProgress) return {};
        if (result == ncclSuccess) return {State::kDone, ""};
        return {State::kFailed, NcclErrorText(result, communicator)};
      });
  if (!status.ok()) {
    AbandonNccl(communicator);
    return status;
  }
  auto made = std::make_unique<NcclCommunicator>(host, nullptr, device, communicator, options);
  made->set_verify_calls(host.verify_calls());
  return made;
}

std::unique_ptr<Communicator> SplitNcclCommunicator(Communicator& whole, int color, Stream* stream,
                                                    CallSite site) {
  NcclCommunicator& nccl = AsNccl(whole);
  nccl.set_part_stream(stream);
  std::unique_ptr<Communicator> part = nccl.Split(color, site);
  nccl.set_part_stream(nccl.stream_option());
  return part;
}
}  // namespace carousel
