// Where the ranks of a run without MPI find rank 0.
#pragma once
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/tcp_socket.h"

namespace carousel {

// tcp://HOST:PORT: rank 0 listens there. file:/DIRECTORY: rank 0 listens on a port that the system chooses
// and writes its addresses into a file of this directory, which all ranks can see.
struct Rendezvous {
  std::string host;  // empty: file
  int port = 0;
  std::string directory;
  bool is_file() const { return host.empty(); }
};
absl::StatusOr<Rendezvous> ParseRendezvous(const std::string& text);

// The file of a directory. It is written under another name and renamed, only its owner may read it (mode
// 0600), and it bears a keyed hash: what other runs or users left there is not believed.
std::string AddressFile(const std::string& directory);
absl::Status WriteAddresses(const std::string& directory, const std::string& secret,
                            const std::vector<Endpoint>& addresses);
// Unavailable if there is no such file (yet), or not one of this run.
absl::StatusOr<std::vector<Endpoint>> ReadAddresses(const std::string& directory, const std::string& secret);
}  // namespace carousel
