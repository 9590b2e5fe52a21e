// TcpNode: one process of a run without MPI: how it finds the others, connects to them, and learns that the
// job has failed. Part of tcp_communicator.
//
// Rank 0 is the hub: every rank keeps one control connection to it, on which a thread of each process
// listens. A control connection that ends before its rank has finished means that the process or machine at
// its other end has gone: rank 0 tells everybody, and all ranks end within seconds, also those that compute.
// Tensors travel on other connections, one for each pair of ranks of a communicator, made when the
// communicator is. The thread also accepts those, so that ranks need not arrive in any order.
//
// A connection is nothing before tcp_handshake has shown that both ends know the run's secret: strangers stay
// at the door (tcp_door.h). Every rank listens on one address, that of the run's interface.
#pragma once
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/exit_code.h"
#include "parallel/rendezvous.h"
#include "parallel/tcp_door.h"
#include "parallel/tcp_frames.h"
#include "parallel/tcp_handshake.h"
#include "parallel/tcp_socket.h"

namespace carousel {

struct TcpNodeOptions {
  std::string rendezvous;  // rendezvous.h
  int rank = 0, size = 1;
  std::string secret;  // the same on all ranks, at least kMinSecretBytes
  double meet_seconds = 120;
  // The network of the run: interfaces or networks of this machine, as ChooseAddress wants them
  // (run_interface.h). Empty: where the rendezvous names an address, that one; else the way to other
  // networks.
  std::string interface = {};
};
constexpr size_t kMinSecretBytes = 16;

class TcpNode {
 public:
  // Returns when all ranks have met. Errors name the ranks that are missing, or what this one could not
  // reach.
  static absl::StatusOr<std::unique_ptr<TcpNode>> Start(const TcpNodeOptions& options);
  ~TcpNode();

  int rank() const { return options_.rank; }
  int size() const { return options_.size; }

  // Connections to these ranks of the world, of whom this is one (its own place is left closed). All of them
  // call this with the same number, which no other group has.
  absl::StatusOr<std::vector<Socket>> ConnectGroup(uint64_t group, const std::vector<int>& members);

  // Why the job ends.
  struct Failure {
    std::string text;  // "rank 2 has gone (Connection reset by peer)"
    int exit_code = kExitTransport;
  };
  // A file descriptor that can be read once there is a failure. The thread that communicates should look at
  // it while it waits, take the failure, say what it was doing and call EndJob; else another ends the
  // process.
  int alarm() const { return alarm_.fd(); }
  std::optional<Failure> TakeFailure(TcpClock::duration wait);
  // A connection to this rank has ended: the failure, which may be that another rank has gone.
  Failure Blame(int rank, const std::string& why);

  // Ends all ranks with this code.
  [[noreturn]] void EndJob(int exit_code);
  // Waits until all ranks have called this; then they may go. False if some have not within `limit`.
  bool FinishTogether(TcpClock::duration limit);

 private:
  struct Control {
    Socket socket;
    std::string inbox;
    bool finished = false;
    bool gone = false;  // nothing more is to be read
  };
  using Addresses = std::vector<Endpoint>;

  explicit TcpNode(const TcpNodeOptions& options) : options_(options) {}
  absl::Status Meet();
  absl::Status MeetAsHub(const Rendezvous& rendezvous, TcpClock::time_point deadline);
  absl::Status MeetTheHub(const Rendezvous& rendezvous, TcpClock::time_point deadline);
  using Where = std::function<absl::StatusOr<Addresses>()>;
  absl::StatusOr<Socket> Call(int to, uint64_t group, const Where& where, TcpClock::time_point deadline);
  absl::Status ShakeHands(const Socket& socket, ConnectorHandshake& handshake, TcpClock::time_point deadline);
  absl::StatusOr<Frame> ReceiveFrame(const Socket& socket, FrameType type, size_t max_payload,
                                     TcpClock::time_point deadline);
  // Opens the door at `listener`, and starts the thread.
  void StartThread(Socket listener);
  absl::StatusOr<Endpoint> OwnAddress() const;
  absl::StatusOr<Endpoint> HubAddress(const Rendezvous& rendezvous) const;
  absl::StatusOr<Socket> WaitForCaller(int from, uint64_t group, TcpClock::time_point deadline);

  // Of the thread.
  void Serve();
  void Listen(Control& control, int peer);
  void Mark(Control& control, bool Control::*what);
  std::string Judge(const Introduction& introduction);
  void Fall(const Failure& failure, int told_by);
  void EndProcess();
  void TellOthers(const Failure& failure, int except);

  const TcpNodeOptions options_;
  Socket alarm_, wake_;
  std::unique_ptr<TcpDoor> door_;    // of the thread
  std::vector<Addresses> book_;      // of every rank's listener
  std::map<int, Control> controls_;  // by rank: hub to all, others to the hub; the thread's once watching_
  std::mutex send_mutex_;            // of controls_

  std::mutex mutex_;
  std::condition_variable changed_;
  bool watching_ = false, ends_ = false, reporting_ = false, finished_ = false;
  std::optional<Failure> failure_;
  std::map<std::pair<uint64_t, int>, Socket> arrived_;  // by group and rank, not fetched yet
  std::set<std::pair<uint64_t, int>> known_;            // that were ever accepted
  int64_t num_strangers_ = 0;
  std::string refusal_;  // why a rank that knows the secret was turned away, the first of them
  std::thread thread_;
};
}  // namespace carousel
