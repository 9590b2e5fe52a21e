// Ranks as processes that talk over TCP, tensors in host memory: a run over several machines, or several
// processes of one, without MPI. Also the host communicator that NCCL starts from. The collectives, their
// bits and their limits are those of peer_communicator.h.
//
// - Ranks find each other through rank 0 (rendezvous.h) and prove to each other that they know a secret that
//   the user gives all of them (tcp_handshake.h): a process that does not know it is not listened to. What is
//   sent afterwards is neither encrypted nor signed: the network between the machines must be trusted.
// - A rank that dies ends all others within seconds (tcp_node.h), and each says in which call it was; a
// machine
//   that vanishes does so after about ten.
// - One connection for each pair of ranks of a communicator: messages of a pair are in order, and one has a
//   header that says what it is, so that another call at the other end is an error and not wrong data.
//   Nothing is buffered beyond what the sockets hold.
// - Waiting polls for some microseconds and then sleeps in the kernel.
#pragma once
#include <memory>

#include "absl/status/statusor.h"
#include "parallel/peer_communicator.h"
#include "parallel/session.h"
#include "parallel/tcp_node.h"

namespace carousel {

struct TcpOptions {
  TcpNodeOptions node;
  PeerOptions peer = {};
};

// Collective over all ranks of the run. One process may hold several sessions (the tests do).
absl::StatusOr<std::unique_ptr<Session>> StartTcpSession(const TcpOptions& options);
}  // namespace carousel
