// Which checkpoints of a run stay: the rule, what it knows about them, and the removal.
//
// Beside the checkpoints of a run lie their marks, small files of one line that ends with its CRC-32C
// (FORMAT.md, "Marks"):
//
//   <run_dir>/checkpoints/marks/step-000000200.loss     the validation loss of the weights of step 200
//   <run_dir>/checkpoints/marks/step-000000200.good     the run went on well after step 200
//   <run_dir>/checkpoints/marks/last_unhealthy          the last step that was skipped or had a loss spike
//
// A checkpoint itself never changes once it is committed. Every mark is one file that is written whole or not
// at all and names what it is about, so that a loss may be recorded before, while or after the checkpoint of
// the same step is written, from another thread than the one that saves. All functions are called on one
// rank, by the holder of the lease (those that only read: by anybody).
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"

namespace carousel {

class RunLease;

// What stays is what any of these asks for; the newest checkpoint and the newest good one always stay.
struct RetentionPolicy {
  int64_t keep_last = 0;         // so many of the newest; 0: all checkpoints stay
  int64_t keep_every_steps = 0;  // those whose step is a multiple, for ever; 0: none
  int64_t keep_best = 0;         // so many with the lowest finite validation loss; 0: none
};

// What the rule knows about a checkpoint.
struct CheckpointMarks {
  int64_t step = 0;
  std::optional<double> validation_loss = {};  // nats per token
  bool good = false;
  std::string damage = {};  // why a mark of it cannot be read; empty: all can
  bool foreign = false;     // of another run (run_identity.h): no rule counts it
};

enum KeepReason : unsigned {
  kKeepAll = 1,           // the policy removes nothing
  kKeepNewest = 2,        // what a restart goes on from
  kKeepNewestGood = 4,    // what a run that diverged goes back to
  kKeepLast = 8,          // one of keep_last
  kKeepEverySteps = 16,   // a multiple of keep_every_steps
  kKeepBest = 32,         // one of keep_best
  kKeepDamagedMark = 64,  // it might be one of those: somebody must look
  kKeepForeign = 128,     // of another run, which nobody may remove here
};
// For each checkpoint the sum of the reasons to keep it; 0: it goes. `checkpoints` are by rising step. Equal
// losses: the later step is the better one. A pure function.
std::vector<unsigned> KeepReasons(const std::vector<CheckpointMarks>& checkpoints,
                                  const RetentionPolicy& policy);
// "newest, best"; empty for 0.
std::string DescribeKeepReasons(unsigned reasons);

// The marks of all committed checkpoints of the run, by step.
absl::StatusOr<std::vector<CheckpointMarks>> ReadMarks(const std::string& run_dir,
                                                       FileSystem* files = nullptr);

// Removes the checkpoints that the policy does not keep, oldest first, and the marks of checkpoints that are
// gone. Before the first one is removed the newest is read, every byte, and compared with its checksums; if
// it is damaged nothing is removed: DataLoss. This machine's cached copies of its files are dropped first
// (they are synced), so that what was found good is what the storage gives back: a bit that changed on the
// way to it or in it is found. It proves nothing where the storage answers from memory of its own (tmpfs, a
// server, a controller with a cache). Each is renamed to .trash-* first, so that half a
// checkpoint is never seen. A process that reads a checkpoint meanwhile (export, generate) gets an error that
// names the missing file: copy what must stay, or keep it with keep_every_steps.
// lease: asked before each removal whether it is still held (reading the newest may take long); null: not.
absl::Status PruneCheckpoints(const std::string& run_dir, const RetentionPolicy& policy,
                              FileSystem* files = nullptr, const RunLease* lease = nullptr);

// Durable on return. The checkpoint need not exist yet. A loss that is not finite is recorded too (it is
// never among the best).
absl::Status RecordValidationLoss(const std::string& run_dir, int64_t step, double loss,
                                  FileSystem* files = nullptr);
// Durable on return. RunHealth (run_health.h) knows when. The mark names the manifest: a later checkpoint of
// the same step does not inherit it. NotFound: there is no such checkpoint.
absl::Status MarkGood(const std::string& run_dir, int64_t step, FileSystem* files = nullptr);
// The directory of the newest checkpoint that is marked as good: where a run that diverged goes back to.
// NotFound if there is none.
absl::StatusOr<std::string> FindGoodCheckpoint(const std::string& run_dir, FileSystem* files = nullptr);
// Removes the marks of later steps, and what writers of marks left that died. To be called when a run goes on
// from `step`, before it records anything: what it will do is not what an earlier attempt did.
// (RunHealth::Open does.)
absl::Status ForgetMarksAfter(const std::string& run_dir, int64_t step, FileSystem* files = nullptr);
}  // namespace carousel
