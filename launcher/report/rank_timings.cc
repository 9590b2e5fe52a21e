#include "launcher/report/rank_timings.h"

#include <algorithm>
#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/base/check.h"

namespace carousel {
namespace {

double LowerMedian(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// How far each rank is over the median of its stage, in percent.
std::vector<double> PercentOver(const std::vector<double>& seconds, const std::vector<RankPlace>& places) {
  std::map<int64_t, std::vector<double>> by_stage;
  for (size_t r = 0; r < seconds.size(); ++r) by_stage[places[r].stage].push_back(seconds[r]);
  std::map<int64_t, double> medians;
  for (const auto& [stage, values] : by_stage) medians[stage] = LowerMedian(values);
  std::vector<double> percent;
  for (size_t r = 0; r < seconds.size(); ++r) {
    const double median = medians[places[r].stage];
    percent.push_back(median > 0 ? 100 * (seconds[r] / median - 1) : 0);
  }
  return percent;
}
}  // namespace

RankTimings CompareRanks(const std::vector<double>& seconds, const std::vector<RankPlace>& places,
                         int64_t num_steps) {
  CAROUSEL_CHECK(!seconds.empty() && seconds.size() == places.size());
  const std::vector<double> over = PercentOver(seconds, places);
  RankTimings timings = {.num_steps = num_steps,
                         .num_ranks = static_cast<int64_t>(seconds.size()),
                         .min_seconds = *std::min_element(seconds.begin(), seconds.end()),
                         .median_seconds = LowerMedian(seconds),
                         .max_seconds = *std::max_element(seconds.begin(), seconds.end()),
                         .worst = {},
                         .chronic = {}};
  // The slowest rank of every host, in units of what it is compared with.
  std::map<std::string, size_t> slowest;
  for (size_t r = 0; r < seconds.size(); ++r) {
    const auto [place, is_new] = slowest.try_emplace(places[r].host, r);
    if (over[r] > over[place->second]) place->second = r;
  }
  for (const auto& [host, r] : slowest) {
    timings.worst.push_back(
        {.rank = static_cast<int64_t>(r), .host = host, .seconds = seconds[r], .percent_over = over[r]});
  }
  std::stable_sort(timings.worst.begin(), timings.worst.end(),
                   [](const auto& a, const auto& b) { return a.percent_over > b.percent_over; });
  if (timings.worst.size() > 3) timings.worst.resize(3);
  return timings;
}

StragglerWatch::StragglerWatch(Communicator& world, const RankPlace& here, double percent, int64_t steps)
    : world_(world), percent_(percent), steps_(steps) {
  for (const std::string& place :
       AllGatherBytes(world, absl::StrCat(here.stage, here.crowded ? " crowded " : " apart ", here.host))) {
    const std::vector<std::string> words = absl::StrSplit(place, absl::MaxSplits(' ', 2));
    RankPlace parsed;
    CAROUSEL_CHECK(words.size() == 3 && absl::SimpleAtoi(words[0], &parsed.stage));
    parsed.crowded = words[1] == "crowded";
    parsed.host = words[2];
    if (parsed.crowded) crowded_hosts_.insert(parsed.host);
    places_.push_back(std::move(parsed));
  }
  steps_over_.assign(places_.size(), 0);
}

std::optional<RankTimings> StragglerWatch::Compare() {
  newly_chronic_.clear();
  newly_crowded_.clear();
  const int64_t num_steps = num_steps_;
  double mine = num_steps > 0 ? seconds_ / static_cast<double>(num_steps) : 0;
  seconds_ = 0;
  num_steps_ = 0;
  // All ranks take the same steps.
  if (num_steps == 0 || world_.size() == 1) return std::nullopt;
  std::vector<double> all(places_.size());
  world_.AllGather(Tensor(all.data(), DType::kF64, {world_.size()}), Tensor(&mine, DType::kF64, {1}));
  RankTimings timings = CompareRanks(all, places_, num_steps);
  Judge(all, &timings);
  return timings;
}

void StragglerWatch::Judge(const std::vector<double>& seconds, RankTimings* timings) {
  newly_chronic_.clear();
  newly_crowded_.clear();
  timings->crowded_hosts.assign(crowded_hosts_.begin(), crowded_hosts_.end());
  if (timings->crowded_hosts.size() > 3) timings->crowded_hosts.resize(3);
  const std::vector<double> over = PercentOver(seconds, places_);
  for (size_t r = 0; r < seconds.size(); ++r) {
    steps_over_[r] = over[r] > percent_ ? steps_over_[r] + timings->num_steps : 0;
    if (steps_over_[r] < steps_) continue;
    if (crowded_hosts_.count(places_[r].host) > 0) {
      if (newly_crowded_.empty() && told_hosts_.insert(places_[r].host).second) {
        newly_crowded_ = places_[r].host;
      }
      continue;
    }
    const RankTimings::Rank rank = {.rank = static_cast<int64_t>(r),
                                    .host = places_[r].host,
                                    .seconds = seconds[r],
                                    .percent_over = over[r]};
    timings->chronic.push_back(rank);
    if (named_.insert(rank.rank).second) newly_chronic_.push_back(rank);
  }
}
}  // namespace carousel
