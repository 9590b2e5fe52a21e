#include "parallel/tcp_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace carousel {
namespace {
constexpr int kListenBacklog = 128;

void SetOption(int fd, int level, int name, int value) {
  // A kernel that lacks one of these options works without.
  static_cast<void>(setsockopt(fd, level, name, &value, sizeof value));
}

Endpoint FromAddress(const sockaddr* address, socklen_t length) {
  Endpoint endpoint;
  std::memcpy(&endpoint.address, address, length);
  endpoint.length = length;
  return endpoint;
}

int PollMilliseconds(TcpClock::time_point deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - TcpClock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left + 1, 0, 60000));
}
}  // namespace

std::string ErrnoText(int error) {
  char text[128] = {};
  return strerror_r(error, text, sizeof text);
}

int Endpoint::port() const {
  if (address.ss_family == AF_INET6) {
    return ntohs(reinterpret_cast<const sockaddr_in6*>(&address)->sin6_port);
  }
  return ntohs(reinterpret_cast<const sockaddr_in*>(&address)->sin_port);
}

void Endpoint::set_port(int port) {
  if (address.ss_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6*>(&address)->sin6_port = htons(static_cast<uint16_t>(port));
  } else {
    reinterpret_cast<sockaddr_in*>(&address)->sin_port = htons(static_cast<uint16_t>(port));
  }
}

bool Endpoint::is_loopback() const {
  if (address.ss_family == AF_INET6) {
    const in6_addr& a = reinterpret_cast<const sockaddr_in6*>(&address)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(&a) || (IN6_IS_ADDR_V4MAPPED(&a) && a.s6_addr[12] == 127);
  }
  return ntohl(reinterpret_cast<const sockaddr_in*>(&address)->sin_addr.s_addr) >> 24 == 127;
}

std::string Endpoint::ToString() const {
  char host[NI_MAXHOST] = {};
  if (length == 0 || getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host, sizeof host,
                                 nullptr, 0, NI_NUMERICHOST) != 0) {
    return "?";
  }
  return address.ss_family == AF_INET6 ? absl::StrCat("[", host, "]:", port())
                                       : absl::StrCat(host, ":", port());
}

absl::StatusOr<Endpoint> ParseEndpoint(const std::string& text) {
  const size_t colon = text.rfind(':');
  int port = 0;
  if (colon != std::string::npos && text.size() < 100 && absl::SimpleAtoi(text.substr(colon + 1), &port) &&
      port > 0 && port < 65536) {
    std::string host = text.substr(0, colon);
    if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
    addrinfo hints = {}, *found = nullptr;
    hints.ai_flags = AI_NUMERICHOST;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host.c_str(), nullptr, &hints, &found) == 0) {
      Endpoint endpoint = FromAddress(found->ai_addr, found->ai_addrlen);
      freeaddrinfo(found);
      endpoint.set_port(port);
      return endpoint;
    }
  }
  return absl::InvalidArgumentError(absl::StrCat("'", text.substr(0, 100), "' is no address and port"));
}

absl::StatusOr<std::vector<Endpoint>> ResolveHost(const std::string& host, int port) {
  addrinfo hints = {}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  if (const int error = getaddrinfo(host.c_str(), nullptr, &hints, &found); error != 0) {
    return absl::UnavailableError(absl::StrCat("host '", host, "' is not known: ", gai_strerror(error),
                                               "; is the name right, and known on this machine?"));
  }
  std::vector<Endpoint> endpoints;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    endpoints.push_back(FromAddress(a->ai_addr, a->ai_addrlen));
    endpoints.back().set_port(port);
  }
  freeaddrinfo(found);
  return endpoints;
}

void Socket::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

Endpoint Socket::local() const {
  Endpoint endpoint;
  endpoint.length = sizeof endpoint.address;
  if (getsockname(fd_, reinterpret_cast<sockaddr*>(&endpoint.address), &endpoint.length) != 0) return {};
  return endpoint;
}

Endpoint Socket::remote() const {
  Endpoint endpoint;
  endpoint.length = sizeof endpoint.address;
  if (getpeername(fd_, reinterpret_cast<sockaddr*>(&endpoint.address), &endpoint.length) != 0) return {};
  return endpoint;
}

absl::StatusOr<Socket> Listen(const Endpoint& endpoint) {
  Socket listener(socket(endpoint.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!listener.is_open()) return absl::InternalError(absl::StrCat("socket: ", ErrnoText(errno)));
  SetOption(listener.fd(), SOL_SOCKET, SO_REUSEADDR, 1);  // a port whose last user has gone
  if (endpoint.address.ss_family == AF_INET6) SetOption(listener.fd(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
  if (bind(listener.fd(), reinterpret_cast<const sockaddr*>(&endpoint.address), endpoint.length) != 0 ||
      listen(listener.fd(), kListenBacklog) != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", endpoint.ToString(), ": ", ErrnoText(errno)));
  }
  return listener;
}

absl::StatusOr<Socket> Accept(const Socket& listener) {
  Socket socket(accept4(listener.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (socket.is_open()) {
    SetOption(socket.fd(), IPPROTO_TCP, TCP_NODELAY, 1);
  } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
    return absl::ResourceExhaustedError(absl::StrCat("accept: ", ErrnoText(errno)));
  }
  return socket;  // whatever else went wrong concerns a caller that has gone
}

absl::StatusOr<Socket> Connect(const Endpoint& endpoint, TcpClock::time_point deadline) {
  Socket result(socket(endpoint.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!result.is_open()) return absl::InternalError(absl::StrCat("socket: ", ErrnoText(errno)));
  SetOption(result.fd(), IPPROTO_TCP, TCP_NODELAY, 1);
  int error = 0;
  if (connect(result.fd(), reinterpret_cast<const sockaddr*>(&endpoint.address), endpoint.length) != 0) {
    error = errno;
    if (error == EINPROGRESS) {
      if (!WaitFor(result, POLLOUT, deadline)) {
        return absl::UnavailableError(absl::StrCat(endpoint.ToString(), ": no answer"));
      }
      socklen_t length = sizeof error;
      getsockopt(result.fd(), SOL_SOCKET, SO_ERROR, &error, &length);
    }
  }
  if (error != 0) return absl::UnavailableError(absl::StrCat(endpoint.ToString(), ": ", ErrnoText(error)));
  // Where nobody listens yet, a local port that the kernel chose for this end may be the one that is called.
  if (result.local().ToString() == result.remote().ToString()) {
    return absl::UnavailableError(absl::StrCat(endpoint.ToString(), ": nobody listens"));
  }
  return result;
}

void WatchOtherMachine(const Socket& socket) {
  SetOption(socket.fd(), SOL_SOCKET, SO_KEEPALIVE, 1);
  SetOption(socket.fd(), IPPROTO_TCP, TCP_KEEPIDLE, 4);
  SetOption(socket.fd(), IPPROTO_TCP, TCP_KEEPINTVL, 2);
  SetOption(socket.fd(), IPPROTO_TCP, TCP_KEEPCNT, 3);
  SetOption(socket.fd(), IPPROTO_TCP, TCP_USER_TIMEOUT, 10000);
}

bool WaitFor(const Socket& socket, short events, TcpClock::time_point deadline) {
  while (true) {
    pollfd entry = {.fd = socket.fd(), .events = events, .revents = 0};
    const int n = poll(&entry, 1, PollMilliseconds(deadline));
    if (n > 0) return true;
    if (TcpClock::now() >= deadline) return false;
  }
}

absl::Status SendAll(const Socket& socket, std::string_view bytes, TcpClock::time_point deadline) {
  while (!bytes.empty()) {
    const ssize_t n = send(socket.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n > 0) {
      bytes.remove_prefix(static_cast<size_t>(n));
    } else if (n < 0 && errno == EAGAIN) {
      if (!WaitFor(socket, POLLOUT, deadline)) return absl::DeadlineExceededError("does not read");
    } else if (n < 0 && errno != EINTR) {
      return absl::UnavailableError(ErrnoText(errno));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<size_t> ReceiveSome(const Socket& socket, void* bytes, size_t count) {
  while (true) {
    const ssize_t n = recv(socket.fd(), bytes, count, 0);
    if (n > 0) return static_cast<size_t>(n);
    if (n == 0) return absl::UnavailableError("connection closed by the other end");
    if (errno == EAGAIN) return size_t{0};
    if (errno != EINTR) return absl::UnavailableError(ErrnoText(errno));
  }
}

absl::Status ReceiveAll(const Socket& socket, void* bytes, size_t count, TcpClock::time_point deadline) {
  for (size_t done = 0; done < count;) {
    const absl::StatusOr<size_t> n = ReceiveSome(socket, static_cast<char*>(bytes) + done, count - done);
    if (!n.ok()) return n.status();
    done += *n;
    if (*n == 0 && !WaitFor(socket, POLLIN, deadline)) {
      return absl::DeadlineExceededError("no answer in time");
    }
  }
  return absl::OkStatus();
}
}  // namespace carousel
