// Which of a machine's addresses a run uses between its nodes: what listens there listens on that one only.
#pragma once
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/tcp_socket.h"

namespace carousel {

// One of a machine's addresses and the network that it belongs to.
struct InterfaceAddress {
  std::string interface = {};  // "eth0"
  Endpoint address = {};       // port 0
  int prefix_bits = 0;         // of the network

  std::string ToString() const;  // "eth0 10.0.0.1/24"
};
// Of what ToString gives.
absl::StatusOr<InterfaceAddress> ParseInterfaceAddress(const std::string& text);
// This machine's addresses that others may reach: of interfaces that are up, not loopback, not link-local.
std::vector<InterfaceAddress> OwnInterfaceAddresses();

// The address of node `node` under which the others shall reach it, by the addresses of all nodes. `wanted`:
// names of interfaces and networks ("eth0,10.1.0.0/16"), of which the first that the node has counts; empty:
// any. Of those that are left it is one that no other node has too (as container bridges do), if possible one
// whose network the others share, IPv4 before IPv6, the first. InvalidArgument where nothing is wanted that
// the node has, or `wanted` is malformed; FailedPrecondition where all its addresses are others' as well.
absl::StatusOr<Endpoint> ChooseAddress(const std::vector<std::vector<InterfaceAddress>>& nodes, size_t node,
                                       const std::string& wanted);
}  // namespace carousel
