// Strangers at a door: rubbish, half words, crowds, borrowed words and mirrors. None comes in, none costs
// more than is allowed, and who belongs there comes in among them.
#include "parallel/tcp_door.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <random>
#include <set>
#include <thread>

namespace carousel {
namespace {
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr char kKey[] = "the key of this run, for tests";

Introduction Caller(int from) {
  return {.world_size = 1000, .from = static_cast<uint32_t>(from), .to = 0, .group = 7};
}

// A door with a thread that serves it.
class OpenDoor {
 public:
  OpenDoor() {
    Endpoint any = *ParseEndpoint("127.0.0.1:1");
    any.set_port(0);
    door_ = std::make_unique<TcpDoor>(*Listen(any), kKey, [](const Introduction& who) {
      return who.world_size == 1000 && who.group == 7 ? "" : "from another run";
    });
    endpoint_ = door_->listener().local();
    thread_ = std::thread([this] { Serve(); });
  }
  ~OpenDoor() { Close(); }
  void Close() {
    done_ = true;
    if (thread_.joinable()) thread_.join();
  }
  absl::StatusOr<Socket> Knock() const { return Connect(endpoint_, TcpClock::now() + seconds(5)); }
  std::set<int> arrived() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return arrived_;
  }
  // Once there are so many, or after a while: whoever has heard the last word may be faster than the door.
  std::set<int> arrived(size_t num) {
    const TcpClock::time_point deadline = TcpClock::now() + seconds(20);
    while (arrived().size() < num && TcpClock::now() < deadline) std::this_thread::sleep_for(milliseconds(1));
    return arrived();
  }
  // After Close.
  size_t max_callers() const { return max_callers_; }
  int64_t num_strangers() const { return door_->num_strangers(); }

 private:
  void Serve() {
    std::vector<pollfd> polled;
    while (!done_) {
      polled.clear();
      door_->AddTo(&polled);
      poll(polled.data(), polled.size(), 10);
      door_->Serve(polled.data(), [this](const Introduction& who, Socket socket) {
        const std::lock_guard<std::mutex> lock(mutex_);
        EXPECT_TRUE(arrived_.insert(static_cast<int>(who.from)).second) << who.from;
        guests_.push_back(std::move(socket));
      });
      max_callers_ = std::max(max_callers_, door_->num_callers());
    }
  }
  std::unique_ptr<TcpDoor> door_;
  Endpoint endpoint_;
  std::mutex mutex_;
  std::set<int> arrived_;
  std::vector<Socket> guests_;
  size_t max_callers_ = 0;
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

// Speaks with the door until one of them has said all. `pause` between bytes; 0: at once. `heard`, `said`:
// the conversation.
bool ComesIn(const OpenDoor& door, const std::string& key, const Introduction& who, milliseconds pause,
             std::string* said = nullptr, std::string* heard = nullptr) {
  const absl::StatusOr<Socket> socket = door.Knock();
  if (!socket.ok()) return false;
  ConnectorHandshake handshake(key, who, RandomNonce());
  const TcpClock::time_point deadline = TcpClock::now() + seconds(20);
  while (handshake.state() == Handshake::State::kGoesOn) {
    const std::string words = handshake.TakeOutput();
    if (said != nullptr) *said += words;
    for (size_t i = 0; i < words.size();) {
      const size_t n = pause.count() > 0 ? 1 : words.size();
      if (!SendAll(*socket, std::string_view(words).substr(i, n), deadline).ok()) return false;
      i += n;
      std::this_thread::sleep_for(pause);
    }
    std::string answer(handshake.wanted(), '\0');
    if (!ReceiveAll(*socket, answer.data(), answer.size(), deadline).ok()) return false;
    if (heard != nullptr) *heard += answer;
    handshake.Feed(answer);
  }
  return handshake.state() == Handshake::State::kDone;
}
bool ComesInWithinTries(const OpenDoor& door, int from) {
  for (int i = 0; i < 200; ++i) {
    if (ComesIn(door, kKey, Caller(from), milliseconds(0))) return true;
    std::this_thread::sleep_for(milliseconds(10));
  }
  return false;
}
// What a stranger gets who says this: up to 64 bytes, until the connection ends.
std::string AnswerTo(const OpenDoor& door, const std::string& words) {
  const absl::StatusOr<Socket> socket = door.Knock();
  if (!socket.ok()) return "";
  const TcpClock::time_point deadline = TcpClock::now() + seconds(5);
  static_cast<void>(SendAll(*socket, words, deadline));
  std::string answer;
  while (answer.size() < 64 && WaitFor(*socket, POLLIN, deadline)) {
    char bytes[64];
    const absl::StatusOr<size_t> n = ReceiveSome(*socket, bytes, sizeof bytes);
    if (!n.ok()) break;
    answer.append(bytes, *n);
  }
  return answer;
}

TEST(TcpDoor, LetsInWhoKnowsTheKey) {
  OpenDoor door;
  for (int from = 1; from <= 20; ++from) EXPECT_TRUE(ComesIn(door, kKey, Caller(from), milliseconds(0)));
  EXPECT_EQ(door.arrived(20).size(), 20u);
  door.Close();
  EXPECT_EQ(door.num_strangers(), 0);
}

TEST(TcpDoor, WaitsForWhoIsSlow) {
  OpenDoor door;
  EXPECT_TRUE(ComesIn(door, kKey, Caller(1), milliseconds(20)));  // 76 bytes
}

TEST(TcpDoor, TurnsAwayAWrongKeyAndAnotherRun) {
  OpenDoor door;
  EXPECT_FALSE(ComesIn(door, "another key", Caller(1), milliseconds(0)));
  Introduction other = Caller(2);
  other.world_size = 4;
  EXPECT_FALSE(ComesIn(door, kKey, other, milliseconds(0)));
  EXPECT_TRUE(door.arrived().empty());
  door.Close();
  EXPECT_EQ(door.num_strangers(), 2);
}

TEST(TcpDoor, WordsThatWereOverheardAreOfNoUse) {
  OpenDoor door;
  std::string said, heard;
  ASSERT_TRUE(ComesIn(door, kKey, Caller(1), milliseconds(0), &said, &heard));
  // Again, whole and beginning anywhere; and the door's own words, which must not open it either.
  for (size_t begin = 0; begin < said.size(); begin += 11) {
    EXPECT_LE(AnswerTo(door, said.substr(begin)).size(), 16u);
  }
  EXPECT_LE(AnswerTo(door, said.substr(0, kHelloBytes) + heard).size(), 16u);
  EXPECT_LE(AnswerTo(door, said.substr(0, kHelloBytes) + heard.substr(heard.size() - kProofBytes)).size(),
            16u);
  EXPECT_EQ(door.arrived(1), std::set<int>{1});
}

TEST(TcpDoor, TellsStrangersNothing) {
  OpenDoor door;
  std::mt19937_64 random(5);
  for (int round = 0; round < 300; ++round) {
    std::string words(1 + random() % 200, '\0');
    for (char& c : words) c = static_cast<char>(random());
    if (round % 3 == 0) words = "CARSEL01" + words;
    if (round % 5 == 0) words = "GET / HTTP/1.1\r\nHost: node1\r\n\r\n";
    if (round % 3 == 0 && words.size() < kHelloBytes + kProofBytes) words.resize(kHelloBytes + kProofBytes);
    EXPECT_LE(AnswerTo(door, words).size(), 16u) << round;  // a random number at most
  }
  EXPECT_TRUE(door.arrived().empty());
}

// Thousands of connections: silent ones, half words, rubbish and wrong keys, many of which stay open. Those
// who belong there come in, and never more than kMaxCallers strangers are held.
TEST(TcpDoor, HoldsOutInACrowd) {
  rlimit files = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &files), 0);
  const size_t crowd_size = std::min<size_t>(600, files.rlim_cur / 8);
  OpenDoor door;
  std::atomic<bool> done = false;
  std::atomic<int> knocks = 0;
  std::vector<std::thread> strangers;
  for (uint64_t stranger = 0; stranger < 3; ++stranger) {
    strangers.emplace_back([&, stranger] {
      std::mt19937_64 random(stranger);
      std::vector<Socket> crowd;
      while (!done || knocks < 2000) {
        absl::StatusOr<Socket> socket = door.Knock();
        if (!socket.ok()) continue;
        ++knocks;
        ConnectorHandshake impostor("a key that is not theirs", Caller(500), RandomNonce());
        std::string words = impostor.TakeOutput();
        if (random() % 3 == 0) {
          for (char& c : words) c = static_cast<char>(random());
        }
        words.resize(random() % 2 == 0 ? random() % words.size() : words.size() + random() % 100, 'x');
        static_cast<void>(SendAll(*socket, words, TcpClock::now()));
        crowd.push_back(std::move(*socket));
        if (crowd.size() > crowd_size)
          crowd.erase(crowd.begin(), crowd.begin() + static_cast<int>(crowd_size / 2));
      }
    });
  }
  std::this_thread::sleep_for(milliseconds(300));
  for (int from = 1; from <= 8; ++from) EXPECT_TRUE(ComesInWithinTries(door, from)) << from;
  done = true;
  for (std::thread& thread : strangers) thread.join();
  EXPECT_EQ(door.arrived(8), (std::set<int>{1, 2, 3, 4, 5, 6, 7, 8}));
  door.Close();
  EXPECT_LE(door.max_callers(), TcpDoor::kMaxCallers);
  EXPECT_GE(knocks, 2000);
}
}  // namespace
}  // namespace carousel
