// Heartbeat: how the connections are made.
#include <poll.h>

#include <algorithm>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/base/status_macros.h"
#include "parallel/heartbeat.h"
#include "parallel/hmac_sha256.h"
#include "parallel/peer_communicator.h"
#include "parallel/run_interface.h"
#include "parallel/tcp_door.h"
#include "parallel/tcp_frames.h"

namespace carousel {
namespace {
constexpr uint64_t kHeartbeatGroup = kControlGroup - 1;  // for tcp_handshake: not a group of ranks
constexpr auto kConnectTime = std::chrono::seconds(3);
constexpr auto kPause = std::chrono::milliseconds(50);

// "rank 3", "ranks 0, 2 and 3", "ranks 8 to 15".
std::string RankRange(const std::vector<int>& ranks) {
  const bool consecutive = ranks.back() - ranks.front() + 1 == static_cast<int>(ranks.size());
  if (!consecutive || ranks.size() < 3) return RankList(ranks);
  return absl::StrCat("ranks ", ranks.front(), " to ", ranks.back());
}

struct Node {
  std::string host = {};
  std::vector<int> ranks = {};  // of the world; the first speaks for the node
  std::vector<InterfaceAddress> addresses = {};
  std::string Name() const { return absl::StrCat(host, " (", RankRange(ranks), ")"); }
};

// Proves to rank `to` that we know the key; tries again until the deadline, as a crowd may be at the door.
absl::StatusOr<Socket> Call(const Endpoint& endpoint, const std::string& key,
                            const Introduction& introduction, TcpClock::time_point deadline) {
  std::string last = "no time left";
  while (TcpClock::now() < deadline) {
    absl::StatusOr<Socket> socket = Connect(endpoint, std::min(deadline, TcpClock::now() + kConnectTime));
    if (!socket.ok()) {
      last = std::string(socket.status().message());
      std::this_thread::sleep_for(kPause);
      continue;
    }
    ConnectorHandshake handshake(key, introduction, RandomNonce());
    absl::Status shaken = absl::OkStatus();
    while (shaken.ok() && handshake.state() == Handshake::State::kGoesOn) {
      shaken = SendAll(*socket, handshake.TakeOutput(), deadline);
      std::string bytes(handshake.wanted(), '\0');
      if (shaken.ok()) shaken = ReceiveAll(*socket, bytes.data(), bytes.size(), deadline);
      if (shaken.ok()) handshake.Feed(bytes);
    }
    if (handshake.state() == Handshake::State::kDone) return std::move(*socket);
    last = absl::StrCat(endpoint.ToString(), ": ",
                        shaken.ok() ? handshake.error() : std::string(shaken.message()));
    if (handshake.refused()) break;
    std::this_thread::sleep_for(kPause);
  }
  return absl::UnavailableError(last);
}
}  // namespace

// The state of one rank while connections are made.
struct Heartbeat::Meeting {
  int rank = 0, size = 1;
  std::string key;
  std::vector<Node> nodes;  // the first is rank 0's
  size_t node = 0;          // ours
  TcpClock::time_point deadline;
  std::map<int, Link> expected;  // who has not called yet, by rank
  std::vector<Link> links;

  bool IsFirst() const { return nodes[node].ranks.front() == rank; }

  // Collective: who is where.
  absl::Status LearnNodes(Communicator& world, Communicator& local, const HeartbeatOptions& options,
                          const std::string& host);
  // Lets in all that are expected.
  absl::Status Receive(std::vector<TcpDoor>& doors);
  absl::Status CallUp(int to, const std::string& address, const Link& link);
};

absl::Status Heartbeat::Meeting::LearnNodes(Communicator& world, Communicator& local,
                                            const HeartbeatOptions& options, const std::string& host) {
  rank = world.rank();
  size = world.size();
  const std::string first = BroadcastBytes(local, absl::StrCat(rank), 0);
  std::string mine = absl::StrCat(first, "\n", host);
  if (first == absl::StrCat(rank)) {
    for (const InterfaceAddress& address :
         options.addresses.empty() ? OwnInterfaceAddresses() : options.addresses) {
      absl::StrAppend(&mine, "\n", address.ToString());
    }
  }
  std::map<int, size_t> node_of_first;
  const std::vector<std::string> all = AllGatherBytes(world, mine);
  for (int r = 0; r < size; ++r) {
    const std::vector<std::string> lines = absl::StrSplit(all[static_cast<size_t>(r)], '\n');
    int first_rank = -1;
    if (lines.size() < 2 || !absl::SimpleAtoi(lines[0], &first_rank)) {
      return absl::InternalError(absl::StrCat("rank ", r, " does not say where it is"));
    }
    const auto [found, is_new] = node_of_first.emplace(first_rank, nodes.size());
    if (is_new) nodes.push_back({.host = lines[1]});
    Node& where = nodes[found->second];
    where.ranks.push_back(r);
    if (r == rank) node = found->second;
    for (size_t i = 2; i < lines.size(); ++i) {
      CAROUSEL_ASSIGN_OR_RETURN(InterfaceAddress address, ParseInterfaceAddress(lines[i]));
      where.addresses.push_back(std::move(address));
    }
  }
  return absl::OkStatus();
}

absl::Status Heartbeat::Meeting::Receive(std::vector<TcpDoor>& doors) {
  int64_t num_strangers = 0;
  while (!expected.empty() && TcpClock::now() < deadline) {
    std::vector<pollfd> polled;
    std::vector<size_t> begins;
    int wait = 200;
    for (const TcpDoor& door : doors) {
      begins.push_back(polled.size());
      const int wanted = door.AddTo(&polled);
      if (wanted >= 0) wait = std::min(wait, wanted);
    }
    poll(polled.data(), polled.size(), wait);
    for (size_t i = 0; i < doors.size(); ++i) {
      doors[i].Serve(polled.data() + begins[i], [this](const Introduction& who, Socket socket) {
        const auto found = expected.find(static_cast<int>(who.from));
        if (found == expected.end()) return;
        found->second.socket = std::move(socket);
        links.push_back(std::move(found->second));
        expected.erase(found);
      });
    }
  }
  if (expected.empty()) return absl::OkStatus();
  for (const TcpDoor& door : doors) num_strangers += door.num_strangers();
  return absl::UnavailableError(absl::StrCat(
      absl::StrJoin(expected, ", ", [](std::string* out, const auto& e) { out->append(e.second.name); }),
      " did not connect to rank ", rank, " at ",
      absl::StrJoin(
          doors, ", ",
          [](std::string* out, const TcpDoor& door) { out->append(door.listener().local().ToString()); }),
      num_strangers > 0 ? absl::StrCat(" (", num_strangers, " callers were turned away)") : ""));
}

absl::Status Heartbeat::Meeting::CallUp(int to, const std::string& address, const Link& link) {
  CAROUSEL_ASSIGN_OR_RETURN(const Endpoint endpoint, ParseEndpoint(address));
  absl::StatusOr<Socket> socket = Call(endpoint, key,
                                       {.world_size = static_cast<uint32_t>(size),
                                        .from = static_cast<uint32_t>(rank),
                                        .to = static_cast<uint32_t>(to),
                                        .group = kHeartbeatGroup},
                                       deadline);
  if (!socket.ok()) {
    return absl::UnavailableError(absl::StrCat("rank ", rank, " on ", nodes[node].host, " cannot reach ",
                                               link.name, ": ", std::string(socket.status().message())));
  }
  links.push_back({.socket = std::move(*socket),
                   .name = link.name,
                   .host = link.host,
                   .is_node = link.is_node,
                   .is_hub = link.is_hub});
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Heartbeat>> Heartbeat::Start(Communicator& world, Communicator& local,
                                                            const std::string& host,
                                                            const HeartbeatOptions& options) {
  if (world.size() == 1) return std::unique_ptr<Heartbeat>();
  Meeting meeting;
  CAROUSEL_RETURN_IF_ERROR(meeting.LearnNodes(world, local, options, host));
  const Node& own = meeting.nodes[meeting.node];
  const int rank = meeting.rank;

  // Who listens, and for whom. From here on every rank does the same calls, whatever goes wrong.
  absl::Status status;
  std::vector<TcpDoor> doors;
  std::string network_address, local_address;
  Nonce nonces[2];
  for (Nonce& nonce : nonces) nonce = RandomNonce();
  std::string random(nonces[0].begin(), nonces[0].end());
  random.append(nonces[1].begin(), nonces[1].end());
  random = BroadcastBytes(world, random, 0);
  const Digest256 digest = HmacSha256(options.run_secret, "carousel heartbeat" + random);
  meeting.key = Hex(digest);
  const auto open_door = [&](Endpoint endpoint) -> absl::StatusOr<std::string> {
    endpoint.set_port(0);
    CAROUSEL_ASSIGN_OR_RETURN(Socket listener, carousel::Listen(endpoint));
    std::string address = listener.local().ToString();
    doors.emplace_back(std::move(listener), meeting.key, [&meeting](const Introduction& who) -> std::string {
      if (who.world_size != static_cast<uint32_t>(meeting.size) || who.group != kHeartbeatGroup ||
          who.to != static_cast<uint32_t>(meeting.rank) ||
          meeting.expected.count(static_cast<int>(who.from)) == 0) {
        return absl::StrCat("rank ", who.from, " is not waited for");
      }
      return "";
    });
    return address;
  };
  const auto keep = [&status](const absl::StatusOr<std::string>& address) {
    if (!address.ok() && status.ok()) status = address.status();
    return address.ok() ? *address : std::string();
  };
  if (meeting.IsFirst() && own.ranks.size() > 1) {
    local_address = keep(open_door(*ParseEndpoint("127.0.0.1:1")));
    for (size_t i = 1; i < own.ranks.size() && !local_address.empty(); ++i) {
      meeting.expected[own.ranks[i]] = {.name = absl::StrCat("rank ", own.ranks[i], " on ", own.host),
                                        .host = own.host};
    }
  }
  if (rank == 0 && meeting.nodes.size() > 1) {
    std::vector<std::vector<InterfaceAddress>> addresses;
    for (const Node& node : meeting.nodes) addresses.push_back(node.addresses);
    const absl::StatusOr<Endpoint> chosen = ChooseAddress(addresses, 0, options.interface);
    network_address = keep(chosen.ok() ? open_door(*chosen) : absl::StatusOr<std::string>(chosen.status()));
    for (size_t i = 1; i < meeting.nodes.size() && !network_address.empty(); ++i) {
      const Node& node = meeting.nodes[i];
      meeting.expected[node.ranks.front()] = {.name = node.Name(), .host = node.host, .is_node = true};
    }
  }
  network_address = BroadcastBytes(world, network_address, 0);
  local_address = BroadcastBytes(local, local_address, 0);

  meeting.deadline = TcpClock::now() + std::chrono::duration_cast<TcpClock::duration>(
                                           std::chrono::duration<double>(options.meet_seconds));
  const auto note = [&status](const absl::Status& problem) { status.Update(problem); };
  if (meeting.IsFirst() && rank != 0 && !network_address.empty()) {
    const Node& hub = meeting.nodes.front();
    note(meeting.CallUp(0, network_address,
                        {.name = hub.Name(), .host = hub.host, .is_node = true, .is_hub = true}));
  }
  if (!meeting.IsFirst() && !local_address.empty()) {
    const int first = own.ranks.front();
    note(meeting.CallUp(first, local_address,
                        {.name = absl::StrCat("rank ", first, " on ", own.host), .host = own.host}));
  }
  if (!meeting.expected.empty()) note(meeting.Receive(doors));
  doors.clear();

  std::set<std::string> problems;
  for (const std::string& problem : AllGatherBytes(world, status.ok() ? "" : std::string(status.message()))) {
    if (!problem.empty()) problems.insert(problem);
  }
  if (!problems.empty()) return absl::UnavailableError(absl::StrJoin(problems, "; "));

  std::unique_ptr<Heartbeat> heartbeat(new Heartbeat(options));
  heartbeat->host_ = own.host;
  heartbeat->links_ = std::move(meeting.links);
  heartbeat->description_ =
      meeting.nodes.size() > 1
          ? absl::StrFormat("heartbeats between %d nodes by %s, limit %.4g s", meeting.nodes.size(),
                            network_address.substr(0, network_address.rfind(':')), options.limit_seconds)
          : absl::StrFormat("heartbeats between %d ranks, limit %.4g s", meeting.size, options.limit_seconds);
  heartbeat->StartThread();
  return heartbeat;
}
}  // namespace carousel
