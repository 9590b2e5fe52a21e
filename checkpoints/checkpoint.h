// Checkpoints: the state of a run on disk, as FORMAT.md describes it.
//
//   <run_dir>/checkpoints/step-000000200/    MANIFEST.pb (written last), state.pb, config.textproto, shards
//
// What one number of ranks wrote, any other number of ranks reads. A checkpoint is there completely or not at
// all: whatever fails during a save, those that were there stay as they were, and they are what is found.
// "Collective" functions are called by every rank of the communicator; they return the same status on every
// rank. A null communicator means that there is one rank. All ranks must see run_dir as one directory.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"
#include "checkpoints/retention.h"
#include "checkpoints/run_lease.h"
#include "core/comm/communicator.h"
#include "core/train/state_copier.h"
#include "core/train/state_visitor.h"

namespace carousel {

// Where a run is: all that a run which goes on needs beside its tensors and its config. Every random draw and
// every sample is a function of these integers.
struct TrainState {
  int64_t step = 0;                // updates done, skipped ones included
  int64_t consumed_sequences = 0;  // of the training data
  int64_t consumed_tokens = 0;
  uint64_t seed = 0;              // the key of every random number: samples, dropout, initial weights
  int64_t skipped_steps = 0;      // steps without an update: the gradient was not finite
  double wall_seconds = 0;        // spent training, over all attempts
  uint64_t data_fingerprint = 0;  // of the training tokens (Dataset::Fingerprint); 0: unknown
  // What rules about several steps have seen so far, so that they go on counting where they were.
  int64_t skipped_in_row = 0;     // the last so many steps were skipped, the one before was not
  int64_t last_skipped_step = 0;  // counted from 1; 0: none
  int64_t evaluated_step = 0;     // of the newest evaluation; 0: none
  double validation_loss = 0;     // what it found, nats per token; without one 0
  // The last losses and gradient norms of steps that were no spikes, oldest first (core/train/spike_score.h):
  // at most 64, the same on every rank.
  std::vector<double> loss_window = {}, grad_norm_window = {};
  int64_t num_rollbacks =
      0;  // how often the run went back to a good checkpoint (launcher/train/rollback_journal.h)
  int64_t left_out_sequences = 0;  // of consumed_sequences: not trained on, since they led to such a rollback
  // Of samples [0, consumed_sequences), how many come from each source of data.train, in their order: what
  // the sampler says, kept to be compared when the run goes on. Empty: unknown.
  std::vector<int64_t> consumed_by_source = {};
  bool operator==(const TrainState&) const = default;
};

// The mesh that wrote a checkpoint: sizes of its axes, 0 if unknown. For people; nothing depends on it.
struct MeshSummary {
  int64_t replicate = 0, shard = 0, sequence = 0, tensor = 0, pipe = 0;
  bool operator==(const MeshSummary&) const = default;
};

struct SaveRequest {
  std::string run_dir;
  std::string run_id;  // NewRunId() of the run (run_identity.h), the same on every rank; other text: unknown
  TrainState state;    // the same on every rank, but for wall_seconds: rank 0's is kept
  std::vector<StateSlice> slices;
  std::string config_text;  // the resolved config, kept as config.textproto
  std::string writer;       // program, version, git revision; for people
  int64_t attempt = 0;      // rank 0's: which start of the run saves this, from 1; 0: unknown
  MeshSummary mesh = {};
  RetentionPolicy keep = {};  // which checkpoints stay when this one is there
  Communicator* communicator = nullptr;
  // Files beside the checkpoints that other parts of the program append to (metrics.jsonl): what they hold is
  // on stable storage before this checkpoint is committed, so that a run which goes on from it finds there
  // all that was written before the save began. Those that do not exist are left out. Rank 0's count.
  std::vector<std::string> records = {};
  const RunLease* lease = nullptr;  // rank 0's, if it holds one; null: taken for the time of the save
  int64_t max_file_bytes = int64_t{4} << 30;  // a rank with more state than this writes several files
  FileSystem* files = nullptr;                // null: the real one
  // Copies the slices' memory where the host cannot read it (background_saver.h); null: the host can.
  StateCopier* copier = nullptr;
};
// Collective. Writes step-<state.step> and makes it the newest, then removes what `keep` does not keep.
// Training waits; background_saver.h is the same save while training goes on. REQUIRES: copier == null.
// After an error nothing is left of the attempt, or (if this fails as well) something that SweepLeftovers
// removes. Errors: ResourceExhausted (the disk is full, known before anything is written if possible),
// InvalidArgument (the slices of the ranks do not tile the tensors), FailedPrecondition (another process
// holds the lease, or replicas of a slice differ: their names and ranks are told), AlreadyExists (a
// checkpoint of this step with other contents; one with the same contents is success without writing
// anything), or what the file system says.
// *num_bytes (optional): of the shards of all ranks.
absl::Status SaveCheckpoint(const SaveRequest& request, int64_t* num_bytes = nullptr);

// What is known of a committed checkpoint without reading its tensors.
struct CheckpointInfo {
  std::string dir;
  std::string run_id, writer;
  TrainState state;
  int64_t unix_nanos = 0;  // when it was written
  int64_t attempt = 0;     // which start of the run wrote it, from 1; 0: unknown
  MeshSummary mesh = {};
  uint64_t config_digest = 0;  // of config.textproto (FORMAT.md, "Checksums"); 0: unknown
  int64_t world_size = 0;      // ranks that wrote it
  int64_t num_files = 0;       // those in the manifest, and MANIFEST.pb; MANIFEST.json is for people
  int64_t num_bytes = 0;       // of these files
  int64_t num_tensors = 0;
  int64_t num_parameters = 0;  // elements of the weights
};
// Reads and checks the manifest, the sizes of all files, state.pb. NotFound: `dir` is no committed
// checkpoint. DataLoss: it was one and is damaged.
absl::StatusOr<CheckpointInfo> OpenCheckpoint(const std::string& dir, FileSystem* files = nullptr);
// The resolved config that was saved with it.
absl::StatusOr<std::string> ReadCheckpointConfig(const std::string& dir, FileSystem* files = nullptr);

// Directories of the checkpoints of a run that have a manifest, by step, newest last. Empty if there is none
// (also if run_dir does not exist). Decided by scanning; LATEST is a hint for people and is not read.
absl::StatusOr<std::vector<std::string>> ListCheckpoints(const std::string& run_dir,
                                                         FileSystem* files = nullptr);
// The run directory that `path` means: itself, or the one above if it is the directory "checkpoints" of one.
std::string RunDirOf(const std::string& path, FileSystem* files = nullptr);
// The directory that `path` means: itself if it is a checkpoint, else the newest checkpoint of the run
// directory `path` (RunDirOf). NotFound says what was looked for.
absl::StatusOr<std::string> FindCheckpoint(const std::string& path, FileSystem* files = nullptr);

struct LoadOptions {
  // LoadNewestGood: a checkpoint that cannot be loaded because it is damaged is renamed to .bad-<name> and
  // the one before it is tried. Without it that is an error which says how to ask for it.
  bool fallback = false;
  Communicator* communicator = nullptr;
  // Ranks with the same name of their machine read for each other: every block of a file that one of them
  // wants is read once and passed on. Empty: the host's name.
  std::string machine = {};
  // Called on rank 0 now and then: bytes that its machine has read, of those it will read.
  std::function<void(int64_t done, int64_t total)> progress = {};
  FileSystem* files = nullptr;
};
// Collective. Fills every slice and *state (which may be null). Names, shapes and dtypes must be those of the
// checkpoint; all differences are reported at once. Kinds that no rank asks for (the moments, to load weights
// only) are left out. Every byte used is checked against the checksum of its block, and what arrived in the
// slices of all ranks against the digests of the manifest. Takes memory for a few blocks of 16 MiB. DataLoss
// names file, block and tensor; after any error the contents of the slices are unspecified.
absl::Status LoadCheckpoint(const std::string& dir, const std::vector<StateSlice>& slices, TrainState* state,
                            const LoadOptions& options);
inline absl::Status LoadCheckpoint(const std::string& dir, const std::vector<StateSlice>& slices,
                                   Communicator* communicator, TrainState* state,
                                   FileSystem* files = nullptr) {
  return LoadCheckpoint(dir, slices, state, {.communicator = communicator, .files = files});
}

// Collective. Loads the newest checkpoint of the run and returns its directory; NotFound if there is none. A
// step-* directory that lost its manifest counts as a damaged checkpoint.
// The caller holds the lease if fallback is set. Errors other than damage (another model, no permission) are
// never fallen back from.
absl::StatusOr<std::string> LoadNewestGood(const std::string& run_dir, const std::vector<StateSlice>& slices,
                                           TrainState* state, const LoadOptions& options);

// Removes what attempts that died left behind (.tmp-*, .trash-*, .probe-*). The caller holds the lease.
absl::Status SweepLeftovers(const std::string& run_dir, FileSystem* files = nullptr);
}  // namespace carousel
