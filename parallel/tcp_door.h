// TcpDoor: where callers come in. It listens, and lets in who proves within ten seconds to know the run's
// secret (tcp_handshake.h). What strangers can cost is bounded: so many connections, each with so many bytes
// and seconds. When there are too many, the oldest gives way once it has had time for an honest answer; until
// then the others wait outside.
//
// For a thread that polls: it asks for the file descriptors, polls them with its own, and hands the answer
// back.
#pragma once
#include <poll.h>

#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "parallel/tcp_handshake.h"
#include "parallel/tcp_socket.h"

namespace carousel {

class TcpDoor {
 public:
  static constexpr size_t kMaxCallers = 64;  // that have not proved themselves yet
  static constexpr auto kHandshakeTime = std::chrono::seconds(10);
  static constexpr auto kFairTime = std::chrono::milliseconds(50);  // for each, also in a crowd

  // judge: whether somebody who knows the secret may come in (AcceptorHandshake::Judge).
  TcpDoor(Socket listener, std::string secret, AcceptorHandshake::Judge judge)
      : listener_(std::move(listener)), secret_(std::move(secret)), judge_(std::move(judge)) {}

  const Socket& listener() const { return listener_; }
  // Appends what is to be polled. How long poll may wait at most: milliseconds, -1: any time.
  int AddTo(std::vector<pollfd>* polled) const;
  // `polled`: the entries that AddTo appended, after poll. Calls `welcome` for each who is in.
  using Welcome = std::function<void(const Introduction& who, Socket socket)>;
  void Serve(const pollfd* polled, const Welcome& welcome);

  size_t num_callers() const { return callers_.size(); }    // now at the door
  int64_t num_strangers() const { return num_strangers_; }  // so far, who failed to prove themselves

 private:
  struct Caller {
    Socket socket;
    std::unique_ptr<AcceptorHandshake> handshake;
    TcpClock::time_point since;
  };
  bool IsFull(TcpClock::time_point now) const;
  void AcceptCallers();
  // False: the end of this caller at the door.
  bool Talk(Caller& caller, const Welcome& welcome);

  Socket listener_;
  std::string secret_;
  AcceptorHandshake::Judge judge_;
  std::list<Caller> callers_;
  int64_t num_strangers_ = 0;
};
}  // namespace carousel
