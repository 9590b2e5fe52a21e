// Heartbeat: the connections while the run goes on. How they are made is in heartbeat_start.cc.
#include "parallel/heartbeat.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/base/exit_code.h"
#include "parallel/tcp_frames.h"

namespace carousel {
namespace {
using std::chrono::milliseconds;

constexpr size_t kMaxOutbox = 4096;  // beyond it nobody reads, and further signs of life are left out
constexpr auto kGoodbyeTime = milliseconds(500);
// Nodes wait longer for rank 0 than it for them: where two nodes cannot hear each other, it is heard first.
constexpr double kPatienceWithHub = 1.25;

TcpClock::duration FromSeconds(double seconds) {
  return std::chrono::duration_cast<TcpClock::duration>(std::chrono::duration<double>(seconds));
}
double ToSeconds(TcpClock::duration duration) { return std::chrono::duration<double>(duration).count(); }
}  // namespace

std::string MakeLossText(const HeartbeatLoss& loss) {
  return absl::StrCat(absl::StrJoin(loss.suspect_hosts, ","), "\n", loss.text);
}
HeartbeatLoss ParseLossText(const std::string& text) {
  const size_t end = text.find('\n');
  if (end == std::string::npos) return {.text = text};
  return {.text = text.substr(end + 1),
          .suspect_hosts = absl::StrSplit(text.substr(0, end), ',', absl::SkipEmpty())};
}

Heartbeat::~Heartbeat() {
  ends_ = true;
  const uint64_t one = 1;
  if (wake_.is_open()) static_cast<void>(!write(wake_.fd(), &one, sizeof one));
  if (thread_.joinable()) thread_.join();
}

// Signals are for the other threads.
void Heartbeat::StartThread() {
  wake_ = Socket(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  for (Link& link : links_) link.heard = TcpClock::now();
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { Run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Heartbeat::Run() {
  const TcpClock::duration interval = FromSeconds(std::min(1.0, options_.limit_seconds / 4));
  TcpClock::time_point last_turn = TcpClock::now(), next_beat = last_turn;
  TcpClock::time_point end = TcpClock::time_point::max();
  std::vector<pollfd> polled;
  while (true) {
    polled.assign(1, {.fd = wake_.fd(), .events = POLLIN, .revents = 0});
    for (const Link& link : links_) {
      polled.push_back({.fd = link.open ? link.socket.fd() : -1, .events = POLLIN, .revents = 0});
    }
    const auto wait = std::chrono::duration_cast<milliseconds>(interval / 2);
    poll(polled.data(), polled.size(), std::max(1, static_cast<int>(wait.count())));
    const TcpClock::time_point now = TcpClock::now();
    // What was said meanwhile is there to be read. Only where this process was stopped, the others may have
    // been as well: a machine that was suspended, a job that its scheduler paused.
    if (now - last_turn > 4 * interval) {
      for (Link& link : links_) link.heard += now - last_turn;
    }
    last_turn = now;
    for (size_t i = 0; i < links_.size(); ++i) {
      if (polled[i + 1].revents != 0) Listen(links_[i]);
    }
    if (ends_) {
      if (end == TcpClock::time_point::max()) {
        end = now + kGoodbyeTime;
        Beat(MakeFrame(FrameType::kFinished, ""));
        uint64_t count = 0;
        static_cast<void>(!read(wake_.fd(), &count, sizeof count));
        for (const Link& link : links_) shutdown(link.socket.fd(), SHUT_WR);
      }
      // To close while the other end still speaks could lose the goodbye on its way.
      const bool alone =
          std::none_of(links_.begin(), links_.end(), [](const Link& link) { return link.open; });
      if (alone || now >= end) return;
      continue;
    }
    if (now >= next_beat) {
      Beat(MakeFrame(FrameType::kBeat, ""));
      next_beat = now + interval;
    }
    LookForSilence(now);
    if (death_seen_ && now - death_time_ >= FromSeconds(options_.grace_seconds)) Lose(death_, nullptr);
  }
}

void Heartbeat::Beat(const std::string& frame) {
  for (Link& link : links_) {
    if (!link.open) continue;
    if (link.outbox.size() < kMaxOutbox) link.outbox += frame;
    Flush(link);
  }
}

// As much as the connection takes now. That it has ended is noticed by who reads.
void Heartbeat::Flush(Link& link) {
  while (!link.outbox.empty()) {
    const ssize_t n =
        send(link.socket.fd(), link.outbox.data(), link.outbox.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    link.outbox.erase(0, static_cast<size_t>(n));
  }
}

void Heartbeat::Listen(Link& link) {
  char bytes[4096];
  const absl::StatusOr<size_t> n = ReceiveSome(link.socket, bytes, sizeof bytes);
  const auto died = [&](const std::string& why) {
    link.open = false;
    if (ends_ || death_seen_ || lost_) return;
    death_seen_ = true;
    death_time_ = TcpClock::now();
    death_ = {
        .text = absl::StrCat(link.name, " has gone (", why, ")"), .suspect_hosts = {link.host}, .died = true};
    if (options_.on_death != nullptr) options_.on_death(death_);
  };
  if (!n.ok()) {
    died(std::string(n.status().message()));
    return;
  }
  if (*n == 0) return;
  link.heard = TcpClock::now();
  link.inbox.append(bytes, *n);
  while (link.open) {
    const absl::StatusOr<std::optional<Frame>> frame = TakeFrame(&link.inbox, kMaxEndBytes);
    if (frame.ok() && !frame->has_value()) return;
    if (frame.ok() && (*frame)->type == FrameType::kBeat && (*frame)->payload.empty()) continue;
    if (frame.ok() && (*frame)->type == FrameType::kFinished) {
      link.open = false;
      return;
    }
    const std::optional<EndFrame> end = frame.ok() ? ParseEnd(**frame) : std::nullopt;
    if (end.has_value()) {
      link.open = false;
      Lose(ParseLossText(end->text), &link);
      return;
    }
    died("sent what is no message of this program");
  }
}

void Heartbeat::LookForSilence(TcpClock::time_point now) {
  const TcpClock::duration limit = FromSeconds(options_.limit_seconds);
  const TcpClock::duration interval = FromSeconds(std::min(1.0, options_.limit_seconds / 4));
  const Link* silent = nullptr;
  size_t num_nodes = 0, num_silent_nodes = 0;
  for (const Link& link : links_) {
    if (!link.open) continue;
    const TcpClock::duration silence = now - link.heard;
    if (silent == nullptr && silence > (link.is_hub ? limit * kPatienceWithHub : limit)) silent = &link;
    num_nodes += link.is_node;
    num_silent_nodes += link.is_node && silence > limit - 2 * interval;
  }
  if (silent == nullptr) return;
  const std::string how = absl::StrFormat("no sign of life for %.3g s, the limit is %.4g s",
                                          ToSeconds(now - silent->heard), options_.limit_seconds);
  HeartbeatLoss loss = {.text = absl::StrCat(silent->name, " has given ", how),
                        .suspect_hosts = {silent->host}};
  if (silent->is_node && num_nodes > 1 && num_silent_nodes == num_nodes) {
    loss = {.text = absl::StrCat("none of the other ", num_nodes, " nodes has given this one, ", host_,
                                 ", a sign of life (", how, "): it seems to be cut off"),
            .suspect_hosts = {host_}};
  } else if (silent->is_hub) {
    absl::StrAppend(&loss.text, "; or this node, ", host_, ", is cut off");
  }
  Lose(loss, nullptr);
}

void Heartbeat::Lose(const HeartbeatLoss& loss, const Link* except) {
  if (lost_) return;
  lost_ = true;
  const std::string frame = MakeEnd({.exit_code = kExitTransport, .text = MakeLossText(loss)});
  for (Link& link : links_) {
    if (&link == except || !link.open) continue;
    link.outbox += frame;  // behind what may be under way
    Flush(link);
  }
  if (options_.on_loss != nullptr) options_.on_loss(loss);
}
}  // namespace carousel
