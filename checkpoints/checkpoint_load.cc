// LoadCheckpoint: from whatever boxes were saved to whatever slices the ranks have now.
#include <unistd.h>

#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_store.h"
#include "checkpoints/collective.h"
#include "checkpoints/digest.h"
#include "checkpoints/load_plan.h"
#include "checkpoints/manifest.h"
#include "checkpoints/shard_plan.h"
#include "checkpoints/shard_reader.h"
#include "checkpoints/slice_loader.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace pb = checkpoint;
namespace {

constexpr int kReaderThreads = 2;  // one reads while what the other has read is used

// The files that hold no tensor, the config above all: no slice needs them, and a checkpoint without them is
// damaged all the same.
absl::Status CheckFilesWithoutTensors(FileSystem& files, const std::string& dir,
                                      const pb::Manifest& manifest) {
  std::set<int64_t> with_tensors;
  for (const pb::TensorEntry& tensor : manifest.tensors()) {
    for (const pb::Box& box : tensor.boxes()) with_tensors.insert(box.file());
  }
  ShardReader reader(files, dir, manifest);
  for (int f = 0; f < manifest.files_size(); ++f) {
    if (with_tensors.count(f) != 0) continue;
    CAROUSEL_RETURN_IF_ERROR(reader.Read(f, 0, manifest.files(f).size(), [](const char*, int64_t) {}));
  }
  return absl::OkStatus();
}

// Rank 0 reads and checks; everybody gets its result.
absl::Status ReadOnRank0(FileSystem& files, const std::string& dir, Communicator* communicator,
                         pb::Manifest* manifest, TrainState* state) {
  pb::RootMessage message;
  if (RankOf(communicator) == 0) {
    const absl::StatusOr<OpenedCheckpoint> opened = OpenAndCheck(files, dir);
    absl::Status status = opened.status();
    if (status.ok()) status = CheckFilesWithoutTensors(files, dir, opened->manifest);
    message.set_code(status.raw_code());
    message.set_message(std::string(status.message()));
    if (status.ok()) {
      message.set_manifest_payload(opened->manifest_payload);
      message.set_state_payload(opened->state_payload);
    }
  }
  const std::string bytes = BytesOfRank0(communicator, message.SerializeAsString());
  CAROUSEL_CHECK(message.ParseFromString(bytes));
  if (message.code() != 0) {
    return absl::Status(static_cast<absl::StatusCode>(message.code()), message.message());
  }
  CAROUSEL_ASSIGN_OR_RETURN(*manifest,
                            ParseManifest(message.manifest_payload(), JoinPath(dir, kManifestFile)));
  CAROUSEL_ASSIGN_OR_RETURN(*state, ParseState(message.state_payload(), JoinPath(dir, kStateFile)));
  return absl::OkStatus();
}

// The name by which ranks know that they run on one machine.
std::string MachineName(const LoadOptions& options) {
  if (!options.machine.empty()) return options.machine;
  char host[256] = {};
  if (gethostname(host, sizeof(host) - 1) != 0) host[0] = '\0';
  return host;
}

// Fills the slices of this machine's ranks.
absl::Status FillSlices(FileSystem& files, const std::string& dir, const pb::Manifest& manifest,
                        const std::vector<pb::RankSlices>& ranks, const std::vector<StateSlice>& slices,
                        const LoadOptions& options) {
  const int rank = RankOf(options.communicator);
  std::vector<int> members;
  int me = 0;
  for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
    if (ranks[static_cast<size_t>(r)].machine() != ranks[static_cast<size_t>(rank)].machine()) continue;
    if (r == rank) me = static_cast<int>(members.size());
    members.push_back(r);
  }
  const LoadPlan plan(manifest, ranks, members);
  SliceLoader loader(files, dir, manifest, plan, members, me, options.communicator);
  return loader.Fill(slices, kReaderThreads,
                     rank == 0 ? options.progress : std::function<void(int64_t, int64_t)>());
}

// The digests of what is now in the slices of all ranks, against the manifest.
absl::Status CheckDigests(const std::string& dir, const std::vector<PlannedTensor>& wanted,
                          const pb::Manifest& manifest, const std::vector<StateSlice>& slices,
                          Communicator* communicator) {
  std::map<std::pair<std::string, int>, uint64_t> saved;
  for (const pb::TensorEntry& entry : manifest.tensors()) {
    saved[{entry.name(), entry.kind()}] = entry.digest();
  }
  pb::RankReport mine;
  for (const StateSlice& slice : slices) mine.add_digests(DigestSlice(slice));
  std::vector<std::vector<uint64_t>> of_slices;
  for (const std::string& bytes : GatherBytes(communicator, mine.SerializeAsString())) {
    pb::RankReport report;
    CAROUSEL_CHECK(report.ParseFromString(bytes));
    of_slices.emplace_back(report.digests().begin(), report.digests().end());
  }
  const StateDigests digests = CombineDigests(wanted, of_slices);
  std::vector<std::string> different = digests.different_replicas;
  for (size_t t = 0; t < wanted.size(); ++t) {
    if (saved.at({wanted[t].name, ToProto(wanted[t].kind)}) != digests.tensors[t]) {
      different.push_back(Describe(wanted[t].name, wanted[t].kind));
    }
  }
  if (different.empty()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(dir,
                                          ": what was read is not what was saved, though all blocks have "
                                          "the right checksums: the digests of ",
                                          absl::StrJoin(different, ", "), " differ"));
}
}  // namespace

absl::Status LoadCheckpoint(const std::string& dir, const std::vector<StateSlice>& slices, TrainState* state,
                            const LoadOptions& options) {
  PosixFileSystem posix;
  FileSystem& fs = options.files != nullptr ? *options.files : posix;
  Communicator* const communicator = options.communicator;
  pb::Manifest manifest;
  TrainState saved_state;
  CAROUSEL_RETURN_IF_ERROR(ReadOnRank0(fs, dir, communicator, &manifest, &saved_state));

  // What all ranks together want must be what is there.
  pb::RankSlices mine = DescribeSlices(slices, saved_state);
  mine.set_machine(MachineName(options));
  std::vector<pb::RankSlices> ranks;
  for (const std::string& bytes : GatherBytes(communicator, mine.SerializeAsString())) {
    ranks.emplace_back();
    CAROUSEL_CHECK(ranks.back().ParseFromString(bytes));
  }
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<PlannedTensor> wanted, PlanTensors(ranks));
  CAROUSEL_RETURN_IF_ERROR(CompareTensors(wanted, manifest, dir));
  CAROUSEL_RETURN_IF_ERROR(AgreeOn(communicator, FillSlices(fs, dir, manifest, ranks, slices, options)));
  CAROUSEL_RETURN_IF_ERROR(CheckDigests(dir, wanted, manifest, slices, communicator));
  if (state != nullptr) *state = saved_state;
  return absl::OkStatus();
}

absl::StatusOr<std::string> LoadNewestGood(const std::string& run_dir, const std::vector<StateSlice>& slices,
                                           TrainState* state, const LoadOptions& options) {
  PosixFileSystem posix;
  FileSystem& fs = options.files != nullptr ? *options.files : posix;
  Communicator* const communicator = options.communicator;
  const bool root = RankOf(communicator) == 0;
  while (true) {
    // The newest and the one before it, as rank 0 sees them.
    pb::RootMessage message;
    if (root) {
      const absl::StatusOr<std::vector<std::string>> dirs = ListStepDirectories(fs, run_dir);
      absl::Status status = dirs.status();
      if (status.ok() && dirs->empty()) {
        status = absl::NotFoundError(absl::StrCat(run_dir, " has no checkpoint"));
      } else if (absl::IsNotFound(status)) {
        status = absl::UnavailableError(std::string(status.message()));  // it was there a moment ago
      }
      message.set_code(status.raw_code());
      message.set_message(std::string(status.message()));
      if (status.ok()) {
        message.set_dir(dirs->back());
        if (dirs->size() > 1) message.set_previous_dir((*dirs)[dirs->size() - 2]);
      }
    }
    const std::string bytes = BytesOfRank0(communicator, message.SerializeAsString());
    CAROUSEL_CHECK(message.ParseFromString(bytes));
    if (message.code() != 0) {
      return absl::Status(static_cast<absl::StatusCode>(message.code()), message.message());
    }
    const std::string dir = message.dir(), previous = message.previous_dir();

    absl::Status loaded = LoadCheckpoint(dir, slices, state, options);
    // A save names its directory step-* after the manifest is on the disk: without one, it was lost.
    if (absl::IsNotFound(loaded)) loaded = absl::DataLossError(std::string(loaded.message()));
    if (loaded.ok()) return dir;
    if (!absl::IsDataLoss(loaded)) return loaded;
    if (!options.fallback) {
      return absl::DataLossError(absl::StrCat(
          loaded.message(), "\n  ",
          previous.empty()
              ? std::string("There is no earlier checkpoint of this run: put a copy of this one "
                            "back, or begin anew in another --run_dir.")
              : absl::StrCat("The one before it is ", previous,
                             ": give --checkpoint_fallback to set the damaged one aside and go on "
                             "from there.")));
    }
    if (previous.empty()) {
      return absl::DataLossError(
          absl::StrCat(loaded.message(), "\n  There is no earlier checkpoint to fall back to."));
    }
    absl::Status moved;
    if (root) {
      std::string aside;
      moved = MoveAside(fs, run_dir, dir.substr(StoreDir(run_dir).size() + 1), kBadPrefix, &aside);
      CAROUSEL_LOG(WARNING) << loaded.message() << "; moved to " << aside << ", trying " << previous;
    }
    CAROUSEL_RETURN_IF_ERROR(AgreeOn(communicator, moved));
  }
}
}  // namespace carousel
