// TcpNode: how the ranks find and connect to each other.
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/base/status_exit_code.h"
#include "core/base/status_macros.h"
#include "parallel/peer_communicator.h"
#include "parallel/run_interface.h"
#include "parallel/tcp_node.h"

namespace carousel {
namespace {
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr auto kConnectTime = seconds(3);  // for one address
constexpr auto kHandshakeTime = seconds(10);
constexpr auto kDisbeliefTime = seconds(5);  // of being turned away without a reason
constexpr auto kGroupTime = seconds(60);     // for the ranks of a group to connect
constexpr auto kFirstPause = milliseconds(20), kLastPause = milliseconds(500);

TcpClock::time_point Earlier(TcpClock::time_point deadline, TcpClock::duration from_now) {
  return std::min(deadline, TcpClock::now() + from_now);
}

std::string Join(const std::vector<Endpoint>& endpoints) {
  return absl::StrJoin(endpoints, ",",
                       [](std::string* out, const Endpoint& endpoint) { out->append(endpoint.ToString()); });
}
absl::StatusOr<std::vector<Endpoint>> Split(absl::string_view text) {
  std::vector<Endpoint> endpoints;
  for (const absl::string_view part : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    CAROUSEL_ASSIGN_OR_RETURN(const Endpoint endpoint, ParseEndpoint(std::string(part)));
    endpoints.push_back(endpoint);
  }
  return endpoints;
}

// Each rank needs a few connections to every other one.
absl::Status AllowOpenFiles(int size) {
  const rlim_t needed = 256 + 12 * static_cast<rlim_t>(size);
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= needed) return absl::OkStatus();
  if (limit.rlim_max >= needed) {
    limit.rlim_cur = needed;
    if (setrlimit(RLIMIT_NOFILE, &limit) == 0) return absl::OkStatus();
  }
  return WithExitCode(
      absl::FailedPreconditionError(absl::StrCat("connections among ", size, " ranks need ", needed,
                                                 " open files, and only ", limit.rlim_max,
                                                 " are allowed; raise that (ulimit -Hn, nofile in "
                                                 "/etc/security/limits.conf), or start the ranks with "
                                                 "mpirun")),
      kExitPreflight);
}

// The address from which this machine reaches other networks, if there is such a way. Nothing is sent.
std::optional<Endpoint> AddressOfDefaultRoute() {
  for (const char* elsewhere :
       {"192.0.2.1:9", "[2001:db8::1]:9"}) {  // for documentation only: nobody has them
    const Endpoint endpoint = *ParseEndpoint(elsewhere);
    const Socket probe(socket(endpoint.address.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (!probe.is_open()) continue;
    if (connect(probe.fd(), reinterpret_cast<const sockaddr*>(&endpoint.address), endpoint.length) != 0)
      continue;
    const Endpoint local = probe.local();
    if (local.length > 0 && !local.is_loopback()) return local;
  }
  return std::nullopt;
}
}  // namespace

absl::StatusOr<std::unique_ptr<TcpNode>> TcpNode::Start(const TcpNodeOptions& options) {
  if (options.size < 1 || options.rank < 0 || options.rank >= options.size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", options.rank, " of ", options.size, " does not exist"));
  }
  if (options.secret.size() < kMinSecretBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the run's secret has ", options.secret.size(), " characters; give at least ",
                     kMinSecretBytes, " random ones, the same on all ranks (openssl rand -hex 32)"));
  }
  std::unique_ptr<TcpNode> node(new TcpNode(options));
  const absl::Status met = node->Meet();
  // Not the user's mistake for certain, and another start may do better.
  CAROUSEL_RETURN_IF_ERROR(absl::IsUnavailable(met) ? WithExitCode(met, kExitTransport) : met);
  return node;
}

absl::Status TcpNode::Meet() {
  CAROUSEL_ASSIGN_OR_RETURN(const Rendezvous rendezvous, ParseRendezvous(options_.rendezvous));
  CAROUSEL_RETURN_IF_ERROR(AllowOpenFiles(size()));
  alarm_ = Socket(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  wake_ = Socket(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  const TcpClock::time_point deadline =
      TcpClock::now() +
      std::chrono::duration_cast<TcpClock::duration>(std::chrono::duration<double>(options_.meet_seconds));
  CAROUSEL_RETURN_IF_ERROR(rank() == 0 ? MeetAsHub(rendezvous, deadline) : MeetTheHub(rendezvous, deadline));
  for (const auto& [peer, control] : controls_) WatchOtherMachine(control.socket);
  const std::lock_guard<std::mutex> lock(mutex_);
  watching_ = true;
  const uint64_t one = 1;
  static_cast<void>(!write(wake_.fd(), &one, sizeof one));
  return absl::OkStatus();
}

// Signals are for the threads of whoever uses this.
void TcpNode::StartThread(Socket listener) {
  door_ = std::make_unique<TcpDoor>(std::move(listener), options_.secret,
                                    [this](const Introduction& introduction) { return Judge(introduction); });
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { Serve(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// The address of this machine on the run's network. Port 0.
absl::StatusOr<Endpoint> TcpNode::OwnAddress() const {
  const std::vector<InterfaceAddress> own = OwnInterfaceAddresses();
  std::optional<Endpoint> address;
  if (!options_.interface.empty()) {
    CAROUSEL_ASSIGN_OR_RETURN(address, ChooseAddress({own}, 0, options_.interface));
  } else {
    address = AddressOfDefaultRoute();
    if (!address.has_value() && !own.empty()) address = own.front().address;
    if (!address.has_value()) address = *ParseEndpoint("127.0.0.1:1");  // no network: all ranks are here
  }
  address->set_port(0);
  return *address;
}

// Where rank 0 listens: only there.
absl::StatusOr<Endpoint> TcpNode::HubAddress(const Rendezvous& rendezvous) const {
  if (rendezvous.is_file()) return OwnAddress();
  CAROUSEL_ASSIGN_OR_RETURN(const Addresses addresses, ResolveHost(rendezvous.host, rendezvous.port));
  const bool is_number = ParseEndpoint(absl::StrCat("[", rendezvous.host, "]:1")).ok();
  if (is_number || rendezvous.host == "localhost") return addresses[0];
  // A name that means this machine's loopback here (127.0.1.1) means something else on others.
  if (options_.interface.empty()) {
    for (const Endpoint& endpoint : addresses) {
      if (!endpoint.is_loopback()) return endpoint;
    }
  }
  CAROUSEL_ASSIGN_OR_RETURN(Endpoint own, OwnAddress());
  own.set_port(rendezvous.port);
  return own;
}

absl::Status TcpNode::MeetAsHub(const Rendezvous& rendezvous, TcpClock::time_point deadline) {
  CAROUSEL_ASSIGN_OR_RETURN(const Endpoint address, HubAddress(rendezvous));
  absl::StatusOr<Socket> listening = carousel::Listen(address);
  if (!listening.ok() && !rendezvous.is_file()) {
    return absl::UnavailableError(
        absl::StrCat(std::string(listening.status().message()),
                     "; CAROUSEL_RENDEZVOUS must name an address of rank 0's machine and a port that nobody "
                     "else uses"));
  }
  CAROUSEL_ASSIGN_OR_RETURN(Socket listener, std::move(listening));
  if (rendezvous.is_file()) {
    CAROUSEL_RETURN_IF_ERROR(WriteAddresses(rendezvous.directory, options_.secret, {listener.local()}));
  }
  StartThread(std::move(listener));

  // All come, say where they listen, and learn it of each other.
  std::vector<int> missing;
  std::string problem;
  book_.resize(static_cast<size_t>(size()));
  for (int peer = 1; peer < size(); ++peer) {
    absl::StatusOr<Socket> socket = WaitForCaller(peer, kControlGroup, deadline);
    if (!socket.ok()) {
      missing.push_back(peer);
      continue;
    }
    const absl::StatusOr<Frame> here = ReceiveFrame(*socket, FrameType::kHere, kMaxHereBytes, deadline);
    const absl::StatusOr<Addresses> addresses =
        here.ok() ? Split(here->payload) : absl::StatusOr<Addresses>(here.status());
    if (addresses.ok()) {
      book_[static_cast<size_t>(peer)] = *addresses;
    } else {
      problem = absl::StrCat("rank ", peer, ": ", std::string(addresses.status().message()));
    }
    controls_[peer].socket = std::move(*socket);
  }
  if (rendezvous.is_file()) unlink(AddressFile(rendezvous.directory).c_str());
  if (!missing.empty()) {
    problem = absl::StrFormat("%s did not come to %s within %.4g s", RankList(missing), options_.rendezvous,
                              options_.meet_seconds);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!refusal_.empty()) {
      problem = refusal_;
    } else if (num_strangers_ > 0) {
      absl::StrAppend(&problem, "; ", num_strangers_, num_strangers_ == 1 ? " caller was" : " callers were",
                      " turned away: is CAROUSEL_RUN_SECRET the same everywhere?");
    }
  }
  if (!problem.empty()) {
    TellOthers({.text = problem}, -1);
    return absl::UnavailableError(problem);
  }
  const std::string book = absl::StrJoin(
      book_, "\n", [](std::string* out, const Addresses& addresses) { out->append(Join(addresses)); });
  for (const auto& [peer, control] : controls_) {
    if (const absl::Status sent = SendAll(control.socket, MakeFrame(FrameType::kBook, book), deadline);
        !sent.ok()) {
      return absl::UnavailableError(
          absl::StrCat("rank ", peer, " has gone (", std::string(sent.message()), ")"));
    }
  }
  return absl::OkStatus();
}

absl::Status TcpNode::MeetTheHub(const Rendezvous& rendezvous, TcpClock::time_point deadline) {
  const Where where = [&]() -> absl::StatusOr<Addresses> {
    if (rendezvous.is_file()) return ReadAddresses(rendezvous.directory, options_.secret);
    CAROUSEL_ASSIGN_OR_RETURN(Addresses addresses, ResolveHost(rendezvous.host, rendezvous.port));
    // Rank 0's machine may know its own name by loopback, where rank 0 does not listen.
    const absl::StatusOr<Endpoint> at_hub = HubAddress(rendezvous);
    if (addresses[0].is_loopback() && at_hub.ok() && !at_hub->is_loopback()) addresses.push_back(*at_hub);
    return addresses;
  };
  CAROUSEL_ASSIGN_OR_RETURN(Socket hub, Call(0, kControlGroup, where, deadline));

  // Others reach this rank where the hub does, if nothing else is wanted.
  Endpoint local = hub.local();
  if (!options_.interface.empty() && !local.is_loopback()) {
    CAROUSEL_ASSIGN_OR_RETURN(local, OwnAddress());
  }
  local.set_port(0);
  CAROUSEL_ASSIGN_OR_RETURN(Socket listener, carousel::Listen(local));
  const Addresses own = {listener.local()};
  StartThread(std::move(listener));
  const auto gone = [](const absl::Status& status) {
    return absl::UnavailableError(absl::StrCat("rank 0: ", std::string(status.message())));
  };
  if (const absl::Status sent =
          SendAll(hub, MakeFrame(FrameType::kHere, Join(own).substr(0, kMaxHereBytes)), deadline);
      !sent.ok()) {
    return gone(sent);
  }
  const size_t max_book_bytes = kMaxHereBytes * static_cast<size_t>(size());
  const absl::StatusOr<Frame> book = ReceiveFrame(hub, FrameType::kBook, max_book_bytes, deadline);
  if (!book.ok()) return gone(book.status());
  for (const absl::string_view line : absl::StrSplit(book->payload, '\n')) {
    CAROUSEL_ASSIGN_OR_RETURN(Addresses addresses, Split(line));
    book_.push_back(std::move(addresses));
  }
  if (book_.size() != static_cast<size_t>(size())) return absl::InternalError("a book of other ranks");
  book_[0] = {hub.remote()};
  controls_[0].socket = std::move(hub);
  return absl::OkStatus();
}

absl::StatusOr<Frame> TcpNode::ReceiveFrame(const Socket& socket, FrameType type, size_t max_payload,
                                            TcpClock::time_point deadline) {
  std::string bytes(kFrameHeadBytes, '\0');
  CAROUSEL_RETURN_IF_ERROR(ReceiveAll(socket, bytes.data(), bytes.size(), deadline));
  while (true) {
    CAROUSEL_ASSIGN_OR_RETURN(std::optional<Frame> frame, TakeFrame(&bytes, max_payload));
    if (frame.has_value()) {
      if (const std::optional<EndFrame> end = ParseEnd(*frame)) return absl::UnavailableError(end->text);
      if (frame->type != type) return absl::InternalError("a message that was not expected");
      return *std::move(frame);
    }
    const size_t have = bytes.size();
    bytes.resize(kFrameHeadBytes + PayloadBytes(bytes));
    CAROUSEL_RETURN_IF_ERROR(ReceiveAll(socket, bytes.data() + have, bytes.size() - have, deadline));
  }
}

absl::Status TcpNode::ShakeHands(const Socket& socket, ConnectorHandshake& handshake,
                                 TcpClock::time_point deadline) {
  while (true) {
    CAROUSEL_RETURN_IF_ERROR(SendAll(socket, handshake.TakeOutput(), deadline));
    if (handshake.state() == Handshake::State::kDone) return absl::OkStatus();
    if (handshake.state() == Handshake::State::kFailed) return absl::UnavailableError(handshake.error());
    std::string bytes(handshake.wanted(), '\0');
    CAROUSEL_RETURN_IF_ERROR(ReceiveAll(socket, bytes.data(), bytes.size(), deadline));
    handshake.Feed(bytes);
  }
}

// Tries until it works: the other rank may not have begun to listen. `where` is asked anew each time.
absl::StatusOr<Socket> TcpNode::Call(int to, uint64_t group, const Where& where,
                                     TcpClock::time_point deadline) {
  const auto start = TcpClock::now();
  std::optional<TcpClock::time_point> disbelieved;
  std::string last = "no address";
  auto pause = kFirstPause;
  while (true) {
    const absl::StatusOr<Addresses> addresses = where();
    if (!addresses.ok()) last = std::string(addresses.status().message());
    for (const Endpoint& endpoint : addresses.ok() ? *addresses : Addresses()) {
      absl::StatusOr<Socket> socket = Connect(endpoint, Earlier(deadline, kConnectTime));
      if (!socket.ok()) {
        last = std::string(socket.status().message());
        continue;
      }
      ConnectorHandshake handshake(options_.secret,
                                   {.world_size = static_cast<uint32_t>(size()),
                                    .from = static_cast<uint32_t>(rank()),
                                    .to = static_cast<uint32_t>(to),
                                    .group = group},
                                   RandomNonce());
      const absl::Status shaken = ShakeHands(*socket, handshake, Earlier(deadline, kHandshakeTime));
      if (shaken.ok()) return std::move(*socket);
      if (handshake.refused()) {
        return absl::FailedPreconditionError(
            absl::StrCat("rank ", to, " at ", endpoint.ToString(), " says: ", handshake.error()));
      }
      last = absl::StrCat(endpoint.ToString(), ": ", std::string(shaken.message()));
      if (!handshake.proved()) continue;
      if (!disbelieved.has_value()) disbelieved = TcpClock::now();
    }
    const TcpClock::time_point now = TcpClock::now();
    if (now >= deadline || (disbelieved.has_value() && now - *disbelieved > kDisbeliefTime)) {
      if (disbelieved.has_value()) last += "; is CAROUSEL_RUN_SECRET the same on all ranks?";
      return absl::UnavailableError(absl::StrFormat("rank %d could not be reached within %.3g s: %s", to,
                                                    std::chrono::duration<double>(now - start).count(),
                                                    last));
    }
    std::this_thread::sleep_for(pause);
    pause = std::min<milliseconds>(2 * pause, kLastPause);
  }
}

absl::StatusOr<Socket> TcpNode::WaitForCaller(int from, uint64_t group, TcpClock::time_point deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  const std::pair<uint64_t, int> key = {group, from};
  changed_.wait_until(lock, deadline, [&] {
    return arrived_.count(key) > 0 || failure_.has_value() || (!watching_ && !refusal_.empty());
  });
  const auto found = arrived_.find(key);
  if (found == arrived_.end()) return absl::UnavailableError(absl::StrCat("rank ", from, " did not connect"));
  Socket socket = std::move(found->second);
  arrived_.erase(found);
  return socket;
}

absl::StatusOr<std::vector<Socket>> TcpNode::ConnectGroup(uint64_t group, const std::vector<int>& members) {
  const TcpClock::time_point deadline = TcpClock::now() + kGroupTime;
  std::vector<Socket> sockets(members.size());
  // Each calls those before it, then waits for those after it.
  for (size_t i = 0; i < members.size(); ++i) {
    const int peer = members[i];
    if (peer == rank()) continue;
    if (peer < rank()) {
      CAROUSEL_ASSIGN_OR_RETURN(
          sockets[i],
          Call(
              peer, group, [&]() -> absl::StatusOr<Addresses> { return book_[static_cast<size_t>(peer)]; },
              deadline));
    } else {
      CAROUSEL_ASSIGN_OR_RETURN(sockets[i], WaitForCaller(peer, group, deadline));
    }
  }
  return sockets;
}
}  // namespace carousel
