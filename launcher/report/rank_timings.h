// Who is slow: the time that ranks spend between collectives, compared. Inside of a collective everybody
// waits for the slowest rank, so all look alike there.
#pragma once
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/comm/communicator.h"
#include "launcher/report/metrics_sink.h"

namespace carousel {

// What is known about every rank from the beginning.
struct RankPlace {
  std::string host;
  int64_t stage = 0;  // ranks of one stage of the pipe axis have the same work
  // It computes with more threads than it has cores: it waits for its neighbours wherever the scheduler lets
  // it wait, so that its times say nothing about the machine.
  bool crowded = false;
};

// seconds[r]: of rank r per step. Each rank is compared with the median of its stage (of an even number the
// lower one, so that of two ranks the slower stands out).
RankTimings CompareRanks(const std::vector<double>& seconds, const std::vector<RankPlace>& places,
                         int64_t num_steps);

class StragglerWatch {
 public:
  // A rank more than `percent` over the median for `steps` steps in a row is chronic; not on a host where
  // ranks share cores.
  StragglerWatch(Communicator& world, const RankPlace& here, double percent, int64_t steps);  // collective

  // One step of this rank took so long between collectives.
  void AddStep(double seconds) {
    seconds_ += seconds;
    ++num_steps_;
  }
  // Collective: one all-gather of 8 bytes per rank. Of the steps since the last call; nothing to compare
  // without any, or with one rank only. The same on every rank.
  std::optional<RankTimings> Compare();
  // Chronic ranks of the last Compare that were not chronic before in the life of this process.
  const std::vector<RankTimings::Rank>& newly_chronic() const { return newly_chronic_; }
  // The host with crowded ranks of which one would have been chronic now, the first time in the life of this
  // process: not named, but worth a word. Empty: none.
  const std::string& newly_crowded() const { return newly_crowded_; }
  int64_t steps() const { return steps_; }
  const std::vector<RankPlace>& places() const { return places_; }

  // Of one comparison; what Compare does after the exchange.
  void Judge(const std::vector<double>& seconds, RankTimings* timings);

 private:
  Communicator& world_;
  std::vector<RankPlace> places_;
  const double percent_;
  const int64_t steps_;
  double seconds_ = 0;
  int64_t num_steps_ = 0;
  std::vector<int64_t> steps_over_;  // in a row, by rank
  std::set<int64_t> named_;
  std::set<std::string> crowded_hosts_, told_hosts_;
  std::string newly_crowded_;
  std::vector<RankTimings::Rank> newly_chronic_;
};
}  // namespace carousel
