// Sockets of the TCP transport: owned, non-blocking, with deadlines.
#pragma once
#include <netinet/in.h>
#include <sys/socket.h>

#include <chrono>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace carousel {

using TcpClock = std::chrono::steady_clock;

// An address and a port, IPv4 or IPv6.
struct Endpoint {
  sockaddr_storage address = {};
  socklen_t length = 0;

  int port() const;
  void set_port(int port);
  bool is_loopback() const;
  std::string ToString() const;  // "10.0.0.1:4242", "[fe80::1]:4242"
};
// Of what ToString gives. Numbers only, no names.
absl::StatusOr<Endpoint> ParseEndpoint(const std::string& text);
// The addresses of a host, given by name or number.
absl::StatusOr<std::vector<Endpoint>> ResolveHost(const std::string& host, int port);
// A file descriptor with one owner.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() { Close(); }
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    if (this != &other) {
      Close();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  int fd() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }
  void Close();
  Endpoint local() const;
  Endpoint remote() const;

 private:
  int fd_ = -1;
};

// A listening socket. Unavailable if the port is in use.
absl::StatusOr<Socket> Listen(const Endpoint& endpoint);
// The next connection that waits; not open if there is none. An error where there are too many open files.
absl::StatusOr<Socket> Accept(const Socket& listener);
// Connects, or Unavailable (refused, unreachable, deadline).
absl::StatusOr<Socket> Connect(const Endpoint& endpoint, TcpClock::time_point deadline);
// Makes a dead machine at the other end an error after about ten seconds without a sign of life.
void WatchOtherMachine(const Socket& socket);

// All bytes, or an error: DeadlineExceeded, or Unavailable where the connection ended.
absl::Status SendAll(const Socket& socket, std::string_view bytes, TcpClock::time_point deadline);
absl::Status ReceiveAll(const Socket& socket, void* bytes, size_t count, TcpClock::time_point deadline);
// One read of at most `count` bytes; 0: nothing there now. Unavailable where the connection ended.
absl::StatusOr<size_t> ReceiveSome(const Socket& socket, void* bytes, size_t count);
// Waits until one of `events` (poll's) is there. False at the deadline.
bool WaitFor(const Socket& socket, short events, TcpClock::time_point deadline);

// "connection closed by the other end", "Connection reset by peer", ...
std::string ErrnoText(int error);
}  // namespace carousel
