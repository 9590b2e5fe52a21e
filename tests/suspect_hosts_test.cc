// Which host to suspect when ranks of several blame each other's.
#include "launcher/launch/suspect_hosts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"

namespace carousel {
namespace {

std::string Believed(const std::vector<Accusation>& accusations, const std::string& launcher_host = "a") {
  return absl::StrJoin(BelievedSuspects(accusations, launcher_host), " ");
}

TEST(BelievedSuspects, WhoIsCutOffBlamesInVain) {
  // What the others say, in any order.
  std::vector<Accusation> link = {{"a", 0, {"b"}}, {"b", 1, {"a"}}, {"b", 2, {"a"}}, {"c", 3, {"b"}}};
  for (size_t i = 0; i < link.size(); ++i) {
    EXPECT_EQ(Believed(link), "b");
    std::rotate(link.begin(), link.begin() + 1, link.end());
  }
  // The same where the node of rank 0 and of the launcher is the one.
  EXPECT_EQ(Believed({{"a", 0, {"a"}}, {"b", 1, {"a"}}, {"c", 3, {"a"}}}), "a");
  EXPECT_EQ(Believed({{"a", 0, {"b"}}, {"b", 1, {"a"}}, {"c", 3, {"a"}}}), "a");
  EXPECT_EQ(Believed({}), "");
  EXPECT_EQ(Believed({{"a", 0, {}}}), "");
}

TEST(BelievedSuspects, OfTwoThatBlameEachOtherTheLaunchersHostIsBelieved) {
  const std::vector<Accusation> both = {{"a", 0, {"b"}}, {"b", 1, {"a"}}};
  EXPECT_EQ(Believed(both, "a"), "b");
  EXPECT_EQ(Believed(both, "b"), "a");
  EXPECT_EQ(Believed(both, "login"), "b");  // rank 0 is whom all must reach
  EXPECT_EQ(Believed({both[1], both[0]}, "login"), "b");
  EXPECT_EQ(Believed({both[0], both[1], {"login", 2, {"a"}}}, "login"), "a");
}

TEST(BelievedSuspects, TheMostAccusedFirstAndEachOnce) {
  EXPECT_EQ(Believed({{"a", 0, {"x", "y"}}, {"a", 1, {"x"}}, {"b", 2, {"y", "y"}}, {"c", 3, {"y"}}}), "y x");
  EXPECT_EQ(Believed({{"a", 0, {"x", "y"}}, {"b", 2, {"y", "x"}}}), "x y");
  // A rank of the host itself is among those that name it: a hang with records of all ranks.
  EXPECT_EQ(Believed({{"a", 0, {"b"}}, {"b", 1, {"b"}}}), "b");
}
}  // namespace
}  // namespace carousel
