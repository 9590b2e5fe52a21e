// What a run remembers of its rollbacks outside of its checkpoints: going back to a good checkpoint changes
// how the run goes on from there (data are left out, rollbacks are counted), and a run that starts again
// before its next checkpoint must go on in the same way. RUN_DIR/rollbacks.jsonl, one JSON object per line:
//
//   {"number":1,"bad_step":431,"to_step":400,"consumed_sequences":3456,"why":"the loss 9.8 is ..."}
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/file_system.h"

namespace carousel {

struct Rollback {
  int64_t number = 0;              // of the run's rollbacks, from 1
  int64_t bad_step = 0;            // the step that was not made, counted from 1
  int64_t to_step = 0;             // finished steps of the checkpoint that the run went back to
  int64_t consumed_sequences = 0;  // where in the data the run goes on: what lies before is left out
  std::string why;                 // for people
  bool operator==(const Rollback&) const = default;
};

std::string RollbackJournalPath(const std::string& run_dir);

// All that is there, oldest first; empty without a file. DataLoss: not such a file.
absl::StatusOr<std::vector<Rollback>> ReadRollbacks(const std::string& run_dir, FileSystem* files = nullptr);
// From text, for ranks that do not read the file themselves. `path` is for messages.
absl::StatusOr<std::vector<Rollback>> ParseRollbacks(const std::string& text, const std::string& path);
std::string ToText(const std::vector<Rollback>& rollbacks);
// Adds one, synced; those with the same or a larger number, of lives that were given up, are dropped.
absl::Status RecordRollback(const std::string& run_dir, const Rollback& rollback,
                            FileSystem* files = nullptr);
// Drops those to steps after `step`, which the run will take anew: a run that goes on from there is another
// one. Nothing is written where nothing is dropped.
absl::Status ForgetRollbacksAfter(const std::string& run_dir, int64_t step, FileSystem* files = nullptr);

// The rollback that ended at the checkpoint which `state` is from and that it does not know of: the last of
// them; null: there is none.
const Rollback* RollbackTo(const std::vector<Rollback>& rollbacks, const TrainState& state);
// Goes on after it. Where it leaves out data, consumed_by_source is cleared.
void ApplyRollback(const Rollback& rollback, TrainState* state);
}  // namespace carousel
