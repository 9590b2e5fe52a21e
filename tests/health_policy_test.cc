// What is made of steps that look wrong: scores, findings, actions, and what outlives the process.
#include "launcher/train/health_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/base/status_exit_code.h"
#include "launcher/launch/suspect_hosts.h"
#include "launcher/train/rollback_journal.h"
#include "tests/memory_file_system.h"

namespace carousel {
namespace {

StepResult StepOf(double loss, double grad_norm) {
  StepResult result;
  result.loss = loss;
  result.grad_norm = grad_norm;
  result.num_targets = 1;
  result.num_non_finite = std::isfinite(loss) && std::isfinite(grad_norm) ? 0 : 3;
  return result;
}

// A policy that has seen `steps` ordinary steps: losses about 2, norms about 1.
struct Watched {
  explicit Watched(const HealthSpec& spec_in, int64_t steps = 64) : spec(spec_in), policy(spec_in) {
    for (int64_t i = 0; i < steps; ++i) {
      EXPECT_EQ(Take(2 + 0.01 * Noise(), 1 + 0.1 * Noise()), StepVerdict::kUpdate);
    }
  }
  double Noise() { return static_cast<double>(random() % 2001) / 1000 - 1; }
  StepVerdict Take(double loss, double norm) {
    StepResult result = StepOf(loss, norm);
    const StepVerdict verdict = policy.Judge(result);
    result.skipped = verdict == StepVerdict::kSkip;
    ++state.step;
    policy.Remember(result, &state);
    return verdict;
  }
  HealthSpec spec;
  HealthPolicy policy;
  TrainState state;
  std::mt19937_64 random{3};
};

TEST(SpikeScore, IsTheDistanceFromTheMedianInDeviations) {
  SpikeScore score;
  EXPECT_TRUE(std::isnan(score.Of(1)));
  EXPECT_TRUE(std::isnan(score.median()));
  // 0, 1, ..., 31: median 15.5, median distance 8.
  for (int i = 0; i < 32; ++i) {
    EXPECT_TRUE(std::isnan(score.Of(1)));
    score.Add(i);
  }
  EXPECT_EQ(score.median(), 15.5);
  EXPECT_DOUBLE_EQ(score.Of(15.5 + 8 * 1.4826 * 3), 3);
  EXPECT_DOUBLE_EQ(score.Of(15.5 - 8 * 1.4826 * 3), -3);
  EXPECT_TRUE(std::isnan(score.Of(std::nan(""))));
  EXPECT_TRUE(std::isnan(score.Of(INFINITY)));
  // The window moves on: from 32 on to 95.
  for (int i = 32; i < 96; ++i) score.Add(i);
  EXPECT_EQ(score.window().size(), 64u);
  EXPECT_EQ(score.window().front(), 32);
  EXPECT_EQ(score.median(), 63.5);
  EXPECT_EQ(SpikeScore(score.window()).Of(100), score.Of(100));
  // Numbers without any noise are no reason to divide by zero.
  SpikeScore same(std::vector<double>(64, 3.0)), zero(std::vector<double>(64, 0.0));
  EXPECT_EQ(same.Of(3), 0);
  EXPECT_TRUE(std::isfinite(same.Of(4)));
  EXPECT_EQ(zero.Of(0), 0);
  EXPECT_GT(zero.Of(1e-9), 1e6);
  // A third of wild numbers does not blunt it.
  std::vector<double> wild;
  for (int i = 0; i < 60; ++i) wild.push_back(i % 3 == 0 ? 1e9 : 2 + 0.001 * (i % 7));
  EXPECT_GT(SpikeScore(wild).Of(2.1), 10);
}

TEST(HealthPolicy, SpikesStandOutAndDoNotBecomeUsual) {
  Watched run({});
  EXPECT_EQ(run.policy.finding(), HealthPolicy::Finding::kFine);
  EXPECT_LT(std::abs(run.policy.loss_z()), 6);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(run.Take(3, 1), StepVerdict::kUpdate);  // NOTE
    EXPECT_EQ(run.policy.finding(), HealthPolicy::Finding::kSpike);
    EXPECT_GT(run.policy.loss_z(), 50);
  }
  EXPECT_EQ(run.state.loss_window.size(), 64u);
  EXPECT_LT(*std::max_element(run.state.loss_window.begin(), run.state.loss_window.end()), 2.1);
  EXPECT_EQ(run.Take(2, 1), StepVerdict::kUpdate);
  EXPECT_EQ(run.policy.finding(), HealthPolicy::Finding::kFine);
  // Below is no spike, however far; nor is what is far in deviations and next to nothing in percent.
  run.Take(0.5, 1);
  EXPECT_EQ(run.policy.finding(), HealthPolicy::Finding::kFine);
  run.Take(2.09, 1);
  EXPECT_GT(run.policy.loss_z(), 6);
  EXPECT_EQ(run.policy.finding(), HealthPolicy::Finding::kFine);
  // A norm only where it is asked for.
  run.Take(2, 1e6);
  EXPECT_EQ(run.policy.finding(), HealthPolicy::Finding::kFine);
  Watched norms({.spike_norm_z = 20});
  norms.Take(2, 100);
  EXPECT_EQ(norms.policy.finding(), HealthPolicy::Finding::kSpike);
  EXPECT_NE(norms.policy.Describe(StepOf(2, 100)).find("gradient norm 100 is "), std::string::npos);
  Watched off({.spike_z = 0});
  off.Take(100, 1);
  EXPECT_EQ(off.policy.finding(), HealthPolicy::Finding::kFine);
}

TEST(HealthPolicy, JudgesTheFallingLossOfAYoungRun) {
  HealthPolicy policy;
  TrainState state;
  std::mt19937_64 random(5);
  for (int step = 0; step < 500; ++step) {
    const double noise = 0.02 * (static_cast<double>(random() % 1000) / 1000 - 0.5);
    const StepResult result = StepOf(2 + 3 * std::exp(-step / 100.0) + noise, 1);
    EXPECT_EQ(policy.Judge(result), StepVerdict::kUpdate);
    EXPECT_EQ(policy.finding(), HealthPolicy::Finding::kFine) << step;
    policy.Remember(result, &state);
  }
}

TEST(HealthPolicy, EveryFindingHasItsAction) {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  {
    Watched run({});
    EXPECT_EQ(run.Take(nan, 1), StepVerdict::kSkip);
    EXPECT_EQ(run.policy.finding(), HealthPolicy::Finding::kNotFinite);
    EXPECT_EQ(run.policy.action(), HealthAction::kSkip);
    EXPECT_EQ(run.policy.Describe(StepOf(nan, 1)), "3 losses or parts of the gradient were not finite");
    EXPECT_EQ(run.Take(2, inf), StepVerdict::kSkip);
    EXPECT_EQ(run.state.skipped_steps, 2);
    EXPECT_EQ(run.state.skipped_in_row, 2);
    EXPECT_EQ(run.state.last_skipped_step, run.state.step);
    run.Take(2, 1);
    EXPECT_EQ(run.state.skipped_steps, 2);
    EXPECT_EQ(run.state.skipped_in_row, 0);
  }
  for (const HealthAction action : {HealthAction::kSkip, HealthAction::kRollback, HealthAction::kStop}) {
    Watched run({.on_spike = action, .on_non_finite = action});
    EXPECT_EQ(run.Take(5, 1), StepVerdict::kSkip);
    EXPECT_EQ(run.policy.action(), action);
    EXPECT_NE(run.policy.Describe(StepOf(5, 1)).find("the loss 5 is "), std::string::npos);
    EXPECT_EQ(run.Take(nan, nan), StepVerdict::kSkip);
    EXPECT_EQ(run.policy.action(), action);
    run.policy.Forget();
    EXPECT_EQ(run.policy.finding(), HealthPolicy::Finding::kFine);
    EXPECT_EQ(run.policy.action(), HealthAction::kNote);
    EXPECT_EQ(run.policy.Describe(StepOf(2, 1)), "");
  }
}

TEST(HealthPolicy, ComputesAgainOnceBeforeItActs) {
  for (const HealthAction action : {HealthAction::kNote, HealthAction::kSkip, HealthAction::kRollback}) {
    Watched run({.on_spike = action, .rerun = true});
    StepResult result = StepOf(5, 1);
    EXPECT_EQ(run.policy.Judge(result), StepVerdict::kRerun);
    result.rerun = Rerun{};
    EXPECT_EQ(run.policy.Judge(result),
              action == HealthAction::kNote ? StepVerdict::kUpdate : StepVerdict::kSkip);
    EXPECT_EQ(run.policy.action(), action);
    EXPECT_EQ(run.policy.Judge(StepOf(std::nan(""), 1)), StepVerdict::kRerun);
    EXPECT_EQ(run.policy.Judge(StepOf(2, 1)), StepVerdict::kUpdate);
  }
}

TEST(HealthPolicy, GoesOnFromAStateWithTheSameBits) {
  Watched run({.on_spike = HealthAction::kSkip, .spike_norm_z = 20}, 50);
  HealthPolicy again(run.spec, run.state);
  TrainState state = run.state;
  for (int i = 0; i < 200; ++i) {
    const double loss = i % 31 == 0 ? 4 : 2 + 0.01 * run.Noise();
    const double norm = i % 43 == 0 ? 30 : 1 + 0.1 * run.Noise();
    StepResult result = StepOf(loss, norm);
    const StepVerdict verdict = run.policy.Judge(result);
    EXPECT_EQ(again.Judge(result), verdict);
    EXPECT_EQ(again.finding(), run.policy.finding());
    EXPECT_EQ(again.loss_z(), run.policy.loss_z());
    EXPECT_EQ(again.grad_norm_z(), run.policy.grad_norm_z());
    result.skipped = verdict == StepVerdict::kSkip;
    run.policy.Remember(result, &run.state);
    again.Remember(result, &state);
    if (i % 10 == 0) again = HealthPolicy(run.spec, state);
  }
  EXPECT_EQ(state, run.state);
}

// ---- rollbacks

TEST(RollbackJournal, KeepsWhatTheCheckpointsDoNotKnow) {
  MemoryFileSystem files;
  ASSERT_TRUE(files.CreateDirectory("run").ok());
  EXPECT_TRUE(ReadRollbacks("run", &files)->empty());
  EXPECT_TRUE(ForgetRollbacksAfter("run", 0, &files).ok());
  const Rollback first = {
      .number = 1, .bad_step = 431, .to_step = 400, .consumed_sequences = 3456, .why = "a \"b\"\n"};
  const Rollback second = {
      .number = 2, .bad_step = 500, .to_step = 400, .consumed_sequences = 4000, .why = "c"};
  const Rollback third = {
      .number = 3, .bad_step = 700, .to_step = 600, .consumed_sequences = 5600, .why = ""};
  for (const Rollback& r : {first, second, third}) ASSERT_TRUE(RecordRollback("run", r, &files).ok());
  EXPECT_EQ(*ReadRollbacks("run", &files), (std::vector<Rollback>{first, second, third}));

  const std::vector<Rollback> all = *ReadRollbacks("run", &files);
  TrainState state = {.step = 400, .consumed_sequences = 3200, .consumed_by_source = {3200}};
  // The last one to this checkpoint.
  ASSERT_NE(RollbackTo(all, state), nullptr);
  EXPECT_EQ(RollbackTo(all, state)->number, 2);
  ApplyRollback(*RollbackTo(all, state), &state);
  EXPECT_EQ(state.num_rollbacks, 2);
  EXPECT_EQ(state.consumed_sequences, 4000);
  EXPECT_EQ(state.left_out_sequences, 800);
  EXPECT_TRUE(state.consumed_by_source.empty());
  EXPECT_EQ(RollbackTo(all, state), nullptr);  // it knows now
  const TrainState later = {.step = 500, .num_rollbacks = 2};
  EXPECT_EQ(RollbackTo(all, later), nullptr);
  // Without data left out only the count changes.
  TrainState counted = {
      .step = 600, .consumed_sequences = 5600, .num_rollbacks = 2, .consumed_by_source = {5600}};
  ApplyRollback(*RollbackTo(all, counted), &counted);
  EXPECT_EQ(counted.num_rollbacks, 3);
  EXPECT_EQ(counted.consumed_sequences, 5600);
  EXPECT_EQ(counted.left_out_sequences, 0);

  // A run that goes on from an earlier step has not gone back to a later one, and numbers are given again.
  ASSERT_TRUE(ForgetRollbacksAfter("run", 500, &files).ok());
  EXPECT_EQ(ReadRollbacks("run", &files)->size(), 2u);
  const Rollback other = {
      .number = 2, .bad_step = 450, .to_step = 400, .consumed_sequences = 3600, .why = "d"};
  ASSERT_TRUE(RecordRollback("run", other, &files).ok());
  EXPECT_EQ(*ReadRollbacks("run", &files), (std::vector<Rollback>{first, other}));
}

TEST(RollbackJournal, RefusesWhatItDidNotWrite) {
  const std::string good =
      ToText({{.number = 1, .bad_step = 5, .to_step = 4, .consumed_sequences = 8, .why = "x"}});
  EXPECT_TRUE(ParseRollbacks(good, "j").ok());
  for (const std::string& bad :
       {std::string("nonsense"), std::string("{}"), std::string("[1]"), good + good,
        std::string(R"({"number":0,"bad_step":5,"to_step":4,"consumed_sequences":8})"),
        std::string(R"({"number":1,"bad_step":5,"to_step":5,"consumed_sequences":8})"),
        std::string(R"({"number":1,"bad_step":5,"to_step":-1,"consumed_sequences":8})"),
        std::string(R"({"number":1,"bad_step":5,"to_step":4,"consumed_sequences":-8})"),
        std::string(R"({"number":1.5,"bad_step":5,"to_step":4,"consumed_sequences":8})"),
        std::string(R"({"number":"1","bad_step":5,"to_step":4,"consumed_sequences":8})")}) {
    const auto parsed = ParseRollbacks(bad, "j");
    EXPECT_TRUE(absl::IsDataLoss(parsed.status())) << bad;
    EXPECT_NE(std::string(parsed.status().message()).find("j line "), std::string::npos);
  }
}

TEST(SuspectHosts, RideOnTheStatus) {
  const absl::Status status = WithExitCode(absl::DataLossError("wrong bits"), kExitHardware);
  const absl::Status named = WithSuspectHosts(status, {"node7", "node3", "node7"});
  EXPECT_EQ(SuspectHosts(named), (std::vector<std::string>{"node3", "node7"}));
  EXPECT_EQ(ExitCodeOf(named), kExitHardware);
  EXPECT_EQ(named.message(), status.message());
  EXPECT_TRUE(SuspectHosts(status).empty());
  EXPECT_TRUE(SuspectHosts(absl::OkStatus()).empty());
  EXPECT_TRUE(WithSuspectHosts(absl::OkStatus(), {"node3"}).ok());
}
}  // namespace
}  // namespace carousel
