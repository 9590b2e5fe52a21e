// Heartbeats: a run that spans several processes notices within seconds that one of them, or the whole
// machine under it, has stopped, also while all its ranks compute or wait in a transport that does not say.
//
// The first rank of each node keeps a TCP connection to rank 0, the other ranks of a node one to the first,
// over loopback. Every second each end of a connection gives a sign of life. A connection that is silent
// for longer than the limit means that the node (or the rank) at its other end hangs or is cut off; one that
// ends without a goodbye that the process there has died. Whoever notices tells all it can reach, through the
// same connections: every rank learns which node it was, those that are cut off that it is rank 0 that they
// do not hear.
//
// Nothing listens any more when Start returns. Until then rank 0 listens on one address of the run's network,
// the first ranks of other nodes on loopback; a caller that does not know the key is not heard (tcp_door.h).
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "core/comm/communicator.h"
#include "parallel/run_interface.h"
#include "parallel/tcp_socket.h"

namespace carousel {

// Who does not answer.
struct HeartbeatLoss {
  std::string text = {};  // "node7 (ranks 8 to 15) has given no sign of life for 20.0 s"
  std::vector<std::string> suspect_hosts = {};  // "node7"; may be this one, where it seems cut off itself
  bool died =
      false;  // a connection ended: the machine is there, the process is not. Launchers notice that too
};

struct HeartbeatOptions {
  double limit_seconds = 20;                     // without a sign of life; at least 0.1
  double grace_seconds = 5;                      // for the launcher to end us, where a process has died
  double meet_seconds = 10;                      // for all to connect, at the start
  std::string interface = {};                    // ChooseAddress's `wanted`, of run_interface.h
  std::vector<InterfaceAddress> addresses = {};  // of this machine; empty: OwnInterfaceAddresses
  std::string run_secret = {};  // that the launcher gave to all ranks; empty: none. See Start
  // Called once, by the heartbeat's thread, when the run cannot go on; should end the process. Others have
  // been told by then.
  std::function<void(const HeartbeatLoss&)> on_loss = nullptr;
  // Called at once where a process died, grace_seconds before on_loss. May be null.
  std::function<void(const HeartbeatLoss&)> on_death = nullptr;
};

class Heartbeat {
 public:
  // Collective over `world`; `local` holds the ranks of this machine, in the world's order. Null where the
  // world is one rank. Connections are made under a key of 32 random bytes that rank 0 hands out through
  // `world`, hashed with run_secret, so that who can read one message of `world` still lacks the key. Errors
  // are the same on all ranks and name those that did not connect; the run may go on without heartbeats.
  static absl::StatusOr<std::unique_ptr<Heartbeat>> Start(Communicator& world, Communicator& local,
                                                          const std::string& host,
                                                          const HeartbeatOptions& options);
  // Says goodbye: from now on the others do not miss this rank.
  ~Heartbeat();

  // For the log: "heartbeats of 2 nodes on 10.77.0.1, limit 20 s".
  const std::string& description() const { return description_; }

 private:
  // One connection, to the ranks that speak through it.
  struct Link {
    Socket socket = {};
    std::string name = {};  // "node7 (ranks 8 to 15)", "rank 3 on node7"
    std::string host = {};
    bool is_node = false;  // between nodes, not within one
    bool is_hub = false;   // to rank 0, from another node
    std::string inbox = {}, outbox = {};
    TcpClock::time_point heard = {};
    bool open = true;
  };
  struct Meeting;  // of Start

  explicit Heartbeat(HeartbeatOptions options) : options_(std::move(options)) {}
  void StartThread();
  void Run();
  void Beat(const std::string& frame);
  void Flush(Link& link);
  void Listen(Link& link);
  void LookForSilence(TcpClock::time_point now);
  // Tells all but `except`, then ends the run.
  void Lose(const HeartbeatLoss& loss, const Link* except);

  HeartbeatOptions options_;
  std::string description_, host_;
  std::vector<Link> links_;
  Socket wake_;
  std::atomic<bool> ends_ = false;
  bool lost_ = false, death_seen_ = false;
  TcpClock::time_point death_time_;
  HeartbeatLoss death_;
  std::thread thread_;
};

// What a kEnd frame of the heartbeat carries: suspect hosts and text.
std::string MakeLossText(const HeartbeatLoss& loss);
HeartbeatLoss ParseLossText(const std::string& text);
}  // namespace carousel
