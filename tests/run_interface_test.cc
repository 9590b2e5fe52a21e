// The address of a node under which the others reach it.
#include "parallel/run_interface.h"

#include <gtest/gtest.h>

namespace carousel {
namespace {

std::vector<InterfaceAddress> Parse(const std::vector<std::string>& texts) {
  std::vector<InterfaceAddress> addresses;
  for (const std::string& text : texts) addresses.push_back(*ParseInterfaceAddress(text));
  return addresses;
}
std::string Choose(const std::vector<std::vector<std::string>>& nodes, const std::string& wanted,
                   size_t node = 0) {
  std::vector<std::vector<InterfaceAddress>> parsed;
  for (const auto& texts : nodes) parsed.push_back(Parse(texts));
  const absl::StatusOr<Endpoint> chosen = ChooseAddress(parsed, node, wanted);
  return chosen.ok() ? chosen->ToString() : std::string(chosen.status().message());
}

TEST(InterfaceAddress, IsReadAsItIsWritten) {
  for (const char* text : {"eth0 10.0.0.1/24", "ib0 fd00::7/64", "x 1.2.3.4/32", "x 1.2.3.4/0"}) {
    const absl::StatusOr<InterfaceAddress> address = ParseInterfaceAddress(text);
    ASSERT_TRUE(address.ok()) << text;
    EXPECT_EQ(address->ToString(), text);
  }
  for (const char* wrong :
       {"", "eth0", "eth0 ", " 10.0.0.1/24", "eth0 10.0.0.1", "eth0 10.0.0.1/33", "eth0 10.0.0.1/-1",
        "eth0 fd00::7/129", "eth0 name/24", "a name that is too long 1.2.3.4/24", "eth0 10.0.0.1/24x"}) {
    EXPECT_FALSE(ParseInterfaceAddress(wrong).ok()) << wrong;
  }
}

TEST(OwnInterfaceAddresses, AreNotLoopback) {
  for (const InterfaceAddress& address : OwnInterfaceAddresses()) {
    EXPECT_FALSE(address.address.is_loopback()) << address.ToString();
    EXPECT_TRUE(ParseInterfaceAddress(address.ToString()).ok()) << address.ToString();
  }
}

const std::vector<std::vector<std::string>> kCluster = {
    {"docker0 172.17.0.1/16", "eth0 192.168.3.1/24", "ib0 10.1.0.1/16"},
    {"docker0 172.17.0.1/16", "eth0 192.168.4.1/24", "ib0 10.1.0.2/16"},
    {"docker0 172.17.0.1/16", "eth0 192.168.3.7/24", "ib0 10.1.9.3/16"}};

TEST(ChooseAddress, TakesTheNetworkThatAllShareAndNoAddressThatOthersHaveToo) {
  EXPECT_EQ(Choose(kCluster, ""), "10.1.0.1:0");
  EXPECT_EQ(Choose(kCluster, "", 2), "10.1.9.3:0");
  // Where routers lie between the nodes: the first of its own.
  EXPECT_EQ(
      Choose({{"docker0 172.17.0.1/16", "eth0 10.1.0.1/24"}, {"docker0 172.17.0.1/16", "eth0 10.2.0.1/24"}},
             ""),
      "10.1.0.1:0");
  // IPv4 first, other things being equal.
  EXPECT_EQ(Choose({{"e fd00::1/64", "e 10.0.0.1/24"}, {"e fd00::2/64", "e 10.0.0.2/24"}}, ""), "10.0.0.1:0");
  EXPECT_EQ(Choose({{"e fd00::1/64"}, {"e fd00::2/64"}}, ""), "[fd00::1]:0");
}

TEST(ChooseAddress, DoesWhatIsWanted) {
  EXPECT_EQ(Choose(kCluster, "eth0"), "192.168.3.1:0");
  EXPECT_EQ(Choose(kCluster, "eth5,eth0,ib0"), "192.168.3.1:0");
  EXPECT_EQ(Choose(kCluster, "192.168.0.0/16"), "192.168.3.1:0");
  EXPECT_EQ(Choose(kCluster, "10.0.0.0/8,eth0"), "10.1.0.1:0");
}

TEST(ChooseAddress, SaysWhyThereIsNone) {
  EXPECT_EQ(Choose(kCluster, "eth5"),
            "no interface is 'eth5'; there are docker0 172.17.0.1/16, eth0 192.168.3.1/24, ib0 10.1.0.1/16");
  EXPECT_EQ(Choose(kCluster, "10.0.0.0/99"), "'10.0.0.0/99' is no network");
  EXPECT_EQ(Choose(kCluster, "eth0,x/y"), "'x/y' is no network");
  EXPECT_EQ(Choose({{}, {}}, ""), "no interface is up; there are none but loopback");
  EXPECT_EQ(Choose({{"e 10.0.0.1/24"}, {"e 10.0.0.1/24"}}, ""),
            "other nodes have the same addresses as this one (e 10.0.0.1/24)");
}
}  // namespace
}  // namespace carousel
