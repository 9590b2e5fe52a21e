#include "launcher/train/run_directory.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/run_identity.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {

constexpr int64_t kStartBytes = 64 << 10;  // config, lease and marks, in blocks of 4 KiB

absl::Status ErrnoError(const std::string& what, const std::string& path, const std::string& fix) {
  const int error = errno;
  const std::string usual = error == EISDIR   ? "move away what stands there"
                            : error == ENOSPC ? "make room on that disk"
                                              : "may this user write there?";
  const std::string message =
      absl::StrCat(what, " ", path, ": ", std::strerror(error), "; ", fix.empty() ? usual : fix);
  return error == ENOSPC ? absl::ResourceExhaustedError(message) : absl::PermissionDeniedError(message);
}

// Writes `text` to `path` through a temporary file, synced and renamed.
absl::Status WriteDurably(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".tmp";
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  const std::string fix = absl::StrCat(text.size(), " bytes are needed in ", path.substr(0, path.rfind('/')),
                                       ": make room there");
  if (fd < 0) return ErrnoError("cannot create", temporary, errno == ENOSPC ? fix : "");
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const absl::Status status = ErrnoError("cannot write", temporary, errno == ENOSPC ? fix : "");
      close(fd);
      unlink(temporary.c_str());
      return status;
    }
    done += static_cast<size_t>(n);
  }
  const bool synced = fsync(fd) == 0;
  if (close(fd) != 0 || !synced || rename(temporary.c_str(), path.c_str()) != 0) {
    const absl::Status status = ErrnoError("cannot write", path, errno == ENOSPC ? fix : "");
    unlink(temporary.c_str());
    return status;
  }
  return absl::OkStatus();
}
}  // namespace

std::string ConfigPath(const std::string& run_dir) { return run_dir + "/config.textproto"; }
std::string MetricsPath(const std::string& run_dir) { return run_dir + "/metrics.jsonl"; }

absl::Status PrepareRunDirectory(const std::string& run_dir, FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  if (run_dir.empty()) return absl::InvalidArgumentError("the name of the run directory is empty");
  // Also where run_dir is itself the directory checkpoints of a run.
  CAROUSEL_RETURN_IF_ERROR(CheckOutsideCheckpoints(JoinPath(run_dir, "checkpoints"), fs));
  // A checkpoint survives a power failure only if every directory above it does.
  const absl::Status made = CreateDirectories(fs, run_dir);
  if (!made.ok()) {
    return absl::PermissionDeniedError(absl::StrCat("cannot make the run directory ", run_dir, ": ",
                                                    made.message(),
                                                    "; choose another with --run_dir (import: --out)"));
  }
  const std::string probe = JoinPath(run_dir, ".write_probe");
  absl::Status status = RemoveTree(fs, probe);  // of a start that died
  if (status.ok()) status = WriteFile(fs, probe, "probe\n");
  if (status.ok()) status = fs.RemoveFile(probe);
  // Another start tries the same just now: the lease decides between them.
  if (absl::IsAlreadyExists(status) || absl::IsNotFound(status)) status = absl::OkStatus();
  if (absl::IsResourceExhausted(status)) {
    (void)fs.RemoveFile(probe);
    const absl::StatusOr<int64_t> available = fs.FreeBytes(run_dir);
    return absl::ResourceExhaustedError(absl::StrCat(
        "the run directory cannot be written: ", status.message(), "; ",
        available.ok() ? absl::StrCat(*available, " bytes are free in ", run_dir, " and ") : "", kStartBytes,
        " are needed to begin: make room there, for example of old checkpoints (carousel "
        "checkpoint ls ",
        run_dir, ")"));
  }
  if (!status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat("the run directory cannot be written: ", std::string(status.message()),
                                     "; choose another with --run_dir (import: --out)"));
  }
  return absl::OkStatus();
}

absl::StatusOr<RunSpec> LoadRunOf(const std::string& run_dir, const RunOverrides& overrides,
                                  std::string* taken_from) {
  PosixFileSystem files;
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(ConfigPath(run_dir)));
  if (info.exists) return LoadRun(ConfigPath(run_dir), overrides);
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> checkpoints, ListCheckpoints(run_dir));
  for (size_t i = checkpoints.size(); i-- > 0;) {
    const absl::StatusOr<std::string> text = ReadCheckpointConfig(checkpoints[i]);
    if (!text.ok()) continue;  // the load says what is wrong with it
    const std::string path = ConfigPath(checkpoints[i]);
    if (taken_from != nullptr) *taken_from = path;
    return LoadRunFromText(*text, path, overrides);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(run_dir, " holds no run: there is no config.textproto",
                   checkpoints.empty()
                       ? " and no checkpoint"
                       : absl::StrCat(", and none of its ", checkpoints.size(), " checkpoints can be read"),
                   "; give --config"));
}

absl::Status RecordStart(const RunSpec& run, const std::string& build_line) {
  PosixFileSystem files;
  const absl::StatusOr<std::string> before =
      ReadFile(files, ConfigPath(run.run_dir), static_cast<int64_t>(run.resolved_text.size()));
  if (!before.ok() || *before != run.resolved_text) {
    CAROUSEL_RETURN_IF_ERROR(WriteDurably(ConfigPath(run.run_dir), run.resolved_text));
  }
  const std::string path = run.run_dir + "/build.txt";
  std::FILE* file = std::fopen(path.c_str(), "a");
  if (file == nullptr) return ErrnoError("cannot open", path, "");
  const bool written = std::fprintf(file, "%s\n", build_line.c_str()) >= 0;
  if (std::fclose(file) == 0 && written) return absl::OkStatus();
  const absl::Status status = ErrnoError("cannot write", path, "");
  if (!absl::IsResourceExhausted(status)) return status;
  CAROUSEL_LOG(WARNING) << status.message() << "; this start is not in it";
  return absl::OkStatus();
}

int64_t NumStarts(const std::string& run_dir) {
  std::ifstream file(run_dir + "/build.txt");
  int64_t lines = 0;
  for (std::string line; std::getline(file, line);) ++lines;
  return lines;
}

std::vector<ConfigDifference> ConfigDifferences(const RunSpec& earlier, const RunSpec& now) {
  std::vector<ConfigDifference> differences;
  bool acceptable = false;  // of the fields that follow
  const auto compare = [&](const char* field, const auto& a, const auto& b) {
    if (a != b) differences.push_back({absl::StrCat(field, ": ", a, " in the run, ", b, " now"), acceptable});
  };
  const auto number = [](auto value) { return static_cast<int64_t>(value); };
  const auto wire = [](const RunSpec& run) { return std::string(run.parallel.bf16_wire ? "BF16" : "WIDE"); };
  const ModelSpec &m = earlier.model, &n = now.model;
  const auto family = [](const ModelSpec& spec) {
    return std::string(spec.family == Family::kPaper ? "XLSTM_PAPER" : "XLSTM_LARGE");
  };
  compare("model.family", family(m), family(n));
  compare("model.vocab_size", m.vocab_size, n.vocab_size);
  compare("model.embedding_dim", m.embedding_dim, n.embedding_dim);
  compare("model.num_blocks", m.num_blocks, n.num_blocks);
  compare("model.num_heads", m.num_heads, n.num_heads);
  compare("model.qk_dim (qk_dim_factor, inner_dim)", m.qk_dim, n.qk_dim);
  compare("model.v_dim (v_dim_factor)", m.v_dim, n.v_dim);
  compare("model.ffn_dim", m.ffn_dim, n.ffn_dim);
  compare("model.use_bias", number(m.use_bias), number(n.use_bias));
  compare("model.add_out_norm", number(m.add_out_norm), number(n.add_out_norm));
  compare("model.norm_eps", m.norm_eps, n.norm_eps);
  compare("model.cell_eps", m.cell_eps, n.cell_eps);
  compare("model.gate_soft_cap", m.gate_soft_cap, n.gate_soft_cap);
  compare("model.logit_soft_cap", m.logit_soft_cap, n.logit_soft_cap);
  compare("model.input_gate", number(m.input_gate), number(n.input_gate));
  compare("model.normalize_sigmoid", number(m.normalize_sigmoid), number(n.normalize_sigmoid));
  compare("model.normalizer_gradient", number(m.normalizer_gradient), number(n.normalizer_gradient));
  compare("model.ffn_bias", number(m.ffn_bias), number(n.ffn_bias));
  compare("model.tie_embeddings", number(m.tie_embeddings), number(n.tie_embeddings));
  compare("model.conv_kernel", m.conv_kernel, n.conv_kernel);
  compare("model.qkv_block_size", m.qkv_block_size, n.qkv_block_size);
  const auto list = [](const std::vector<int64_t>& v) {
    return absl::StrCat("[", absl::StrJoin(v, ", "), "]");
  };
  compare("model.slstm_at", list(m.slstm_at), list(n.slstm_at));
  compare("model.slstm_num_heads", m.slstm_num_heads, n.slstm_num_heads);
  compare("model.slstm_conv_kernel", m.slstm_conv_kernel, n.slstm_conv_kernel);
  compare("model.slstm_norm_weight", number(m.slstm_norm_weight), number(n.slstm_norm_weight));
  compare("model.slstm_gradient_clip", m.slstm_gradient_clip, n.slstm_gradient_clip);
  compare("model.slstm_gradient_cut", number(m.slstm_gradient_cut), number(n.slstm_gradient_cut));
  acceptable = true;
  compare("model.dropout", m.dropout, n.dropout);
  compare("model.ffn_dropout", m.ffn_dropout, n.ffn_dropout);
  compare("model.embedding_dropout", m.embedding_dropout, n.embedding_dropout);
  compare("data.sequence_length", earlier.sequence_length, now.sequence_length);
  compare("data.tokenizer", number(earlier.tokenizer), number(now.tokenizer));
  compare("data.reset_at_document", number(earlier.reset_at_document), number(now.reset_at_document));
  compare("data.train: number of sources", earlier.train_data.size(), now.train_data.size());
  for (size_t i = 0; i < std::min(earlier.train_data.size(), now.train_data.size()); ++i) {
    compare("data.train.path", earlier.train_data[i].path, now.train_data[i].path);
    compare("data.train.weight", earlier.train_data[i].weight, now.train_data[i].weight);
  }
  compare("train.global_batch", earlier.global_batch, now.global_batch);
  compare("train.micro_batch", earlier.micro_batch, now.micro_batch);
  compare("train.compute", NameOf(earlier.compute), NameOf(now.compute));
  compare("parallel.gradient_wire", wire(earlier), wire(now));
  compare("train.seed", earlier.seed, now.seed);
  compare("train.steps", earlier.steps, now.steps);
  compare("optimizer.beta1", earlier.adamw.beta1, now.adamw.beta1);
  compare("optimizer.beta2", earlier.adamw.beta2, now.adamw.beta2);
  compare("optimizer.eps", earlier.adamw.eps, now.adamw.eps);
  compare("optimizer.weight_decay", earlier.adamw.weight_decay, now.adamw.weight_decay);
  compare("optimizer.clip_norm", earlier.adamw.clip_norm, now.adamw.clip_norm);
  compare("optimizer.decay_embedding", number(earlier.decay_embedding), number(now.decay_embedding));
  compare("schedule.kind", number(earlier.schedule.kind), number(now.schedule.kind));
  compare("schedule.peak_lr", earlier.schedule.peak_lr, now.schedule.peak_lr);
  compare("schedule.final_factor", earlier.schedule.final_factor, now.schedule.final_factor);
  compare("schedule.warmup_steps", earlier.schedule.warmup_steps, now.schedule.warmup_steps);
  compare("schedule.cooldown_steps", earlier.schedule.cooldown_steps, now.schedule.cooldown_steps);
  return differences;
}
}  // namespace carousel
