#include "core/train/agreement.h"

#include <gtest/gtest.h>

#include <string>

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

TEST(AgreeOnStatus, NamesTheRanksUnlessAllSayTheSame) {
  RunLocalRanks(3, [](Communicator& world) {
    // Two of three: the third has nothing to complain about.
    const absl::Status mine = world.rank() == 1 ? absl::OkStatus() : absl::NotFoundError("no file");
    EXPECT_EQ(std::string(AgreeOnStatus(world, mine).message()), "[rank 0, 2] no file");
  });
  RunLocalRanks(1, [](Communicator& world) {
    EXPECT_EQ(std::string(AgreeOnStatus(world, absl::NotFoundError("no file")).message()), "no file");
  });
}

TEST(AgreeOnStatus, CarriesEveryCodeAndEveryMessageWhole) {
  RunLocalRanks(2, [](Communicator& world) {
    for (int code = 1; code <= 16; ++code) {
      // Any bytes, of different lengths, also none.
      const std::string text = code == 1 ? "" : std::string(static_cast<size_t>(code) * 1000, '\0') + "\nend";
      const absl::Status mine =
          world.rank() == 1 ? absl::Status(static_cast<absl::StatusCode>(code), text) : absl::OkStatus();
      const absl::Status all = AgreeOnStatus(world, mine);
      EXPECT_EQ(all.raw_code(), code);
      EXPECT_EQ(std::string(all.message()), "[rank 1] " + text);
    }
  });
}
}  // namespace
}  // namespace carousel
