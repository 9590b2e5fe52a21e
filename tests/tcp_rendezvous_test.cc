// How ranks find each other over TCP: addresses, files, wrong settings, and strangers at the door.
#include "core/base/status_exit_code.h"
#include "parallel/rendezvous.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <random>

#include "communicator_contract.h"
#include "parallel/tcp_frames.h"
#include "tcp_testing.h"

namespace carousel {
namespace {
using testing::kTestSecret;
using testing::TestTcpOptions;

bool Contains(const absl::Status& status, const std::string& text) {
  return std::string(status.message()).find(text) != std::string::npos;
}

TEST(ParseRendezvous, KnowsPortsAndDirectories) {
  const absl::StatusOr<Rendezvous> tcp = ParseRendezvous("tcp://node7:2345");
  ASSERT_TRUE(tcp.ok());
  EXPECT_EQ(tcp->host, "node7");
  EXPECT_EQ(tcp->port, 2345);
  EXPECT_EQ(ParseRendezvous("tcp://[::1]:80")->host, "::1");
  EXPECT_EQ(ParseRendezvous("file:/a/b")->directory, "/a/b");
  EXPECT_EQ(ParseRendezvous("file:///a/b")->directory, "/a/b");
  for (const char* wrong :
       {"", "node7:2345", "tcp://node7", "tcp://node7:0", "tcp://node7:70000", "tcp://:80", "tcp://node7:80x",
        "tcp://[::1:80", "file:relative", "file:", "http://node7:80"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseRendezvous(wrong).status())) << wrong;
  }
}

TEST(ParseEndpoint, ReadsWhatToStringWrites) {
  for (const char* text : {"127.0.0.1:80", "[::1]:65535", "10.1.2.3:4242"}) {
    const absl::StatusOr<Endpoint> endpoint = ParseEndpoint(text);
    ASSERT_TRUE(endpoint.ok()) << text;
    EXPECT_EQ(endpoint->ToString(), text);
  }
  for (const char* wrong : {"", "127.0.0.1", "127.0.0.1:0", "localhost:80", "[::1]", ":80", "1.2.3.4.5:6"}) {
    EXPECT_FALSE(ParseEndpoint(wrong).ok()) << wrong;
  }
}

TEST(AddressFile, IsForItsOwnerAndItsRunOnly) {
  const TempDir directory;
  const std::vector<Endpoint> addresses = {*ParseEndpoint("10.0.0.1:42"), *ParseEndpoint("[::1]:43")};
  EXPECT_TRUE(absl::IsUnavailable(ReadAddresses(directory.path(), kTestSecret).status()));
  ASSERT_TRUE(WriteAddresses(directory.path(), kTestSecret, addresses).ok());
  const absl::StatusOr<std::vector<Endpoint>> read = ReadAddresses(directory.path(), kTestSecret);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->size(), 2u);
  EXPECT_EQ((*read)[1].ToString(), "[::1]:43");
  struct stat info {};
  ASSERT_EQ(stat(AddressFile(directory.path()).c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  // Another run's, cut short, or any bit changed: not believed.
  EXPECT_TRUE(Contains(ReadAddresses(directory.path(), "some other run's secret").status(), "another run"));
  std::ifstream in(AddressFile(directory.path()));
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  for (size_t i = 0; i < text.size(); ++i) {
    for (const std::string& damaged :
         {text.substr(0, i), text.substr(0, i) + static_cast<char>(text[i] ^ 1) + text.substr(i + 1)}) {
      std::ofstream(AddressFile(directory.path()), std::ios::trunc) << damaged;
      EXPECT_FALSE(ReadAddresses(directory.path(), kTestSecret).ok()) << i;
    }
  }
  // Nothing else is left in the directory.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path()), {}), 1);
}

// A port of this machine that nobody uses now.
int FreePort() {
  Endpoint any = *ParseEndpoint("127.0.0.1:1");
  any.set_port(0);
  return Listen(any)->local().port();
}
std::string LocalRendezvous(int port) { return "tcp://127.0.0.1:" + std::to_string(port); }

TEST(TcpNode, WrongSettingsAreExplained) {
  const auto status_of = [](const TcpOptions& options) { return StartTcpSession(options).status(); };
  TcpOptions options = TestTcpOptions("tcp://127.0.0.1:9", 2, 2);
  EXPECT_TRUE(Contains(status_of(options), "rank 2 of 2 does not exist"));
  options = TestTcpOptions("tcp://127.0.0.1:9", 0, 2);
  options.node.secret = "short";
  EXPECT_TRUE(Contains(status_of(options), "5 characters; give at least 16"));
  EXPECT_TRUE(Contains(status_of(TestTcpOptions("ftp://x", 0, 2)), "'ftp://x' is no rendezvous"));
}

TEST(TcpNode, MissingRanksAreNamed) {
  TcpOptions options = TestTcpOptions(LocalRendezvous(FreePort()), 0, 3);
  options.node.meet_seconds = 0.3;
  const absl::Status status = StartTcpSession(options).status();
  EXPECT_TRUE(Contains(status, "ranks 1 and 2 did not come to tcp://127.0.0.1:")) << status;
  options.node.rank = 1;
  const absl::Status unreached = StartTcpSession(options).status();
  EXPECT_TRUE(Contains(unreached, "rank 0 could not be reached"));
  EXPECT_EQ(ExitCodeOf(unreached), kExitTransport);
}

TEST(TcpNode, APortInUseIsReported) {
  Endpoint any = *ParseEndpoint("127.0.0.1:1");
  any.set_port(0);
  const Socket other = *Listen(any);
  const absl::Status status =
      StartTcpSession(TestTcpOptions(LocalRendezvous(other.local().port()), 0, 2)).status();
  EXPECT_TRUE(Contains(status, "Address already in use")) << status;
  EXPECT_TRUE(Contains(status, "a port that nobody else uses")) << status;
  EXPECT_EQ(ExitCodeOf(status), kExitTransport);
}

// What two ranks say that were started differently.
std::pair<absl::Status, absl::Status> StartTwo(const std::function<void(TcpOptions*)>& change_second) {
  const std::string rendezvous = LocalRendezvous(FreePort());
  absl::Status first_status;
  std::thread first([&] {
    TcpOptions options = TestTcpOptions(rendezvous, 0, 2);
    options.node.meet_seconds = 2;
    first_status = StartTcpSession(options).status();
  });
  TcpOptions options = TestTcpOptions(rendezvous, 1, 2);
  options.node.meet_seconds = 1;
  change_second(&options);
  const absl::Status second_status = StartTcpSession(options).status();
  first.join();
  return {first_status, second_status};
}

TEST(TcpNode, DifferentWorldSizesAreReportedByBoth) {
  const auto [first, second] = StartTwo([](TcpOptions* options) { options->node.size = 3; });
  const char* expected = "rank 0 was started as one of 2 ranks, rank 1 as one of 3";
  EXPECT_TRUE(Contains(first, expected)) << first;
  EXPECT_TRUE(Contains(second, expected)) << second;
}

TEST(TcpNode, DifferentSecretsAreReportedByBoth) {
  const auto [first, second] =
      StartTwo([](TcpOptions* options) { options->node.secret = "another secret, as long"; });
  EXPECT_TRUE(Contains(first, "rank 1 did not come")) << first;
  EXPECT_TRUE(Contains(first, "turned away: is CAROUSEL_RUN_SECRET the same everywhere?")) << first;
  EXPECT_TRUE(Contains(second, "is CAROUSEL_RUN_SECRET the same on all ranks?")) << second;
}

TEST(TcpNode, TwoProcessesOfOneRankAreReported) {
  const std::string rendezvous = LocalRendezvous(FreePort());
  std::vector<absl::Status> statuses(3);
  std::vector<std::thread> threads;
  for (const int process : {0, 1, 2}) {
    threads.emplace_back([&, process] {
      statuses[static_cast<size_t>(process)] =
          StartTcpSession(TestTcpOptions(rendezvous, std::min(process, 1), 3)).status();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses)
    EXPECT_TRUE(Contains(status, "rank 1 is there already")) << status;
}

TEST(TcpNode, AStaleAddressFileDoesNotDisturb) {
  const TempDir directory;
  ASSERT_TRUE(
      WriteAddresses(directory.path(), "the secret of an old run", {*ParseEndpoint("127.0.0.1:9")}).ok());
  std::vector<std::thread> threads;
  for (const int rank : {1, 0}) {
    threads.emplace_back([&, rank] {
      if (rank == 0) std::this_thread::sleep_for(std::chrono::milliseconds(200));
      absl::StatusOr<std::unique_ptr<Session>> session =
          StartTcpSession(TestTcpOptions("file:" + directory.path(), rank, 2));
      ASSERT_TRUE(session.ok()) << session.status();
      CheckCommunicatorContract((*session)->world(), 5);
      (*session)->Finish(0);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(std::filesystem::exists(AddressFile(directory.path())));  // not for the next run
}

// Ranks meet, split and talk while others knock: with rubbish, with a beginning of the right words, with
// nothing at all, and in crowds that stay.
TEST(TcpNode, StrangersDoNotDisturb) {
  const int port = FreePort();
  std::atomic<bool> done = false;
  std::vector<std::thread> threads;
  for (int stranger = 0; stranger < 3; ++stranger) {
    threads.emplace_back([&, stranger] {
      std::mt19937_64 random(static_cast<uint64_t>(stranger));
      Endpoint door = *ParseEndpoint("127.0.0.1:1");
      door.set_port(port);
      std::vector<Socket> crowd;  // half-open: they never say a word, or stop in the middle of one
      for (int knocks = 0; !done && knocks < 3000; ++knocks) {
        absl::StatusOr<Socket> socket = Connect(door, TcpClock::now() + std::chrono::milliseconds(200));
        if (!socket.ok()) {
          std::this_thread::sleep_for(std::chrono::milliseconds(2));
          continue;
        }
        ConnectorHandshake impostor("a secret that is not theirs", {.world_size = 3, .from = 2, .to = 0},
                                    RandomNonce());
        std::string words = impostor.TakeOutput();
        if (random() % 3 == 0) {
          for (char& c : words) c = static_cast<char>(random());
        }
        words.resize(random() % (words.size() + 100), 'x');
        static_cast<void>(SendAll(*socket, words, TcpClock::now() + std::chrono::milliseconds(100)));
        if (random() % 2 == 0) crowd.push_back(std::move(*socket));
        if (crowd.size() > 150) crowd.clear();
      }
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 3; ++rank) {
    ranks.emplace_back([&, rank] {
      absl::StatusOr<std::unique_ptr<Session>> session =
          StartTcpSession(TestTcpOptions(LocalRendezvous(port), rank, 3));
      ASSERT_TRUE(session.ok()) << session.status();
      for (int round = 0; round < 5; ++round) {
        CheckCommunicatorContract((*session)->world(), 100);
        CheckSplits((*session)->world());
      }
      EXPECT_EQ((*session)->Finish(0), 0);
    });
  }
  for (std::thread& thread : ranks) thread.join();
  done = true;
  for (std::thread& thread : threads) thread.join();
}

TEST(TcpFrames, SurviveAnyBytes) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes(random() % 40, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    if (!bytes.empty()) bytes[0] = static_cast<char>(random() % 6);
    if (bytes.size() > 4) bytes[2] = bytes[3] = bytes[4] = 0;
    const size_t before = bytes.size();
    const absl::StatusOr<std::optional<Frame>> frame = TakeFrame(&bytes, 20);
    if (!frame.ok() || !frame->has_value()) {
      EXPECT_EQ(bytes.size(), before);
      continue;
    }
    EXPECT_LE((*frame)->payload.size(), 20u);
    EXPECT_EQ(bytes.size() + kFrameHeadBytes + (*frame)->payload.size(), before);
    static_cast<void>(ParseEnd(**frame));
  }
  std::string end = MakeEnd({.exit_code = 5, .text = std::string(5000, 'x')});
  const absl::StatusOr<std::optional<Frame>> frame = TakeFrame(&end, kMaxEndBytes);
  ASSERT_TRUE(frame.ok() && frame->has_value());
  EXPECT_EQ(ParseEnd(**frame)->exit_code, 5);
}
}  // namespace
}  // namespace carousel
