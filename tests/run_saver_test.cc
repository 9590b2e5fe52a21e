// What a run does about its saves: due ones that find one under way are skipped and counted, failures are
// told and counted until the run stops, the last one is there when the process ends; and what metrics.jsonl
// says.
#include "launcher/train/run_saver.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/base/log.h"
#include "core/train/no_sync.h"
#include "launcher/exit_codes.h"
#include "launcher/report/metrics_file.h"
#include "parallel/local_communicator.h"
#include "tests/background_save_testing.h"
#include "tests/layer_testing.h"
#include "tests/memory_file_system.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {
using Json = nlohmann::json;

bool IsShard(const std::string& path) { return path.find(".safetensors") != std::string::npos; }

class RunSaverTest : public ::testing::Test {
 protected:
  void SetUp() override {
    SetMinLogLevel(LogLevel::ERROR);
    run_.run_dir = "run";
    run_.checkpoint = {.every_steps = 1, .max_failed_saves = 3, .timeout_seconds = 60, .keep_last = 2};
    spec_.model = testing::TinySpec();
    spec_.T = 6;
    spec_.micro_batch = 2;
    spec_.micro_batches_per_step = 1;
    trainer_ = std::make_unique<Trainer>(spec_, *device_, Mesh{}, sync_);
    trainer_->Initialize(1);
    metrics_ = *MetricsFile::Open(metrics_path(), 0);
  }
  std::string metrics_path() const { return dir_.path() + "/metrics.jsonl"; }
  std::unique_ptr<RunSaver> MakeSaver(FileSystem& files) {
    return std::make_unique<RunSaver>(RunSaver::Parts{.run = &run_,
                                                      .trainer = trainer_.get(),
                                                      .metrics = metrics_.get(),
                                                      .console = &console_,
                                                      .files = &files},
                                      /*saved_step=*/-1);
  }
  // A step of training that is `step`, after which a save is due.
  static absl::Status Step(RunSaver& saver, int64_t step) {
    std::vector<int64_t> numbers;
    saver.Contribute(&numbers);
    EXPECT_EQ(numbers.size(), RunSaver::kNumNumbers);
    saver.BeforeUpdate();
    const absl::Status status = saver.AfterStep(numbers.data());
    return status.ok() ? saver.SaveDue(StateAt(step)) : status;
  }
  // "saved 1", "skipped 2", ...
  std::vector<std::string> Records() const {
    std::vector<std::string> records;
    std::ifstream file(metrics_path());
    for (std::string line; std::getline(file, line);) {
      const Json checkpoint = Json::parse(line)["checkpoint"];
      records.push_back(
          absl::StrCat(checkpoint["outcome"].get<std::string>(), " ", checkpoint["step"].get<int64_t>()));
    }
    return records;
  }
  Json LastRecord() const {
    std::ifstream file(metrics_path());
    std::string line, last;
    while (std::getline(file, line)) last = line;
    return Json::parse(last)["checkpoint"];
  }

  const TempDir dir_;
  RunSpec run_;
  TrainSpec spec_;
  const std::unique_ptr<Device> device_ = testing::CpuDevice();
  NoSyncFactory sync_;
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<MetricsFile> metrics_;
  std::ostringstream out_;
  Console console_{out_, {}};
  MemoryFileSystem memory_;
};

TEST_F(RunSaverTest, SkipsAndCountsDueSavesWhileOneIsUnderWay) {
  Gate gate;
  ObservedFiles files(memory_, [&](const std::string& call, const std::string& path) {
    if (call == "write" && IsShard(path)) gate.Pass();
  });
  const auto saver = MakeSaver(files);
  for (int64_t step = 1; step <= 4; ++step) EXPECT_TRUE(Step(*saver, step).ok());
  EXPECT_EQ(saver->num_skipped(), 3);
  EXPECT_EQ(saver->saved_step(), -1);
  EXPECT_NE(out_.str().find("step 4  checkpoint SKIPPED"), std::string::npos) << out_.str();
  gate.Open();
  EXPECT_TRUE(saver->SaveNow(StateAt(5)).ok());
  EXPECT_EQ(saver->saved_step(), 5);
  EXPECT_EQ(Records(),
            (std::vector<std::string>{"skipped 2", "skipped 3", "skipped 4", "saved 1", "saved 5"}));
  const Json last = LastRecord();
  EXPECT_EQ(last["skipped"], 3);
  EXPECT_GT(last["bytes"].get<int64_t>(), 1000);
  EXPECT_GT(last["seconds"].get<double>(), 0);
  EXPECT_GT(last["seconds_stalled"].get<double>(), 0);
  EXPECT_EQ(ListCheckpoints("run", &memory_)->size(), 2u);
  // Another SaveNow of the same step has nothing to do.
  EXPECT_TRUE(saver->SaveNow(StateAt(5)).ok());
  EXPECT_EQ(Records().size(), 5u);
}

TEST_F(RunSaverTest, StopsTheRunAfterSoManyFailuresInARowAndNotBefore) {
  for (const bool asynchronous : {true, false}) {
    run_.checkpoint.asynchronous = asynchronous;
    run_.run_dir = asynchronous ? "a" : "b";
    const auto saver = MakeSaver(memory_);
    EXPECT_EQ(saver->staging_bytes() > 0, asynchronous);
    bool full = true;
    memory_.SetFault([&](int64_t, const std::string& call, const std::string& path) {
      return full && call == "write" && IsShard(path)
                 ? absl::ResourceExhaustedError("No space left on device")
                 : absl::OkStatus();
    });
    int64_t step = 0;
    const auto fail_twice = [&] {
      full = true;
      for (int i = 0; i < 2; ++i) {
        EXPECT_TRUE(saver->SaveDue(StateAt(++step)).ok());
        EXPECT_TRUE(saver->Finish().ok());
      }
      EXPECT_EQ(LastRecord()["outcome"], "failed");
      EXPECT_EQ(LastRecord()["failed_in_row"], 2);
      EXPECT_NE(LastRecord()["message"].get<std::string>().find("No space left"), std::string::npos);
    };
    fail_twice();
    full = false;
    EXPECT_TRUE(saver->SaveNow(StateAt(++step)).ok());  // starts the count anew
    const int64_t good = step;
    fail_twice();
    absl::Status stopped = saver->SaveDue(StateAt(++step));
    if (stopped.ok()) stopped = saver->Finish();
    EXPECT_EQ(stopped.code(), absl::StatusCode::kResourceExhausted) << stopped;
    EXPECT_EQ(ExitCodeOf(stopped), kExitNotSaved);
    EXPECT_NE(std::string(stopped.message()).find(absl::StrCat("that of step ", good)), std::string::npos)
        << stopped;
    memory_.SetFault(nullptr);
    EXPECT_EQ(ListCheckpoints(run_.run_dir, &memory_)->size(), 1u);
  }
}

TEST_F(RunSaverTest, StopsTheRunAtOnceWhenItsLeaseIsGone) {
  const auto lease = RunLease::Acquire("run", LeaseOptions{.files = &memory_, .thread = false});
  ASSERT_TRUE(lease.ok()) << lease.status();
  const auto saver = std::make_unique<RunSaver>(RunSaver::Parts{.run = &run_,
                                                                .trainer = trainer_.get(),
                                                                .lease = lease->get(),
                                                                .metrics = metrics_.get(),
                                                                .console = &console_,
                                                                .files = &memory_},
                                                /*saved_step=*/-1);
  ASSERT_TRUE(saver->SaveNow(StateAt(1)).ok());
  *memory_.Contents("run/checkpoints/.lease") = "somebody else's";
  absl::Status stopped = saver->SaveDue(StateAt(2));
  if (stopped.ok()) stopped = saver->Finish();
  EXPECT_EQ(ExitCodeOf(stopped), kExitNotSaved) << stopped;
  EXPECT_NE(std::string(stopped.message()).find("has lost run"), std::string::npos) << stopped;
  EXPECT_EQ(Records(), std::vector<std::string>{"saved 1"});
}

// Without any save: with the numbers that ranks add up after every step.
TEST_F(RunSaverTest, StopsTheRunAfterTheStepInWhichTheThreadOfTheLeaseSawThatItIsGone) {
  const auto lease = RunLease::Acquire("run", LeaseOptions{.files = &memory_, .beat_seconds = 0.02});
  ASSERT_TRUE(lease.ok()) << lease.status();
  RunLocalRanks(2, [&](Communicator& c) {
    Trainer trainer(spec_, *device_, Mesh{}, sync_);
    const bool main = c.rank() == 0;
    RunSaver saver({.run = &run_,
                    .trainer = &trainer,
                    .world = &c,
                    .lease = main ? lease->get() : nullptr,
                    .metrics = main ? metrics_.get() : nullptr,
                    .console = main ? &console_ : nullptr,
                    .files = &memory_},
                   /*saved_step=*/-1);
    absl::Status lost;
    for (int64_t step = 1; lost.ok(); ++step) {
      std::vector<int64_t> numbers;
      saver.Contribute(&numbers);
      c.AllReduceSum(Tensor(numbers.data(), DType::kI64, {static_cast<int64_t>(numbers.size())}));
      saver.BeforeUpdate();
      lost = saver.CheckLease(numbers.data());
      if (step == 5 && main) memory_.Replace("run/checkpoints/.lease", "somebody else's");
    }
    EXPECT_EQ(lost.code(), absl::StatusCode::kFailedPrecondition) << lost;
    EXPECT_EQ(ExitCodeOf(lost), kExitNotSaved) << lost;
    EXPECT_NE(std::string(lost.message()).find("this process has lost run: it was taken over by"),
              std::string::npos)
        << lost;
    EXPECT_TRUE(saver.Finish().ok());
  });
  EXPECT_TRUE(Records().empty());
}

TEST_F(RunSaverTest, ASaveThatTrainingWaitsForIsGivenUpInTime) {
  run_.checkpoint.asynchronous = false;
  run_.checkpoint.timeout_seconds = 0.3;
  Gate gate;
  ObservedFiles files(memory_, [&](const std::string& call, const std::string& path) {
    if (call == "fdatasync" && IsShard(path)) gate.Pass();
  });
  const auto saver = MakeSaver(files);
  EXPECT_TRUE(saver->SaveDue(StateAt(1)).ok());  // training goes on
  EXPECT_EQ(LastRecord()["outcome"], "failed");
  EXPECT_NE(LastRecord()["message"].get<std::string>().find("after 0.3 s, while writing and syncing shards"),
            std::string::npos)
      << LastRecord();
  EXPECT_GT(LastRecord()["seconds_stalled"].get<double>(), 0.2);
  gate.Open();
  while (saver->hung()) {
  }
  EXPECT_TRUE(saver->SaveNow(StateAt(2)).ok());
  EXPECT_EQ(Records(), (std::vector<std::string>{"failed 1", "saved 2"}));
}

TEST_F(RunSaverTest, TriesTheLastSaveOfARunAsOftenAsSavesMayFail) {
  const auto saver = MakeSaver(memory_);
  int failures = 2;
  memory_.SetFault([&](int64_t, const std::string& call, const std::string& path) {
    if (call != "fdatasync" || !IsShard(path) || failures == 0) return absl::OkStatus();
    --failures;
    return absl::UnavailableError("Input/output error");
  });
  EXPECT_TRUE(saver->SaveNow(StateAt(9)).ok());
  EXPECT_EQ(Records(), (std::vector<std::string>{"failed 9", "failed 9", "saved 9"}));
  failures = 1000;
  EXPECT_EQ(ExitCodeOf(saver->SaveNow(StateAt(10))), kExitNotSaved);
  memory_.SetFault(nullptr);
}

TEST_F(RunSaverTest, TakesTheMemoryThatThePlanSays) {
  const std::map<std::string, int64_t>& categories = trainer_->arena().bytes_by_category();
  EXPECT_EQ(MakeSaver(memory_)->staging_bytes(), RunSaver::PlannedStagingBytes(run_, categories));
  EXPECT_EQ(RunSaver::PlannedStagingBytes(run_, {{"optimizer", int64_t{5} << 20}}), int64_t{7} << 20);
  run_.checkpoint.staging_bytes = int64_t{1} << 20;
  EXPECT_EQ(MakeSaver(memory_)->staging_bytes(), int64_t{1} << 20);
  run_.checkpoint.asynchronous = false;
  EXPECT_EQ(MakeSaver(memory_)->staging_bytes(), 0);
  EXPECT_EQ(RunSaver::PlannedStagingBytes(run_, categories), 0);
}

TEST_F(RunSaverTest, RecordsOfStepsThatWereLostGoWithThem) {
  const auto saver = MakeSaver(memory_);
  for (const int64_t step : {1, 2, 3}) EXPECT_TRUE(saver->SaveNow(StateAt(step)).ok());
  metrics_ = *MetricsFile::Open(metrics_path(), 2);
  EXPECT_EQ(Records(), (std::vector<std::string>{"saved 1", "saved 2"}));
  EXPECT_EQ(metrics_->last_saved_step(), 2);
  EXPECT_EQ(metrics_->num_dropped_lines(), 1);
}

TEST(ExitCodes, ComeFromThePayloadOrElseFromTheKindOfError) {
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), kExitOk);
  EXPECT_EQ(ExitCodeOf(absl::InvalidArgumentError("x")), kExitUsage);
  EXPECT_EQ(ExitCodeOf(absl::UnavailableError("x")), kExitFailure);
  const absl::Status status = WithExitCode(absl::InvalidArgumentError("x"), kExitNotSaved);
  EXPECT_EQ(ExitCodeOf(status), 73);
  EXPECT_EQ(status.message(), "x");
}
}  // namespace
}  // namespace carousel
