#include "launcher/watch/run_watchdog.h"

#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "launcher/launch/attempt_record.h"

namespace carousel {
namespace {
using Json = nlohmann::json;
constexpr double kMaxLearnedSeconds = 1e6;

std::string LimitsPath(const std::string& run_dir) { return run_dir + "/watchdog.json"; }

// All 0 if there is nothing that can be used.
HangTimer::PerSection Recall(const std::string& run_dir, int64_t num_ranks) {
  HangTimer::PerSection learned = {};
  std::ifstream file(LimitsPath(run_dir), std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const Json object = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  // Another number of ranks takes other times.
  if (!object.is_object() || !object.contains("ranks") || object["ranks"] != num_ranks ||
      !object.contains("seconds") || !object["seconds"].is_array() ||
      object["seconds"].size() != learned.size()) {
    return learned;
  }
  for (size_t i = 0; i < learned.size(); ++i) {
    const Json& value = object["seconds"][i];
    const double seconds = value.is_number() ? value.get<double>() : -1;
    if (!(seconds >= 0) || seconds > kMaxLearnedSeconds) return {};
    learned[i] = seconds;
  }
  return learned;
}
}  // namespace

void IntroduceRanks(Watchdog* watchdog, Environment& environment) {
  if (watchdog == nullptr) return;
  watchdog->Identify(environment.rank(), environment.size(), environment.host(), {});
  if (environment.size() == 1) return;
  watchdog->Watch(environment.world());
  const std::vector<std::string> hosts = AllGatherBytes(environment.world(), environment.host());
  watchdog->Identify(environment.rank(), environment.size(), environment.host(), hosts);
}

void IntroduceRun(Watchdog* watchdog, const RunSpec& run, Environment& environment) {
  if (watchdog == nullptr) return;
  Communicator& world = environment.world();
  const bool main = environment.rank() == 0;
  const std::string attempt_dir = Environment::Variable(kAttemptDirVariable);
  const std::string time = BroadcastBytes(
      world, main ? absl::FormatTime("%Y%m%d-%H%M%S", absl::Now(), absl::UTCTimeZone()) : "", 0);
  watchdog->SetDirectory(attempt_dir.empty() ? absl::StrCat(run.run_dir, "/flight_records/", time)
                                             : attempt_dir + "/flight");
  watchdog->SetLimits(run.watchdog);
  HangTimer::PerSection learned = {};
  if (main) learned = Recall(run.run_dir, environment.size());
  world.Broadcast(Tensor(learned.data(), DType::kF64, {static_cast<int64_t>(learned.size())}), 0);
  watchdog->timer().SetLearned(learned);
}

void RememberLimits(Watchdog& watchdog, const std::string& run_dir, int64_t num_ranks) {
  const Json object = {{"ranks", num_ranks}, {"seconds", watchdog.timer().learned()}};
  const std::string temporary = LimitsPath(run_dir) + ".tmp";
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file << object.dump() << "\n";
  file.close();
  if (!file || std::rename(temporary.c_str(), LimitsPath(run_dir).c_str()) != 0) {
    std::remove(temporary.c_str());
  }
}
}  // namespace carousel
