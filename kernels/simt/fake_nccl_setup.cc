// The fake NCCL: how communicators are made, asked, split and left.
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <tuple>
#include <vector>

#include "kernels/simt/fake_nccl_state.h"

namespace carousel::fake_nccl {
namespace {
using Clock = std::chrono::steady_clock;
constexpr auto kBlockingTime = std::chrono::seconds(60);  // of a blocking call that waits for other ranks
constexpr unsigned kConfigMagic = 0xcafebeef;             // in every ncclConfig_t that was initialized
constexpr int kMaxPolls = 4;

struct State {
  std::mutex mutex;
  Options options;
  uint64_t random = 1;
  int64_t num_operations = 0, num_setups = 0, num_ids = 0;
  std::map<ncclComm*, std::shared_ptr<ncclComm>> communicators;
};
State& GetState() {
  static State& state = *new State;  // never destroyed: other statics may still use it
  return state;
}
thread_local std::string last_error;

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

// Removes the memory of communicators that were never complete because their rank 0 died meanwhile.
void SweepLeftovers() {
  DIR* directory = opendir("/dev/shm");
  if (directory == nullptr) return;
  while (const dirent* entry = readdir(directory)) {
    int process = 0;
    if (std::sscanf(entry->d_name, "emulated-nccl-%d-", &process) != 1) continue;
    if (kill(process, 0) != 0 && errno == ESRCH) shm_unlink((std::string("/") + entry->d_name).c_str());
  }
  closedir(directory);
}

// What the options have in mind for the next communicator.
enum class Fate { kWell, kFails, kStalls };
Fate NextFate() {
  State& s = GetState();
  const std::lock_guard<std::mutex> lock(s.mutex);
  const int64_t number = s.num_setups++;
  return number == s.options.fail_setup    ? Fate::kFails
         : number == s.options.stall_setup ? Fate::kStalls
                                           : Fate::kWell;
}

void Register(const std::shared_ptr<ncclComm>& communicator) {
  State& s = GetState();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.communicators[communicator.get()] = communicator;
}
// Work under way keeps the communicator's memory.
ncclResult_t Remove(ncclComm* handle) {
  State& s = GetState();
  const std::lock_guard<std::mutex> lock(s.mutex);
  return s.communicators.erase(handle) == 1 ? ncclSuccess : ncclInvalidArgument;
}

// Starts a job and, where calls block, waits for its end.
ncclResult_t Begin(const std::shared_ptr<ncclComm>& communicator, ncclComm::Job job) {
  communicator->Start(std::move(job), communicator->blocking ? 0 : Random(kMaxPolls));
  if (!communicator->blocking) return ncclInProgress;
  const auto end = Clock::now() + kBlockingTime;
  for (;;) {
    const ncclResult_t result = communicator->Poll();
    if (result != ncclInProgress)
      return result == ncclSuccess ? result : Refuse(result, communicator->error_text);
    if (Clock::now() > end) return Refuse(ncclSystemError, "the ranks did not meet");
    sched_yield();
  }
}

// One step of a job that waits for the other ranks. It is tried again after a look at them: one that has gone
// since may have done what was wanted of it.
template <class Step>
ncclResult_t TryAndLook(ncclComm& communicator, bool may_leave, const Step& step) {
  ncclResult_t result = step();
  if (result != ncclInProgress) return result;
  const std::string gone = communicator.FindGone(may_leave);
  if (gone.empty()) return ncclInProgress;
  result = step();
  return result == ncclInProgress ? communicator.Fail(ncclRemoteError, gone) : result;
}

// The job of a rank that waits for the others to come.
ncclComm::Job Meeting(const std::shared_ptr<ncclComm>& communicator, Fate fate) {
  // A pointer: the communicator, which holds its job, must not hold itself.
  return [c = communicator.get(), fate] {
    if (fate == Fate::kFails) return c->Fail(ncclSystemError, "this communicator was made to fail");
    if (fate == Fate::kStalls) return ncclInProgress;
    return TryAndLook(*c, /*may_leave=*/false, [c] { return c->AllHere() ? ncclSuccess : ncclInProgress; });
  };
}

// A split of one rank, step by step.
class Splitting {
 public:
  Splitting(ncclComm* whole, int color, int key, ncclComm_t* part)
      : whole_(*whole), color_(color), key_(key), part_(part), fate_(NextFate()) {}

  ncclResult_t operator()() {
    return TryAndLook(whole_, /*may_leave=*/false, [this] { return Step(); });
  }

 private:
  ncclResult_t Step() {
    SharedArea& area = *whole_.area;
    RankArea& mine = area.rank[whole_.rank];
    const auto all_reached = [&](std::atomic<uint64_t> RankArea::*counter, uint64_t number) {
      return std::all_of(area.rank, area.rank + whole_.size,
                         [&](const RankArea& rank) { return (rank.*counter) >= number; });
    };
    if (!posted_) {
      if (!all_reached(&RankArea::split_taken, whole_.num_splits)) return ncclInProgress;
      mine.color = color_;
      mine.key = key_;
      mine.split_posted = ++whole_.num_splits;
      posted_ = true;
    }
    if (!all_reached(&RankArea::split_posted, whole_.num_splits)) return ncclInProgress;
    std::vector<std::tuple<int, int>> members;  // key, rank
    for (int r = 0; r < whole_.size; ++r) {
      if (area.rank[r].color == color_) members.emplace_back(area.rank[r].key, r);
    }
    mine.split_taken = whole_.num_splits;
    if (color_ == NCCL_SPLIT_NOCOLOR) return ncclSuccess;
    std::sort(members.begin(), members.end());
    const auto place = std::find(members.begin(), members.end(), std::tuple(key_, whole_.rank));
    auto part = std::make_shared<ncclComm>();
    part->blocking = whole_.blocking;
    if (fate_ == Fate::kWell &&
        !part->Enter(whole_.name + "-" + std::to_string(whole_.num_splits) + "-" + std::to_string(color_),
                     static_cast<int>(place - members.begin()), static_cast<int>(members.size()))) {
      return whole_.Fail(ncclSystemError, "no shared memory");
    }
    part->Start(Meeting(part, fate_), Random(kMaxPolls));
    Register(part);
    *part_ = part.get();
    return ncclSuccess;
  }

  ncclComm& whole_;
  const int color_, key_;
  ncclComm_t* const part_;
  const Fate fate_;
  bool posted_ = false;
};

// Leaves as soon as nobody can need this rank any more.
void Leave(ncclComm& communicator) {
  for (const cudaStream_t stream : communicator.streams) cudaStreamSynchronize(stream);  // its work is done
  if (communicator.area != nullptr) communicator.area->rank[communicator.rank].presence = Presence::kLeft;
}
}  // namespace

std::shared_ptr<ncclComm> Find(ncclComm* communicator) {
  State& s = GetState();
  const std::lock_guard<std::mutex> lock(s.mutex);
  const auto it = s.communicators.find(communicator);
  return it == s.communicators.end() ? nullptr : it->second;
}
ncclResult_t Refuse(ncclResult_t error, const std::string& text) {
  last_error = text;
  return error;
}
const std::string& LastError() { return last_error; }

int Random(int n) {
  State& s = GetState();
  const std::lock_guard<std::mutex> lock(s.mutex);
  // SplitMix64: its first numbers are good, however alike the seeds.
  uint64_t x = s.random += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return static_cast<int>(((x ^ (x >> 31)) >> 11) % static_cast<uint64_t>(n));
}
bool OperationFails() {
  State& s = GetState();
  const std::lock_guard<std::mutex> lock(s.mutex);
  return s.num_operations++ == s.options.fail_operation;
}

void SetOptions(const Options& options) {
  State& s = GetState();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.options = options;
  s.random = options.seed;
  s.num_operations = s.num_setups = 0;
}
}  // namespace carousel::fake_nccl

namespace fake = carousel::fake_nccl;
using fake::Presence;

// ---- one communicator

ncclComm::~ncclComm() {
  if (area != nullptr) {
    if (!AllHere()) shm_unlink(name.c_str());
    munmap(area, sizeof *area);
  }
  if (file >= 0) close(file);
}

bool ncclComm::Enter(const std::string& shared_name, int its_rank, int num_ranks) {
  name = shared_name;
  rank = its_rank;
  size = num_ranks;
  file = shm_open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0 || ftruncate(file, sizeof(fake::SharedArea)) != 0) return false;
  void* memory = mmap(nullptr, sizeof(fake::SharedArea), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) return false;
  area = static_cast<fake::SharedArea*>(memory);
  if (!fake::LockByte(file, rank, /*only_ask=*/false)) return false;  // the rank is taken
  area->rank[rank].presence = Presence::kHere;
  return true;
}

bool ncclComm::AllHere() {
  for (int r = 0; r < size; ++r) {
    if (area->rank[r].presence == Presence::kAbsent) return false;
  }
  shm_unlink(name.c_str());
  return true;
}

ncclResult_t ncclComm::Fail(ncclResult_t error, const std::string& text) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (async_error != ncclSuccess) return async_error;
  async_error = error;
  error_text = text;
  std::fprintf(stderr, "[emulated NCCL, rank %d] %s\n", rank, text.c_str());
  return error;
}

bool ncclComm::IsGone(int other) const {
  return other != rank && area->rank[other].presence != Presence::kAbsent &&
         fake::LockByte(file, other, /*only_ask=*/true);
}

std::string ncclComm::FindGone(bool may_leave) const {
  if (area->aborted) return "another rank aborted the communicator";
  for (int r = 0; r < size; ++r) {
    if (area->rank[r].presence == Presence::kLeft) {
      if (may_leave) continue;
      return "rank " + std::to_string(r) + " has destroyed its communicator";
    }
    if (IsGone(r)) return "rank " + std::to_string(r) + " is gone";
  }
  return "";
}

void ncclComm::Start(Job its_job, int num_polls) {
  const std::lock_guard<std::mutex> lock(mutex);
  job = std::move(its_job);
  num_polls_left = num_polls;
  is_busy = true;
}
bool ncclComm::busy() const {
  const std::lock_guard<std::mutex> lock(mutex);
  return is_busy;
}

ncclResult_t ncclComm::Poll() {
  Job mine;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (async_error != ncclSuccess || !is_busy) return async_error;
    if (job == nullptr) return ncclInProgress;  // another thread runs it
    if (num_polls_left > 0) {
      --num_polls_left;
      return ncclInProgress;
    }
    mine.swap(job);
  }
  const ncclResult_t result = mine();  // not under the mutex: it may enqueue work, which asks for errors
  {
    const std::lock_guard<std::mutex> lock(mutex);
    is_busy = result == ncclInProgress;
    if (is_busy) job.swap(mine);
  }
  if (result == ncclInProgress) carousel::fake_cuda::RunOnce();  // a GPU goes on while the host asks
  return result;
}

// ---- functions

extern "C" {

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  fake::State& s = fake::GetState();
  const std::lock_guard<std::mutex> lock(s.mutex);
  fake::SweepLeftovers();
  *id = {};
  std::snprintf(id->internal, sizeof id->internal, "/emulated-nccl-%d-%lld", static_cast<int>(getpid()),
                static_cast<long long>(s.num_ids++));
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* handle, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  *handle = nullptr;
  if (size < 1 || size > fake::kMaxRanks || rank < 0 || rank >= size) {
    return fake::Refuse(ncclInvalidArgument, "rank " + std::to_string(rank) + " of " + std::to_string(size));
  }
  if (config != nullptr && config->magic != fake::kConfigMagic) {
    return fake::Refuse(ncclInvalidArgument, "the configuration was not initialized");
  }
  const fake::Fate fate = fake::NextFate();
  auto communicator = std::make_shared<ncclComm>();
  communicator->rank = rank;
  communicator->size = size;
  communicator->blocking = config == nullptr || config->blocking != 0;
  if (fate == fake::Fate::kWell && !communicator->Enter(id.internal, rank, size)) {
    return fake::Refuse(ncclSystemError, "the place of rank " + std::to_string(rank) + " cannot be had");
  }
  fake::Register(communicator);
  const ncclResult_t result = fake::Begin(communicator, fake::Meeting(communicator, fate));
  if (result == ncclSuccess || result == ncclInProgress) {
    *handle = communicator.get();
  } else {
    fake::Remove(communicator.get());
  }
  return result;
}
ncclResult_t ncclCommInitRank(ncclComm_t* handle, int size, ncclUniqueId id, int rank) {
  return ncclCommInitRankConfig(handle, size, id, rank, nullptr);
}

ncclResult_t ncclCommSplit(ncclComm_t handle, int color, int key, ncclComm_t* part, ncclConfig_t* config) {
  *part = nullptr;
  const std::shared_ptr<ncclComm> communicator = fake::Find(handle);
  if (communicator == nullptr || (color < 0 && color != NCCL_SPLIT_NOCOLOR) || config != nullptr) {
    return fake::Refuse(ncclInvalidArgument, "no such communicator or color, or a configuration of its own");
  }
  if (communicator->busy())
    return fake::Refuse(ncclInvalidUsage, "the communicator's last call has not ended");
  const ncclResult_t result =
      fake::Begin(communicator, fake::Splitting(communicator.get(), color, key, part));
  if (!communicator->blocking || result != ncclSuccess || *part == nullptr) return result;
  ncclResult_t made = ncclInProgress;
  while (made == ncclInProgress) made = (*part)->Poll();
  return made;
}

ncclResult_t ncclCommFinalize(ncclComm_t handle) {
  const std::shared_ptr<ncclComm> communicator = fake::Find(handle);
  if (communicator == nullptr) return fake::Refuse(ncclInvalidArgument, "there is no such communicator");
  if (communicator->busy())
    return fake::Refuse(ncclInvalidUsage, "the communicator's last call has not ended");
  fake::Leave(*communicator);
  return fake::Begin(communicator, [c = communicator.get()] {
    return fake::TryAndLook(*c, /*may_leave=*/true, [c] {
      const bool all_left =
          std::all_of(c->area->rank, c->area->rank + c->size,
                      [](const fake::RankArea& rank) { return rank.presence == Presence::kLeft; });
      return all_left ? ncclSuccess : ncclInProgress;
    });
  });
}
ncclResult_t ncclCommDestroy(ncclComm_t handle) {
  const std::shared_ptr<ncclComm> communicator = fake::Find(handle);
  if (communicator == nullptr) return ncclInvalidArgument;
  if (communicator->busy())
    return fake::Refuse(ncclInvalidUsage, "the communicator's last call has not ended");
  fake::Leave(*communicator);
  return fake::Remove(handle);
}
ncclResult_t ncclCommAbort(ncclComm_t handle) {
  const std::shared_ptr<ncclComm> communicator = fake::Find(handle);
  if (communicator == nullptr) return ncclInvalidArgument;
  communicator->aborted = true;
  if (communicator->area != nullptr) communicator->area->aborted = true;
  return fake::Remove(handle);
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* error) {
  const std::shared_ptr<ncclComm> communicator = fake::Find(handle);
  if (communicator == nullptr) return ncclInvalidArgument;
  *error = communicator->Poll();
  carousel::fake_cuda::RunWhileIdle();
  return ncclSuccess;
}
}  // extern "C"
