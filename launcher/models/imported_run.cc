#include "launcher/models/imported_run.h"

#include <charconv>
#include <functional>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_tensors.h"
#include "checkpoints/hf_names.h"
#include "checkpoints/made_directories.h"
#include "checkpoints/model_digests.h"
#include "checkpoints/model_save.h"
#include "checkpoints/run_identity.h"
#include "core/base/check.h"
#include "core/base/status_macros.h"
#include "launcher/train/run_directory.h"

namespace carousel {
namespace {
bool HasMlstm(const ModelSpec& spec) { return static_cast<int64_t>(spec.slstm_at.size()) < spec.num_blocks; }

// The shortest text that reads back as the same bits.
std::string Exact(double value) {
  char text[32];
  return std::string(text, std::to_chars(text, text + sizeof(text), value).ptr);
}

const char* BiasInitName(SlstmBiasInit init) {
  switch (init) {
    case SlstmBiasInit::kPowerLaw:
      return "POWERLAW_BLOCKDEPENDENT";
    case SlstmBiasInit::kSmall:
      return "SMALL_INIT";
    case SlstmBiasInit::kZero:
      return "ZEROS";
    case SlstmBiasInit::kStandard:
      return "STANDARD";
  }
  CheckFailed(__FILE__, __LINE__, "a SlstmBiasInit that is none");
}

// The progress of one part of the work.
std::function<void(int64_t, int64_t)> Part(const ImportProgress& progress, const char* part) {
  return [&progress, part](int64_t done, int64_t total) {
    if (progress) progress(part, done, total);
  };
}
}  // namespace

std::string ConfigForModel(const ModelSpec& m, bool text_is_bytes, const TrainingHints& hints) {
  const double D = static_cast<double>(m.embedding_dim);
  const bool paper = m.family == Family::kPaper, has_slstm = !m.slstm_at.empty(), has_mlstm = HasMlstm(m);
  std::string text = "model {\n";
  const auto add = [&](const char* field, const auto& value) {
    absl::StrAppend(&text, "  ", field, ": ", value, "\n");
  };
  const auto flag = [](bool value) { return value ? "true" : "false"; };
  if (paper) add("family", "XLSTM_PAPER");
  add("vocab_size", m.vocab_size);
  add("embedding_dim", m.embedding_dim);
  add("num_blocks", m.num_blocks);
  add("num_heads", m.num_heads);
  add("norm_eps", Exact(m.norm_eps));
  add("logit_soft_cap", Exact(m.logit_soft_cap));
  add("add_out_norm", flag(m.add_out_norm));
  add("tie_embeddings", flag(m.tie_embeddings));
  add("embedding_dropout", Exact(m.embedding_dropout));
  if (has_mlstm) {
    add("cell_eps", Exact(m.cell_eps));
    add("chunk_length", m.chunk_length);
  }
  if (!paper) {
    if (has_mlstm) {
      add("qk_dim_factor", Exact(static_cast<double>(m.qk_dim) / D));
      add("v_dim_factor", Exact(static_cast<double>(m.v_dim) / D));
      add("gate_soft_cap", Exact(m.gate_soft_cap));
    }
    add("use_bias", flag(m.use_bias));
  } else {
    if (has_mlstm) {
      add("inner_dim", m.qk_dim);
      add("conv_kernel", m.conv_kernel);
      add("qkv_block_size", m.qkv_block_size);
      add("use_bias", flag(m.use_bias));
    }
    add("dropout", Exact(m.dropout));
  }
  if (!paper || has_slstm) add("ffn_dim", m.ffn_dim);
  if (m.ffn_dim > 0) {
    if (paper) add("ffn_bias", flag(m.ffn_bias));
    add("ffn_dropout", Exact(m.ffn_dropout));
  }
  if (has_slstm) {
    for (const int64_t block : m.slstm_at) add("slstm_at", block);
    add("slstm_num_heads", m.slstm_num_heads);
    add("slstm_conv_kernel", m.slstm_conv_kernel);
    add("slstm_norm_weight", flag(m.slstm_norm_weight));
    add("slstm_bias_init", BiasInitName(m.slstm_bias_init));
    add("slstm_recurrent_init", m.slstm_recurrent_init == RecurrentInit::kStandard ? "STANDARD" : "ZEROS");
    add("slstm_gradient_clip", Exact(m.slstm_gradient_clip));
    add("slstm_gradient_cut", flag(m.slstm_gradient_cut));
  }
  absl::StrAppend(&text, "}\ndata {\n  tokenizer: ", text_is_bytes ? "BYTES" : "NONE", "\n");
  if (hints.sequence_length > 0) add("sequence_length", hints.sequence_length);
  absl::StrAppend(&text, "}\n");
  if (hints.decay_embedding) absl::StrAppend(&text, "optimizer { decay_embedding: true }\n");
  return text;
}

absl::Status CheckSameModel(const ModelSpec& spec, const RunSpec& run) {
  RunSpec imported = run;
  imported.model = spec;
  imported.model.normalizer_gradient = run.model.normalizer_gradient;
  imported.model.slstm_bias_init = run.model.slstm_bias_init;
  imported.model.slstm_recurrent_init = run.model.slstm_recurrent_init;
  imported.model.igate_bias_init = run.model.igate_bias_init;
  imported.model.igate_bias_std = run.model.igate_bias_std;
  imported.model.slstm_gradient_clip = run.model.slstm_gradient_clip;
  imported.model.slstm_gradient_cut = run.model.slstm_gradient_cut;
  imported.model.dropout = run.model.dropout;
  imported.model.ffn_dropout = run.model.ffn_dropout;
  imported.model.embedding_dropout = run.model.embedding_dropout;
  if (!HasMlstm(spec)) imported.model.num_heads = run.model.num_heads;
  std::vector<std::string> lines;
  for (const ConfigDifference& difference : ConfigDifferences(imported, run))
    lines.push_back(difference.text);
  if (lines.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the config describes another model than the one to import (\"in the run\": the one to import)\n  ",
      absl::StrJoin(lines, "\n  "),
      "\nMake the model section of --config describe it, or leave --config out: import then writes it"));
}

namespace {
absl::StatusOr<std::string> WriteRun(const WeightSource& weights, const RunSpec& run,
                                     const std::string& build_line, const ImportProgress& progress) {
  CAROUSEL_RETURN_IF_ERROR(PrepareRunDirectory(run.run_dir));
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<RunLease> lease, RunLease::Acquire(run.run_dir));
  const DType dtype = WideOf(run.compute);
  const std::vector<Param> params = ModelParams(run.model);
  SaveRequest request;
  request.run_dir = run.run_dir;
  request.run_id = NewRunId();
  request.state.seed = run.seed;
  request.config_text = run.resolved_text;
  request.writer = build_line;
  request.lease = lease.get();
  CAROUSEL_RETURN_IF_ERROR(SaveWeights(weights, params, dtype, request, Part(progress, "import")));
  CAROUSEL_RETURN_IF_ERROR(WriteRunId(run.run_dir, request.run_id));
  CAROUSEL_RETURN_IF_ERROR(RecordStart(run, build_line));

  CAROUSEL_ASSIGN_OR_RETURN(const std::string checkpoint, FindCheckpoint(run.run_dir));
  CAROUSEL_ASSIGN_OR_RETURN(const VerifyReport report,
                            VerifyCheckpoint(checkpoint, Part(progress, "verify")));
  if (!report.problems.empty()) {
    return absl::DataLossError(absl::StrCat(checkpoint, ": ", absl::StrJoin(report.problems, "\n  ")));
  }
  // The checkpoint has the digests of its manifest; they are those of the weights it was made from.
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<WeightSource> written, OpenCheckpointWeights(checkpoint));
  int64_t total_bytes = 0;
  for (const Param& param : params) total_bytes += param.num_elems * SizeOf(dtype);
  const auto compare = Part(progress, "compare");
  CAROUSEL_RETURN_IF_ERROR(CompareDigests({.expected = written.get(),
                                           .expected_name = checkpoint,
                                           .written = &weights,
                                           .written_name = "the model to import",
                                           .dtype = dtype,
                                           .progress = [&](int64_t bytes) { compare(bytes, total_bytes); }})
                               .status());
  return checkpoint;
}
}  // namespace

absl::StatusOr<std::string> WriteImportedRun(const WeightSource& weights, const RunSpec& run,
                                             const std::string& build_line, const ImportProgress& progress) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> checkpoints, ListCheckpoints(run.run_dir));
  CAROUSEL_ASSIGN_OR_RETURN(const std::string id, RunIdOf(run.run_dir));
  if (!checkpoints.empty() || !id.empty()) {
    return absl::AlreadyExistsError(
        absl::StrCat(run.run_dir, " is ", id.empty() ? std::string("a run") : absl::StrCat("run ", id),
                     " with ", checkpoints.empty() ? std::string("no") : absl::StrCat(checkpoints.size()),
                     checkpoints.size() == 1 ? " checkpoint" : " checkpoints", "; give another --out"));
  }
  PosixFileSystem files;
  CAROUSEL_RETURN_IF_ERROR(CheckOutsideCheckpoints(run.run_dir, files));
  CAROUSEL_ASSIGN_OR_RETURN(const MadeDirectories made, MadeDirectories::Note(run.run_dir, files));
  absl::StatusOr<std::string> checkpoint = WriteRun(weights, run, build_line, progress);
  if (!checkpoint.ok()) made.RemoveAgain();
  return checkpoint;
}
}  // namespace carousel
