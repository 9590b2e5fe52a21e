// LoadCheckpoint: from whatever boxes were saved to whatever slices the ranks have now.
#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_store.h"
#include "checkpoints/collective.h"
#include "checkpoints/digest.h"
#include "checkpoints/manifest.h"
#include "checkpoints/shard_plan.h"
#include "checkpoints/shard_reader.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace pb = checkpoint;
namespace {

using TensorMap = std::map<std::pair<std::string, int>, const pb::TensorEntry*>;

// Rank 0 reads and checks; everybody gets its result.
absl::Status ReadOnRank0(FileSystem& files, const std::string& dir, Communicator* communicator,
                         pb::Manifest* manifest, TrainState* state) {
  pb::RootMessage message;
  if (RankOf(communicator) == 0) {
    const absl::StatusOr<OpenedCheckpoint> opened = OpenAndCheck(files, dir);
    message.set_code(opened.status().raw_code());
    message.set_message(std::string(opened.status().message()));
    if (opened.ok()) {
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

// Calls fn(data, count) for the memory of `count` elements of a slice from flat index `elem` on.
// REQUIRES: they are in the slice's box.
template <class Fn>
void ForEachPiece(const StateSlice& slice, int64_t elem, int64_t count, Fn&& fn) {
  int64_t row = 0, column = 0, rest = elem, row_count = 1;
  for (size_t d = slice.shape.size(); d-- > 0;) {
    const int64_t index = rest % slice.shape[d] - slice.offset[d];
    rest /= slice.shape[d];
    if (d + 1 == slice.shape.size()) {
      column = index;
    } else {
      row += index * row_count;
      row_count *= slice.size[d];
    }
  }
  while (count > 0) {  // elements that go on in the next row fill whole rows
    const int64_t n = std::min(count, slice.row_elems() - column);
    fn(static_cast<char*>(slice.data) + (row * slice.stride() + column) * SizeOf(slice.dtype), n);
    count -= n;
    column = 0;
    ++row;
  }
}

// Fills this rank's slices.
absl::Status FillSlices(FileSystem& files, const std::string& dir, const pb::Manifest& manifest,
                        const TensorMap& tensors, const std::vector<StateSlice>& slices) {
  std::vector<FileRun> runs;
  for (size_t i = 0; i < slices.size(); ++i) {
    const StateSlice& slice = slices[i];
    if (slice.num_elems() == 0) continue;
    AppendRuns(*tensors.at({slice.name, ToProto(slice.kind)}), {slice.offset, slice.size},
               static_cast<int64_t>(i), &runs);
  }
  // In the order of the files' bytes, so that every block is read once.
  std::sort(runs.begin(), runs.end(), [](const FileRun& a, const FileRun& b) {
    return std::tie(a.file, a.byte_offset) < std::tie(b.file, b.byte_offset);
  });
  ShardReader reader(files, dir, manifest);
  for (const FileRun& run : runs) {
    const StateSlice& slice = slices[static_cast<size_t>(run.tag)];
    const int64_t elem_bytes = SizeOf(slice.dtype);
    int64_t offset = run.byte_offset;
    absl::Status status;
    ForEachPiece(slice, run.elem, run.count, [&](char* to, int64_t count) {
      if (!status.ok()) return;
      status = reader.Read(run.file, offset, count * elem_bytes, [&](const char* data, int64_t n) {
        std::memcpy(to, data, static_cast<size_t>(n));
        to += n;
      });
      offset += count * elem_bytes;
    });
    CAROUSEL_RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

// The digests of what is now in the slices of all ranks, against the manifest.
absl::Status CheckDigests(const std::string& dir, const std::vector<PlannedTensor>& wanted,
                          const TensorMap& tensors, const std::vector<StateSlice>& slices,
                          Communicator* communicator) {
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
    const pb::TensorEntry& entry = *tensors.at({wanted[t].name, ToProto(wanted[t].kind)});
    if (entry.digest() != digests.tensors[t]) different.push_back(Describe(wanted[t].name, wanted[t].kind));
  }
  if (different.empty()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(dir,
                                          ": what was read is not what was saved, though all blocks have "
                                          "the right checksums: the digests of ",
                                          absl::StrJoin(different, ", "), " differ"));
}
}  // namespace

absl::Status LoadCheckpoint(const std::string& dir, const std::vector<StateSlice>& slices,
                            Communicator* communicator, TrainState* state, FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  pb::Manifest manifest;
  TrainState saved_state;
  CAROUSEL_RETURN_IF_ERROR(ReadOnRank0(fs, dir, communicator, &manifest, &saved_state));

  // What all ranks together want must be what is there.
  std::vector<pb::RankSlices> ranks;
  for (const std::string& bytes :
       GatherBytes(communicator, DescribeSlices(slices, saved_state).SerializeAsString())) {
    ranks.emplace_back();
    CAROUSEL_CHECK(ranks.back().ParseFromString(bytes));
  }
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<PlannedTensor> wanted, PlanTensors(ranks));
  CAROUSEL_RETURN_IF_ERROR(CompareTensors(wanted, manifest, dir));

  TensorMap tensors;
  for (const pb::TensorEntry& entry : manifest.tensors()) tensors[{entry.name(), entry.kind()}] = &entry;
  CAROUSEL_RETURN_IF_ERROR(AgreeOn(communicator, FillSlices(fs, dir, manifest, tensors, slices)));
  CAROUSEL_RETURN_IF_ERROR(CheckDigests(dir, wanted, tensors, slices, communicator));
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

    absl::Status loaded = LoadCheckpoint(dir, slices, communicator, state, &fs);
    // A save names its directory step-* after the manifest is on the disk: without one, it was lost.
    if (absl::IsNotFound(loaded)) loaded = absl::DataLossError(std::string(loaded.message()));
    if (loaded.ok()) return dir;
    if (!absl::IsDataLoss(loaded)) return loaded;
    if (!options.fallback) {
      return absl::DataLossError(absl::StrCat(
          loaded.message(), "\n  ",
          previous.empty()
              ? std::string("There is no earlier checkpoint of this run.")
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
