#include "checkpoints/rollback.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "checkpoints/checkpoint_store.h"
#include "checkpoints/collective.h"
#include "checkpoints/retention.h"
#include "core/base/check.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace pb = checkpoint;
namespace {

std::string NameOfDir(const std::string& dir) { return dir.substr(dir.rfind('/') + 1); }

// Rank 0: the newest that is marked as good, for all.
std::string ChooseGood(const std::string& run_dir, FileSystem& files) {
  pb::RootMessage message;
  const absl::StatusOr<std::string> good = FindGoodCheckpoint(run_dir, &files);
  message.set_code(good.status().raw_code());
  message.set_message(std::string(good.status().message()));
  if (good.ok()) message.set_dir(*good);
  return message.SerializeAsString();
}

// Rank 0. Newest first: whatever stops this, a restart goes on from no later checkpoint than before.
absl::Status SetLaterAside(const std::string& run_dir, const std::string& good, const RunLease* lease,
                           FileSystem& files, std::vector<std::string>* set_aside) {
  const int64_t step = StepOfName(NameOfDir(good));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> dirs, ListStepDirectories(files, run_dir));
  for (size_t i = dirs.size(); i-- > 0;) {
    if (StepOfName(NameOfDir(dirs[i])) <= step) continue;
    if (lease != nullptr) CAROUSEL_RETURN_IF_ERROR(lease->StillHeld());
    std::string to;
    CAROUSEL_RETURN_IF_ERROR(MoveAside(files, run_dir, NameOfDir(dirs[i]), kAsidePrefix, &to));
    set_aside->push_back(std::move(to));
  }
  if (set_aside->empty()) return absl::OkStatus();
  CAROUSEL_RETURN_IF_ERROR(ForgetMarksAfter(run_dir, step, &files));
  return WriteLatest(files, run_dir, NameOfDir(good));
}
}  // namespace

absl::StatusOr<WentBack> GoBackToGood(const std::string& run_dir, const std::vector<StateSlice>& slices,
                                      TrainState* state, const LoadOptions& options, const RunLease* lease) {
  PosixFileSystem posix;
  FileSystem& fs = options.files != nullptr ? *options.files : posix;
  Communicator* const communicator = options.communicator;
  const bool root = RankOf(communicator) == 0;
  while (true) {
    pb::RootMessage message;
    const std::string bytes = BytesOfRank0(communicator, root ? ChooseGood(run_dir, fs) : std::string());
    CAROUSEL_CHECK(message.ParseFromString(bytes));
    if (message.code() != 0) {
      return absl::Status(static_cast<absl::StatusCode>(message.code()), message.message());
    }
    WentBack went{.dir = message.dir(), .set_aside = {}};
    absl::Status loaded = LoadCheckpoint(went.dir, slices, state, options);
    if (absl::IsNotFound(loaded)) loaded = absl::DataLossError(std::string(loaded.message()));
    if (loaded.ok()) {
      absl::Status moved;
      if (root) moved = SetLaterAside(run_dir, went.dir, lease, fs, &went.set_aside);
      CAROUSEL_RETURN_IF_ERROR(AgreeOn(communicator, moved));
      return went;
    }
    if (!absl::IsDataLoss(loaded)) return loaded;
    if (!options.fallback) {
      return absl::DataLossError(absl::StrCat(loaded.message(),
                                              "\n  It is the newest one that is marked as good: give "
                                              "--checkpoint_fallback to set it aside and go on from the good "
                                              "one before it."));
    }
    absl::Status moved;
    if (root) {
      std::string aside;
      moved = MoveAside(fs, run_dir, NameOfDir(went.dir), kBadPrefix, &aside);
      CAROUSEL_LOG(WARNING) << loaded.message() << "; moved to " << aside
                            << ", trying the good one before it";
    }
    CAROUSEL_RETURN_IF_ERROR(AgreeOn(communicator, moved));
  }
}
}  // namespace carousel
