#include "launcher/agreement.h"

#include <gtest/gtest.h>

#include "parallel/local_communicator.h"

namespace carousel {
namespace {

TEST(AgreeOnStatus, IsOkOnlyIfEveryRankIs) {
  RunLocalRanks(3, [](Communicator& world) { EXPECT_TRUE(AgreeOnStatus(world, absl::OkStatus()).ok()); });
}

TEST(AgreeOnStatus, GivesEveryRankTheFailureOfOne) {
  RunLocalRanks(4, [](Communicator& world) {
    const absl::Status mine = world.rank() == 2 ? absl::NotFoundError("no tokens.bin") : absl::OkStatus();
    const absl::Status all = AgreeOnStatus(world, mine);
    EXPECT_TRUE(absl::IsNotFound(all));
    EXPECT_EQ(std::string(all.message()), "[rank 2] no tokens.bin");
  });
}

TEST(AgreeOnStatus, SaysASharedCauseOnceAndKeepsDifferentOnesApart) {
  RunLocalRanks(3, [](Communicator& world) {
    const absl::Status same = AgreeOnStatus(world, absl::NotFoundError("no config"));
    EXPECT_EQ(std::string(same.message()), "no config");
    const absl::Status mine = world.rank() == 1 ? absl::DataLossError("disk") : absl::NotFoundError("file");
    const absl::Status mixed = AgreeOnStatus(world, mine);
    EXPECT_TRUE(absl::IsNotFound(mixed)) << "the lowest failing rank's code";
    EXPECT_EQ(std::string(mixed.message()), "[rank 0, 2] file\n[rank 1] disk");
  });
}
}  // namespace
}  // namespace carousel
