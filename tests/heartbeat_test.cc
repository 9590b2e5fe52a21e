// Heartbeats between processes that play the ranks of several machines: who stops, dies or takes leave is
// known to all others, with names and in time.
#include "parallel/heartbeat.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <random>

#include "process_ranks.h"

namespace carousel {
namespace {
using std::chrono::milliseconds;
using testing::RankResult;
using testing::RunProcesses;
using Clock = std::chrono::steady_clock;

constexpr double kLimit = 1.0;

std::string NodeName(int node) { return "node" + std::to_string(node + 1); }

// Node i of a machine that pretends to be several has the address 127.0.0.(i + 1).
HeartbeatOptions TestOptions(int node, double limit = kLimit) {
  HeartbeatOptions options = {.limit_seconds = limit, .grace_seconds = 0.3, .run_secret = "a secret"};
  options.addresses = {
      *ParseInterfaceAddress("lo" + std::to_string(node) + " 127.0.0." + std::to_string(node + 1) + "/8")};
  options.on_death = [](const HeartbeatLoss& loss) { std::fprintf(stderr, "died: %s\n", loss.text.c_str()); };
  options.on_loss = [](const HeartbeatLoss& loss) {
    std::string suspects;
    for (const std::string& host : loss.suspect_hosts) suspects += host + " ";
    std::fprintf(stderr, "lost: %s| suspects %s\n", loss.text.c_str(), suspects.c_str());
    std::fflush(stderr);
    _exit(kExitTransport);
  };
  return options;
}

// Two ranks on each of `num_nodes` machines.
std::vector<RankResult> RunNodes(int num_nodes, const std::function<void(Heartbeat&, int rank)>& body,
                                 double limit = kLimit) {
  return RunProcesses(2 * num_nodes, [&](Communicator& world) {
    const int node = world.rank() / 2;
    const std::unique_ptr<Communicator> local = world.Split(node);
    absl::StatusOr<std::unique_ptr<Heartbeat>> heartbeat =
        Heartbeat::Start(world, *local, NodeName(node), TestOptions(node, limit));
    ASSERT_TRUE(heartbeat.ok()) << heartbeat.status();
    ASSERT_NE(*heartbeat, nullptr);
    body(**heartbeat, world.rank());
    heartbeat->reset();
    world.Barrier();
  });
}
void Sleep(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }
void Says(const RankResult& result, const std::string& text) {
  EXPECT_NE(result.errors.find(text), std::string::npos) << text << "\nin: " << result.errors;
}
// Stops this process; after `seconds` it goes on.
void Freeze(double seconds) {
  const pid_t self = getpid(), waker = fork();
  if (waker == 0) {
    kill(self, SIGSTOP);
    Sleep(seconds);
    kill(self, SIGCONT);
    _exit(0);
  }
  waitpid(waker, nullptr, 0);
}

TEST(Heartbeat, RanksThatComeAndGoInTheirOwnTimeAreNotMissed) {
  const std::vector<RankResult> results = RunNodes(3, [](Heartbeat& heartbeat, int rank) {
    EXPECT_NE(heartbeat.description().find("heartbeats between 3 nodes by 127.0.0.1, limit 1 s"),
              std::string::npos)
        << heartbeat.description();
    Sleep(2 * kLimit);
    // One after the other, the last of them later than the limit.
    Sleep(0.3 * rank);
  });
  for (const RankResult& result : results) {
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_EQ(result.errors, "");
  }
}

TEST(Heartbeat, AStopThatIsShorterThanTheLimitIsNoLoss) {
  const std::vector<RankResult> results = RunNodes(2, [](Heartbeat&, int rank) {
    if (rank == 2) Freeze(0.5 * kLimit);
    Sleep(2 * kLimit);
  });
  for (const RankResult& result : results) EXPECT_EQ(result.exit_code, 0) << result.errors;
}

TEST(Heartbeat, EverybodyLearnsWhichNodeIsSilent) {
  for (const int frozen_node : {1, 2}) {
    const std::vector<RankResult> results = RunNodes(3, [&](Heartbeat&, int rank) {
      if (rank / 2 == frozen_node) Freeze(4 * kLimit);
      Sleep(20);
    });
    const std::string name = NodeName(frozen_node) + " (ranks " + std::to_string(2 * frozen_node) + " and " +
                             std::to_string(2 * frozen_node + 1) + ") has given no sign of life for";
    for (int rank = 0; rank < 6; ++rank) {
      const RankResult& result = results[static_cast<size_t>(rank)];
      EXPECT_EQ(result.exit_code, kExitTransport) << rank << result.errors;
      Says(result, name);  // also those who were stopped, once they go on
      Says(result, "| suspects " + NodeName(frozen_node) + " ");
      if (rank / 2 != frozen_node) {
        EXPECT_LT(result.seconds, 3.5 * kLimit) << rank;
      }
    }
  }
}

TEST(Heartbeat, TheNodeOfRankZeroIsNamedByTheOthers) {
  const std::vector<RankResult> results = RunNodes(3, [&](Heartbeat&, int rank) {
    if (rank < 2) Freeze(4 * kLimit);
    Sleep(20);
  });
  for (int rank = 2; rank < 6; ++rank) {
    const RankResult& result = results[static_cast<size_t>(rank)];
    EXPECT_EQ(result.exit_code, kExitTransport) << rank;
    Says(result, "node1 (ranks 0 and 1) has given no sign of life for");
    Says(result, "; or this node, " + NodeName(rank / 2) + ", is cut off| suspects node1 ");
    EXPECT_LT(result.seconds, 3.8 * kLimit) << rank;
  }
}

TEST(Heartbeat, OneRankOfANodeIsNamed) {
  const std::vector<RankResult> results = RunNodes(2, [&](Heartbeat&, int rank) {
    if (rank == 3) Freeze(4 * kLimit);
    Sleep(20);
  });
  for (const RankResult& result : results) {
    EXPECT_EQ(result.exit_code, kExitTransport);
    Says(result, "lost: rank 3 on node2 has given no sign of life for");
    Says(result, "| suspects node2 ");
  }
}

TEST(Heartbeat, AProcessThatDiesIsNamedAtOnceAndLeftToTheLauncherFirst) {
  constexpr double kFar = 15;  // a limit that plays no part in this
  const std::vector<RankResult> results = RunNodes(
      2,
      [&](Heartbeat&, int rank) {
        Sleep(0.3);
        if (rank == 2) raise(SIGKILL);
        Sleep(20);
      },
      kFar);
  for (const int rank : {0, 3}) {
    const RankResult& result = results[static_cast<size_t>(rank)];
    const std::string name = rank == 0 ? "node2 (ranks 2 and 3) has gone (" : "rank 2 on node2 has gone (";
    Says(result, "died: " + name);
    Says(result, "lost: " + name);
    EXPECT_EQ(result.exit_code, kExitTransport);
    EXPECT_GT(result.seconds, 0.3 + 0.3);
    EXPECT_LT(result.seconds, 0.3 + 0.3 + kFar / 2);
  }
  Says(results[1], "lost: node2 (ranks 2 and 3) has gone (");
}

TEST(Heartbeat, ARankAloneHasNone) {
  RunProcesses(1, [](Communicator& world) {
    const std::unique_ptr<Communicator> local = world.Split(0);
    EXPECT_EQ(*Heartbeat::Start(world, *local, "here", TestOptions(0)), nullptr);
  });
}

TEST(Heartbeat, WhyThereIsNoneIsTheSameOnAllRanks) {
  for (const auto& result : RunProcesses(4, [](Communicator& world) {
         const int node = world.rank() / 2;
         const std::unique_ptr<Communicator> local = world.Split(node);
         HeartbeatOptions options = TestOptions(node);
         options.meet_seconds = 1;
         options.interface = "eth7";
         absl::StatusOr<std::unique_ptr<Heartbeat>> heartbeat =
             Heartbeat::Start(world, *local, NodeName(node), options);
         EXPECT_EQ(std::string(heartbeat.status().message()),
                   "no interface is 'eth7'; there are lo0 127.0.0.1/8");
         // Another secret than the others have.
         options.interface = "lo0";
         if (world.rank() == 2) options.run_secret = "another secret";
         heartbeat = Heartbeat::Start(world, *local, NodeName(node), options);
         const std::string message(heartbeat.status().message());
         EXPECT_NE(message.find("node2 (ranks 2 and 3) did not connect to rank 0 at 127.0.0.1:"),
                   std::string::npos)
             << message;
         EXPECT_NE(message.find("callers were turned away"), std::string::npos) << message;
         EXPECT_NE(message.find("rank 2 on node2 cannot reach node1 (ranks 0 and 1): 127.0.0.1:"),
                   std::string::npos)
             << message;
       })) {
    EXPECT_EQ(result.exit_code, 0) << result.errors;
  }
}

TEST(Heartbeat, NothingListensOnceAllHaveMet) {
  const std::vector<RankResult> results = RunNodes(2, [](Heartbeat&, int) {
    int num_sockets = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      const int fd = std::stoi(entry.path().filename().string());
      int listens = 0;
      socklen_t length = sizeof listens;
      if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) != 0) continue;
      ++num_sockets;
      EXPECT_EQ(listens, 0);
    }
    EXPECT_GE(num_sockets, 1);
  });
  for (const RankResult& result : results) EXPECT_EQ(result.exit_code, 0) << result.errors;
}

// Calls whatever this process listens on, again and again: with garbage, with a beginning and nothing more,
// with nothing at all, and without ever hanging up.
class Strangers {
 public:
  Strangers() : thread_([this] { Run(); }) {}
  ~Strangers() {
    stop_ = true;
    thread_.join();
    for (const int fd : held_) close(fd);
  }
  int64_t num_calls() const { return num_calls_; }

 private:
  void Run() {
    std::mt19937 random(7);
    while (!stop_) {
      for (int fd = 3; fd < 256; ++fd) {
        int listens = 0;
        socklen_t length = sizeof listens;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) != 0 || listens == 0) continue;
        sockaddr_storage address;
        socklen_t size = sizeof address;
        if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) continue;
        const int caller = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (caller < 0) continue;
        static_cast<void>(connect(caller, reinterpret_cast<sockaddr*>(&address), size));
        std::string bytes(random() % 3 == 0 ? 0 : random() % 3000, '\0');
        for (char& byte : bytes) byte = static_cast<char>(random());
        static_cast<void>(send(caller, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
        ++num_calls_;
        held_.push_back(caller);
        if (held_.size() > 100) {
          close(held_.front());
          held_.erase(held_.begin());
        }
      }
      Sleep(0.0005);
    }
  }
  std::atomic<bool> stop_ = false;
  std::atomic<int64_t> num_calls_ = 0;
  std::vector<int> held_;
  std::thread thread_;
};

TEST(Heartbeat, StrangersAtTheDoorKeepNobodyOut) {
  for (const auto& result : RunProcesses(4, [](Communicator& world) {
         const int node = world.rank() / 2;
         const std::unique_ptr<Communicator> local = world.Split(node);
         std::unique_ptr<Strangers> strangers;
         if (world.rank() == 0) strangers = std::make_unique<Strangers>();
         HeartbeatOptions options = TestOptions(node);
         // The door stays open for a second, as one that is waited for does not know the secret.
         options.meet_seconds = 1;
         if (world.rank() == 2) options.run_secret = "another secret";
         EXPECT_FALSE(Heartbeat::Start(world, *local, NodeName(node), options).ok());
         if (strangers != nullptr) {
           EXPECT_GT(strangers->num_calls(), 20);
         }
         options = TestOptions(node);
         options.meet_seconds = 30;
         absl::StatusOr<std::unique_ptr<Heartbeat>> heartbeat =
             Heartbeat::Start(world, *local, NodeName(node), options);
         ASSERT_TRUE(heartbeat.ok()) << heartbeat.status();
         Sleep(1.5 * kLimit);  // and nobody is missed
         heartbeat->reset();
         world.Barrier();
       })) {
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    EXPECT_EQ(result.errors, "");
  }
}

TEST(LossText, IsReadAsItWasWritten) {
  const HeartbeatLoss loss = {.text = "two\nlines", .suspect_hosts = {"a", "b"}};
  const HeartbeatLoss read = ParseLossText(MakeLossText(loss));
  EXPECT_EQ(read.text, loss.text);
  EXPECT_EQ(read.suspect_hosts, loss.suspect_hosts);
  EXPECT_EQ(ParseLossText("no line").text, "no line");
  EXPECT_TRUE(ParseLossText("").suspect_hosts.empty());
}
}  // namespace
}  // namespace carousel
