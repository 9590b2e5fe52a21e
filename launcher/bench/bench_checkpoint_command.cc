// `carousel bench checkpoint`: what saving costs on this disk. Writing is measured beside a plain file of the
// same bytes, what training waits beside a save that it waits for, in turns: a neighbour slows all alike.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "checkpoints/background_saver.h"
#include "checkpoints/checkpoint.h"
#include "configs/load.h"
#include "core/base/status_macros.h"
#include "core/train/trainer.h"
#include "launcher/bench/bench_checkpoint_command.h"
#include "launcher/bench/random_tokens.h"
#include "launcher/command_device.h"
#include "launcher/commands.h"
#include "launcher/console.h"
#include "launcher/environment.h"
#include "launcher/train/train_setup.h"
#include "launcher/version.h"
#include "parallel/sharded_sync.h"

namespace carousel {
namespace {

struct BenchCheckpointOptions {
  ConfigOptions config;
  std::string directory = ".";
  int64_t rounds = 5;
  int64_t threads = 0;
};

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The seconds that write() and fdatasync() take for the bytes of the slices, as one file.
absl::StatusOr<double> WritePlainly(const std::string& path, const std::vector<StateSlice>& slices) {
  const auto error = [&] { return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(errno))); };
  constexpr int64_t kPieceBytes = int64_t{1} << 20;
  const double start = Seconds();
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return error();
  absl::Status status;
  for (const StateSlice& slice : slices) {
    const char* data = static_cast<const char*>(slice.data);
    for (int64_t left = slice.num_elems() * SizeOf(slice.dtype); left > 0 && status.ok();) {
      const ssize_t n = write(fd, data, static_cast<size_t>(std::min(left, kPieceBytes)));
      if (n <= 0) {
        status = error();
        break;
      }
      data += n;
      left -= n;
    }
  }
  if (status.ok() && fdatasync(fd) != 0) status = error();
  close(fd);
  const double seconds = Seconds() - start;
  unlink(path.c_str());
  CAROUSEL_RETURN_IF_ERROR(status);
  return seconds;
}

class CheckpointBench {
 public:
  CheckpointBench(const BenchCheckpointOptions& options, const RunSpec& run, Trainer& trainer)
      : options_(options),
        trainer_(trainer),
        source_(run.micro_batch, run.sequence_length, run.model.vocab_size),
        slices_(trainer.States()),
        saver_({.staging_bytes = StagingBytes(trainer.arena().bytes_by_category().at("optimizer"),
                                              run.checkpoint.staging_bytes)},
               nullptr),
        base_(absl::StrCat(options.directory, "/carousel_bench_", getpid())) {
    request_ = {.run_dir = base_,
                .run_id = "bench",
                .state = {},
                .slices = slices_,
                .config_text = run.resolved_text,
                .writer = VersionLine(),
                .keep = {.keep_last = 1}};
  }
  ~CheckpointBench() {
    lease_.reset();
    PosixFileSystem files;
    const absl::Status removed = RemoveTree(files, base_);
    if (!removed.ok()) std::fprintf(stderr, "%s\n", std::string(removed.message()).c_str());
  }

  absl::Status Run() {
    CAROUSEL_RETURN_IF_ERROR(saver_.CheckMemory());
    CAROUSEL_ASSIGN_OR_RETURN(lease_, RunLease::Acquire(base_));  // once, as a run does
    request_.lease = lease_.get();
    std::printf("state    %.1f MB, saved through %.1f MiB of host memory, in %s\n", megabytes(),
                static_cast<double>(saver_.staging_bytes()) / (1 << 20), options_.directory.c_str());
    Step();
    Step();
    // The first round is not counted: files, pages and libraries are new.
    CAROUSEL_RETURN_IF_ERROR(Round());
    plain_.clear(), waiting_.clear(), alone_.clear(), beside_.clear(), stall_.clear();
    quiet_steps_.clear(), busy_steps_.clear(), ratios_.clear();
    for (int64_t i = 0; i < options_.rounds; ++i) CAROUSEL_RETURN_IF_ERROR(Round());
    Print();
    return absl::OkStatus();
  }

 private:
  double megabytes() const {
    int64_t bytes = 0;
    for (const StateSlice& slice : slices_) bytes += slice.num_elems() * SizeOf(slice.dtype);
    return 1e-6 * static_cast<double>(bytes);
  }
  double Step() {
    const double start = Seconds();
    const StepResult result =
        trainer_.Step(num_steps_++, source_,
                      {.contribute = [this](std::vector<int64_t>* numbers) { saver_.Contribute(numbers); },
                       .before_update = [this] { saver_.WaitUntilStaged(); }});
    sums_ = result.contributed;
    return Seconds() - start;
  }
  SaveRequest NextRequest() {
    request_.state.step += 1;
    return request_;
  }

  absl::Status Round() {
    CAROUSEL_ASSIGN_OR_RETURN(const double plain, WritePlainly(base_ + ".plain", slices_));
    plain_.push_back(plain);

    CAROUSEL_RETURN_IF_ERROR(saver_.Start(NextRequest()));
    const std::optional<SaveOutcome> alone = saver_.Finish();
    CAROUSEL_RETURN_IF_ERROR(alone->status);
    alone_.push_back(alone->seconds);
    ratios_.push_back(plain / alone->seconds);

    const double start = Seconds();
    CAROUSEL_RETURN_IF_ERROR(SaveCheckpoint(NextRequest()));
    waiting_.push_back(Seconds() - start);

    quiet_steps_.push_back(Step());
    CAROUSEL_RETURN_IF_ERROR(saver_.Start(NextRequest()));
    while (true) {
      busy_steps_.push_back(Step());
      const std::optional<SaveOutcome> outcome = saver_.Advance(sums_.data());
      if (!outcome.has_value()) continue;
      CAROUSEL_RETURN_IF_ERROR(outcome->status);
      beside_.push_back(outcome->seconds);
      stall_.push_back(outcome->stalled_seconds);
      return absl::OkStatus();
    }
  }

  void Print() const {
    const auto line = [this](const char* name, const std::vector<double>& seconds, const char* what) {
      std::printf("%-8s median %.3f s, %.0f MB/s: %s\n", name, Median(seconds), megabytes() / Median(seconds),
                  what);
    };
    line("plain", plain_, "write and fdatasync of one file of the same bytes");
    line("saved", alone_,
         "a checkpoint in the background, digests and checksums included; nothing else runs");
    line("waiting", waiting_, "a checkpoint that training waits for, removal of the older one included");
    line("beside", beside_, "a checkpoint in the background of training steps");
    std::printf("writing  %.2f of the plain rate (median of %zu rounds)\n", Median(ratios_), ratios_.size());
    std::printf("stall    training waited %.4f s (median), %.1f %% of a checkpoint that it waits for\n",
                Median(stall_), 100 * Median(stall_) / Median(waiting_));
    std::printf("steps    median %.3f s alone, %.3f s while a checkpoint was on its way\n",
                Median(quiet_steps_), Median(busy_steps_));
    std::printf("memory   %.1f MiB of the staging memory used, resident %.1f MiB\n",
                static_cast<double>(saver_.most_staging_bytes_used()) / (1 << 20),
                static_cast<double>(ResidentBytes()) / (1 << 20));
  }

  const BenchCheckpointOptions& options_;
  Trainer& trainer_;
  RandomTokens source_;
  const std::vector<StateSlice> slices_;
  BackgroundSaver saver_;
  const std::string base_;
  std::unique_ptr<RunLease> lease_;
  SaveRequest request_;
  int64_t num_steps_ = 0;
  std::vector<int64_t> sums_;
  std::vector<double> plain_, waiting_, alone_, beside_, stall_, quiet_steps_, busy_steps_, ratios_;
};

absl::Status BenchCheckpoint(const BenchCheckpointOptions& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<Environment> environment, Environment::Start());
  if (environment->size() != 1) {
    return absl::InvalidArgumentError("bench checkpoint measures one process; start it without mpirun");
  }
  RunOverrides overrides{.sets = options.config.sets, .run_dir = "unused"};
  CAROUSEL_ASSIGN_OR_RETURN(const RunSpec run, LoadRun(options.config.config, overrides));
  const int64_t threads = options.threads > 0 ? options.threads
                          : run.threads > 0   ? run.threads
                                              : environment->default_threads();
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<Device> device,
                            MakeRankDevice("cpu", threads, *environment));
  ShardedSyncFactory sync_factory;
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<Trainer> trainer,
                            Trainer::Create(MakeTrainSpec(run), *device, Mesh{}, sync_factory));
  trainer->Initialize(run.seed);
  return CheckpointBench(options, run, *trainer).Run();
}
}  // namespace

void AddBenchCheckpointCommand(CLI::App& bench, std::function<int()>* run) {
  CLI::App* command = bench.add_subcommand("checkpoint", "Measure what saving costs on this disk");
  const auto options = std::make_shared<BenchCheckpointOptions>();
  options->config.config = "configs/bench_checkpoint.textproto";
  AddConfigOptions(*command, &options->config);
  command->add_option("--dir", options->directory, "A directory on the disk to be measured")
      ->type_name("DIR")
      ->check(CLI::ExistingDirectory)
      ->capture_default_str();
  command->add_option("--rounds", options->rounds, "Rounds of all measurements; medians are printed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--threads", options->threads, "CPU threads of the steps; 0: all cores")
      ->check(CLI::Range(0, 1024));
  command->footer(
      "Saves the state of a model again and again, in turn with a plain file of the same bytes and with "
      "training steps on\nrandom tokens. Needs free space for three checkpoints in --dir, and leaves nothing "
      "behind.\n\n"
      "Examples:\n"
      "  carousel bench checkpoint --dir /scratch\n"
      "  carousel bench checkpoint --set model.num_blocks=12 --rounds 9\n"
      "  carousel bench checkpoint --set checkpoint.staging_mib=16");
  command->callback([options, run] {
    *run = [options] {
      const absl::Status status = BenchCheckpoint(*options);
      return status.ok() ? kExitOk : ReportError(status);
    };
  });
}
}  // namespace carousel
