// `carousel checkpoint ls | verify | stat | diff | merge | reshard | prune`: the command line; what they do
// is in checkpoint_actions.h.
#include <CLI/CLI.hpp>
#include <memory>

#include "launcher/checkpoint/checkpoint_actions.h"
#include "launcher/command_line.h"
#include "launcher/commands.h"

namespace carousel {
namespace {

int ExitCode(const absl::Status& status) { return status.ok() ? kExitOk : ReportError(status); }

// Adds a subcommand whose options live as long as its callback.
template <class Options>
std::pair<CLI::App*, std::shared_ptr<Options>> Add(CLI::App* command, std::function<int()>* run,
                                                   const char* name, const char* description,
                                                   absl::Status (*action)(const Options&)) {
  CLI::App* const app = command->add_subcommand(name, description);
  const auto options = std::make_shared<Options>();
  app->callback([=] { *run = [=] { return ExitCode(action(*options)); }; });
  return {app, options};
}

void AddLs(CLI::App* command, std::function<int()>* run) {
  const auto [ls, options] = Add<CheckpointLsOptions>(
      command, run, "ls", "Which checkpoints a run has, and in what state they are", ListRunCheckpoints);
  ls->add_option("RUN_DIR", options->path, "A run directory or one checkpoint")->required();
  ls->footer(
      R"(Marks: "good": the run went on well after it; "best": the lowest validation losses, as many as
checkpoint.keep_best keeps, at least one; "for ever": kept by checkpoint.keep_every_steps. "complete" means
that the manifest is whole and all files have their sizes; `verify` reads them. Files are those in the
manifest and the manifest itself. What was set aside by --checkpoint_fallback (.bad-*) or --from_good
(.aside-*) and what is being written (.tmp-*) is listed last.
Example:
  carousel checkpoint ls runs/demo)");
}

void AddVerify(CLI::App* command, std::function<int()>* run) {
  const auto [verify, options] = Add<CheckpointVerifyOptions>(
      command, run, "verify",
      "Read every byte of the checkpoints: checksums of blocks and files, digests of tensors",
      VerifyRunCheckpoints);
  verify->add_option("DIR", options->path, "A run directory (all its checkpoints) or one checkpoint")
      ->required();
  verify->footer(R"(Exits 0 if everything is as it was written, otherwise not; names file, block and tensor.
Examples:
  carousel checkpoint verify runs/demo
  carousel checkpoint verify runs/demo/checkpoints/step-000000200)");
}

void AddStat(CLI::App* command, std::function<int()>* run) {
  const auto [stat, options] = Add<CheckpointStatOptions>(
      command, run, "stat", "What is in a checkpoint: who wrote it, files, tensors, values",
      PrintCheckpointStat);
  stat->add_option("DIR", options->path, "A checkpoint, or a run directory: its newest one")->required();
  stat->add_option("--tensor", options->tensors, "Only this tensor, weight and moments; may be repeated");
  stat->add_flag("--values", options->values,
                 "Read the tensors, verify them, and print min, max, mean, root mean square and how many "
                 "values are not finite");
  stat->footer(R"(Examples:
  carousel checkpoint stat runs/demo
  carousel checkpoint stat runs/demo --values --tensor lm_head.weight)");
}

void AddDiff(CLI::App* command, std::function<int()>* run) {
  CLI::App* const diff =
      command->add_subcommand("diff", "Which tensors of two checkpoints differ, by their digests");
  const auto options = std::make_shared<CheckpointDiffOptions>();
  diff->add_option("A", options->a, "A checkpoint, or a run directory: its newest one")->required();
  diff->add_option("B", options->b, "The other one")->required();
  diff->add_flag("--weights_only", options->weights_only, "Leave the optimizer's moments out");
  diff->add_flag("--values", options->values,
                 "Read the tensors that differ, and print how many elements do, the largest absolute and "
                 "relative difference, and the norm of the difference over that of A's tensor");
  CLI::Option* const tolerance =
      diff->add_option(
              "--tolerance", options->tolerance,
              "Read them, too, and call the checkpoints close (exit 0) if that quotient of norms is at "
              "most this for every tensor")
          ->check(NumberFrom(0.0, 1e6))
          ->type_name("NUMBER");
  diff->add_option(
          "--floor", options->floor,
          "Take the elements of A's tensors for at least this large on the average, so that those of "
          "tensors that should be 0 need not agree")
      ->check(NumberFrom(0.0, 1e6))
      ->type_name("NUMBER")
      ->needs(tolerance);
  diff->footer(
      R"(Exits 0 if they are equal (or close), else not. The number of ranks that wrote them does not matter.
Examples:
  carousel checkpoint diff runs/demo runs/other --weights_only
  carousel checkpoint diff runs/demo/checkpoints/step-000000200 runs/demo --values
  carousel checkpoint diff runs/one_rank runs/tensor_parallel --weights_only --tolerance 1e-5)");
  diff->callback([options, run] {
    *run = [options] {
      const absl::StatusOr<bool> equal = PrintCheckpointDiff(*options);
      if (!equal.ok()) return ReportError(equal.status());
      return *equal ? kExitOk : kExitFailure;
    };
  });
}

void AddMerge(CLI::App* command, std::function<int()>* run) {
  const auto [merge, options] = Add<CheckpointMergeOptions>(
      command, run, "merge", "Write all tensors of a checkpoint as one safetensors file", MergeToFile);
  merge->add_option("DIR", options->path, "A checkpoint, or a run directory: its newest one")->required();
  merge->add_option("OUT", options->out, "The file to write; it must not exist")->required();
  merge->add_flag("--moments", options->moments,
                  "Also the optimizer's moments, as <name>.exp_avg and <name>.exp_avg_sq");
  merge->footer(
      R"(Whole tensors under the names of the model, in the dtype they are stored in. The file is read back
and the digests of all tensors are compared before it gets its name. Memory: some 100 MiB whatever the size.
For a directory that other programs load as a model use `carousel export`.
Examples:
  carousel checkpoint merge runs/demo model.safetensors
  carousel checkpoint merge runs/demo/checkpoints/step-000000200 all.safetensors --moments)");
}

void AddReshard(CLI::App* command, std::function<int()>* run) {
  const auto [reshard, options] = Add<CheckpointReshardOptions>(
      command, run, "reshard", "Write a checkpoint again with another number of files", ReshardToRun);
  reshard->add_option("DIR", options->path, "A checkpoint, or a run directory: its newest one")->required();
  reshard->add_option("OUT_RUN_DIR", options->run_dir, "The run directory that gets the new checkpoint")
      ->required();
  reshard->add_option("--ranks", options->ranks, "As so many ranks would have written it")
      ->capture_default_str();
  reshard->add_option("--max_file_bytes", options->max_file_bytes, "Bytes of tensors in a file at most")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1} << 20, int64_t{1} << 40));  // with less, files would be mostly headers
  reshard->footer(
      R"(Not needed to go on with another number of ranks or another mesh: every checkpoint loads on all of
them. It is for storage that likes fewer or smaller files. The new
checkpoint is one of the same run, so OUT_RUN_DIR must be new or of that run. The digests of all tensors are compared, and the
new files read back, before the checkpoint gets its name. Memory: some 100 MiB whatever the size.
Examples:
  carousel checkpoint reshard runs/demo runs/demo_one_file --ranks 1
  carousel checkpoint reshard runs/demo runs/demo_small --ranks 8 --max_file_bytes 1073741824)");
}

void AddPrune(CLI::App* command, std::function<int()>* run) {
  const auto [prune, options] = Add<CheckpointPruneOptions>(
      command, run, "prune", "Say which checkpoints of a run a policy does not keep, or remove them",
      PruneRun);
  prune->add_option("RUN_DIR", options->run_dir, "A run directory")->required();
  prune->add_option("--keep_last", options->keep_last, "Keep so many of the newest; 0: all")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  prune
      ->add_option("--keep_every_steps", options->keep_every_steps,
                   "Keep multiples of so many steps; 0: none")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  prune
      ->add_option("--keep_best", options->keep_best, "Keep so many with the lowest validation loss; 0: none")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  prune->add_flag("--yes", options->yes, "Remove them; without it nothing is changed");
  prune->footer(
      R"(What is not given is as the config of the run says. The newest checkpoint and the newest that is
marked as good are never removed, and nothing is before the newest was read and found to be whole.
Refused while the run is being trained. Checkpoints of another run are never removed.
Examples:
  carousel checkpoint prune runs/demo --keep_last 2
  carousel checkpoint prune runs/demo --keep_last 2 --keep_every_steps 10000 --keep_best 1 --yes)");
}
}  // namespace

CLI::App* AddCheckpointCommand(CLI::App& app, std::function<int()>* run) {
  CLI::App* const command =
      app.add_subcommand("checkpoint", "List, verify, compare, rewrite or remove checkpoints");
  command->require_subcommand(1);
  command->footer(R"(Examples:
  carousel checkpoint ls runs/demo
  carousel checkpoint verify runs/demo
  carousel checkpoint stat runs/demo --values
  carousel checkpoint diff runs/demo runs/other --weights_only
  carousel checkpoint merge runs/demo model.safetensors
  carousel checkpoint prune runs/demo --keep_last 2
The files are described in checkpoints/FORMAT.md.)");
  AddLs(command, run);
  AddVerify(command, run);
  AddStat(command, run);
  AddDiff(command, run);
  AddMerge(command, run);
  AddReshard(command, run);
  AddPrune(command, run);
  return command;
}
}  // namespace carousel
