// `carousel checkpoint stat | diff`: what is in a checkpoint, and what differs between two.
#include <algorithm>
#include <set>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_tensors.h"
#include "checkpoints/closest_names.h"
#include "checkpoints/tensor_values.h"
#include "core/base/status_macros.h"
#include "launcher/checkpoint/checkpoint_actions.h"
#include "launcher/progress_bar.h"

namespace carousel {
namespace {

std::string FormatShape(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ","), "]");
}
int64_t BytesOf(const CheckpointTensor& tensor) { return tensor.num_elems * SizeOf(tensor.dtype); }

// Sizes of axes; "-" if nobody wrote them down.
std::string FormatMesh(const MeshSummary& mesh) {
  if (mesh == MeshSummary{}) return "-";
  return absl::StrFormat("replicate %d, shard %d, sequence %d, tensor %d, pipe %d", mesh.replicate,
                         mesh.shard, mesh.sequence, mesh.tensor, mesh.pipe);
}

absl::Status PrintFiles(const std::string& dir) {
  PosixFileSystem files;
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> names, files.ListDirectory(dir));
  absl::PrintF("\n%-36s %16s\n", "file", "bytes");
  for (const std::string& name : names) {
    CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(JoinPath(dir, name)));
    absl::PrintF("%-36s %16d%s\n", name, info.size,
                 name == "MANIFEST.json" ? "  for people, not counted" : "");
  }
  return absl::OkStatus();
}

void PrintHead(const CheckpointInfo& info) {
  const TrainState& state = info.state;
  const auto line = [](const char* what, const std::string& value) {
    absl::PrintF("%-18s %s\n", what, absl::Utf8SafeCEscape(value));  // files may come from anywhere
  };
  line("checkpoint", info.dir);
  line("run", info.run_id);
  line("writer", info.writer);
  line("written",
       absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromUnixNanos(info.unix_nanos), absl::LocalTimeZone()));
  if (info.attempt > 0) line("attempt", absl::StrCat(info.attempt));
  line("ranks", absl::StrCat(info.world_size));
  line("mesh", FormatMesh(info.mesh));
  line("config digest", info.config_digest == 0 ? "-" : absl::StrFormat("%016x", info.config_digest));
  line("step", absl::StrCat(state.step));
  line("tokens", absl::StrCat(state.consumed_tokens));
  line("sequences", absl::StrCat(state.consumed_sequences));
  line("skipped steps", absl::StrCat(state.skipped_steps));
  line("seed", absl::StrCat(state.seed));
  line("time of training", FormatAge(state.wall_seconds));
  if (state.evaluated_step > 0) {
    line("validation loss", absl::StrFormat("%.6f at step %d", state.validation_loss, state.evaluated_step));
  }
  line("files", absl::StrCat(info.num_files));
  line("bytes", absl::StrCat(info.num_bytes, " (", FormatByteCount(info.num_bytes), ")"));
  line("tensors", absl::StrCat(info.num_tensors));
  line("parameters", absl::StrCat(info.num_parameters));
}

// Those that were asked for, in the order of the checkpoint; all names that are not there at once.
absl::StatusOr<std::vector<CheckpointTensor>> Choose(const CheckpointTensors& tensors,
                                                     const std::vector<std::string>& wanted) {
  std::set<std::string> missing(wanted.begin(), wanted.end());
  std::vector<CheckpointTensor> chosen;
  std::vector<std::string> names;
  for (const CheckpointTensor& tensor : tensors.tensors()) {
    if (tensor.kind == StateKind::kWeight) names.push_back(tensor.name);
    missing.erase(tensor.name);
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), tensor.name) != wanted.end()) {
      chosen.push_back(tensor);
    }
  }
  if (missing.empty()) return chosen;
  std::string text;
  for (const std::string& name : missing) {
    absl::StrAppend(&text, text.empty() ? "" : "\n", tensors.info().dir, " has no tensor ", name,
                    ClosestNames(name, names));
  }
  return absl::NotFoundError(text);
}
}  // namespace

absl::Status PrintCheckpointStat(const CheckpointStatOptions& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::string dir, FindCheckpoint(options.path));
  CAROUSEL_ASSIGN_OR_RETURN(CheckpointTensors tensors, CheckpointTensors::Open(dir));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<CheckpointTensor> chosen, Choose(tensors, options.tensors));
  if (options.tensors.empty()) {
    PrintHead(tensors.info());
    CAROUSEL_RETURN_IF_ERROR(PrintFiles(dir));
    absl::PrintF("\n");
  }
  size_t width = 6;
  int64_t total = 0, done = 0;
  for (const CheckpointTensor& tensor : chosen) {
    width = std::max(width, tensor.name.size());
    total += BytesOf(tensor);
  }
  const int columns = static_cast<int>(width);
  absl::PrintF("%-*s %-10s %-5s %-18s %16s%s\n", columns, "tensor", "kind", "dtype", "shape", "digest",
               options.values ? absl::StrFormat(" %12s %12s %12s %12s %8s %8s", "min", "max", "mean", "rms",
                                                "nan", "inf")
                              : "");
  ProgressBar bar("stat");
  int64_t not_finite = 0;
  for (const CheckpointTensor& tensor : chosen) {
    std::string values;
    if (options.values) {
      bar.Show(done, total);
      CAROUSEL_ASSIGN_OR_RETURN(const ValueSummary v, SummarizeValues(tensors, tensor));
      not_finite += v.num_nan + v.num_inf;
      values = absl::StrFormat(" %12.5g %12.5g %12.5g %12.5g %8d %8d", v.min, v.max, v.mean, v.rms, v.num_nan,
                               v.num_inf);
      done += BytesOf(tensor);
      bar.Show(done, total);
    }
    absl::PrintF("%-*s %-10s %-5s %-18s %016x%s\n", columns, tensor.name, NameOf(tensor.kind),
                 NameOf(tensor.dtype), FormatShape(tensor.shape), tensor.digest, values);
  }
  if (not_finite > 0) absl::PrintF("%d values are not finite\n", not_finite);
  return absl::OkStatus();
}

absl::StatusOr<bool> PrintCheckpointDiff(const CheckpointDiffOptions& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::string a, FindCheckpoint(options.a));
  CAROUSEL_ASSIGN_OR_RETURN(const std::string b, FindCheckpoint(options.b));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> lines,
                            DiffCheckpoints(a, b, options.weights_only));
  for (const std::string& line : lines) absl::PrintF("%s\n", line);
  const char* const what = options.weights_only ? "weights" : "weights and moments";
  if (lines.empty()) {
    absl::PrintF("%s and %s have the same %s\n", a, b, what);
    return true;
  }
  absl::PrintF("%d tensors differ between %s and %s\n", lines.size(), a, b);
  if (!options.values && options.tolerance < 0) return false;

  CAROUSEL_ASSIGN_OR_RETURN(CheckpointTensors in_a, CheckpointTensors::Open(a));
  CAROUSEL_ASSIGN_OR_RETURN(CheckpointTensors in_b, CheckpointTensors::Open(b));
  std::vector<std::pair<CheckpointTensor, CheckpointTensor>> pairs;
  int64_t total = 0, done = 0;
  size_t width = 6;
  for (const CheckpointTensor& tensor : in_a.tensors()) {
    const CheckpointTensor* const other = in_b.Find(tensor.name, tensor.kind);
    if (other == nullptr || (options.weights_only && tensor.kind != StateKind::kWeight) ||
        tensor.shape != other->shape || tensor.dtype != other->dtype || tensor.digest == other->digest) {
      continue;
    }
    pairs.emplace_back(tensor, *other);
    total += 2 * BytesOf(tensor);
    width = std::max(width, tensor.name.size());
  }
  const int columns = static_cast<int>(width);
  absl::PrintF("\n%-*s %-10s %14s %14s %12s %12s %12s %10s\n", columns, "tensor", "kind", "different", "of",
               "max |a-b|", "relative", "|a-b|/|a|", "not finite");
  ProgressBar bar("diff");
  double largest = 0;
  int64_t num_not_finite = 0;
  for (const auto& [of_a, of_b] : pairs) {
    bar.Show(done, total);
    CAROUSEL_ASSIGN_OR_RETURN(const ValueDifference d, CompareValues(in_a, of_a, in_b, of_b));
    const double relative_norm = d.RelativeNorm(options.floor);
    done += 2 * BytesOf(of_a);
    absl::PrintF("%-*s %-10s %14d %14d %12.5g %12.5g %12.5g %10d\n", columns, of_a.name, NameOf(of_a.kind),
                 d.num_different, of_a.num_elems, d.max_absolute, d.max_relative, relative_norm,
                 d.num_not_finite);
    largest = std::max(largest, relative_norm);
    num_not_finite += d.num_not_finite;
  }
  if (options.tolerance < 0) return false;
  // Other lines are of tensors that only one of them has, or that have other shapes.
  const bool comparable = pairs.size() == lines.size() && num_not_finite == 0;
  const bool close = comparable && largest <= options.tolerance;
  absl::PrintF("\n%s: the largest |a-b|/|a| of a tensor is %.3g, the tolerance %.3g%s\n",
               close ? "close" : "not close", largest, options.tolerance,
               comparable ? "" : ", and not all tensors can be compared");
  return close;
}
}  // namespace carousel
