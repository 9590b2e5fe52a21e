#include "launcher/train/rollback_journal.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
using Json = nlohmann::ordered_json;

constexpr int64_t kMaxFileBytes = int64_t{64} << 20;

// False if there is no such integer that is at least `least`.
bool Get(const Json& json, const char* name, int64_t least, int64_t* value) {
  const auto found = json.find(name);
  if (found == json.end() || !found->is_number_integer()) return false;
  *value = found->get<int64_t>();
  return *value >= least;
}

class Files {
 public:
  explicit Files(FileSystem* files) : files_(files) {}
  FileSystem& operator*() { return files_ != nullptr ? *files_ : posix_; }

 private:
  PosixFileSystem posix_;
  FileSystem* files_;
};
}  // namespace

std::string RollbackJournalPath(const std::string& run_dir) { return JoinPath(run_dir, "rollbacks.jsonl"); }

absl::StatusOr<std::vector<Rollback>> ParseRollbacks(const std::string& text, const std::string& path) {
  std::vector<Rollback> rollbacks;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    Rollback r;
    const bool good = json.is_object() && Get(json, "number", 1, &r.number) &&
                      Get(json, "bad_step", 1, &r.bad_step) && Get(json, "to_step", 0, &r.to_step) &&
                      Get(json, "consumed_sequences", 0, &r.consumed_sequences) && r.to_step < r.bad_step &&
                      (rollbacks.empty() || rollbacks.back().number < r.number);
    if (!good) {
      return absl::DataLossError(
          absl::StrCat(path, " line ", rollbacks.size() + 1,
                       " is no record of a rollback; it says where in the data the run goes on after one. "
                       "Put back a copy, "
                       "or remove the file to go on as if there had been none since the newest checkpoint"));
    }
    if (const auto why = json.find("why"); why != json.end() && why->is_string()) {
      r.why = why->get<std::string>();
    }
    rollbacks.push_back(std::move(r));
  }
  return rollbacks;
}

std::string ToText(const std::vector<Rollback>& rollbacks) {
  std::string text;
  for (const Rollback& r : rollbacks) {
    const Json json = {{"number", r.number},
                       {"bad_step", r.bad_step},
                       {"to_step", r.to_step},
                       {"consumed_sequences", r.consumed_sequences},
                       {"why", r.why}};
    absl::StrAppend(&text, json.dump(-1, ' ', false, Json::error_handler_t::replace), "\n");
  }
  return text;
}

absl::StatusOr<std::vector<Rollback>> ReadRollbacks(const std::string& run_dir, FileSystem* files) {
  Files fs(files);
  const std::string path = RollbackJournalPath(run_dir);
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, (*fs).Stat(path));
  if (!info.exists) return std::vector<Rollback>();
  CAROUSEL_ASSIGN_OR_RETURN(const std::string text, ReadFile(*fs, path, kMaxFileBytes));
  return ParseRollbacks(text, path);
}

absl::Status RecordRollback(const std::string& run_dir, const Rollback& rollback, FileSystem* files) {
  Files fs(files);
  CAROUSEL_ASSIGN_OR_RETURN(std::vector<Rollback> rollbacks, ReadRollbacks(run_dir, files));
  std::erase_if(rollbacks, [&](const Rollback& r) { return r.number >= rollback.number; });
  rollbacks.push_back(rollback);
  return ReplaceFile(*fs, RollbackJournalPath(run_dir), ToText(rollbacks));
}

absl::Status ForgetRollbacksAfter(const std::string& run_dir, int64_t step, FileSystem* files) {
  Files fs(files);
  CAROUSEL_ASSIGN_OR_RETURN(std::vector<Rollback> rollbacks, ReadRollbacks(run_dir, files));
  if (std::erase_if(rollbacks, [&](const Rollback& r) { return r.to_step > step; }) == 0) {
    return absl::OkStatus();
  }
  return ReplaceFile(*fs, RollbackJournalPath(run_dir), ToText(rollbacks));
}

const Rollback* RollbackTo(const std::vector<Rollback>& rollbacks, const TrainState& state) {
  const Rollback* last = nullptr;
  for (const Rollback& r : rollbacks) {
    if (r.to_step == state.step && r.number > state.num_rollbacks) last = &r;
  }
  return last;
}

void ApplyRollback(const Rollback& rollback, TrainState* state) {
  state->num_rollbacks = rollback.number;
  const int64_t left_out = rollback.consumed_sequences - state->consumed_sequences;
  if (left_out <= 0) return;
  state->consumed_sequences += left_out;
  state->left_out_sequences += left_out;
  state->consumed_by_source.clear();
}
}  // namespace carousel
