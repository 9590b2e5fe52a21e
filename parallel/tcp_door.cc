#include "parallel/tcp_door.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/status/status.h"

namespace carousel {
namespace {
constexpr int kLookMilliseconds = 200;  // for deadlines, while somebody is at the door
constexpr int kCrowdMilliseconds = 10;
}  // namespace

bool TcpDoor::IsFull(TcpClock::time_point now) const {
  return callers_.size() >= kMaxCallers && now - callers_.front().since < kFairTime;
}

int TcpDoor::AddTo(std::vector<pollfd>* polled) const {
  const bool full = IsFull(TcpClock::now());
  polled->push_back({.fd = full ? -1 : listener_.fd(), .events = POLLIN, .revents = 0});
  for (const Caller& caller : callers_) {
    polled->push_back({.fd = caller.socket.fd(), .events = POLLIN, .revents = 0});
  }
  return full ? kCrowdMilliseconds : callers_.empty() ? -1 : kLookMilliseconds;
}

void TcpDoor::Serve(const pollfd* polled, const Welcome& welcome) {
  const TcpClock::time_point now = TcpClock::now();
  const bool knocks = polled->revents != 0;
  for (auto caller = callers_.begin(); caller != callers_.end();) {
    ++polled;
    bool stays = polled->revents == 0 || Talk(*caller, welcome);
    if (stays && now - caller->since >= kHandshakeTime) {
      ++num_strangers_;
      stays = false;
    }
    caller = stays ? std::next(caller) : callers_.erase(caller);
  }
  if (knocks) AcceptCallers();
}

void TcpDoor::AcceptCallers() {
  // Not for ever: whoever polls has other things to do.
  for (size_t i = 0; i < kMaxCallers && !IsFull(TcpClock::now()); ++i) {
    absl::StatusOr<Socket> socket = Accept(listener_);
    if (!socket.ok()) {  // too many open files: whoever has not proved itself gives way
      if (callers_.empty()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      } else {
        callers_.pop_front();
        ++num_strangers_;
      }
      return;
    }
    if (!socket->is_open()) return;
    if (callers_.size() >= kMaxCallers) {
      callers_.pop_front();
      ++num_strangers_;
    }
    callers_.push_back({.socket = std::move(*socket),
                        .handshake = std::make_unique<AcceptorHandshake>(secret_, RandomNonce(), judge_),
                        .since = TcpClock::now()});
  }
}

bool TcpDoor::Talk(Caller& caller, const Welcome& welcome) {
  char bytes[256];
  AcceptorHandshake& handshake = *caller.handshake;
  const absl::StatusOr<size_t> n =
      ReceiveSome(caller.socket, bytes, std::min(sizeof bytes, handshake.wanted()));
  if (!n.ok()) {
    ++num_strangers_;
    return false;
  }
  handshake.Feed({bytes, *n});
  // These few bytes fit into the socket's buffer; whoever made it full is not one of us.
  const bool sent = SendAll(caller.socket, handshake.TakeOutput(), TcpClock::now()).ok();
  if (sent && handshake.state() == Handshake::State::kGoesOn) return true;
  if (sent && handshake.state() == Handshake::State::kDone) {
    welcome(handshake.introduction(), std::move(caller.socket));
  } else {
    ++num_strangers_;
  }
  return false;
}
}  // namespace carousel
