#include "parallel/tcp_communicator.h"

#include <poll.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/base/exit_code.h"
#include "core/base/status_macros.h"
#include "parallel/hmac_sha256.h"

namespace carousel {
namespace {
constexpr auto kSpinTime = std::chrono::microseconds(20);
constexpr int kPollMilliseconds = 20;
constexpr auto kFailureGrace = std::chrono::seconds(2);  // for the others to fail alike
constexpr uint32_t kMessageMagic = 0x4c535243;           // "CRSL"

// What goes before the data of a message. Ranks have one byte order: all machines that this runs on do.
struct MessageHead {
  uint32_t magic = kMessageMagic;
  uint32_t kind = 0;
  uint64_t sequence = 0;  // of this direction of the connection
  uint64_t bytes = 0;
};

class TcpCommunicator final : public PeerCommunicator {
 public:
  // `members`: the ranks of the world in this communicator's order; rank `rank` is this process.
  TcpCommunicator(TcpNode& node, uint64_t group, std::vector<int> members, int rank,
                  std::vector<Socket> sockets, const PeerOptions& options)
      : PeerCommunicator(options),
        node_(node),
        group_(group),
        members_(std::move(members)),
        rank_(rank),
        links_(members_.size()) {
    for (size_t i = 0; i < links_.size(); ++i) links_[i].socket = std::move(sockets[i]);
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }
  int WorldRank(int rank) const override { return members_[static_cast<size_t>(rank)]; }
  [[noreturn]] void Abort(int exit_code) override { node_.EndJob(exit_code); }
  using PeerCommunicator::BarrierOrEnd;

 private:
  // A message under way: `done` bytes of head and data have been sent, or have come.
  struct Outgoing {
    MessageHead head;
    const std::byte* data;
    size_t done = 0;
    size_t total() const { return sizeof head + static_cast<size_t>(head.bytes); }
  };
  struct Incoming {
    MessageHead expected;
    std::byte* data;
    MessageHead head = {};
    size_t done = 0;
    size_t total() const { return sizeof head + static_cast<size_t>(expected.bytes); }
  };
  struct Link {
    Socket socket;
    std::deque<Outgoing> out;
    std::deque<Incoming> in;
    uint64_t num_sent = 0, num_received = 0;
    bool busy() const { return !out.empty() || !in.empty(); }
  };

  [[noreturn]] void EndJob(int exit_code) override { node_.EndJob(exit_code); }

  static MessageHead Head(int64_t bytes, Kind kind, uint64_t sequence) {
    return {.kind = static_cast<uint32_t>(kind), .sequence = sequence, .bytes = static_cast<uint64_t>(bytes)};
  }
  void Post(const void* data, int64_t bytes, int destination, Kind kind) override {
    if (bytes == 0) return;
    Link& link = links_[static_cast<size_t>(destination)];
    link.out.push_back(
        {.head = Head(bytes, kind, link.num_sent++), .data = static_cast<const std::byte*>(data)});
  }
  void Receive(void* data, int64_t bytes, int source, Kind kind) override {
    if (bytes == 0) return;
    Link& link = links_[static_cast<size_t>(source)];
    link.in.push_back(
        {.expected = Head(bytes, kind, link.num_received++), .data = static_cast<std::byte*>(data)});
  }

  void Wait() override {
    WaitLimits limits(*this);
    Clock::time_point idle_since = Clock::now();
    while (true) {
      bool moved = false, busy = false;
      for (int peer = 0; peer < size(); ++peer) {
        Link& link = links_[static_cast<size_t>(peer)];
        if (!link.busy()) continue;
        moved |= SendSome(link, peer);
        moved |= ReceiveSome(link, peer);
        busy |= link.busy();
      }
      if (!busy) return;
      const Clock::time_point now = Clock::now();
      if (moved) {
        limits.Progress();
        idle_since = now;
      } else if (now - idle_since > kSpinTime) {
        Sleep();
        limits.Check([this] { return Missing(); });
      }
    }
  }

  // Until a socket that is needed can be used, the job has failed, or it is time to look at the limits.
  void Sleep() {
    polled_.clear();
    polled_.push_back({.fd = node_.alarm(), .events = POLLIN, .revents = 0});
    for (const Link& link : links_) {
      if (!link.busy()) continue;
      const int events = (link.out.empty() ? 0 : POLLOUT) | (link.in.empty() ? 0 : POLLIN);
      polled_.push_back({.fd = link.socket.fd(), .events = static_cast<short>(events), .revents = 0});
    }
    if (poll(polled_.data(), polled_.size(), kPollMilliseconds) <= 0 || polled_[0].revents == 0) return;
    if (const std::optional<TcpNode::Failure> failure = node_.TakeFailure({})) FailBecause(*failure);
  }
  [[noreturn]] void FailBecause(const TcpNode::Failure& failure) {
    const std::vector<int> missing = Missing();
    Fail(missing.empty() ? failure.text : absl::StrCat(failure.text, "; it waited for ", RankList(missing)),
         failure.exit_code);
  }
  [[noreturn]] void Gone(int peer, const std::string& why) { FailBecause(node_.Blame(WorldRank(peer), why)); }

  // True if anything was sent.
  bool SendSome(Link& link, int peer) {
    bool moved = false;
    while (!link.out.empty()) {
      Outgoing& message = link.out.front();
      const size_t of_head = std::min(message.done, sizeof message.head), of_data = message.done - of_head;
      iovec parts[2] = {{.iov_base = reinterpret_cast<std::byte*>(&message.head) + of_head,
                         .iov_len = sizeof message.head - of_head},
                        {.iov_base = const_cast<std::byte*>(message.data) + of_data,
                         .iov_len = static_cast<size_t>(message.head.bytes) - of_data}};
      msghdr header = {};
      header.msg_iov = parts;
      header.msg_iovlen = 2;
      const ssize_t n = sendmsg(link.socket.fd(), &header, MSG_NOSIGNAL);
      if (n < 0) {
        if (errno == EAGAIN) return moved;
        if (errno == EINTR) continue;
        Gone(peer, ErrnoText(errno));
      }
      moved = true;
      message.done += static_cast<size_t>(n);
      if (message.done == message.total()) link.out.pop_front();
    }
    return moved;
  }

  // True if anything has come.
  bool ReceiveSome(Link& link, int peer) {
    bool moved = false;
    while (!link.in.empty()) {
      Incoming& message = link.in.front();
      const bool in_head = message.done < sizeof message.head;
      std::byte* to = in_head ? reinterpret_cast<std::byte*>(&message.head) + message.done
                              : message.data + (message.done - sizeof message.head);
      const size_t wanted = (in_head ? sizeof message.head : message.total()) - message.done;
      const absl::StatusOr<size_t> n = carousel::ReceiveSome(link.socket, to, wanted);
      if (!n.ok()) Gone(peer, std::string(n.status().message()));
      if (*n == 0) return moved;
      moved = true;
      message.done += *n;
      if (message.done == sizeof message.head) CheckHead(message, peer);
      if (message.done == message.total()) link.in.pop_front();
    }
    return moved;
  }

  void CheckHead(const Incoming& message, int peer) {
    const MessageHead &head = message.head, &expected = message.expected;
    if (head.magic != expected.magic || head.sequence != expected.sequence) {
      Fail(absl::StrCat("rank ", WorldRank(peer), " sent what is not the next message of this program"));
    }
    if (head.kind == expected.kind && head.bytes == expected.bytes) return;
    const auto name = [](uint32_t kind) {
      return kind == static_cast<uint32_t>(Kind::kPair) ? " bytes of a Send" : " bytes of a collective";
    };
    Fail(absl::StrCat("rank ", WorldRank(peer), " sent ", head.bytes, name(head.kind), " where ",
                      expected.bytes, name(expected.kind), " were expected: the ranks' calls do not match"));
  }

  std::vector<int> Missing() const {
    std::vector<int> ranks;
    for (int peer = 0; peer < size(); ++peer) {
      if (links_[static_cast<size_t>(peer)].busy()) ranks.push_back(WorldRank(peer));
    }
    return ranks;
  }

  std::unique_ptr<Communicator> DoSplit(int color) override {
    std::vector<int> colors(members_.size());
    DoExchangeForVerify(colors.data(), &color, sizeof color);
    const int64_t number = num_splits_++;
    if (color < 0) return nullptr;
    int part_rank = 0;
    std::vector<int> members;
    for (size_t r = 0; r < members_.size(); ++r) {
      if (colors[r] != color) continue;
      if (static_cast<int>(r) == rank_) part_rank = static_cast<int>(members.size());
      members.push_back(members_[r]);
    }
    // All of the part make the same number, and nobody else does.
    const Digest256 digest = Sha256(absl::StrCat(group_, " ", number, " ", color));
    uint64_t group = 0;
    std::memcpy(&group, digest.data(), sizeof group);
    absl::StatusOr<std::vector<Socket>> sockets = node_.ConnectGroup(group, members);
    if (!sockets.ok()) {
      if (const std::optional<TcpNode::Failure> failure = node_.TakeFailure({})) FailBecause(*failure);
      Fail(std::string(sockets.status().message()));
    }
    return std::make_unique<TcpCommunicator>(node_, group, std::move(members), part_rank, std::move(*sockets),
                                             options());
  }

  TcpNode& node_;
  const uint64_t group_;
  const std::vector<int> members_;
  const int rank_;
  std::vector<Link> links_;  // by rank
  std::vector<pollfd> polled_;
  int64_t num_splits_ = 0;
};
std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

class TcpSession final : public Session {
 public:
  TcpSession(std::unique_ptr<TcpNode> node, std::vector<Socket> sockets, const PeerOptions& options)
      : node_(std::move(node)) {
    std::vector<int> everybody(static_cast<size_t>(node_->size()));
    std::iota(everybody.begin(), everybody.end(), 0);
    world_ = std::make_unique<TcpCommunicator>(*node_, kWorldGroup, everybody, node_->rank(),
                                               std::move(sockets), options);
    world_->set_name("world");
    // The ranks of a machine are known by the first of them.
    const std::vector<std::string> hosts = AllGatherBytes(*world_, HostName());
    const std::string& own = hosts[static_cast<size_t>(node_->rank())];
    local_ = world_->Split(static_cast<int>(std::find(hosts.begin(), hosts.end(), own) - hosts.begin()));
    local_->set_name("local");
  }
  ~TcpSession() override {
    if (!finished_) Finish(kExitFailure);
  }

  Communicator& world() override { return *world_; }
  Communicator& local() override { return *local_; }
  std::string library() const override { return "TCP"; }

  int Finish(int exit_code) override {
    CAROUSEL_CHECK_MSG(!finished_, "Session::Finish twice");
    finished_ = true;
    std::fflush(nullptr);
    const TcpClock::duration limit = exit_code == 0 ? TcpClock::duration::max() : kFailureGrace;
    if (!node_->FinishTogether(limit)) node_->EndJob(exit_code);
    return exit_code;
  }

 private:
  std::unique_ptr<TcpNode> node_;
  std::unique_ptr<Communicator> world_, local_;
  bool finished_ = false;
};
}  // namespace

absl::StatusOr<std::unique_ptr<Session>> StartTcpSession(const TcpOptions& options) {
  CAROUSEL_ASSIGN_OR_RETURN(std::unique_ptr<TcpNode> node, TcpNode::Start(options.node));
  std::vector<int> everybody(static_cast<size_t>(node->size()));
  std::iota(everybody.begin(), everybody.end(), 0);
  CAROUSEL_ASSIGN_OR_RETURN(std::vector<Socket> sockets, node->ConnectGroup(kWorldGroup, everybody));
  return std::make_unique<TcpSession>(std::move(node), std::move(sockets), options.peer);
}
}  // namespace carousel
